"""Records as they are read and sent: what they hold, how large they are, where they go, and how sending fails."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from inferline_stream.errors import InferlineError

Header = tuple[str, bytes]

LIMIT_BYTES = 1_048_588
"""Kafka's `max.message.bytes` by default: the largest batch, even of one record, that a topic takes."""

PRODUCE_BATCH_BYTES = 512 * 1024
"""Bytes per partition and produce request; a topic's `max.message.bytes` is 1 MiB by default."""

TRANSACTION_TIMEOUT_MS = 10_000
"""A transaction holds sends only, never the stage's work. What a dead dispatcher left open hides what comes after it
from readers for at most this long, if nobody fences it before."""

_BATCH_BYTES, _HEADER_BYTES = 128, 10
"""What a batch of one record, and each of its headers, take beyond their contents, at most."""

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF
_words = [struct.Struct(f"<{count}I").unpack_from for count in range(65)]


class Fenced(InferlineError):
    """Another producer has initialised this transactional id: whatever this one does from now on is void."""


class KafkaFailed(InferlineError):
    """Kafka refuses something for good, so that trying again is no use."""


class RecordsGone(InferlineError):
    """Kafka no longer has a record, or has only damage in its place."""


class Record(NamedTuple):
    """A record that was read, or one to write."""

    key: bytes | None
    value: bytes | None
    """None deletes the key from a compacted topic. `fetched_batches.SkippedBatch`, in the place of a batch that could
    not be unpacked."""
    headers: Sequence[Header] = ()
    timestamp_ms: int | None = None
    """Milliseconds since the epoch. None in formats older than Kafka 0.10; where it is to write, for now."""
    topic: str = ""
    partition: int = 0
    offset: int = -1

    @classmethod
    def keyed(cls, topic: str, key: str, value: bytes | None, partition: int = 0) -> Record:
        """Make a record to write; most topics that are written so have one partition."""
        return cls(key.encode(), value, topic=topic, partition=partition)

    @property
    def time_ms(self) -> int:
        """Its timestamp, milliseconds since the epoch; -1 where it has none, as Kafka has it."""
        return -1 if self.timestamp_ms is None else self.timestamp_ms

    def header(self, name: str) -> bytes | None:
        """Return what the last header of a name says; None where there is none."""
        return next((value for found, value in reversed(self.headers) if found == name), None)


Outgoing = Mapping[tuple[str, int], Sequence[Record]]
"""Records by topic and partition."""


def record_bytes(key: bytes | None, value: bytes | None, headers: Iterable[Header]) -> int:
    """Most bytes that a batch of this one record has."""
    size_bytes = _BATCH_BYTES + len(key or b"") + len(value or b"")
    for name, content in headers:
        size_bytes += len(name) + len(content or b"") + _HEADER_BYTES
    return size_bytes


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 of a key (org.apache.kafka.common.utils.Utils.murmur2), unsigned."""
    length = len(data)
    count = length >> 2
    words = _words[count](data) if count < len(_words) else struct.unpack_from(f"<{count}I", data)
    h = _SEED ^ length
    for word in words:
        k = word * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if rest := length & 3:
        h = (h ^ int.from_bytes(data[length - rest :], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner of the Java client gives a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
