"""Background events in a slot: behind live ones, in small batches, of several classes by their weights."""

from __future__ import annotations

from typing import Any

import pytest

from inferline_stream.dataplane.dispatcher import join_bounds, session
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.background import DELAY_SHARE
from inferline_stream.dataplane.frames import Returned
from inferline_stream.dataplane.headers import ENDED_AT, REASON
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.event_classes import CLASS_STRIDE
from inferline_stream.pipeline.names import EVENT_ID, PARENT
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.settings import Settings
from tests.unit.dataplane.dispatcher.doubles import KIND, PlayedSlot, same
from tests.unit.dataplane.dispatcher.test_intake_and_emitter import pipeline

A, B = CLASS_STRIDE, 2 * CLASS_STRIDE
"""Partition 0 of each background class."""

SLO_S = 1.0

WALL_MS = 1_700_000_000_000


class Backfilled(PlayedSlot):
    """A slot with two background classes, the second of three times the weight."""

    def __init__(self, *, limit: int = 8, batch_s: float = 0.01, **of_pipeline: object) -> None:
        source = [
            Topic("in", codec="raw"),
            Topic("a", codec="raw", background=True),
            Topic("b", codec="raw", background=True, weight=3.0),
        ]
        super().__init__(source=source, limit=limit, **of_pipeline)
        self.plan(limit=limit, service_s={1: batch_s, limit: batch_s * limit})
        self.entries |= {A: (0, ""), B: (0, "")}
        self.begin()
        for number in (A, B):
            self._own([number])
        self._next = {0: 0, A: 0, B: 0}

    def comes(self, *values: bytes, partition: int, key: bytes | None = None) -> None:
        """Read records."""
        first = self._next[partition]
        self._next[partition] = first + len(values)
        records = [
            Record(key, value, (), 1, "t", partition % CLASS_STRIDE, first + at) for at, value in enumerate(values)
        ]
        self.read({partition: records}, {})


def test_a_background_event_is_served_where_no_live_one_waits() -> None:
    slot = Backfilled(limit=1)
    slot.comes(b"old 1", b"old 2", partition=A)
    slot.comes(b"new 1", b"new 2", partition=0)
    replica = slot.attached()
    served = []
    for _ in range(4):
        batch = replica.batch()
        served += batch.inputs
        replica.answer(batch)
    assert served == [b"new 1", b"new 2", b"old 1", b"old 2"]
    slot.advance(1.0)
    assert {number: offset for number, (offset, _) in slot.entries.items()} == {0: 2, 1: 0, A: 2, B: 0}


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("kind", [{"background": True}, {"slo": "200ms"}], ids=str)
def test_an_event_with_the_header_of_a_class_enters_again_by_its_topic(
    kind: dict[str, Any], transactional: bool
) -> None:
    source = [Topic("in", codec="raw"), Topic("batch", codec="raw", header=("priority", "batch"), **kind)]
    slot = PlayedSlot(source=source, transactional=transactional)
    slot.begin()
    replica = slot.attached()
    headers = [[("priority", b"batch")], [("priority", b"high")], [("priority", b"batch"), ("note", None)], []]
    records = [Record(b"k", b"%d" % at, of, WALL_MS + at, "in", 0, at) for at, of in enumerate(headers)]
    slot.read({0: records}, {})
    batch = replica.batch()
    assert batch.inputs == [b"1", b"3"]
    replica.answer(batch)
    slot.advance(1.0)
    assert slot.entries[0][0] == 4
    moved = [each for of in slot.outgoing for (topic, _), sent in of.items() if topic == "batch" for each in sent]
    assert [(each.key, each.value, each.timestamp_ms) for each in moved] == [
        (b"k", b"0", WALL_MS),
        (b"k", b"2", WALL_MS + 2),
    ]
    assert [each.header(EVENT_ID) for each in moved] == [b"in/0/0", b"in/0/2"]
    assert moved[1].header("priority") == b"batch"
    ended = [each for of in slot.outgoing for (topic, _), sent in of.items() if topic == "p.completed" for each in sent]
    assert [(each.key, each.header(REASON)) for each in ended] == [(b"in/0/0", b"moved"), (b"in/0/2", b"moved")]
    assert (slot.report.counts.events, slot.report.counts.moved) == (2, 2)


