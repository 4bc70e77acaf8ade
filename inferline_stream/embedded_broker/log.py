"""The log of one partition: append with the idempotence checks, read by isolation level, search by time, compact.

For idempotence it remembers which batches of each producer it already holds, and which epochs are fenced.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from aiokafka.errors import (
    InvalidProducerEpoch,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumber,
    UnknownError,
)
from aiokafka.record.default_records import DefaultRecord

from inferline_stream.embedded_broker.record_batch import RecordBatch, marker
from inferline_stream.embedded_broker.topic_settings import TopicSettings

_SEQUENCES = 2**31  # sequence numbers wrap around to 0
_UNDER_WAY = 5  # batches that a producer may have under way in one partition


@dataclass(frozen=True, slots=True)
class Appended:
    """Where a batch went. `timestamp_ms` is -1 where the records' own timestamps count."""

    base_offset: int
    timestamp_ms: int


@dataclass(slots=True)
class _ProducerState:
    epoch: int
    next_sequence: int | None = None  # None: any will do, as after a marker or for a producer never seen
    recent: deque[tuple[int, int, Appended]] = field(default_factory=lambda: deque(maxlen=_UNDER_WAY))


class ProducerStates:
    """What one partition remembers of the producers that wrote to it."""

    def __init__(self) -> None:
        self._states: dict[int, _ProducerState] = {}

    def check(self, batch: RecordBatch) -> Appended | None:
        """Where this very batch was appended before, or None if it may be appended now."""
        state = self._states.get(batch.producer_id)
        if batch.producer_id < 0 or state is None:
            return None
        if batch.producer_epoch < state.epoch:
            raise InvalidProducerEpoch
        if batch.producer_epoch > state.epoch:
            if batch.base_sequence != 0:
                raise OutOfOrderSequenceNumber
            return None
        for first, count, place in state.recent:
            if (first, count) == (batch.base_sequence, batch.record_count):
                return place
        if state.next_sequence is not None and batch.base_sequence != state.next_sequence:
            raise OutOfOrderSequenceNumber
        return None

    def remember(self, batch: RecordBatch, place: Appended) -> None:
        """Note that a batch was appended."""
        if batch.producer_id < 0:
            return
        state = self._states.get(batch.producer_id)
        if state is None or state.epoch != batch.producer_epoch:
            state = self._states[batch.producer_id] = _ProducerState(batch.producer_epoch)
        state.next_sequence = (batch.base_sequence + batch.last_offset - batch.base_offset + 1) % _SEQUENCES
        state.recent.append((batch.base_sequence, batch.record_count, place))

    def fence(self, producer_id: int, epoch: int) -> None:
        """Refuse epochs before this one; its own sequence goes on."""
        state = self._states.get(producer_id)
        if state is None or state.epoch < epoch:
            self._states[producer_id] = _ProducerState(epoch)


@dataclass(frozen=True, slots=True)
class Aborted:
    """An aborted transaction of a partition: its first record and its marker."""

    producer_id: int
    first_offset: int
    last_offset: int


@dataclass(frozen=True, slots=True)
class Read:
    """Batches from an offset on, and the aborted transactions among them."""

    data: bytes
    aborted: list[Aborted]


