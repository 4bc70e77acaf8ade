"""What a record's headers, times and sizes may do to a dispatcher: cost their sender a dead letter, and no more."""

import logging
import random
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.dataplane.dispatcher import intake
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.event import Skipped
from inferline_stream.dataplane.dispatcher.queue import StageQueue
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.frames import Done, Failed
from inferline_stream.dataplane.headers import DEAD, EVENT_ID_BYTES, LATEST_MS, REASON, REPLAY, SENT_AGAIN, read_headers
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import LIMIT_BYTES, Record, record_bytes
from inferline_stream.pipeline.names import (
    ENTRY_TIME,
    ERRORS_PREFIX,
    EVENT_ID,
    HEADER_PREFIX,
    PARENT,
    SKIPPED,
    VERSION,
)
from tests.unit.dataplane.dispatcher.doubles import PlayedSlot
from tests.unit.dataplane.dispatcher.test_intake_and_emitter import (
    NOW_S,
    THIS,
    Taken,
    part,
    partitions_of,
    pipeline,
    record,
    sent,
    taking,
)
from tests.unit.dataplane.dispatcher.test_join_bounds import join_routes

NOW_MS = int(NOW_S * 1000)
DAY_MS = 86_400_000
FAILED = Failed("ValueError", "no", "")


def letters_of(stage: str, *records: Any) -> list[Any]:
    """Dead letters of what these records become, where their stage fails on every event."""
    taken = Taken(stage)(*records)
    ended = [*taken.ended, *((event, FAILED) for event in taken.ready)]
    outgoing = [sent(stage, event, outcome) for event, outcome in ended]
    return [m for one in outgoing for (topic, _), messages in one.items() if topic.endswith(".dlq") for m in messages]


def stamped(stamp_ms: int | None, *headers: Any, offset: int = 0) -> Any:
    return record(b"1", *headers, offset=offset)._replace(timestamp_ms=stamp_ms)


OURS = [EVENT_ID, ENTRY_TIME, VERSION, PARENT, SKIPPED, DEAD, REASON, REPLAY, SENT_AGAIN, HEADER_PREFIX + "unknown"]
ERRORS = [ERRORS_PREFIX + name for name in ("topic", "partition", "timestamp_ms", "cut_bytes")]
ODD = [b"inf", b"nan", b"-1", b"9" * 19, b"9" * 400, b"1e300", b"-1e300", b"\xff", b"", "²".encode(), b" 7 ", b"1_0"]
hostile_headers = st.lists(
    st.tuples(st.sampled_from([*OURS, *ERRORS, "at"]), st.none() | st.binary(max_size=40) | st.sampled_from(ODD))
)
times_ms = st.none() | st.sampled_from([-1, 0, 1, LATEST_MS + 1]) | st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("stage", ["ask", "left", "both"])
@given(headers=hostile_headers, stamp_ms=times_ms)
def test_whatever_a_record_holds_it_is_taken_in_and_so_is_the_next(stage, headers, stamp_ms):
    good = [record(b"2", offset=1)]
    if stage == "both":
        good = [part("left", b"4", offset=1), part("right", b'"4"', offset=2)]
    taken = Taken(stage, timestamp_header="at")(stamped(stamp_ms, *headers), *good)
    came = [*taken.ready, *(event for event, _ in taken.ended)]
    assert good[-1].offset in {offset for event in came for offset in event.offsets}
    for event in came:
        assert 0 <= event.entry_us <= NOW_S * 1e6
        assert 0 <= event.arrived_ms <= event.taken_ms == NOW_MS
        for outcome in (FAILED, Done(b"1", 0)):
            for messages in sent(stage, event, outcome).values():
                names = Counter(name for message in messages for name, _ in message.headers)
                assert names[HEADER_PREFIX + "unknown"] == 0
                assert names[EVENT_ID] == len(messages)


