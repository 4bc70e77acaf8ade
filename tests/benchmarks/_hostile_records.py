"""Hostile records from a seed, as bytes that Kafka takes: what a producer with a client of its own could send.

A batch is encoded by hand (record format 2), because no client library lets its user send a header name that is no
UTF-8, a timestamp of its own for each record, or 128 MiB that compress to 4 KB. Batches are well-formed: Kafka itself
refuses any other.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
import numpy as np
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.record.util import calc_crc32c

from inferline_stream.dataplane.headers import DEAD, REASON, REPLAY
from inferline_stream.kafka.records import LIMIT_BYTES
from inferline_stream.pipeline.names import (
    ENTRY_TIME,
    ERRORS_PREFIX,
    EVENT_ID,
    HEADER_PREFIX,
    PARENT,
    SKIPPED,
    VERSION,
)

_T = TypeVar("_T")

CODECS: tuple[Callable[[bytes], bytes], ...] = (bytes, gzip_encode, snappy_encode, lz4_encode, zstd_encode)
"""By the number that a batch's attributes name them by."""

BOMB_MIB = (0, 64, 12, 64, 128)
"""Zeros that the codec of this number packs into a batch that Kafka takes."""

KEYS = 7
"""Keys that hostile records share with good ones."""

_ERRORS = ("stage", "type", "message", "traceback", "topic", "partition", "offset", "time_ms", "cut_bytes")
_NAMES = (
    *(EVENT_ID, ENTRY_TIME, PARENT, SKIPPED, VERSION, DEAD, REASON, REPLAY, HEADER_PREFIX, HEADER_PREFIX + "new"),
    *(HEADER_PREFIX + "sent_again", *(ERRORS_PREFIX + name for name in _ERRORS)),
)
_FAR_MS = 4_102_444_800_000  # the year 2100
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class HostileRecord:
    """A record before it is encoded; times are milliseconds since the epoch."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]]
    timestamp_ms: int


class HostileRecords:
    """Draws records.

    Args:
        seed: the same records each time, but for what counts from now.
        topic: source topic, whose name event ids were made of.
        control_topic: a topic that no letter may be sent to again.
    """

    def __init__(self, seed: int, topic: str, control_topic: str) -> None:
        self._rng = np.random.default_rng(seed)
        self._topic = topic.encode()
        self._control = control_topic.encode()

    def batch(self, size: int) -> bytes:
        """Return a batch of so many records, under some codec; one in ten is from the future.

        Apache Kafka refuses a batch with one record that is more than an hour ahead, unless its topic takes it.
        """
        records = [self.record() for _ in range(size)]
        if self._rng.random() < 0.1:
            ahead_ms = round(time.time() * 1e3) + _DAY_MS
            records = [replace(record, timestamp_ms=self._one((ahead_ms, _FAR_MS))) for record in records]
        return encoded(records, int(self._rng.integers(len(CODECS))))

    def misnamed(self, size: int) -> bytes:
        """Return a batch whose records have a header name that is no UTF-8: Kafka takes any bytes."""
        records = [self.record() for _ in range(size)]
        named = [replace(record, headers=[*record.headers, (b"\xff\xfe", b"")]) for record in records]
        return encoded(named, int(self._rng.integers(len(CODECS))))

    def empty(self, size: int) -> bytes:
        """Return a batch of so many empty records, each of which takes less than a byte of it."""
        return encoded([HostileRecord(None, None, [], round(time.time() * 1e3))] * size, CODECS.index(zstd_encode))

    def unserved(self) -> bytes:
        """Return a batch of one event on which the first stage always says, at length, that its server is away."""
        value = msgspec.json.encode({"number": 1, "mark": "hostile", "fail": "parse unserved"})
        return encoded([HostileRecord(None, value, [], round(time.time() * 1e3))], 0)

    def bomb(self, number: int) -> bytes:
        """Return a batch of one record that is small as long as nobody decompresses it: value, key or header."""
        codec = 1 + number % (len(CODECS) - 1)
        zeros = bytes(BOMB_MIB[codec] << 20)
        place = number // (len(CODECS) - 1) % 3
        now_ms = round(time.time() * 1e3)
        record = (
            HostileRecord(b"bomb", zeros, [], now_ms),
            HostileRecord(b"bomb", b"{}", [(b"bomb", zeros)], now_ms),
            HostileRecord(zeros, b"{}", [], now_ms),
        )[place]
        return encoded([record], codec)

    def record(self) -> HostileRecord:
        """Return the next record."""
        headers = [self._header() for _ in range(self._rng.integers(0, 7))]
        return HostileRecord(self._key(), self._value(), headers, self._timestamp_ms())

    def control(self) -> tuple[bytes, bytes]:
        """Return key and value of a record that no reader of a control topic can decode."""
        keys = (b"leader", b"plan", b"wanted", b"scale/parse", b"parse/0", b"decision-1", b"plan-1", b"\xff\xfe", b"")
        values = (
            self._noise(200),
            b"{",
            b"null",
            b"[]",
            b"\xff",
            b"[" * 50_000,
            b'{"type":"grant"}',
            b'{"type":"revolt","version":99}',
            b'{"kind":"teleport","subject":"parse","value":1,"version":2}',
            b'{"kind":"scale","subject":["parse"],"value":"\xff"}',
            b'{"times_ms":[1e400],"ends":7}',
            b'{"dispatcher":"parse-0","incarnation":"one"}',
            b'{"number":1,"replicas":{"parse":-1}}',
            b'{"term":' + b"9" * 400 + b"}",
        )
        return self._one(keys), self._one(values)

    def _one(self, among: Sequence[_T]) -> _T:
        return among[int(self._rng.integers(len(among)))]

    def _noise(self, most: int) -> bytes:
        return self._rng.bytes(int(self._rng.integers(0, most)))

    def _key(self) -> bytes | None:
        shared = b"key-%d" % self._rng.integers(KEYS)
        return self._one((None, b"", shared, shared, shared, self._noise(40), self._noise(10_000)))

    def _timestamp_ms(self) -> int:
        now_ms = round(time.time() * 1e3)
        usual = (now_ms,) * 6
        return self._one((*usual, -1, 0, 1, now_ms - 400 * _DAY_MS, now_ms + 3_000_000))

    def _number(self) -> bytes:
        digits = b"9" * int(self._rng.integers(1, 5000))
        return self._one(
            (b"0", b"-1", b"1", b"2", b"inf", b"-inf", b"nan", b"1e309", b"1_0", b" 7 ", digits, b"-99e999")
        )

    def _header(self) -> tuple[bytes, bytes | None]:
        name = self._one(
            (
                *(name.encode() for name in _NAMES),
                *(
                    b"ts",
                    b"ts",
                    b"ts",
                    b"traceparent",
                    b"tracestate",
                    b"",
                    self._noise(20).decode("latin-1").encode(),
                    b"n" * 20_000,
                ),
            )
        )
        guessed = b"%s/%d/%d" % (self._topic, self._rng.integers(4), self._rng.integers(200))
        value = self._one(
            (
                *(None, b"", b"ff", b"\xff\xfe", self._noise(100), self._noise(60_000)),
                *(self._number(), self._number(), self._number()),
                *(
                    b"parse",
                    b"check",
                    b"parse,check",
                    b"," * 1000,
                    guessed,
                    self._control,
                    b"1.00000000",
                    b"\x1b]0;\x07",
                ),
            )
        )
        return name, value

    def _value(self) -> bytes | None:
        order = {"number": int(self._rng.integers(0, 99)), "mark": "hostile"}
        failing = {**order, "fail": self._one(("parse", "condition", "check", "decide", "parse at length"))}
        large = int(self._rng.integers(1, LIMIT_BYTES)) if self._rng.random() < 0.05 else 1000
        return self._one(
            (
                *(None, b"", b"null", b"[]", b"{}", b"\xff\xfe", b"\x1b[2J\x1b]0;owned\x07"),
                *(self._noise(300), self._noise(large), b'"' + b"x" * large + b'"'),
                *(b'{"a":' * 20_000, b"[" * 100_000, b'{"number":1e400}', b'{"number":' + b"9" * 5000 + b"}"),
                *(b'{"number":NaN}', b'{"number":"1"}', b'{"number":1,"number":[]}', b'{"number":1,"mark":"\\ud800"}'),
                *(msgspec.json.encode(order), msgspec.json.encode(order)),
                *(msgspec.json.encode(failing), msgspec.json.encode(failing), msgspec.json.encode(failing)),
            )
        )


def encoded(records: Sequence[HostileRecord], codec: int) -> bytes:
    """Return one batch of format 2.

    Args:
        records: at least one.
        codec: index into `CODECS`.
    """
    first_ms = records[0].timestamp_ms
    body = CODECS[codec](b"".join(_record(record, first_ms, at) for at, record in enumerate(records)))
    greatest_ms = max(record.timestamp_ms for record in records)
    head = (codec, len(records) - 1, first_ms, greatest_ms, -1, -1, -1, len(records))
    checked = struct.pack(">hiqqqhii", *head) + body
    return struct.pack(">qiibI", 0, 9 + len(checked), -1, 2, calc_crc32c(checked)) + checked


def _record(record: HostileRecord, first_ms: int, offset: int) -> bytes:
    headers = b"".join(_sized(name) + _sized(value) for name, value in record.headers)
    parts = (
        b"\0",
        _varint(record.timestamp_ms - first_ms),
        _varint(offset),
        _sized(record.key),
        _sized(record.value),
        _varint(len(record.headers)),
        headers,
    )
    return _sized(b"".join(parts))


def _sized(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Zigzag, seven bits a byte, lowest first."""
    left, encoded_bytes = (value << 1) ^ (value >> 63), bytearray()
    while left > 0x7F:
        encoded_bytes.append(left & 0x7F | 0x80)
        left >>= 7
    encoded_bytes.append(left)
    return bytes(encoded_bytes)
