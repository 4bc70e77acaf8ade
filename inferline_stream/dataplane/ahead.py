"""Partitions that are read while their owner has yet to let them go, so that nothing is fetched once it has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from inferline_stream.dataplane.client import Reader

AHEAD_BYTES = 1024 * 1024
"""Records that wait for their partition; beyond it no more are fetched of any such partition."""


class Ahead:
    """Records of partitions that are not held yet.

    Args:
        reader: reads them as if they were held.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._records: dict[int, list[Any]] = {}
        self._stopped: set[int] = set()
        self._size_bytes = 0

    def __contains__(self, partition: object) -> bool:
        return partition in self._records

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def begin(self, partitions: Iterable[int]) -> None:
        """Take note of partitions that the reader is told to read."""
        self._records.update({partition: [] for partition in partitions})

    def add(self, partition: int, records: Sequence[Any]) -> None:
        """Keep what was read of one of them."""
        self._records[partition].extend(records)
        self._size_bytes += sum(len(record.value or b"") for record in records)

    def take(self, partition: int) -> list[Any] | None:
        """What was read so far: the reader goes on from there. None where that failed: it does not read this one."""
        records = self._records.pop(partition)
        self._size_bytes -= sum(len(record.value or b"") for record in records)
        if partition in self._stopped:
            self._stopped.remove(partition)
            return None
        return records

    def stop(self, partition: int) -> None:
        """Read one no more: Kafka does not have what was to be read."""
        self._stopped.add(partition)
        self._reader.release([partition])

    def drop(self, partitions: Iterable[int]) -> None:
        """Read them no more and forget what was read."""
        dropped = [partition for partition in partitions if partition in self._records]
        for partition in dropped:
            self.take(partition)
        self._reader.release(dropped)

    def full(self) -> frozenset[int]:
        """Partitions of which enough was read."""
        return frozenset(self._records) if self._size_bytes >= AHEAD_BYTES else frozenset()