@pytest.mark.parametrize("limit_bytes", [None, 300])
@pytest.mark.parametrize("entry", ["read", "look"])
def test_no_join_hears_of_an_event_that_is_moved(entry: str, limit_bytes: int | None) -> None:
    read, look = (Stage(name, same, hardware="cpu-1") for name in ("read", "look"))
    join = Stage("join", same, after=[read, look], hardware="cpu-1")
    alert = Stage("alert", same, after=[read], hardware="cpu-1", sink=Topic("alerts", codec="raw"))
    moving = Pipeline(
        "p",
        slo="1s",
        source=[Topic("in", codec="raw"), Topic("fast", codec="raw", slo="200ms", header=("tier", "premium"))],
        sink=Topic("out", codec="raw"),
        stages=[read, look, join, alert],
    )
    rules = None if limit_bytes is None else RecordRules({"fast": limit_bytes})
    slot = PlayedSlot(stage=routes_of(moving, entry), rules=rules)
    slot.begin()
    slot.read({0: [Record(b"k", b"x" * 300, [("tier", b"premium")], WALL_MS, "in", 0, 0)]}, {})
    slot.advance(1.0)
    assert slot.entries[0][0] == 1
    sent = [(topic, each) for of in slot.outgoing for (topic, _), records in of.items() for each in records]
    to, reason = ("fast", b"moved") if limit_bytes is None else ("in.dlq", b"dead_lettered")
    assert [topic for topic, _ in sent] == ([to, "p.completed"] if entry == "read" else [])
    ends = [(each.header(REASON), each.header(ENDED_AT)) for topic, each in sent if topic == "p.completed"]
    assert ends == [(reason, b"join,alert")] * (entry == "read")


def test_an_event_that_is_old_enters_again_by_a_time_at_which_retention_lets_it_be_read() -> None:
    source = [Topic("in", codec="raw"), Topic("batch", codec="raw", background=True, header=("priority", "batch"))]
    slot = PlayedSlot(source=source)
    slot.begin()
    hours_ms = 3_600_000
    times_ms = [WALL_MS - 200 * hours_ms, WALL_MS - 11 * hours_ms]
    records = [
        Record(None, b"x", [("priority", b"batch")], time_ms, "in", 0, at) for at, time_ms in enumerate(times_ms)
    ]
    slot.read({0: records}, {})
    slot.advance(1.0)
    moved = [each for of in slot.outgoing for (topic, _), sent in of.items() if topic == "batch" for each in sent]
    assert [each.timestamp_ms for each in moved] == [None, times_ms[1]], "None is the time at which it is written"


@pytest.mark.parametrize("rules", [RecordRules({"batch": 400}), RecordRules({}, frozenset({"batch"}))])
def test_an_event_that_the_topic_of_its_class_does_not_take_is_a_dead_letter(rules: RecordRules) -> None:
    source = [Topic("in", codec="raw"), Topic("batch", codec="raw", background=True, header=("priority", "batch"))]
    slot = PlayedSlot(source=source, rules=rules)
    slot.begin()
    slot.read({0: [Record(None, b"x" * 300, [("priority", b"batch")], 1, "in", 0, 0)]}, {})
    slot.advance(1.0)
    assert [topic for of in slot.outgoing for topic, _ in of] == ["in.dlq", "p.completed"]
    assert slot.entries[0][0] == 1


def test_a_background_batch_delays_a_live_event_by_a_small_share_of_the_slo() -> None:
    slot = Backfilled(limit=8, batch_s=0.015)
    slot.comes(*[b"old"] * 20, partition=A)
    batch = slot.attached().batch()
    assert len(batch.inputs) == 3  # of one stage: the largest with b · 15 ms ≤ 5 % of a second
    assert len(batch.inputs) * 0.015 <= DELAY_SHARE * SLO_S < (len(batch.inputs) + 1) * 0.015


def test_an_event_that_takes_longer_than_that_is_served_alone() -> None:
    slot = Backfilled(limit=8, batch_s=0.5)
    slot.comes(b"1", b"2", partition=A)
    assert slot.attached().batch().inputs == [b"1"]


def test_classes_share_by_their_weights_what_live_events_leave() -> None:
    slot = Backfilled(limit=1)
    for number, name in ((A, b"a"), (B, b"b")):
        slot.comes(*[name] * 40, partition=number)
    replica = slot.attached()
    served = []
    for _ in range(40):
        batch = replica.batch()
        served += batch.inputs
        replica.answer(batch)
    assert served.count(b"b") == pytest.approx(30, abs=1)


def test_a_key_has_its_order_within_its_class() -> None:
    slot = Backfilled(limit=1)
    slot.comes(b"old 1", b"old 2", partition=A, key=b"k")
    first, second = slot.attached(), slot.attached()
    old = first.batch()
    assert second.idle()  # the second one of the key waits for the first
    slot.comes(b"new", partition=0, key=b"k")
    assert second.batch().inputs == [b"new"]  # the live one for none of them
    first.answer(old)
    assert first.batch().inputs == [b"old 2"]


