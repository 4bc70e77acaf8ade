"""What a slot does with events that can no longer be on time: their share, the bounds, and what it says of them."""

from itertools import pairwise

import pytest

from inferline_stream.dataplane.dispatcher import completion, queue, session
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.slot_grants import LeaderHeartbeat
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.deadline_order import DEMAND_AFTER_SLOS, HOPELESS_EVERY, NEWS_LASTS_S
from tests.unit.dataplane.dispatcher.doubles import WALL_S, PlayedSlot

SLO_S = 1.0


class Stage(PlayedSlot):
    """One replica that takes 100 ms for each event, alone."""

    def __init__(self, partitions=1, **how):
        super().__init__(dict.fromkeys(range(partitions), (0, "")), limit=1, **how)
        self.planned = {"limit": 1, "service_s": {1: 0.1}}
        self.plan(**self.planned)
        self.begin()
        self.replica = self.attached()
        self.next_offset = 0

    def come(self, *ages_s, size=1):
        """Records that entered so long ago."""
        now_ms = round((self.now_s + WALL_S) * 1000)
        records = [
            Record(None, b"%f" % age_s + b"x" * size, (), now_ms - round(1000 * age_s), "in", 0, self.next_offset + at)
            for at, age_s in enumerate(ages_s)
        ]
        self.next_offset += len(records)
        self.read({0: records}, {0: self.next_offset})

    def serve(self):
        """Let the replica finish what it has; return the age that its event came with."""
        batch = self.replica.batch()
        self.advance(0.1)
        self.replica.answer(batch)
        return float(batch.inputs[0].rstrip(b"x"))

    def reported(self):
        self.slot.fill(self.report, self.now_s)
        return self.report


def test_a_producer_whose_clock_is_an_hour_behind_has_its_share_starves_nobody_and_is_named():
    stage = Stage()
    stage.come(0.0)
    stage.come(*[3600.0] * 3)
    served = []
    for _ in range(3 * HOPELESS_EVERY + 10):
        stage.come(0.0)
        served.append(stage.serve())
    late = [at for at, age_s in enumerate(served) if age_s]
    assert len(late) == 3
    assert all(after - before == HOPELESS_EVERY for before, after in pairwise(late))
    assert stage.reported().clock_lag_s == pytest.approx(3600.0, abs=0.1)
    stage.advance(61.0)
    stage.come(0.0)
    assert stage.reported().clock_lag_s == 0.0


def test_a_topology_in_order_of_entry_serves_what_is_hopeless_first():
    stage = Stage(order="entry")
    stage.come(0.0)
    stage.come(0.0, 3600.0)
    assert [stage.serve() for _ in range(3)] == [0.0, 3600.0, 0.0]


def test_what_is_hopeless_is_reported_by_partition_until_it_is_old_enough_to_be_a_backlog():
    stage = Stage()
    stage.come(0.0)
    stage.come(0.95, 0.95, 3600.0, 0.0)
    stage.serve()
    report = stage.reported()
    assert (report.hopeless, report.hidden, report.queued) == ({0: 3}, {0: 2}, 3)
    assert report.waited_for == [0]  # the first that is not complete is one of them
    assert report.oldest_wait_s == pytest.approx(3600.1, abs=0.01)
    stage.advance(DEMAND_AFTER_SLOS * SLO_S)
    assert (stage.reported().hopeless, stage.reported().hidden) == ({0: 3}, {0: 0})


def test_a_partition_whose_first_event_is_in_hand_waits_for_no_hopeless_one():
    """It may hang there: that is what a stuck partition is."""
    stage = Stage()
    stage.come(0.0)
    stage.come(0.95, 0.0)
    stage.attached()
    assert stage.reported().hopeless == {0: 1}
    assert stage.reported().waited_for == []


def test_the_leader_says_what_later_stages_take_and_after_a_while_the_plan_does_again():
    def first_of(after_s, rest_s):
        stage = Stage()
        stage.plan(rest_s=0.1, **stage.planned)
        stage.feed(LeaderHeartbeat(1, "c", rest_s={"work": rest_s, "another": 9.0}))
        stage.advance(after_s)
        stage.come(0.0)
        stage.come(0.5, 0.1)  # the first of these is 0.6 s old by then, and takes 0.1 s
        stage.serve()
        return stage.serve()

    assert first_of(0.0, 0.29) == 0.5
    assert first_of(0.0, 0.31) == 0.1
    assert first_of(NEWS_LASTS_S, 0.31) == 0.5