@pytest.mark.parametrize(("replay", "entry_us"), [([], b"1000000"), ([(REPLAY, b"1")], b"2")])
def test_at_the_entry_only_an_event_id_and_a_replay_count_of_ours_are_believed(replay, entry_us):
    others = [(name, b"2") for name in (*OURS, *ERRORS) if name not in (EVENT_ID, REPLAY)]
    given = record(b"1", ("mine", b"7"), (EVENT_ID, b"e"), *replay, *others)
    (event,) = Taken("ask")(given).ready
    expected = [("mine", b"7"), (EVENT_ID, b"e"), (ENTRY_TIME, entry_us), (VERSION, THIS), *replay]
    assert event.headers == expected
    found = read_headers(given.headers, entry=True)
    assert (found.version, found.parent, found.skipped, found.dead) == (None, None, (), 0)


@pytest.mark.parametrize(
    ("event_id", "known"), [(b"", False), (None, False), (b"x" * EVENT_ID_BYTES, True), (b"x" * 257, False)]
)
def test_an_event_id_that_is_empty_or_too_long_counts_as_missing(event_id, known):
    (event,) = Taken("ask")(record(b"1", (EVENT_ID, event_id), offset=4)).ready
    assert event.event_id == (event_id if known else b"in/3/4")
    (letter,) = letters_of("ask", record(b"1", (EVENT_ID, event_id), offset=4))
    assert [value for name, value in letter.headers if name == EVENT_ID] == [event.event_id]


@pytest.mark.parametrize("replay", [b"-1", b"1" * 5, b"\xb2", b"", None])
def test_a_replay_count_that_is_none_of_ours_does_not_count(replay):
    (event,) = Taken("ask")(record(b"1", (REPLAY, replay))).ready
    assert not event.replayed
    assert REPLAY not in dict(event.headers)


@pytest.mark.parametrize("stage", ["ask", "left", "both"])
def test_a_record_that_cannot_be_taken_in_is_a_dead_letter_and_stops_nothing(stage, monkeypatch, caplog):
    read = intake.read_headers

    def fails_once(headers, **how):
        if ("bad", b"") in headers:
            raise RuntimeError("what nobody thought of")
        return read(headers, **how)

    monkeypatch.setattr(intake, "read_headers", fails_once)
    taken = Taken(stage)(record(b"1", ("bad", b"")))
    ((event, outcome),) = taken.ended
    assert (outcome.type, event.offsets) == ("Unreadable", (0,))
    assert "what nobody thought of" in outcome.message
    ((letter,),) = [messages for (topic, _), messages in sent(stage, event, outcome).items() if topic.endswith(".dlq")]
    assert letter.value == b"1"
    assert taken.partition.completion.position == 1
    assert "cannot be taken in" in caplog.text


@pytest.mark.parametrize("stage", ["ask", "left", "both"])
def test_a_letter_says_nothing_of_its_death_that_its_sender_wrote(stage):
    forged = [(ERRORS_PREFIX + "topic", b"p.control"), (ERRORS_PREFIX + "partition", b"0"), (SENT_AGAIN, b"0/0")]
    given = record(b"1", (EVENT_ID, b"e"), ("mine", b"7"), *forged, (VERSION, b"1.old"), (PARENT, b"left"))
    (letter,) = letters_of(stage, given)
    counts = Counter(name for name, _ in letter.headers)
    assert max(counts.values()) == 1
    assert SENT_AGAIN not in counts
    said = dict(letter.headers)
    assert (said[ERRORS_PREFIX + "topic"], said[ERRORS_PREFIX + "partition"]) == (b"in", b"3")
    assert said["mine"] == b"7"


def test_a_letter_is_as_old_as_the_death_and_knows_the_records_own_time():
    (letter,) = letters_of("ask", record(b"1"))
    assert letter.timestamp_ms is None  # the client's clock
    assert dict(letter.headers)[ERRORS_PREFIX + "timestamp_ms"] == b"1000"


