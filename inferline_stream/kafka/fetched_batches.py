"""Batches of records as they were fetched: unpacked within bounds, and replaced by a note where they cannot be.

aiokafka unpacks whatever was fetched in one go, and raises where it cannot: one batch of a few kilobytes could take all
memory, or be fetched for ever. `bound_batches` puts the classes of this module in the place of aiokafka's.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import calc_crc32c, decode_varint

from inferline_stream.kafka.batch_mark import BatchWatch
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.wire.decompression import LIMIT_BYTES, Decompressor, TooLarge, Undecodable

OUR_RECORDS = Record
"""Given to a consumer as its `key_deserializer`, has it return `Record` at once, which takes less than its own type."""

RECORDS_AT_ONCE = 256
"""Records that one call takes out of what was fetched: small ones cost a hundred times their size in memory. A join
takes 4 ms of CPU time for so many, in which its dispatcher reports nothing."""

EXPANDED_AT_ONCE_BYTES = 4 * 1024 * 1024
"""Bytes that decompression may add in one turn of the event loop, over all partitions; the first batch always passes.
What is left of a fetch then is fetched again."""

HEADERS_AT_MOST = 1 << 19
"""Headers of a batch that are read: a tiny one costs dozens of times its bytes in memory, and so many up to 100 MB."""

CORRUPT_FETCHES = 8
"""After so many corrupt fetches in a row, what the broker has stored is corrupt, and not what came over the network."""

_CORRUPT_AGAIN_S, CORRUPT_AT_MOST_S = 0.1, 5.0

_HEADER_BYTES = 2
"""Smallest size of a header: with an empty name, and without a value."""

_HEAD = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and greatest timestamp, producer
id, producer epoch, base sequence, number of records: the head of a batch of format 2."""

_BEFORE_LENGTH_BYTES, _MAGIC_AT, _CHECKED_FROM, _ATTRIBUTES_AT, _COUNT_AT = 12, 16, 21, 21, 57
_CODEC, _TRANSACTIONAL, _CONTROL = 0x07, 0x10, 0x20


class _TooManyHeaders(Exception):
    """The records of a batch that were taken, and the next one, have more than `HEADERS_AT_MOST`."""


class SkippedBatch(bytes):
    """The value, empty, of the one record that stands for a batch which cannot be unpacked. No producer can send one.

    The record has the batch's last offset. Keys and headers are empty.
    """

    kind: str
    """BatchTooLarge, BatchUnreadable or BatchEndsDispatcher."""
    reason: str
    """Which offsets, and why, in words."""
    fetched_bytes: int

    @classmethod
    def of(cls, batch: FetchedBatch, kind: str, why: str) -> SkippedBatch:
        """Make the note on a batch."""
        note = cls()
        last = batch.next_offset - 1
        note.kind, note.fetched_bytes = kind, batch.fetched_bytes
        note.reason = f"the batch of offsets {batch.base_offset} to {last}, {batch.fetched_bytes} bytes as sent, {why}"
        return note


class CorruptBatch(CorruptRecordException):  # type: ignore[misc]  # aiokafka has no types
    """A batch that did not arrive as it was produced, or is not stored so."""

    def __init__(self, place: TopicPartition, offset: int) -> None:
        super().__init__(f"the batch of offset {offset} of partition {place.partition} has another checksum")
        self.topic: str = place.topic
        self.partition: int = place.partition
        self.offset = offset


def corrupt_wait_s(times: int) -> float:
    """Return how long to wait before a partition is fetched again that was corrupt so many times in a row."""
    return min(CORRUPT_AT_MOST_S, _CORRUPT_AGAIN_S * 2.0 ** (times - 1))


class _Note(NamedTuple):
    """A record as aiokafka's fetcher wants it, in the place of a batch."""

    offset: int
    timestamp: int
    value: SkippedBatch
    timestamp_type: int = 0
    key: None = None
    checksum: None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class _Allowance:
    """What decompression may still add in this turn of the event loop."""

    def __init__(self) -> None:
        self.left_bytes = EXPANDED_AT_ONCE_BYTES

    def spend(self, size_bytes: int) -> None:
        if self.left_bytes == EXPANDED_AT_ONCE_BYTES:
            asyncio.get_running_loop().call_soon(self._renew)
        self.left_bytes -= max(1, size_bytes)

    def _renew(self) -> None:
        self.left_bytes = EXPANDED_AT_ONCE_BYTES


