"""Batches of records as producers send them, hostile ones among them, through aiokafka's fetcher."""

from __future__ import annotations

import asyncio
import itertools
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c, decode_varint, encode_varint

from inferline_stream.kafka import fetched_batches
from inferline_stream.kafka.batch_mark import BatchId, BatchWatch, mark_file, marked_in
from inferline_stream.kafka.fetched_batches import FetchedBatches, SkippedBatch, Unpacker
from inferline_stream.kafka.wire.decompression import Decompressor, TooLarge, Undecodable
from tests.benchmarks._hostile_records import HostileRecord, encoded
from tests.support.record_batches import record_batch

CODECS = {"gzip": (1, gzip_encode), "snappy": (2, snappy_encode), "lz4": (3, lz4_encode), "zstd": (4, zstd_encode)}
LIMIT_BYTES = 1 << 20
EMPTY = HostileRecord(None, None, [], 0)


def batch(base_offset: int, values: list[bytes], codec: int = 0, key: bytes | None = b"k") -> bytes:
    records = ((1000 + number, key, value, [("name", b"7")]) for number, value in enumerate(values))
    data = bytearray(record_batch(records, codec=codec))
    struct.pack_into(">q", data, 0, base_offset)
    return bytes(data)


def sealed(data: bytearray) -> bytes:
    struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
    return bytes(data)


def fetched(data: bytes, unpacker: Unpacker, offset: int = 0) -> fetcher.PartitionRecords:
    batches = FetchedBatches(data, unpacker)
    assert batches.has_next()  # asked by the fetcher, too, before it keeps them
    return fetched_batches._PartitionRecords(
        TopicPartition("in", 0), batches, [], offset, None, None, True, fetcher.READ_COMMITTED
    )


async def records_of(data: bytes, offset: int = 0) -> list[Any]:
    return list(fetched(data, Unpacker(LIMIT_BYTES), offset))


@pytest.mark.parametrize("codec", range(5))
async def test_ordinary_batches_come_as_they_were_sent(codec):
    values = [b"value %d" % number * 50 for number in range(20)]
    sent = [*enumerate(values, 40), *enumerate(values[:3], 60)]
    found = await records_of(batch(40, values, codec) + batch(60, values[:3], codec), offset=42)
    headers = (("name", b"7"),)
    assert [(r.offset, r.value, r.key, r.headers) for r in found] == [(*place, b"k", headers) for place in sent[2:]]
    assert found[0].timestamp == 1002


@pytest.mark.parametrize("name", CODECS)
async def test_a_batch_that_expands_beyond_the_limit_is_one_note_and_its_neighbours_come(name):
    codec, _ = CODECS[name]
    bomb = batch(1, [bytes(1 << 20)] * 8, codec)
    found = await records_of(batch(0, [b"before"]) + bomb + batch(9, [b"after"], codec))
    assert [(r.offset, r.value) for r in found] == [(0, b"before"), (8, b""), (9, b"after")]
    note = found[1].value
    assert type(note) is SkippedBatch
    assert (note.kind, note.fetched_bytes) == ("BatchTooLarge", len(bomb))
    assert note.reason == (
        f"the batch of offsets 1 to 8, {len(bomb)} bytes as sent, expands to more than {LIMIT_BYTES} bytes "
        "(decompressed_bytes)"
    )
    assert (found[1].key, found[1].headers) == (None, ())


@pytest.mark.parametrize("name", CODECS)
def test_decompression_never_holds_more_than_the_limit(name):
    codec, encode = CODECS[name]
    small, exact = Decompressor(1000), bytes(1000)
    assert small.decompress(codec, encode(exact)) == exact
    with pytest.raises(TooLarge):
        small.decompress(codec, encode(bytes(1001)))
    for damaged in (b"", encode(exact)[:-2], b"\xff" * 40):
        with pytest.raises(Undecodable):
            small.decompress(codec, damaged)


async def test_a_batch_that_no_fetch_can_read_is_a_note_too_and_what_came_before_in_it_comes():
    data = bytearray(batch(5, [b"good", b"bad"]))
    at = bytes(data).rindex(b"name")
    data[at : at + 4] = b"\xff\xfe\xfd\xfc"  # a header's name must be UTF-8
    found = await records_of(sealed(data) + batch(7, [b"after"]), offset=5)
    assert [r.value for r in found] == [b"good", b"", b"after"]
    assert (found[1].offset, found[1].value.kind) == (6, "BatchUnreadable")
    garbage = bytearray(batch(0, [b"x" * 100], 4))
    garbage[61:] = b"\x00" * len(garbage[61:])
    found = await records_of(sealed(garbage))
    assert [r.value.kind for r in found] == ["BatchUnreadable"]


async def test_damage_on_the_way_is_fetched_again():
    data = bytearray(batch(0, [b"x" * 100]))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        await records_of(bytes(data))