def test_how_long_hopeful_events_stay_is_reported_and_how_long_hopeless_ones_do_is_not():
    stage = Stage()
    assert stage.reported().stay is None
    stage.come(0.0)
    stage.come(0.0, 0.95)
    for _ in range(3):
        stage.serve()
    stage.advance(0.25)
    sum_s, events, last_s = stage.reported().stay
    assert last_s == pytest.approx(-0.35)  # the last one was hopeless
    forgotten = 2.718281828 ** (-0.1 / 0.5)
    assert sum_s / events == pytest.approx((0.1 * forgotten + 0.2) / (1 + forgotten))


@pytest.mark.parametrize("hurries", [True, False])
def test_hopeless_events_go_first_before_their_partition_would_have_to_pause(hurries, monkeypatch):
    """They hold the committed offset, and what is complete above it would no longer fit a commit."""
    for name, size in (("CLEAR", 32), ("PRESSED", 48), ("CROWDED", 64)):
        monkeypatch.setattr(completion, f"{name}_BYTES", size)
    monkeypatch.setattr(queue, "HOPELESS_EVERY", 10**9)
    if not hurries:
        monkeypatch.setattr(Session, "_held_up", lambda _: False)
    stage = Stage()
    stage.come(0.0)
    stage.come(*[3600.0] * 30)
    served, paused = [], False
    for _ in range(450):
        stage.come(0.0)
        served.append(stage.serve())
        paused |= bool(stage.slot.full())
    assert (paused, served.count(3600.0)) == ((False, 30) if hurries else (True, 0))
    assert (stage.offset() > 30) is hurries


@pytest.mark.parametrize(("hopeless", "first"), [(18, 0.0), (19, 3600.0)])
def test_hopeless_events_go_first_before_they_hide_what_would_be_read_after_them(hopeless, first, monkeypatch):
    stage = Stage()
    stage.come(0.0)
    stage.come(0.0, *[3600.0] * hopeless, size=1000)
    queue_bytes = stage.session.queue.size_bytes / (hopeless + 1)
    monkeypatch.setattr(session, "HURRY_BYTES", 19.5 * queue_bytes)
    stage.come()
    stage.serve()
    assert not stage.slot.full()
    assert stage.serve() == first


def test_a_full_queue_of_hopeless_events_is_worked_off():
    """Nothing hopeful can be read any more: what waits is served all the same."""
    stage = Stage()
    stage.come(*[3600.0] * 40)
    stage.session.queue.hurries = True
    assert [stage.serve() for _ in range(40)] == [3600.0] * 40
    assert stage.offset() == 40


@pytest.mark.parametrize("halted", [False, True])
def test_hopeless_events_hurry_nobody_where_another_partition_is_held_up_by_something_else(halted, monkeypatch):
    """By events behind one of their key that takes long, or because it is halted: theirs would come no sooner."""
    for name, size in (("CLEAR", 32), ("PRESSED", 48), ("CROWDED", 10_000)):
        monkeypatch.setattr(completion, f"{name}_BYTES", size)
    stage = Stage(partitions=2)
    stage.fetched(b"0", partition=1, key=b"k")
    assert stage.replica.batch()  # and keeps it
    stage.replica = stage.attached()
    for first in range(1, 400, 2):
        stage.fetched(b"0", partition=1, first=first)
        stage.fetched(b"0", partition=1, first=first + 1, key=b"k")
        stage.replica.answer(stage.replica.batch())
    assert stage.session.partitions[1].completion.pressed
    if halted:
        stage.feed(on.RecordsRead({}, {}, {1: "gone"}, stage.now_s + WALL_S))
        assert list(stage.report.halted) == [1]
    stage.come(0.0)
    stage.come(3600.0, 0.0)
    for _ in range(5):
        assert stage.serve() == 0.0
        stage.come(0.0)
    assert sum(stage.reported().hopeless.values()) == 1


def test_a_hopeless_event_that_is_dropped_does_not_count_among_those_that_stayed():
    stage = Stage(on_expired="drop")
    stage.plan(limit=2, service_s={1: 0.1, 2: 0.1})
    stage.come(0.0)
    stage.fetched(b"2.0", key=b"k", first=1, ago_s=2.0)
    stage.fetched(b"0.0", key=b"k", first=2)
    stage.replica.answer(stage.replica.batch())
    (hand,) = stage.pool.replicas[stage.replica.name].hands.values()
    assert ([event.payload for event in hand.events], hand.hopeful) == ([b"0.0"], 1)
