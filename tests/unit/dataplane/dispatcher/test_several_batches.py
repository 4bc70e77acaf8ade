"""A replica that may have several batches in hand, and one whose server takes none."""

from __future__ import annotations

import pytest

from inferline_stream.dataplane.dispatcher import batch_exchange
from inferline_stream.dataplane.frames import Batch, Broken, Leave, Returned
from tests.unit.dataplane.dispatcher.doubles import PlayedSlot, Replica, fed


def at_once(pool: PlayedSlot, concurrency: int, limit: int = 1) -> None:
    pool.plan(limit=limit, concurrency=concurrency)


def refused(replica: Replica, batch: Batch, wait_s: float = 0.0) -> None:
    replica.say(Returned(batch.epoch, batch.batch, "the server is away", wait_s))


def test_a_replica_gets_as_many_batches_as_it_may_have_and_the_next_with_each_answer():
    with fed() as pool:
        at_once(pool, 3)
        replica = pool.attached()
        pool.fetched(*[b"%d" % number for number in range(5)])
        batches = [replica.batch() for _ in range(3)]
        assert [batch.inputs for batch in batches] == [[b"0"], [b"1"], [b"2"]]
        assert replica.idle()
        replica.answer(batches[1])
        assert replica.batch().inputs == [b"3"]
        assert replica.idle()


def test_a_replica_that_is_retired_finishes_all_its_batches_first():
    with fed() as pool:
        at_once(pool, 2)
        replica = pool.attached()
        pool.fetched(b"0", b"1")
        batches = [replica.batch() for _ in range(2)]
        pool.retire(replica.name)
        replica.answer(batches[0])
        pool.until(lambda: len(pool.sent) == 1, "the first is sent")
        assert replica.idle()
        replica.answer(batches[1])
        assert isinstance(replica.next(), Leave)


def test_all_that_was_in_hand_together_is_suspected_when_its_replica_dies_and_nothing_is_lost():
    with fed() as pool:
        at_once(pool, 3)
        pool.session.suspects.learn(b"a sample")
        victim = pool.attached()
        pool.fetched(b"0", b"1", b"2")
        for _ in range(3):
            victim.batch()
        victim.die()
        pool.until(lambda: len(pool.session.suspects) == 3, "they are suspects")
        assert pool.report.counts.batches_lost == 3
        other, got = pool.attached(), []
        while len(got) < 3:
            batch = other.batch()
            assert other.idle(), "suspects run alone"
            got += [each for each in batch.inputs if each != b"a sample"]
            other.answer(batch)
        pool.until(lambda: pool.offset() == 3, "all are committed")
        assert sorted(filter(None, pool.sent)) == [b"0", b"1", b"2"]


def test_of_a_replica_that_breaks_on_one_batch_the_others_run_again_without_suspicion():
    with fed() as pool:
        at_once(pool, 2)
        replica = pool.attached()
        pool.fetched(b"0", b"1")
        guilty, innocent = [replica.batch() for _ in range(2)]
        replica.say(Broken(guilty.epoch, guilty.batch, "returned 2 results for a batch of 1"))
        pool.until(lambda: not pool.phases(), "its end is known")
        assert (len(pool.session.suspects), pool.report.counts.batches_lost) == (1, 2)
        other = pool.attached()
        assert other.batch().inputs == innocent.inputs


def test_an_event_that_was_cut_too_often_is_not_judged_as_if_it_had_run_alone():
    with fed() as pool:
        at_once(pool, 2)
        pool.session.suspects.learn(b"a sample")
        replica = pool.attached()
        pool.fetched(b"0", b"1")
        for _ in range(2):
            replica.batch()
        often, once = (event for hand in pool.pool.replicas[replica.name].hands.values() for event in hand.events)
        often.cuts = batch_exchange._CUTS
        pool.lost(replica.name)
        assert len(pool.session.suspects) == 1
        assert (often.cuts, often.kills, once.kills) == (batch_exchange._CUTS + 1, 0, 0)


def test_what_a_replica_has_in_hand_that_is_replaced_for_being_slow_runs_again_without_suspicion(
    monkeypatch: pytest.MonkeyPatch,
):
    with fed() as pool:
        at_once(pool, 2)
        slow, other = pool.attached(), pool.attached()
        pool.fetched(b"0", b"1")
        for _ in range(2):
            slow.batch()
        monkeypatch.setattr(pool.pool, "stragglers", lambda now_s: [(slow.name, "it is slow")])
        pool.advance(1.0)
        for number in (b"0", b"1"):
            batch = other.batch()
            assert batch.inputs == [number]
            other.answer(batch)
        assert (pool.replaced, len(pool.session.suspects)) == ([slow.name], 0)
        assert pool.report.counts.batches_lost == 2