async def test_a_batch_that_was_cut_off_waits_for_the_next_fetch_and_one_without_a_length_is_damage():
    whole = batch(0, [b"one"])
    assert [r.value for r in await records_of(whole + batch(1, [b"two"])[:-3])] == [b"one"]
    assert not FetchedBatches(whole[:-1], Unpacker()).has_next()
    assert not FetchedBatches(None, Unpacker()).has_next()
    with pytest.raises(CorruptRecordException):
        FetchedBatches(struct.pack(">qi", 0, -1) + bytes(50), Unpacker()).has_next()


async def test_one_turn_of_the_event_loop_expands_little_more_than_one_batch(monkeypatch):
    monkeypatch.setattr(fetched_batches, "EXPANDED_AT_ONCE_BYTES", 100_000)
    unpacker = Unpacker(LIMIT_BYTES)
    data = b"".join(batch(number, [bytes(90_000)], 4) for number in range(6))
    partitions = [fetched(data, unpacker) for _ in range(2)]
    drained = [len(list(partition)) for partition in partitions]
    assert drained == [2, 0]  # the second batch crosses the bound; the rest is fetched again
    assert partitions[0].next_fetch_offset == 2
    await asyncio.sleep(0)
    assert len(list(fetched(data, unpacker))) == 2


@pytest.fixture
def mark() -> Iterator[int]:
    """The supervisor's descriptor of a mark."""
    file = mark_file()
    yield file
    os.close(file)


def batch_id(data: bytes, partition: int = 0) -> BatchId:
    return BatchId(partition, *struct.unpack_from(">q9xI", data))


async def test_a_batch_is_marked_while_it_is_unpacked_and_while_it_is_taken_in(mark):
    watch = BatchWatch(["in"], os.dup(mark))
    one, two = batch(5, [b"a", b"b", b"c"]), batch(8, [b"d"], 1)
    records = fetched(one + two, Unpacker(LIMIT_BYTES, watch), 5)
    seen = []
    for _ in range(4):
        next(records)
        seen.append(marked_in(mark))
    assert seen == [batch_id(one)] * 3 + [batch_id(two)]
    assert list(records) == []
    assert marked_in(mark) is None
    assert (watch.takes_in(0, 5), marked_in(mark)) == (7, batch_id(one))
    assert (watch.takes_in(0, 8), marked_in(mark)) == (8, batch_id(two))
    watch.done()
    assert marked_in(mark) is None
    assert (watch.takes_in(0, 8), marked_in(mark)) == (8, None)


async def test_the_rest_of_a_batch_is_marked_again_in_a_later_fetch(mark):
    watch = BatchWatch(["in"], os.dup(mark))
    records = fetched(data := batch(0, [b"a", b"b", b"c"]), Unpacker(LIMIT_BYTES, watch))
    next(records)
    watch.done()
    assert marked_in(mark) is None
    assert iter(records) is records  # as aiokafka begins, each time that it is asked for records
    assert marked_in(mark) == batch_id(data)
    assert next(records).offset == 1
    assert (watch.takes_in(0, 1), marked_in(mark)) == (2, batch_id(data))


async def test_a_batch_that_takes_all_memory_stays_marked_and_one_that_is_unreadable_does_not(mark, monkeypatch):
    def no_memory(data: bytes) -> None:
        raise MemoryError

    unpacker = Unpacker(LIMIT_BYTES, BatchWatch(["in"], os.dup(mark)))
    garbage = bytearray(batch(0, [b"x" * 100], 4))
    garbage[61:] = bytes(len(garbage[61:]))
    assert len(list(fetched(sealed(garbage), unpacker))) == 1
    assert marked_in(mark) is None
    monkeypatch.setattr(fetched_batches, "DefaultRecordBatch", no_memory)
    with pytest.raises(MemoryError):
        list(fetched(data := batch(3, [b"a"]), unpacker, 3))
    assert marked_in(mark) == batch_id(data)


async def test_nothing_but_the_deadly_batch_is_skipped_and_it_is_not_unpacked():
    good, deadly = batch(0, [b"a"]), batch(1, [b"b", b"c"])
    watch = BatchWatch(["in"], deadly=(batch_id(deadly), batch_id(good, 1), BatchId(0, 3, 7)))
    found = list(fetched(good + deadly + batch(3, [b"d"]), Unpacker(LIMIT_BYTES, watch)))
    assert [(r.offset, r.value) for r in found] == [(0, b"a"), (2, b""), (3, b"d")]
    assert found[1].value.kind == "BatchEndsDispatcher"
    assert "offsets 1 to 2" in found[1].value.reason


def test_a_mark_that_a_dying_process_cut_off_names_no_batch(mark):
    os.ftruncate(mark, 3)
    assert marked_in(mark) is None


