"""Batches that the broker stamps or makes are read by aiokafka's own parser."""

import pytest
from aiokafka.errors import CorruptRecordException, UnsupportedForMessageFormatError
from aiokafka.record.control_record import ABORT_MARKER, COMMIT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

from inferline_stream.embedded_broker.record_batch import RecordBatch, marker
from tests.support.record_batches import record_batch

NOON_MS = 1_700_000_000_000


def produced(*values, codec=0):
    records = [(NOON_MS + n, b"key", value, [("n", b"%d" % n)]) for n, value in enumerate(values)]
    return record_batch(records, codec=codec, producer=(7, 1, 30))


def as_a_client_reads(batch):
    read = DefaultRecordBatch(batch.data)
    assert read.validate_crc()
    return read


@pytest.mark.parametrize("codec", range(5))
def test_a_stamped_batch_keeps_its_records_at_their_new_offsets(codec):
    batch = RecordBatch.parse(produced(b"a", b"b", b"c", codec=codec)).at(1000)
    records = list(as_a_client_reads(batch))
    assert [(record.offset, record.value) for record in records] == [(1000, b"a"), (1001, b"b"), (1002, b"c")]
    assert (batch.base_offset, batch.last_offset, batch.record_count) == (1000, 1002, 3)
    assert (batch.producer_id, batch.producer_epoch, batch.base_sequence) == (7, 1, 30)


def test_the_time_of_arrival_replaces_every_timestamp():
    batch = RecordBatch.parse(produced(b"a", b"b")).at(5, log_append_time_ms=NOON_MS + 999)
    records = list(as_a_client_reads(batch))
    assert [(record.timestamp, record.timestamp_type) for record in records] == [(NOON_MS + 999, 1)] * 2


@pytest.mark.parametrize("codec", range(5))
def test_a_batch_with_some_of_its_records_keeps_their_offsets_headers_and_its_own_extent(codec):
    whole = RecordBatch.parse(produced(b"a", b"b", b"c", b"d", codec=codec)).at(10)
    part = whole.only([record for record in whole.records() if record.value in (b"b", b"c")])
    read = as_a_client_reads(part)
    assert (read.base_offset, read.next_offset) == (10, 14)
    assert [(one.offset, one.timestamp, one.value, list(one.headers)) for one in read] == [
        (11, NOON_MS + 1, b"b", [("n", b"1")]),
        (12, NOON_MS + 2, b"c", [("n", b"2")]),
    ]
    assert (part.producer_id, part.producer_epoch, part.base_sequence) == (7, 1, 30)


def test_a_batch_of_arrival_times_keeps_them_when_records_go():
    whole = RecordBatch.parse(produced(b"a", b"b")).at(0, log_append_time_ms=NOON_MS + 50)
    (kept,) = list(as_a_client_reads(whole.only(whole.records()[1:])))
    assert (kept.offset, kept.timestamp, kept.timestamp_type) == (1, NOON_MS + 50, 1)


@pytest.mark.parametrize(("committed", "expected"), [(True, COMMIT_MARKER), (False, ABORT_MARKER)])
def test_a_marker_is_the_control_record_that_clients_know(committed, expected):
    batch = marker(7, 1, committed=committed, timestamp_ms=NOON_MS).at(42)
    read = as_a_client_reads(batch)
    assert (read.is_control_batch, read.is_transactional, read.base_offset) == (True, True, 42)
    assert (batch.is_control, batch.is_transactional) == (True, True)
    assert ControlRecord.parse(next(read).key) == expected


def test_anything_but_one_sound_batch_is_refused():
    good = produced(b"a")
    for bad in (b"", good[:30], good[:-1], good + good, good[:-1] + bytes([good[-1] ^ 1])):
        with pytest.raises(CorruptRecordException):
            RecordBatch.parse(bad)


def test_message_sets_of_old_clients_are_refused():
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=10**6)
    builder.append(0, timestamp=NOON_MS, key=b"key", value=b"x" * 100)
    with pytest.raises(UnsupportedForMessageFormatError):
        RecordBatch.parse(bytes(builder.build()))