@pytest.mark.parametrize("small", ["in.dlq", "p.both", "p.completed"])
def test_a_letter_and_a_marker_of_a_record_with_too_large_headers_and_key_come_through(small):
    large = record(b"1", ("large", b"x" * 3000), (EVENT_ID, b"e"), key=b"k" * 3000)
    (event,) = Taken("ask")(large).ready
    routes = routes_of(pipeline(), "ask")
    limits = {small: 2000}
    emitter = Emitter(
        routes, partitions_of(routes), random.Random(1), new_report("d", 1, "ask", 0, 1), RecordRules(limits)
    )
    emitter.add(event, FAILED)
    outgoing = emitter.take()
    assert {topic for topic, _ in outgoing} == {"in.dlq", "p.both", "p.completed"}
    for (topic, _), (message,) in outgoing.items():
        assert dict(message.headers)[EVENT_ID] == b"e"
        assert record_bytes(message.key, message.value, message.headers) <= limits.get(topic, LIMIT_BYTES)


HUGE = b"9" * 1_048_300
MANY = [(REPLAY, b"1")] * 45_000


@pytest.mark.parametrize("stage", ["ask", "left", "both"])
@pytest.mark.parametrize(
    "headers",
    [[(name, HUGE), (REPLAY, b"1")] for name in (ENTRY_TIME, REPLAY, VERSION, PARENT, SKIPPED, DEAD)] + [MANY],
)
@pytest.mark.parametrize("outcome", [FAILED, Done(b"1", 1), Skipped()])
def test_whatever_headers_of_ours_a_record_claims_to_have_topics_take_what_follows_from_it(stage, headers, outcome):
    given = record(b"", *headers, (EVENT_ID, b"e"))
    taken = Taken(stage)(given)
    for event, ended in [*taken.ended, *((event, outcome) for event in taken.ready)]:
        for messages in sent(stage, event, ended).values():
            for message in messages:
                assert record_bytes(message.key, message.value, message.headers) <= LIMIT_BYTES


def test_a_letter_is_taken_however_long_the_texts_of_a_replica_are():
    failed = Failed("N" * 2_000_000, "m" * 2_000_000, "t" * 2_000_000, "w" * 2_000_000)
    (event,) = Taken("ask")(record(b"1")).ready
    for messages in sent("ask", event, failed).values():
        for message in messages:
            assert record_bytes(message.key, message.value, message.headers) < 10_000


def test_what_follows_from_edges_that_no_stage_has_is_known_once():
    routes = routes_of(pipeline(), "ask")
    edges = taking("ask", "left")
    assert {id(routes.follow(edges | claimed << 2)) for claimed in (0, 1, 77, 2**61)} == {id(routes.follow(edges))}
    assert routes.follow(-4 | edges) is routes.follow(edges)


def test_a_result_leaves_room_for_what_a_join_needs_to_know():
    (event,) = Taken("left")(part(None, b"4", offset=0)).ready
    routes = routes_of(pipeline(), "left")
    size_bytes = record_bytes(event.key, b"x" * 600, event.headers)
    for limit in range(size_bytes, size_bytes + 200, 5):
        limits = {"p.both": limit}
        emitter = Emitter(
            routes, partitions_of(routes), random.Random(1), new_report("d", 1, "left", 0, 1), RecordRules(limits)
        )
        emitter.add(event, Done(b"x" * 600, taking("left", "both")))
        for (topic, _), (message,) in emitter.take().items():
            size = record_bytes(message.key, message.value, message.headers)
            assert size <= limits.get(topic, LIMIT_BYTES)


def test_nothing_enters_or_arrives_after_it_is_taken_in_and_a_clock_that_is_ahead_is_measured(caplog):
    taken = Taken("ask")
    with caplog.at_level(logging.WARNING):
        (event,) = taken(stamped(NOW_MS + DAY_MS)).ready
    assert (event.entry_us, event.arrived_ms) == (NOW_MS * 1000, NOW_MS)
    assert dict(event.headers)[ENTRY_TIME] == b"%d" % (NOW_MS * 1000)
    assert taken.intake.clock_lead_s() == 86_400
    assert "in/3: a record's time lies 86400.0 s ahead" in caplog.text
    caplog.clear()
    taken(stamped(NOW_MS + DAY_MS, offset=1))
    assert not caplog.records, "once a minute is enough"
    taken.now_s += 61
    taken()
    assert taken.intake.clock_lead_s() == 0


