"""Record batches (format 2) as they were produced: the broker reads their header and stamps their offsets."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from aiokafka.errors import CorruptRecordException, UnsupportedForMessageFormatError
from aiokafka.record.default_records import DefaultRecord, DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from inferline_stream.kafka.wire.decompression import Decompressor, TooLarge, Undecodable

_HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, CRC, attributes, last offset delta, first and greatest timestamp,
producer id, producer epoch, base sequence, number of records."""

_START = struct.Struct(">qii")  # base offset, length, leader epoch: outside the CRC, so offsets are stamped for free
_CHECKED_FROM = struct.calcsize(">qiibI")
_MAX_TIMESTAMP_AT = struct.calcsize(">qiibIhiq")

_CODEC, _LOG_APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """One batch of records, with the fields of its header that the broker decides by. Timestamps are ms since 1970."""

    data: bytes
    base_offset: int
    last_offset: int
    attributes: int
    first_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read the header of a batch."""
        if len(data) < _HEADER.size:
            raise CorruptRecordException
        base, length, _, magic, crc, attributes, delta, first, greatest, pid, epoch, sequence, count = (
            _HEADER.unpack_from(data)
        )
        if magic != 2:
            raise UnsupportedForMessageFormatError
        if length != len(data) - 12 or crc != calc_crc32c(data[_CHECKED_FROM:]):
            raise CorruptRecordException
        return cls(data, base, base + delta, attributes, first, greatest, pid, epoch, sequence, count)

    @property
    def is_transactional(self) -> bool:
        """Whether its records count only once their transaction is committed."""
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        """Whether it is a transaction marker, which consumers skip."""
        return bool(self.attributes & _CONTROL)

    def at(self, base_offset: int, log_append_time_ms: int | None = None) -> RecordBatch:
        """This batch as the log keeps it: at its offset and, where the topic wants it, with the time of its arrival."""
        delta = self.last_offset - self.base_offset
        if log_append_time_ms is None:
            return _parsed(_START.pack(base_offset, len(self.data) - 12, 0) + self.data[_START.size :])
        data = bytearray(self.data)
        struct.pack_into(">h", data, _CHECKED_FROM, self.attributes | _LOG_APPEND_TIME)
        struct.pack_into(">q", data, _MAX_TIMESTAMP_AT, log_append_time_ms)
        return _sealed(data, base_offset, delta)

    def records(self) -> list[DefaultRecord]:
        """The records, decompressed.

        Raises:
            CorruptRecordException: they cannot be, or not within the bound; Apache Kafka decompresses piece by piece.
        """
        data, codec = self.data, self.attributes & _CODEC
        if codec:
            try:
                records = Decompressor().decompress(codec, data[_HEADER.size :])
            except (TooLarge, Undecodable) as error:
                raise CorruptRecordException(str(error)) from None
            head = bytearray(data[: _HEADER.size])
            struct.pack_into(">h", head, _CHECKED_FROM, self.attributes & ~_CODEC)
            data = bytes(head) + records
        return list(DefaultRecordBatch(data))

    def only(self, records: Sequence[DefaultRecord]) -> RecordBatch:
        """This batch with some of its records, which keep their offsets; so does the batch."""
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=self.attributes & _CODEC,
            is_transactional=self.is_transactional,
            producer_id=self.producer_id,
            producer_epoch=self.producer_epoch,
            base_sequence=self.base_sequence,
            batch_size=2**31 - 1,
        )
        for record in records:
            builder.append(
                offset=record.offset - self.base_offset,
                timestamp=record.timestamp,
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
        data = bytearray(builder.build())
        attributes = struct.unpack_from(">h", data, _CHECKED_FROM)[0] | (self.attributes & _LOG_APPEND_TIME)
        struct.pack_into(">h", data, _CHECKED_FROM, attributes)
        return _sealed(data, self.base_offset, self.last_offset - self.base_offset)


def marker(producer_id: int, producer_epoch: int, *, committed: bool, timestamp_ms: int) -> RecordBatch:
    """The control batch that ends a transaction in a partition."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=True,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=-1,
        batch_size=1024,
    )
    key = struct.pack(">hh", 0, int(committed))  # version, type
    value = struct.pack(">hi", 0, 0)  # version, epoch of the coordinator
    builder.append(offset=0, timestamp=timestamp_ms, key=key, value=value, headers=[])
    data = bytearray(builder.build())
    struct.pack_into(">h", data, _CHECKED_FROM, _TRANSACTIONAL | _CONTROL)
    return _sealed(data, 0, 0)


def _sealed(data: bytearray, base_offset: int, last_offset_delta: int) -> RecordBatch:
    """A batch whose header was changed, with its checksum made right."""
    _START.pack_into(data, 0, base_offset, len(data) - 12, 0)
    struct.pack_into(">i", data, _CHECKED_FROM + 2, last_offset_delta)
    struct.pack_into(">I", data, _CHECKED_FROM - 4, calc_crc32c(bytes(data[_CHECKED_FROM:])))
    return _parsed(bytes(data))


def _parsed(data: bytes) -> RecordBatch:
    """A batch of our own making: the checksum need not be computed again."""
    base, _, _, _, _, attributes, delta, first, greatest, pid, epoch, sequence, count = _HEADER.unpack_from(data)
    return RecordBatch(data, base, base + delta, attributes, first, greatest, pid, epoch, sequence, count)