class Unpacker:
    """Unpacks batches for every consumer of the process.

    Args:
        limit_bytes: largest size of a batch's records.
        watch: is shown each batch; by default nobody is.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, watch: BatchWatch | None = None) -> None:
        self.watch = watch or BatchWatch(())
        self._decompressor = Decompressor(limit_bytes)
        self._allowance = _Allowance()

    def exhausted(self) -> bool:
        """Return whether no batch may be unpacked before the event loop's next turn."""
        return self._allowance.left_bytes <= 0

    def records(self, batch: FetchedBatch) -> Iterator[Any]:
        """Return the records of a batch; the note where they end before the batch does."""
        if self.watch.is_deadly(batch):
            yield batch.note("BatchEndsDispatcher", "ended every dispatcher that took it in")
            return
        self.watch.unpacks(batch)
        try:
            yield from batch.unpacked(self._expand)
        except TooLarge:
            most = self._decompressor.limit_bytes
            why = f"expands to more than {most} bytes (decompressed_bytes)"
            yield batch.note("BatchTooLarge", why)
        except _TooManyHeaders:
            why = f"has more than {HEADERS_AT_MOST} headers: what exceeds them is not read"
            yield batch.note("BatchTooLarge", why)
        except (Undecodable, CorruptRecordException, ValueError, LookupError, OverflowError, struct.error) as error:
            # Its checksum is right: it would look the same whenever it is fetched.
            yield batch.note("BatchUnreadable", f"cannot be read: {error or type(error).__name__}")
        self.watch.rests()  # not where anything else was raised: that ends the process

    def _expand(self, codec: int, data: bytes) -> bytes:
        expanded = self._decompressor.decompress(codec, data)
        self._allowance.spend(len(expanded) - len(data))
        return expanded


class FetchedBatch:
    """One batch as aiokafka's fetcher wants it.

    Args:
        data: the batch, head included, of format 2.
        unpacker: of the process.
        place: whose batch it is.
        wanted: offset of the first record that is of use.
    """

    __slots__ = (
        "_attributes", "_data", "_first_ms", "_records", "_unpacker", "_wanted", "base_offset", "checksum",
        "next_offset", "place", "producer_id",
    )  # fmt: skip

    def __init__(self, data: bytes, unpacker: Unpacker, place: TopicPartition, wanted: int = 0) -> None:
        head = _HEAD.unpack_from(data)
        self._data = data
        self._unpacker = unpacker
        self._wanted = wanted
        self.place = place
        self.checksum: int = head[4]
        self._attributes, self._first_ms = head[5], head[7]
        self.base_offset: int = head[0]
        self.next_offset: int = head[0] + head[6] + 1
        self.producer_id: int = head[9]
        self._records: Iterator[Any] | None = None

    @property
    def fetched_bytes(self) -> int:
        """Its size as it was produced."""
        return len(self._data)

    @property
    def is_transactional(self) -> bool:
        """Whether its records count only once their transaction is committed."""
        return bool(self._attributes & _TRANSACTIONAL)

    @property
    def is_control_batch(self) -> bool:
        """Whether it is a transaction's marker."""
        return bool(self._attributes & _CONTROL)

    def validate_crc(self) -> bool:
        """Return True.

        Raises:
            CorruptBatch: it did not arrive as it was produced. aiokafka's own error does not say where.
        """
        if calc_crc32c(self._data[_CHECKED_FROM:]) != self.checksum:
            raise CorruptBatch(self.place, self.base_offset)
        return True

    def __iter__(self) -> Iterator[Any]:
        return self._unpacker.records(self)

    def __next__(self) -> Any:
        if self._records is None:
            self._records = iter(self)
        return next(self._records)

    def unpacked(self, expand: Any) -> Iterator[Any]:
        """Return an iterator over the records: aiokafka's own, unless so many bytes may hold too many headers."""
        data, codec = self._data, self._attributes & _CODEC
        if codec:
            head = bytearray(data[: _HEAD.size])
            struct.pack_into(">h", head, _ATTRIBUTES_AT, self._attributes & ~_CODEC)
            data = bytes(head) + expand(codec, data[_HEAD.size :])
        if len(data) <= HEADERS_AT_MOST * _HEADER_BYTES:
            return iter(DefaultRecordBatch(data))
        return _counted(_from(data, self._wanted - self.base_offset))

    def note(self, kind: str, why: str) -> _Note:
        """Return the record that stands for the batch, or for what is left of it."""
        return _Note(self.next_offset - 1, self._first_ms, SkippedBatch.of(self, kind, why))