def test_an_entry_time_header_that_is_ahead_counts_from_when_the_record_is_taken_in():
    ahead = stamped(1_000, ("at", b"%d" % (NOW_MS + DAY_MS)))
    (event,) = Taken("ask", timestamp_header="at")(ahead).ready
    assert event.entry_us == NOW_S * 1e6


def test_one_wrong_time_among_right_ones_makes_no_record_older_than_the_one_before_it():
    taken = Taken("ask")(stamped(NOW_MS - 50), stamped(0, offset=1), stamped(None, offset=2), stamped(-1, offset=3))
    assert [event.arrived_ms - NOW_MS for event in taken.ready] == [-50, -50, 0, 0]


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_a_step_of_the_wall_clock_changes_neither_how_long_an_event_waits_nor_its_turn(step_s):
    taken, queue = Taken("ask"), StageQueue(1_000_000, keys_in_order=False)
    for number in range(6):
        if number == 3:
            taken.set_back_s = -step_s
        taken.now_s = NOW_S + number / 10 - taken.set_back_s
        taken(stamped(round(taken.now_s * 1000) - 20, offset=number))
        queue.add(taken.ready[-1])
    assert [event.arrived_ms - NOW_MS for event in taken.ready[:3]] == [-20, 80, 180]
    waited_ms = [event.taken_ms - event.arrived_ms for event in taken.ready]
    assert waited_ms == ([20, 20, 20, 0, 20, 20] if step_s < 0 else [20] * 6), "of the first one after it less is known"
    assert queue.due_ms(limit=8, hold_ms=50.0) == NOW_MS - 20 + 50
    assert [event.offsets[0] for event in queue.take(6).events] == list(range(6))


@pytest.mark.parametrize("wrong_ms", [DAY_MS, -DAY_MS])
def test_a_partition_a_day_ahead_or_behind_and_a_busy_one_get_their_turns_beside_each_other(wrong_ms):
    queue = StageQueue(1_000_000, keys_in_order=False)
    right, wrong = Taken("ask"), Taken("ask")
    served = []
    for step in range(200):
        right.now_s = wrong.now_s = NOW_S + step / 10
        now_ms = round(right.now_s * 1000)
        # Both bring more than is served.
        for _ in range(2):
            for taken, off_ms in ((right, 0), (wrong, wrong_ms)):
                taken(stamped(now_ms + off_ms, offset=taken.partition.completion.position))
                queue.add(taken.ready[-1])
        served += [event in right.ready for event in queue.take(2).events]
    assert 100 <= sum(served[100:]) <= 200


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [(None, b"", 0), (b"key %d", b"x" * 100, 0), (None, b"", 20), (b"key %d", b"", 3)],
    ids=["empty", "keyed", "many headers", "an event's own headers"],
)
@pytest.mark.parametrize("join", [False, True])
def test_what_waits_takes_about_the_memory_that_it_is_counted_at(
    key: bytes | None, value: bytes, headers: int, join: bool
) -> None:
    count = 2000
    slot = PlayedSlot({0: (0, "")}, stage=join_routes(ordered=True) if join else None)
    with slot.running() as session:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        slot.read({0: [_some(number, key, value, headers, join=join) for number in range(count)]}, {0: count})
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        of_join = session.partitions[0].join
        counted = session.queue.size_bytes if of_join is None else of_join.size_bytes
    assert 0.7 * counted < taken < 1.1 * counted


def _some(number: int, key: bytes | None, value: bytes, headers: int, *, join: bool) -> Record:
    own = [(f"header {number} {at}", b"%d" % (10**9 + number)) for at in range(headers)]
    if join:
        own += [(EVENT_ID, b"%d" % number), (PARENT, b"left"), (ENTRY_TIME, b"%d" % (10**15 + number))]
    if key is not None:
        key = key % number
    return Record(key, value and value + b"%d" % number, tuple(own), 10**12 + number, "in", 0, number)