def batch_with_headers(counts: list[int], value: bytes = b"x") -> bytes:
    """Tiny headers, as a hostile producer writes them."""
    records = b""
    for at, count in enumerate(counts):
        record = b"\0" + zigzag(0) + zigzag(at) + zigzag(-1) + zigzag(len(value)) + value + zigzag(count)
        record += (zigzag(0) + zigzag(-1)) * count
        records += zigzag(len(record)) + record
    data = bytearray(batch(0, [b""]))[:61] + records
    struct.pack_into(">i", data, 8, len(data) - 12)
    struct.pack_into(">i", data, 23, len(counts) - 1)
    struct.pack_into(">i", data, 57, len(counts))
    return sealed(data)


def zigzag(number: int) -> bytes:
    buffer = bytearray()
    encode_varint(number, buffer.append)
    return bytes(buffer)


async def test_what_exceeds_the_headers_that_fit_in_memory_is_one_note_and_what_is_before_and_behind_comes(monkeypatch):
    monkeypatch.setattr(fetched_batches, "HEADERS_AT_MOST", 1000)
    good, bad = batch_with_headers([500, 500], bytes(2000)), batch_with_headers([1, 1000, 1])
    assert [(r.value, len(r.headers)) for r in await records_of(good)] == [(bytes(2000), 500)] * 2
    first, note, after = await records_of(bad + batch(3, [b"after"]))
    assert (first.value, after.value) == (b"x", b"after")
    assert (note.value.kind, note.offset) == ("BatchTooLarge", 2)
    assert "offsets 0 to 2" in note.value.reason
    assert "has more than 1000 headers" in note.value.reason


class CountedParser:
    """aiokafka's parser of a batch, which counts the records that it has parsed."""

    parsed = 0

    def __init__(self, data: bytes) -> None:
        self._records = iter(DefaultRecordBatch(data))

    def __iter__(self) -> Iterator[Any]:
        for record in self._records:
            CountedParser.parsed += 1
            yield record


@pytest.fixture
def varints(monkeypatch) -> Iterator[list[int]]:
    """Counts numbers that are decoded outside of aiokafka's parser."""
    decoded = [0]

    def decode(data: bytes, at: int) -> tuple[int, int]:
        decoded[0] += 1
        return decode_varint(data, at)

    monkeypatch.setattr(fetched_batches, "decode_varint", decode, raising=False)
    monkeypatch.setattr(fetched_batches, "decode_varint_py", decode, raising=False)
    return decoded


async def test_of_a_million_empty_records_no_more_is_looked_at_than_is_taken_at_once(varints):
    taken = fetched(encoded([EMPTY] * 200_000, 4), Unpacker(16 << 20))
    assert [record.offset for record in itertools.islice(taken, 1000)] == list(range(1000))
    assert varints[0] < 10 * 1000
    assert sum(1 for _ in taken) == 199_000


async def test_what_a_later_fetch_finds_of_a_large_batch_that_was_taken_before_is_not_parsed_again(monkeypatch):
    monkeypatch.setattr(fetched_batches, "DefaultRecordBatch", CountedParser)
    monkeypatch.setattr(CountedParser, "parsed", 0)
    data = encoded([EMPTY] * 200_000, 4)
    found = list(fetched(data, Unpacker(16 << 20), 199_990))
    assert [record.offset for record in found] == list(range(199_990, 200_000))
    assert CountedParser.parsed == 10


async def test_of_a_large_batch_from_which_records_were_removed_those_that_are_left_come_by_their_offsets(monkeypatch):
    monkeypatch.setattr(fetched_batches, "HEADERS_AT_MOST", 10)
    data = bytearray(batch(5, [b"%d" % number * 10 for number in range(4)]))
    struct.pack_into(">i", data, 23, 6)  # compaction keeps the offsets' range
    assert [r.offset for r in await records_of(sealed(data), offset=7)] == [7, 8]


async def test_nothing_is_read_behind_the_end_of_a_large_batch(monkeypatch):
    def within(data: bytes, at: int) -> tuple[int, int]:
        assert at < len(data), "aiokafka's compiled decoder does not look where the end is"
        return decode_varint(data, at)

    monkeypatch.setattr(fetched_batches, "HEADERS_AT_MOST", 10)
    monkeypatch.setattr(fetched_batches, "decode_varint", within)
    assert [r.offset for r in await records_of(sealed(bytearray(batch(5, [b"long enough"] * 2))), offset=5)] == [5, 6]


async def test_a_large_batch_that_breaks_off_is_unreadable_and_not_counted_for_ever(monkeypatch):
    monkeypatch.setattr(fetched_batches, "HEADERS_AT_MOST", 10)
    data = bytearray(batch_with_headers([1, 1], bytes(100)))
    for at in (61, len(data) - 4):  # the first record's size, the last one's headers
        broken = data.copy()
        broken[at:] = b"\xff" * len(broken[at:])
        assert (await records_of(sealed(broken)))[-1].value.kind == "BatchUnreadable"
