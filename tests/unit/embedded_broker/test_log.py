"""One partition's log, without a network."""

import pytest
from aiokafka.errors import OffsetOutOfRangeError, OutOfOrderSequenceNumber
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.embedded_broker.log import PartitionLog
from inferline_stream.embedded_broker.record_batch import RecordBatch
from inferline_stream.embedded_broker.topic_settings import TopicSettings
from tests.support.hypothesis_profiles import examples
from tests.support.record_batches import record_batch

NOON_MS = 1_700_000_000_000
ROLLS_AT_ONCE = {"segment_ms": 0, "min_cleanable_dirty_ratio": 0.0}


def batch(*pairs, timestamp_ms=NOON_MS, producer=(-1, -1, -1), transactional=False):
    records = [(timestamp_ms, key, value, []) for key, value in pairs]
    return RecordBatch.parse(record_batch(records, producer=producer, transactional=transactional))


def read(log, offset=None, *, committed=False, max_bytes=10**9, at_least_one=True):
    """Records that a consumer would be given, aborted ones left out if it wants committed ones."""
    offset = log.start_offset if offset is None else offset
    found = log.read(offset, max_bytes, committed=committed, at_least_one=at_least_one)
    memory, records = MemoryRecords(found.data), []
    while memory.has_next():
        one = memory.next_batch()
        aborted = any(
            gone.producer_id == one.producer_id and gone.first_offset <= one.base_offset <= gone.last_offset
            for gone in found.aborted
        )
        if not one.is_control_batch and not (one.is_transactional and aborted):
            records += [(record.offset, record.key, record.value) for record in one if record.offset >= offset]
    return records


def test_reading_takes_whole_batches_up_to_the_limit_but_at_least_one_if_wanted():
    log = PartitionLog(TopicSettings())
    for number in range(3):
        log.append(batch((None, b"x" * 1000), (None, b"%d" % number)))
    size_bytes = len(log.read(0, 10**9, committed=False, at_least_one=True).data) // 3
    assert [offset for offset, _, _ in read(log, max_bytes=2 * size_bytes)] == [0, 1, 2, 3]
    assert [offset for offset, _, _ in read(log, max_bytes=2 * size_bytes - 1)] == [0, 1]
    assert [offset for offset, _, _ in read(log, max_bytes=1)] == [0, 1]
    assert read(log, max_bytes=1, at_least_one=False) == []


def test_rolled_segments_go_once_the_topic_is_too_large():
    log = PartitionLog(TopicSettings(segment_bytes=3000, retention_bytes=5000))
    for number in range(20):
        log.append(batch((None, b"x" * 1000 + b"%d" % number)))
        assert log._size_bytes <= 5000 + 3000
    kept = read(log)
    assert 0 < log.start_offset == kept[0][0] < log.end_offset == 20
    assert [offset for offset, _, _ in kept] == list(range(log.start_offset, 20))
    with pytest.raises(OffsetOutOfRangeError):
        read(log, 0)


def test_rolled_segments_go_once_their_records_are_too_old():
    log = PartitionLog(TopicSettings(segment_ms=1000, retention_ms=3_600_000))
    for number in range(3):
        log.append(batch((None, b"old"), timestamp_ms=NOON_MS + 2000 * number))  # of the year 2023
    assert log.start_offset == 2  # the segment being written stays, however old


def test_a_log_that_is_only_compacted_deletes_nothing():
    log = PartitionLog(TopicSettings(cleanup_policy="compact", segment_bytes=100, retention_bytes=10, retention_ms=10))
    for number in range(10):
        log.append(batch((b"%d" % number, b"value")))
    assert len(read(log)) == 10


def test_sequence_numbers_wrap_around():
    log = PartitionLog(TopicSettings())
    last = 2**31 - 1
    log.append(batch((None, b"a"), producer=(1, 0, last)))
    assert log.append(batch((None, b"b"), (None, b"c"), producer=(1, 0, 0))).base_offset == 1
    with pytest.raises(OutOfOrderSequenceNumber):
        log.append(batch((None, b"d"), producer=(1, 0, 1)))
    assert log.append(batch((None, b"d"), producer=(1, 0, 2))).base_offset == 3


def test_only_the_last_five_batches_are_known_as_duplicates():
    log = PartitionLog(TopicSettings())
    batches = [batch((None, b"%d" % number), producer=(1, 0, number)) for number in range(7)]
    for one in batches:
        log.append(one)
    assert [log.append(one).base_offset for one in batches[2:]] == [2, 3, 4, 5, 6]
    with pytest.raises(OutOfOrderSequenceNumber):
        log.append(batches[1])
    assert log.end_offset == 7


steps = st.lists(
    st.tuples(
        st.sampled_from(["plain", "send 1", "send 2", "commit 1", "commit 2", "abort 1", "abort 2"]),
        st.lists(
            st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"1", b"2", None])), min_size=1, max_size=3
        ),
    ),
    max_size=25,
)


@settings(max_examples=examples(200), deadline=None)
@given(steps)
def test_compaction_changes_nothing_for_a_reader_that_keeps_the_last_committed_value_of_each_key(history):
    whole = PartitionLog(TopicSettings(retention_ms=-1))
    cleaned = PartitionLog(TopicSettings(cleanup_policy="compact", delete_retention_ms=0, **ROLLS_AT_ONCE))
    sequences = {1: 0, 2: 0}
    for number, (step, pairs) in enumerate(history):
        verb, _, who = step.partition(" ")
        for log in (whole, cleaned):
            if verb == "plain":
                log.append(batch(*pairs, timestamp_ms=NOON_MS + number))
            elif verb == "send":
                producer = (int(who), 0, sequences[int(who)])
                log.append(batch(*pairs, timestamp_ms=NOON_MS + number, producer=producer, transactional=True))
            else:
                log.end_transaction(int(who), 0, committed=verb == "commit")
        if verb == "send":
            sequences[int(who)] += len(pairs)
    everything, kept = read(whole, committed=True), read(cleaned, committed=True)
    assert set(kept) <= set(everything)
    assert kept == sorted(kept)
    assert (cleaned.end_offset, cleaned.last_stable_offset) == (whole.end_offset, whole.last_stable_offset)

    def table(records):
        last = {key: value for _, key, value in records}
        return {key: value for key, value in last.items() if value is not None}

    assert table(kept) == table(everything)


def test_compaction_does_remove_what_is_superseded():
    log = PartitionLog(TopicSettings(cleanup_policy="compact", delete_retention_ms=0, **ROLLS_AT_ONCE))
    for number in range(50):
        log.append(batch((b"key", b"%d" % number), (b"gone", None), timestamp_ms=NOON_MS + number))
    assert [value for _, key, value in read(log) if key == b"key"] == [b"48", b"49"]  # and the segment being written
    assert len(log._batches) == 2
    assert DefaultRecordBatch(log._batches[0].data).next_offset == 98