def test_a_batch_beyond_its_deadline_is_not_handed_to_the_replica_that_is_late_with_it():
    with fed(batch_deadline_s=0.05) as pool:
        at_once(pool, 2)
        slow, other = pool.attached(), pool.attached()
        pool.fetched(b"0")
        late = slow.batch()
        again = other.batch()
        assert again.inputs == late.inputs
        assert slow.idle()
        other.answer(again)
        pool.until(lambda: pool.offset() == 1, "it is committed")
        slow.answer(late)
        pool.fetched(b"1", first=1)
        assert slow.batch().inputs == [b"1"]


def test_a_suspect_waits_until_its_replica_has_nothing_else_in_hand():
    with fed() as pool:
        at_once(pool, 2)
        pool.session.suspects.learn(b"a sample")
        busy, victim = pool.attached(), pool.attached()
        pool.fetched(b"0", b"1", b"2", b"3")
        held = [busy.batch() for _ in range(2)]
        lost = [victim.batch() for _ in range(2)]
        victim.die()
        pool.until(lambda: len(pool.session.suspects) == 2, "they are suspects")
        busy.answer(held[0])
        pool.until(lambda: len(pool.sent) == 1, "one is sent")
        assert busy.idle()
        busy.answer(held[1])
        assert busy.batch().inputs in [batch.inputs for batch in lost]


def test_a_batch_that_a_server_does_not_take_runs_again_and_nothing_is_suspected():
    with fed(limit=2) as pool:
        replica = pool.attached()
        pool.fetched(b"0", b"1")
        for _ in range(2):
            refused(replica, replica.batch())
        again = replica.batch()
        assert again.inputs == [b"0", b"1"]
        assert "the server is away; its events wait" in pool.trouble
        replica.answer(again)
        pool.until(lambda: pool.offset() == 2, "both are committed")
        assert (pool.trouble, len(pool.session.suspects)) == ("", 0)
        assert (pool.report.counts.batches_lost, pool.report.counts.dead_lettered) == (0, 0)


def test_a_replica_whose_server_takes_nothing_gets_one_batch_at_a_time_until_it_finishes_one():
    with fed() as pool:
        at_once(pool, 3)
        replica = pool.attached()
        pool.fetched(*[b"%d" % number for number in range(4)])
        for batch in [replica.batch() for _ in range(3)]:
            refused(replica, batch)
        for _ in range(2):
            probe = replica.batch()
            assert replica.idle()
            refused(replica, probe)
        replica.answer(replica.batch())
        rest = [replica.batch() for _ in range(3)]
        for batch in rest:
            replica.answer(batch)
        pool.until(lambda: pool.offset() == 4, "all are committed")


def test_a_suspect_that_a_server_does_not_take_is_no_more_suspect_for_it():
    with fed() as pool:
        pool.session.suspects.learn(b"a sample")
        victim = pool.attached()
        pool.fetched(b"0")
        victim.batch()
        victim.die()
        pool.until(lambda: len(pool.session.suspects) == 1, "it is a suspect")
        other = pool.attached()
        for _ in range(3):
            refused(other, other.batch())
        while (batch := other.batch()).inputs != [b"0"]:
            other.answer(batch)
        other.answer(batch)
        pool.until(lambda: pool.offset() == 1, "it is committed")
        assert pool.sent == [b"0"]


def test_an_event_is_not_condemned_for_one_that_killed_its_replica_from_another_batch():
    with fed() as pool:
        at_once(pool, 2)
        pool.session.suspects.learn(b"a sample")
        victim = pool.attached()
        pool.fetched(b"bad", b"good")
        for _ in range(2):
            victim.batch()
        victim.die()
        ran: list[bytes] = []
        while ran.count(b"good") < 2:  # it meets the end of a replica, too, once
            replica = pool.attached()
            while (batch := replica.batch()).inputs == [b"a sample"]:
                replica.answer(batch)
            ran += [each for each in batch.inputs if isinstance(each, bytes)]
            if ran.count(b"good") < 2:
                replica.die()
                pool.until(lambda: not pool.phases(), "its end is known")
        replica.answer(batch)
        pool.until(lambda: pool.offset() == 2, "both are committed")
        assert pool.report.counts.dead_lettered == 1
        assert b"good" in pool.sent


def test_an_event_is_not_blamed_for_one_of_an_earlier_session_that_its_replica_has_in_hand_still():
    with fed() as pool:
        at_once(pool, 2)
        victim = pool.attached()
        pool.fetched(b"earlier")
        victim.batch()
        pool.drop()
        with pool.running() as session:
            session.suspects.learn(b"a sample")
            pool.fetched(b"good")
            assert victim.batch().inputs == [b"good"]
            victim.die()
            other = pool.attached()
            pool.pool.replicas[other.name].passed = True
            assert other.batch().inputs == [b"good"]
            other.die()
            last = pool.attached()
            while (batch := last.batch()).inputs != [b"good"]:
                last.answer(batch)
            last.answer(batch)
            pool.until(lambda: pool.offset() == 1, "it is committed")
            assert pool.report.counts.dead_lettered == 0