def _counted(data: bytes) -> Iterator[Any]:
    """Yield the records of a batch, and count each one's headers before they are made.

    Records are counted as they are taken: a million of them in one turn of the event loop would take seconds.

    Raises:
        _TooManyHeaders: once there are more than `HEADERS_AT_MOST`.
    """
    records = iter(DefaultRecordBatch(data))
    headers, at = 0, _HEAD.size
    while True:
        try:
            size, begin = _varint(data, at)
            _, inside = _varint(data, begin + 1)  # the timestamp, after the attributes
            _, inside = _varint(data, inside)  # the offset
            for _ in ("key", "value"):
                length, inside = _varint(data, inside)
                inside += max(0, length)
            headers += max(0, _varint(data, inside)[0])
            at = begin + max(0, size)
        except (IndexError, ValueError):
            pass  # aiokafka's parser finds the mistake, or the end
        if headers > HEADERS_AT_MOST:
            raise _TooManyHeaders
        record = next(records, None)
        if record is None:
            return
        yield record


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where the next byte is. aiokafka's compiled one reads whatever lies behind the end.

    Raises:
        IndexError: it begins behind the end.
    """
    if at >= len(data):
        raise IndexError(at)
    return decode_varint(data, at)  # type: ignore[no-any-return]  # aiokafka has no types


def _from(data: bytes, skipped: int) -> bytes:
    """Return a batch without so many of its first records, which were taken before.

    aiokafka would parse them all again, in one turn of the event loop. One from which compaction has removed records
    is returned whole: their number is not that of the offsets.
    """
    last, *_, count = _HEAD.unpack_from(data)[6:]
    if not 0 < skipped < count or count != last + 1:
        return data
    at = _HEAD.size
    try:
        for _ in range(skipped):
            size = data[at]
            if size & 0x81:  # of several bytes, or negative
                size, at = decode_varint(data, at)
                at += max(0, size)
            else:
                at += 1 + (size >> 1)
    except (IndexError, ValueError):
        return data  # aiokafka's parser finds the mistake
    head = bytearray(data[: _HEAD.size])
    struct.pack_into(">i", head, _COUNT_AT, count - skipped)
    return bytes(head) + data[at:]


class FetchedBatches:
    """The batches that a fetch brought of one partition; takes the place of aiokafka's `MemoryRecords`.

    Args:
        data: as fetched; the last batch may be cut off.
        unpacker: of the process.
    """

    def __init__(self, data: bytes | None, unpacker: Unpacker) -> None:
        self._data = data or b""
        self._unpacker = unpacker
        self._at = 0
        self._is_begun = False
        self._last: FetchedBatch | None = None
        self.place, self.wanted = TopicPartition("", -1), 0

    def size_in_bytes(self) -> int:
        """Return the size of what was fetched."""
        return len(self._data)

    def has_next(self) -> bool:
        """Return whether there is a whole batch, and it may be unpacked now."""
        if self._is_begun and self._unpacker.exhausted():
            return False
        self._is_begun = True  # the fetcher asks once when the data comes, and unpacks later
        return self._end() <= len(self._data)

    def next_batch(self) -> Any:
        """Return the next batch."""
        batch = self._data[self._at : self._end()]
        self._at += len(batch)
        if len(batch) <= _MAGIC_AT:
            raise CorruptRecordException(f"a batch of {len(batch)} bytes")
        if batch[_MAGIC_AT] < 2:
            return LegacyRecordBatch(batch, batch[_MAGIC_AT])  # brokers convert it to format 2 when it is produced
        if len(batch) < _HEAD.size:
            raise CorruptRecordException(f"a batch of {len(batch)} bytes")
        self._last = FetchedBatch(batch, self._unpacker, self.place, self.wanted)
        return self._last

    def go_on(self) -> None:
        """Be ready to have more records of the last batch unpacked."""
        if self._last is not None:
            self._unpacker.watch.unpacks(self._last)

    def _end(self) -> int:
        if len(self._data) - self._at < _BEFORE_LENGTH_BYTES:
            return len(self._data) + 1
        length: int = struct.unpack_from(">i", self._data, self._at + 8)[0]
        if length < 0:
            raise CorruptRecordException(f"a batch of {length} bytes")
        return self._at + _BEFORE_LENGTH_BYTES + length


class _PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's, which lets its batches know where they come from, and from where on they are wanted."""

    def __init__(self, tp: TopicPartition, records: FetchedBatches, aborted: Any, offset: int, *rest: Any) -> None:
        records.place, records.wanted = tp, offset
        super().__init__(tp, records, aborted, offset, *rest)

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        if self._key_deserializer is not OUR_RECORDS:
            return super()._consumer_record(tp, record)
        headers, time_ms = tuple(record.headers), record.timestamp
        return Record(record.key, record.value, headers, time_ms, tp.topic, tp.partition, record.offset)

    def __iter__(self) -> Iterator[Any]:
        """Be asked for `RECORDS_AT_ONCE`, perhaps out of the middle of a batch."""
        self._records.go_on()
        return self


def bound_batches(limit_bytes: int, watch: BatchWatch | None = None) -> None:
    """Have every consumer of this process unpack batches within bounds.

    aiokafka has no place to pass this in; its fetcher finds the class by its name.

    Args:
        limit_bytes: largest size of a batch's records.
        watch: see `Unpacker`.
    """
    fetcher.PartitionRecords = _PartitionRecords
    fetcher.MemoryRecords = partial(FetchedBatches, unpacker=Unpacker(limit_bytes, watch))


def are_bounded() -> bool:
    """Return whether `bound_batches` was called."""
    return isinstance(fetcher.MemoryRecords, partial)
