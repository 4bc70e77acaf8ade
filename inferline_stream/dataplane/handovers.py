"""What replicas of a stage tell each other of partitions that move, so that none of them waits for a commit.

The owner of a partition that is to move works on until its heir has begun to read it ahead; then it lets the partition
go, says so, and commits. The heir begins at that word. Whatever is not heard of is seen by its commit, only later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from inferline_stream.dataplane.offsets import decode_metadata
from inferline_stream.dataplane.protocol import ReadAhead, Release, decode_handover, encode

Taken = tuple[int, int]
"""Term and sequence of the assignment that takes a partition from its owner: it names one handover."""


class Handovers:
    """Tells and hears.

    Args:
        stage: others' handovers are none of ours.
        send: sends an encoded record.
    """

    def __init__(self, stage: str, send: Callable[[bytes], Coroutine[Any, Any, object]]) -> None:
        self._stage = stage
        self._send = send
        self._sending: set[asyncio.Task[object]] = set()
        self._read_ahead: dict[int, Taken] = {}
        self._released: dict[int, tuple[int, str]] = {}

    def tell_read_ahead(self, awaits: Mapping[int, Taken], partitions: Iterable[int]) -> None:
        """The owners of these partitions may let them go."""
        self._tell(ReadAhead(self._stage, {partition: awaits[partition] for partition in partitions}))

    def tell_released(self, offsets: dict[int, tuple[int, str]]) -> None:
        """The heirs of these partitions may begin: this is about to be committed."""
        self._tell(Release(self._stage, offsets))

    def _tell(self, told: ReadAhead | Release) -> None:
        """Send, and do not wait for it."""
        task = asyncio.create_task(self._send(encode(told)))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def hear(self, value: bytes) -> None:
        """Take note of what a replica tells."""
        told = decode_handover(value)
        if told.stage != self._stage:
            return
        if isinstance(told, ReadAhead):
            self._read_ahead.update(told.awaits)
        else:
            self._released.update(told.offsets)

    def is_read_ahead(self, partition: int, taken: Taken) -> bool:
        """Whether this handover's heir has begun to read."""
        return self._read_ahead.get(partition) == taken

    def released(self, partition: int, taken: Taken, heir: str) -> tuple[int, str] | None:
        """Offset and metadata that this handover's last owner commits, where it has let the partition go to that heir.

        An owner that died before with the same events under way must be told of by a commit, lest it be forgotten.
        """
        entry = self._released.get(partition)
        found = decode_metadata(*entry) if entry is not None else None
        known = found is not None and (found.freed, found.owner) == (taken, heir) and not found.attempts
        return entry if known else None
