"""A slot hands batches to replicas and takes their results; without processes and Kafka."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import FrameType

import pytest

from inferline_stream.dataplane.frames import Batch, Broken, Call, Done, Leave, Ready, Results, Sleep, answer_bytes
from inferline_stream.dataplane.reports import decode_report, encode_report
from tests.unit.dataplane.dispatcher.doubles import KIND, WALL_S, Replica, fed


def test_a_replica_gets_what_waits_up_to_the_limit_and_the_next_batch_with_its_answer():
    with fed(limit=4) as pool:
        replica = pool.attached()
        pool.fetched(*[b"%d" % number for number in range(6)])
        first = replica.batch()
        assert first.inputs == [b"0", b"1", b"2", b"3"]
        assert replica.idle()
        replica.answer(first)
        second = replica.batch()
        assert second.inputs == [b"4", b"5"]
        replica.answer(second)
        pool.until(lambda: pool.offset() == 6, "all are committed")
        assert pool.sent == [b"%d" % number for number in range(6)]


def test_a_batch_enters_no_part_of_the_slot_that_its_stage_does_not_use():
    entered = set[str]()

    def note(frame: FrameType, what: str, _: object) -> None:
        if what == "call":
            entered.add(Path(frame.f_code.co_filename).stem)

    with fed(limit=4) as pool:
        replica = pool.attached()
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            pool.fetched(b"0", b"1")
            replica.answer(replica.batch())
            pool.until(lambda: pool.offset() == 2, "both are committed")
        finally:
            sys.setprofile(before)
    assert {"intake", "queue", "batch_exchange", "emitter", "completion"} <= entered
    unused = {"background", "doubtful_batches", "fallback_batches", "join", "lost_batches"}
    assert sorted(entered & unused) == []


def test_a_replica_gets_nothing_before_it_is_ready():
    with fed() as pool:
        replica = pool.attached(ready=False)
        pool.fetched(b"x")
        assert replica.idle()
        replica.ready()
        assert replica.batch().inputs == [b"x"]


def test_a_batch_waits_to_be_full_for_the_stages_hold():
    with fed(limit=4) as pool:
        replica = pool.attached()
        pool.plan(limit=4, hold_s=3600.0)
        pool.fetched(b"0", b"1", b"2")
        assert replica.idle()
        pool.fetched(b"3", first=3)
        batch = replica.batch()
        assert len(batch.inputs) == 4
        replica.answer(batch)
        pool.plan(limit=4, hold_s=0.02)
        pool.fetched(b"4", first=4)
        assert replica.batch().inputs == [b"4"]


def test_a_retired_replica_finishes_its_batch_before_it_is_sent_away():
    with fed() as pool:
        replica = pool.attached()
        pool.fetched(b"x")
        batch = replica.batch()
        pool.retire(replica.name)
        assert (pool.phases(), replica.idle()) == ({replica.name: "leaving"}, True)
        pool.fetched(b"y", first=1)
        replica.answer(batch)
        assert isinstance(replica.next(), Leave)
        pool.until(lambda: pool.offset() == 1, "its result is committed")
        assert pool.phases() == {}


def test_a_replica_that_moves_finishes_its_batch_and_is_not_sent_away():
    with fed() as pool:
        replica = pool.attached()
        pool.fetched(b"x")
        batch = replica.batch()
        pool.retire(replica.name, moves=True)
        assert replica.connected
        replica.answer(batch)
        assert (replica.connected, list(replica.frames), pool.phases()) == (False, [], {})
        pool.until(lambda: pool.offset() == 1, "its result is committed")


def broken(replica: Replica, batch: Batch) -> None:
    replica.say(Broken(batch.epoch, batch.batch, "returned 1 results for a batch of 2"))


def miscounted(replica: Replica, batch: Batch) -> None:
    replica.say(Results(batch.epoch, batch.batch, [Done(b"", 0)], [Call(2, 0.01)], 0.01))


@pytest.mark.parametrize("fails", [lambda replica, batch: replica.die(), broken, miscounted])
def test_a_batch_whose_replica_is_lost_runs_again_and_its_events_get_through(fails):
    with fed() as pool:
        victim, other = pool.attached(), pool.attached()
        pool.session.suspects.learn(b"a sample")
        pool.fetched(b"x", b"y")
        fails(victim, victim.batch())
        answered: list[bytes] = []
        while len(answered) < 2:
            batch = other.batch()
            answered += [each for each in batch.inputs if isinstance(each, bytes) and each != b"a sample"]
            other.answer(batch)
        pool.until(lambda: pool.offset() == 2, "both are committed")
        assert sorted(filter(None, pool.sent)) == [b"x", b"y"]
        assert (pool.report.counts.batches_lost, set(pool.phases())) == (1, {other.name})


def test_a_batch_beyond_its_deadline_runs_elsewhere_and_the_late_result_is_dropped():
    with fed(batch_deadline_s=0.05) as pool:
        slow, other = pool.attached(), pool.attached()
        pool.fetched(b"x")
        late = slow.batch()
        again = other.batch()
        assert again.inputs == late.inputs
        slow.answer(late)
        other.answer(again)
        pool.until(lambda: pool.offset() == 1, "it is committed")
        assert pool.sent == [b"x"]
        pool.fetched(b"y", first=1)
        assert slow.batch().inputs == [b"y"], "it serves again once it has answered"


def test_a_replica_beyond_its_last_deadline_is_replaced():
    with fed(batch_deadline_s=0.02) as pool:
        replica = pool.attached()
        pool.fetched(b"x")
        replica.batch()
        pool.until(lambda: pool.replaced == [replica.name], "it is replaced")
        assert pool.phases() == {}


def test_the_only_replica_serves_the_queue_again_once_nothing_is_suspected():
    with fed() as pool:
        pool.session.suspects.learn(b"a sample")
        victim = pool.attached()
        pool.fetched(b"x", b"y")
        victim.batch()
        victim.die()
        pool.until(lambda: not pool.phases(), "its end is known")
        replica = pool.attached()
        for _ in range(2):
            replica.answer(replica.batch())
        pool.fetched(b"z", first=2)
        assert replica.batch().inputs == [b"z"]


def test_a_replica_that_is_attached_again_loses_no_event_and_does_not_end_with_its_first_connection():
    with fed() as pool:
        before = pool.attached()
        pool.session.suspects.learn(b"a sample")
        pool.fetched(b"x")
        before.batch()
        again = pool.attached(before.name)
        assert not before.connected
        for inputs in ([b"a sample"], [b"x"]):
            batch = again.batch()
            assert batch.inputs == inputs
            again.answer(batch)
        pool.until(lambda: pool.offset() == 1, "it is committed")
        assert pool.phases() == {before.name: "ready"}


def garbled(replica: Replica, batch: Batch) -> None:
    replica.die("a frame cannot be read")


@pytest.mark.parametrize("fails", [miscounted, garbled])
def test_a_replica_that_answers_nonsense_is_replaced_since_its_process_lives_on(fails):
    with fed() as pool:
        replica = pool.attached()
        pool.fetched(b"x", b"y")
        fails(replica, replica.batch())
        pool.until(lambda: pool.replaced == [replica.name], "it is replaced")


def test_a_long_frame_is_taken_only_as_the_answer_to_a_batch_in_hand_and_only_so_long():
    with fed() as pool:
        replica = pool.attached()
        pool.fetched(b"x", b"y")
        batch = replica.batch()
        asked = [(batch.epoch, batch.batch), (batch.epoch - 1, batch.batch), (batch.epoch, batch.batch + 1)]
        longest = [pool.slot.answer_bytes(replica.name, *each) for each in asked]
        assert longest == [answer_bytes(2, batch.result_bytes), None, None]
        assert pool.slot.answer_bytes("another", *asked[0]) is None


def test_a_replica_that_is_retired_while_it_loads_can_still_say_that_it_is_ready_and_read_that_it_leaves():
    with fed() as pool:
        replica = pool.attached(ready=False)
        pool.retire(replica.name)
        pool.advance(0.15)
        replica.ready()
        assert isinstance(replica.next(), Leave)


def test_the_queue_is_served_once_fresh_replicas_may_be_even_if_nothing_else_happens():
    with fed() as pool:
        pool.session.suspects.suspicion.blocked_until_s = pool.now_s + 0.1
        replica = pool.attached()
        pool.fetched(b"x")
        assert replica.idle()
        assert replica.batch().inputs == [b"x"]


def test_a_suspect_that_is_due_waits_for_the_block_of_fresh_replicas_and_for_no_other_suspect():
    with fed() as pool:
        pool.fetched(b"huge", b"due")
        huge, due = pool.session.take(2).events
        suspects, now_s = pool.session.suspects, pool.now_s
        suspects.no_memory(huge, alone=False, now_s=now_s + 3600.0)
        suspects.suspect([[due]], passed=True, now_s=now_s)
        suspects.suspicion.blocked_until_s = now_s + 0.2
        replica = pool.attached()
        assert replica.idle()
        assert replica.batch().inputs == [b"due"]


def test_a_batch_whose_connection_breaks_runs_again_without_suspicion():
    with fed(limit=2) as pool:
        replicas = [pool.attached() for _ in range(2)]
        pool.fetched(b"1", b"2")
        first = replicas[0].batch()
        pool.lost(replicas[0].name)
        again = replicas[1].batch()
        assert again.inputs == first.inputs
        assert len(pool.session.suspects) == 0
        replicas[1].answer(again)
        pool.until(lambda: pool.offset() == 2, "both are committed")
        assert pool.report.counts.batches_lost == 1


def test_what_the_network_takes_of_a_batch_is_counted_for_replicas_on_other_nodes_alone():
    with fed() as pool:
        near, report = pool.attached(), pool.report
        pool.fetched(b"near")
        batch = near.batch()
        pool.advance(0.05)
        near.answer(batch)  # it says that it took 0.01 s: the kernel may have stopped it for its share of a core
        pool.until(lambda: pool.offset() == 1, "it is done")
        assert (report.counts.remote_batches, report.counts.network_s) == (0, 0.0)
        near_s = report.counts.batch_stats[KIND][1].service_s
        assert near_s >= 0.04
        pool.retire(near.name)
        far = pool.attached("far", node="node-1")
        pool.fetched(b"far", first=1)
        batch = far.batch()
        pool.advance(0.05)
        far.answer(batch)  # it says that it took 0.01 s
        pool.until(lambda: pool.offset() == 2, "it is done")
        assert report.counts.remote_batches == 1
        assert report.counts.network_s == pytest.approx(0.04)
        assert report.counts.batch_stats[KIND][1].service_s - near_s == pytest.approx(0.01)


def test_a_suspect_whose_connection_breaks_runs_alone_again_and_is_not_condemned():
    with fed(limit=2) as pool:
        pool.session.suspects.learn(b"sample")
        doomed = pool.attached()
        pool.fetched(b"1")
        doomed.batch()
        doomed.die()  # its first kill
        for _ in range(3):
            replica = pool.attached()
            replica.batch()
            pool.lost(replica.name)
        last = pool.attached()
        while (batch := last.batch()).inputs != [b"1"]:
            last.answer(batch)  # a probe
        last.answer(batch)
        pool.until(lambda: pool.offset() == 1, "it is committed")
        assert pool.sent == [b"1"]


def test_an_event_whose_connections_break_again_and_again_comes_under_suspicion():
    with fed() as pool:
        pool.fetched(b"1")
        for _ in range(4):
            assert len(pool.session.suspects) == 0
            replica = pool.attached()
            replica.batch()
            pool.lost(replica.name)
        assert len(pool.session.suspects) == 1


def test_batches_are_smaller_once_a_replica_says_that_its_device_has_no_memory_for_one():
    with fed(limit=4) as pool:
        replica = pool.attached()
        pool.fetched(b"1", b"2", b"3", b"4")
        batch = replica.batch()
        assert len(batch.inputs) == 4
        done = [Done(bytes(each), 0) for each in batch.inputs]
        replica.say(Results(batch.epoch, batch.batch, done, [Call(2, 0.01), Call(2, 0.01)], 0.01, too_large=4))
        pool.until(lambda: pool.offset() == 4, "all are committed")
        pool.fetched(b"5", b"6", b"7", b"8", first=4)
        assert len(replica.batch().inputs) == 2


def test_a_device_that_has_no_memory_for_an_older_batch_is_not_one_that_was_tried_again():
    """It was handed out before the limit fell: the next larger batch is tried as soon as without it."""
    with fed(limit=4, batch_deadline_s=3600.0) as pool:
        replicas = [pool.attached() for _ in range(2)]
        pool.fetched(*[b"%d" % number for number in range(8)])
        for done, replica in enumerate(replicas, 1):
            batch = replica.batch()
            outcomes = [Done(bytes(each), 0) for each in batch.inputs]
            replica.say(Results(batch.epoch, batch.batch, outcomes, [Call(2, 0.01)] * 2, 0.01, too_large=4))
            pool.until(lambda done=done: pool.offset() == 4 * done, "it is committed")  # type: ignore[misc]
            assert pool.pool.limit(KIND) == 2
            pool.advance(31.0)
        pool.fetched(b"8", first=8)
        replicas[0].answer(replicas[0].batch())
        pool.until(lambda: pool.offset() == 9, "it is committed")
        assert pool.pool.limit(KIND) == 4


def test_an_event_that_no_device_has_memory_for_waits_and_is_no_dead_letter_and_others_go_on():
    with fed(limit=1) as pool:
        pool.session.suspects.learn(b"a sample")
        pool.fetched(b"huge", b"small")
        denied = 0
        while denied < 4 or b"small" not in pool.sent:
            replica = pool.attached()
            while (batch := replica.batch()).inputs != [b"huge"]:
                replica.answer(batch)
            replica.say(Broken(batch.epoch, batch.batch, "CUDA out of memory", memory=True, device=True))
            denied += 1
            pool.until(lambda: not pool.phases(), "the replica is gone")
        assert "no device has memory for 1 of its events" in pool.session.trouble()
        assert b"huge" not in pool.sent
        assert pool.report.counts.dead_lettered == 0
        replica = pool.attached()
        while b"huge" not in pool.sent:  # somebody has given the memory back
            replica.answer(replica.batch())
        pool.until(lambda: pool.offset() == 2, "both are committed")
        assert pool.session.trouble() == ""


def test_events_of_a_producer_whose_clock_says_1970_add_a_month_at_most_to_what_is_reported():
    with fed(limit=2) as pool:
        replica = pool.attached()
        pool.fetched(b"1", b"2", ago_s=WALL_S)
        replica.answer(replica.batch())
        pool.until(lambda: pool.offset() == 2, "they are committed")
        counts, month_s = pool.report.counts, 30 * 86_400.0
        assert (counts.wait_s, counts.latency_sum_s) == (2 * month_s, 2 * month_s)


@pytest.mark.parametrize(
    ("calls", "busy_s"),
    [
        ([Call(1, math.nan)], 0.01),
        ([Call(1, math.inf)], 0.01),
        ([Call(1, -1.0)], 0.01),
        ([Call(1, 0.0)], 0.0),
        ([Call(0, 0.01)], 0.01),
        ([Call(1 << 60, 0.01)], 0.01),
        ([Call(1, 0.01)], math.nan),
        ([Call(1, 0.01)], 1e300),
        ([Call(n, 0.01) for n in range(1, 3000)], 0.01),
    ],
)
def test_whatever_a_replica_claims_of_a_batch_the_report_can_be_read_and_the_results_count(calls, busy_s):
    with fed() as pool:
        pool.plan(service_s={1: 0.01})
        replica = pool.attached(ready=False)
        replica.say(Ready(replica.name, math.nan, None))
        pool.until(lambda: pool.phases() == {replica.name: "ready"}, "it is ready")
        for number in range(5):
            pool.fetched(b"x", first=number)
            batch = replica.batch()
            replica.say(Results(batch.epoch, batch.batch, [Done(b"y", 0)], calls, busy_s))
            pool.until(lambda done=number + 1: pool.offset() == done, "it is committed")  # type: ignore[misc]
        pool.slot.fill(pool.report, pool.now_s)
        report = decode_report(encode_report(pool.report))
        assert sum(map(len, report.counts.batch_stats.values())) <= 1


def test_replicas_are_asked_to_let_their_servers_sleep_once_none_had_a_batch_for_as_long_as_that():
    with fed() as pool:
        pool.plan(sleep_after_s=30.0)
        first, second = pool.attached(), pool.attached()
        pool.fetched(b"x")
        batch = first.batch()
        pool.advance(40.0)  # it has that batch all the time
        assert (first.idle(), second.idle()) == (True, True)
        first.answer(batch)
        pool.advance(29.0)
        assert (first.idle(), second.idle()) == (True, True)
        pool.advance(2.0)
        assert [replica.frames.pop() for replica in (first, second)] == [Sleep(), Sleep()]
        pool.advance(600.0)
        assert (first.idle(), second.idle()) == (True, True), "once is enough"
        third = pool.attached()
        pool.advance(1.0)
        assert third.frames.pop() == Sleep(), "it came later"
        pool.fetched(b"y", first=1)
        first.answer(first.batch())
        pool.advance(61.0)
        assert first.frames.pop() == Sleep()