def test_intake_stops_once_a_second_of_background_work_waits_and_while_the_next_stage_has_enough() -> None:
    slot = Backfilled(limit=1, batch_s=0.05)
    assert slot.slot.full() == {A, B}  # no replica would serve them
    slot.attached()
    assert slot.slot.full() == frozenset()
    slot.comes(*[b"old"] * 20, partition=A)
    assert slot.slot.full() == frozenset()  # one of twenty is in hand
    slot.comes(b"old", partition=A)
    assert slot.slot.full() == {A}  # the other class has its turn: it may have as much
    slot.comes(*[b"old"] * 20, partition=B)
    assert slot.slot.full() == {A, B}
    slot = Backfilled(limit=1)
    slot.attached()
    plan = StagePlan({KIND: HardwarePlan(1, {1: 0.01})})
    for waits in (True, False):
        slot.perform(slot.slot.on(Grant("work", 0, 1, "d", 1, 2, plan=plan, background_waits=waits), slot.now_s))
        assert slot.slot.full() == ({A, B} if waits else frozenset())


def test_counts_latencies_and_expiry_are_of_live_events_alone() -> None:
    slot = Backfilled(limit=1, on_expired="drop")
    slot.comes(b"old", partition=A)
    replica = slot.attached()
    replica.answer(replica.batch())  # not dropped, though it entered in 1970
    counts, background = slot.report.counts, slot.report.background
    assert (counts.events, sum(counts.latency_buckets), counts.backlog, counts.batches, counts.wait_s) == (
        0,
        0,
        0,
        0,
        0,
    )
    assert (background["a"].events, background["a"].batches, background["b"].events) == (1, 1, 0)
    assert slot.sent == [b"old"]


def test_a_topic_that_is_deleted_halts_its_class_alone() -> None:
    slot = Backfilled()
    slot.feed(on.TopicGone("the topic was deleted", 1))
    assert list(slot.report.halted) == [A]
    assert "a/0 is halted" in slot.session.trouble()
    assert slot.session.partitions[0].halted == ""


def test_events_behind_one_of_their_key_are_no_work_that_keeps_others_out() -> None:
    slot = Backfilled(limit=1, batch_s=0.1)
    slot.attached()
    slot.attached()
    slot.comes(*[b"old"] * 100, partition=A, key=b"k")  # one is in hand: the second replica is idle
    assert slot.slot.full() == frozenset()
    slot.slot.fill(slot.report, slot.now_s)
    assert (slot.report.background_queued, slot.report.background_enough) == (99, False)
    slot.comes(*[b"x" * 1_000_000] * 5, partition=A, key=b"k")
    assert slot.slot.full() == {A}


def test_a_replica_whose_server_took_no_background_batch_gets_it_again_with_no_live_event_in_sight() -> None:
    slot = Backfilled(limit=1)
    slot.comes(b"old", partition=A)
    replica = slot.attached()
    batch = replica.batch()
    began_s = slot.now_s
    replica.say(Returned(batch.epoch, batch.batch, "the server is away", 0.5, busy=True))
    assert replica.batch().inputs == [b"old"]
    assert slot.now_s == pytest.approx(began_s + 0.5)


def test_on_the_only_replica_live_events_go_before_suspects_of_a_background_batch() -> None:
    slot = Backfilled(limit=4, batch_s=0.01)
    slot.comes(*[b"old"] * 4, partition=A)
    killed = slot.attached()
    assert len(killed.batch().inputs) == 4
    killed.die()
    replica = slot.attached()
    batch = replica.batch()
    assert batch.inputs == [b"old"]  # alone
    slot.comes(b"new 1", b"new 2", partition=0)
    served = []
    for _ in range(4):
        replica.answer(batch)
        batch = replica.batch()
        served.append(batch.inputs)
    assert served == [[b"new 1", b"new 2"], [b"old"], [b"old"], [b"old"]]


def test_a_join_reads_no_more_background_parts_again_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_bounds, "AT_ONCE", 10)
    monkeypatch.setattr(session, "WAITING_BYTES", 30_000)
    routes = routes_of(pipeline(source=[Topic("in"), Topic("a", background=True)]), "both")
    slot = PlayedSlot({A: (0, "")}, stage=routes, settings=Settings(join_bytes=0.0))
    slot.begin()
    for parent in (b"left", b"right"):
        for number in range(200):
            headers = ((EVENT_ID, b"%d" % number), (PARENT, parent))
            slot.log.append(Record(None, b"x" * 500, headers, 1, "p.both.a", 0, len(slot.log)))
    for at in range(0, 400, 50):
        slot.read({A: slot.log[at : at + 50]}, {A: at + 50})
    assert slot.again
    assert 30_000 <= slot.session.background.queue_of(A).size_bytes <= 30_000 + 10 * 3000
    while events := slot.hand_out(64):
        slot.answer(events)
    slot.until(lambda: slot.offset(A) == 400, "all are through")