class PartitionLog:
    """The records of one partition, in memory.

    Attributes:
        settings: the topic's settings; they may be replaced.
        start_offset: the earliest record that is still there.
        end_offset: the offset of the next record; Kafka's high watermark, as there is only one copy.
        watchers: futures that are done at the next change of the log.
    """

    def __init__(self, settings: TopicSettings) -> None:
        self.settings = settings
        self.start_offset = 0
        self.end_offset = 0
        self.watchers: set[asyncio.Future[None]] = set()
        self._batches: list[RecordBatch] = []
        self._producers = ProducerStates()
        self._aborted: list[Aborted] = []
        self._open: dict[int, int] = {}  # producer id → first offset of its open transaction
        self._size_bytes = 0
        self._active_from = 0  # first offset of the active segment, which is neither compacted nor deleted
        self._active_since_ms = 0
        self._active_bytes = 0
        self._clean_to = 0  # compacted up to this offset

    @property
    def last_stable_offset(self) -> int:
        """The end of what is decided: the first record of the earliest open transaction, or the end."""
        return min(self._open.values(), default=self.end_offset)

    def append(self, batch: RecordBatch) -> Appended:
        """Append a produced batch; a duplicate of an earlier one is acknowledged and not appended."""
        if len(batch.data) > self.settings.max_message_bytes:
            raise MessageSizeTooLargeError
        if "compact" in self.settings.cleanup_policy and any(record.key is None for record in batch.records()):
            raise UnknownError("a compacted topic holds no records without a key")  # Kafka: 87, unknown to aiokafka
        if (earlier := self._producers.check(batch)) is not None:
            return earlier
        now_ms = _now_ms() if self.settings.message_timestamp_type == "LogAppendTime" else None
        kept = self._append(batch.at(self.end_offset, now_ms))
        if kept.is_transactional:
            self._open.setdefault(kept.producer_id, kept.base_offset)
        place = Appended(kept.base_offset, -1 if now_ms is None else now_ms)
        self._producers.remember(batch, place)
        self.wake()
        return place

    def end_transaction(self, producer_id: int, epoch: int, *, committed: bool) -> None:
        """Write the marker that makes a producer's records count, or not; older epochs are fenced from then on."""
        end = self._append(marker(producer_id, epoch, committed=committed, timestamp_ms=_now_ms()).at(self.end_offset))
        self._producers.fence(producer_id, epoch)
        first_offset = self._open.pop(producer_id, None)
        if not committed and first_offset is not None:
            self._aborted.append(Aborted(producer_id, first_offset, end.base_offset))
        self.wake()

    def read(self, offset: int, max_bytes: int, *, committed: bool, at_least_one: bool) -> Read:
        """Whole batches, from the one that holds an offset on.

        Args:
            offset: where to begin.
            max_bytes: most bytes of batches.
            committed: only up to the last stable offset.
            at_least_one: the first batch comes even if it is larger than `max_bytes`.
        """
        if not self.start_offset <= offset <= self.end_offset:
            raise OffsetOutOfRangeError
        limit = self.last_stable_offset if committed else self.end_offset
        found: list[bytes] = []
        size_bytes, upper = 0, offset
        for position in range(self._position(offset), len(self._batches)):
            batch = self._batches[position]
            size_bytes += len(batch.data)
            if batch.base_offset >= limit or (size_bytes > max_bytes and (found or not at_least_one)):
                break
            found.append(batch.data)
            upper = batch.last_offset
        return Read(b"".join(found), _aborted_among(self._aborted, offset, upper) if found and committed else [])

    def offset_at(self, timestamp_ms: int) -> tuple[int, int] | None:
        """Timestamp and offset of the first record at or after a time, or None."""
        for batch in self._batches:
            if batch.max_timestamp_ms >= timestamp_ms and not batch.is_control:
                if batch.first_timestamp_ms >= timestamp_ms:  # its records need not be decompressed, or cannot be
                    return batch.first_timestamp_ms, batch.base_offset
                for record in batch.records():
                    if record.timestamp >= timestamp_ms:
                        return record.timestamp, record.offset
        return None

    def wake(self) -> None:
        """Tell the watchers that the log has changed, or is gone."""
        for change in self.watchers:
            if not change.done():
                change.set_result(None)

    def _position(self, offset: int) -> int:
        return bisect_left(self._batches, offset, key=attrgetter("last_offset"))

    def _append(self, batch: RecordBatch) -> RecordBatch:
        size_bytes = len(batch.data)
        if self._active_bytes and (
            self._active_bytes + size_bytes > self.settings.segment_bytes
            or batch.max_timestamp_ms - self._active_since_ms > self.settings.segment_ms
        ):
            self._active_from, self._active_bytes = self.end_offset, 0
            self._clean()
        if not self._active_bytes:
            self._active_since_ms = batch.max_timestamp_ms
        self._active_bytes += size_bytes
        self._size_bytes += size_bytes
        self._batches.append(batch)
        self.end_offset = batch.last_offset + 1
        return batch

    def _clean(self) -> None:
        """Compact and delete what is older than the active segment, as the topic's settings say."""
        if "compact" in self.settings.cleanup_policy:
            self._compact(min(self._active_from, self.last_stable_offset))
        if "delete" in self.settings.cleanup_policy:
            self._delete_old()

    def _compact(self, end: int) -> None:
        upto = self._position(end)
        old = self._batches[:upto]
        dirty_bytes = sum(len(batch.data) for batch in old[self._position(self._clean_to) :])
        old_bytes = sum(len(batch.data) for batch in old)
        if not dirty_bytes or dirty_bytes < self.settings.min_cleanable_dirty_ratio * old_bytes:
            return
        new = _compacted(old, self._aborted, _now_ms() - self.settings.delete_retention_ms)
        self._batches[:upto] = new
        self._size_bytes += sum(len(batch.data) for batch in new) - old_bytes
        self._aborted = [one for one in self._aborted if one.last_offset >= end]
        self._clean_to = end

    def _delete_old(self) -> None:
        too_old_ms = _now_ms() - self.settings.retention_ms if self.settings.retention_ms >= 0 else -1
        limit_bytes = self.settings.retention_bytes if self.settings.retention_bytes >= 0 else self._size_bytes
        gone = 0
        for batch in self._batches:
            expired = batch.max_timestamp_ms < too_old_ms or self._size_bytes > limit_bytes
            if not expired or batch.base_offset >= self._active_from:
                break
            self._size_bytes -= len(batch.data)
            self.start_offset = batch.last_offset + 1
            gone += 1
        del self._batches[:gone]


def _now_ms() -> int:
    return round(time.time() * 1000)


def _aborted_among(aborted: Sequence[Aborted], first_offset: int, last_offset: int) -> list[Aborted]:
    """The aborted transactions, ordered by their markers, that touch a range of offsets, both ends included."""
    begin = bisect_left(aborted, first_offset, key=attrgetter("last_offset"))
    return [one for one in aborted[begin:] if one.first_offset <= last_offset]


def _is_aborted(batch: RecordBatch, aborted: Sequence[Aborted]) -> bool:
    """Whether a batch belongs to an aborted transaction."""
    return batch.is_transactional and any(
        one.producer_id == batch.producer_id for one in _aborted_among(aborted, batch.base_offset, batch.last_offset)
    )


def _compacted(
    batches: Sequence[RecordBatch], aborted: Sequence[Aborted], tombstones_before_ms: int
) -> list[RecordBatch]:
    """What a compacted topic keeps: the last committed record of every key; offsets stay as they are.

    Args:
        batches: decided batches of one partition in order, whose transactions have all ended.
        aborted: aborted transactions among them; their records go, and do not hide what they would have replaced.
        tombstones_before_ms: records without a value go as well, once they are older than this.
    """
    kept = [(batch, batch.records()) for batch in batches if not batch.is_control and not _is_aborted(batch, aborted)]
    last = {record.key: record.offset for _, records in kept for record in records}

    def stays(record: DefaultRecord) -> bool:
        return last[record.key] == record.offset and (
            record.value is not None or record.timestamp >= tombstones_before_ms
        )

    result = []
    for batch, records in kept:
        staying = [record for record in records if stays(record)]
        if len(staying) == len(records):
            result.append(batch)
        elif staying:
            result.append(batch.only(staying))
    return result
