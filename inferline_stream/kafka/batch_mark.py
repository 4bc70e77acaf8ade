"""Which batch a dispatcher is taking in, in memory that its supervisor reads once the dispatcher has died.

A crash of a parser, or the kernel for lack of memory, ends a process without a word. The supervisor passes the memory's
descriptor along with the dispatcher's spec, and keeps its own.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from inferline_stream.pipeline.event_classes import CLASS_STRIDE, class_of

if TYPE_CHECKING:
    from aiokafka import TopicPartition

_MARK = struct.Struct("<dqIiB")
"""CPU time of the process so far, base offset, checksum, partition, and whether they count: written last."""
_COUNTS_AT = _MARK.size - 1


class BatchId(msgspec.Struct, frozen=True):
    """One batch of a stage's input."""

    partition: int
    base_offset: int
    checksum: int
    """As the producer computed it: a topic that was created again has other batches at the same offsets."""


def mark_file() -> int:
    """Return the descriptor of memory for a mark."""
    file = os.memfd_create("batch-mark")
    os.ftruncate(file, _MARK.size)
    return file


def marked_in(file: int) -> BatchId | None:
    """Return the batch that was being taken in. The process that wrote it may have been anything in the end."""
    data = os.pread(file, _MARK.size, 0)  # not mapped: its other owner could shorten it under us
    if len(data) < _MARK.size:
        return None
    _, base_offset, checksum, partition, counts = _MARK.unpack(data)
    return BatchId(partition, base_offset, checksum) if counts else None


def ran_before_s(file: int) -> float:
    """Return the CPU time, in seconds, that the process had taken when it set its mark."""
    data = os.pread(file, _MARK.size, 0)
    return float(_MARK.unpack(data)[0]) if len(data) >= _MARK.size else 0.0


class MarkedBatch(Protocol):
    """What a mark needs of a batch."""

    place: TopicPartition
    base_offset: int
    next_offset: int
    checksum: int


class BatchWatch:
    """Marks the batch that is being unpacked or taken in, and knows those that must not be.

    Args:
        topics: only their batches are marked, of each class of events; see `event_classes`.
        file: descriptor of the mark, which this owns now; -1 for memory that nobody else sees.
        deadly: batches that ended dispatchers.
    """

    def __init__(self, topics: Sequence[str], file: int = -1, deadly: tuple[BatchId, ...] = ()) -> None:
        self._first = {topic: at * CLASS_STRIDE for at, topic in enumerate(topics)}
        self._mark = mmap.mmap(file, _MARK.size)
        if file >= 0:
            os.close(file)
        self._deadly = frozenset(deadly)
        self._unpacked: dict[int, list[MarkedBatch]] = {}
        """By partition, as dispatchers number them, those whose records are not all taken in yet."""

    def is_deadly(self, batch: MarkedBatch) -> bool:
        """Return whether a batch ended dispatchers."""
        return bool(self._deadly) and batch.place.topic in self._first and self._id_of(batch) in self._deadly

    def unpacks(self, batch: MarkedBatch) -> None:
        """Mark a batch from which records are about to be unpacked."""
        if batch.place.topic in self._first:
            self._unpacked.setdefault(self._id_of(batch).partition, []).append(batch)
            self._set(batch)

    def takes_in(self, partition: int, offset: int) -> int:
        """Mark the batch of a record that is about to be taken in; return the batch's last offset."""
        batches = self._unpacked.get(partition, [])
        while batches and batches[0].next_offset <= offset:
            del batches[0]
        if not batches:
            return offset
        self._set(batches[0])
        return batches[0].next_offset - 1

    def rests(self) -> None:
        """Clear the mark: no batch is being unpacked or taken in."""
        self._mark[_COUNTS_AT] = 0

    def done(self, class_number: int = 0) -> None:
        """Clear the mark, and forget what was unpacked of a class: it is taken in, or of no use."""
        self.rests()
        self._unpacked = {each: left for each, left in self._unpacked.items() if class_of(each) != class_number}

    def _set(self, batch: MarkedBatch) -> None:
        self.rests()
        ran_s = time.process_time()
        _MARK.pack_into(self._mark, 0, ran_s, batch.base_offset, batch.checksum, self._id_of(batch).partition, 1)

    def _id_of(self, batch: MarkedBatch) -> BatchId:
        return BatchId(self._first[batch.place.topic] + batch.place.partition, batch.base_offset, batch.checksum)
