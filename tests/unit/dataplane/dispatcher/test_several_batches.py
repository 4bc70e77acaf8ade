"""A replica that may have several batches in hand, and one whose server takes none."""

from __future__ import annotations

import pytest

from inferline_stream.dataplane.dispatcher import feeder
from inferline_stream.dataplane.frames import Batch, Broken, Leave, Returned
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan
from tests.unit.dataplane.dispatcher.doubles import Replica, until
from tests.unit.dataplane.dispatcher.test_feeder import KIND, Fed, fed


def at_once(pool: Fed, concurrency: int, limit: int = 1) -> None:
    pool.pool.configure(StagePlan({KIND: HardwarePlan(limit, concurrency=concurrency)}))


def refused(replica: Replica, batch: Batch, wait_s: float = 0.0) -> None:
    replica.say(Returned(batch.epoch, batch.batch, "the server is away", wait_s))


async def test_a_replica_gets_as_many_batches_as_it_may_have_and_the_next_with_each_answer():
    async with fed() as pool:
        at_once(pool, 3)
        replica = await pool.attached()
        pool.slot.fetched(*[b"%d" % number for number in range(5)])
        batches = [await replica.batch() for _ in range(3)]
        assert [batch.inputs for batch in batches] == [[b"0"], [b"1"], [b"2"]]
        assert replica.idle()
        replica.answer(batches[1])
        assert (await replica.batch()).inputs == [b"3"]
        assert replica.idle()


async def test_results_of_batches_that_end_out_of_order_are_all_sent_and_committed():
    async with fed() as pool:
        at_once(pool, 3)
        replica = await pool.attached()
        pool.slot.fetched(b"0", b"1", b"2")
        for batch in reversed([await replica.batch() for _ in range(3)]):
            replica.answer(batch)
        await until(lambda: pool.slot.offset() == 3, "all are committed")
        assert sorted(pool.slot.sender.sent) == [b"0", b"1", b"2"]


async def test_a_replica_that_is_retired_finishes_all_its_batches_first():
    async with fed() as pool:
        at_once(pool, 2)
        replica = await pool.attached()
        pool.slot.fetched(b"0", b"1")
        batches = [await replica.batch() for _ in range(2)]
        pool.feeder.retire(replica.name)
        replica.answer(batches[0])
        await until(lambda: len(pool.slot.sender.sent) == 1, "the first is sent")
        assert replica.idle()
        replica.answer(batches[1])
        assert isinstance(await replica.next(), Leave)


async def test_all_that_was_in_hand_together_is_suspected_when_its_replica_dies_and_nothing_is_lost():
    async with fed() as pool:
        at_once(pool, 3)
        pool.slot.session.suspects.learn(b"a sample")
        victim = await pool.attached()
        pool.slot.fetched(b"0", b"1", b"2")
        for _ in range(3):
            await victim.batch()
        victim.die()
        await until(lambda: len(pool.slot.session.suspects) == 3, "they are suspects")
        assert pool.slot.report.counts.batches_lost == 3
        other, got = await pool.attached(), []
        while len(got) < 3:
            batch = await other.batch()
            assert other.idle(), "suspects run alone"
            got += [each for each in batch.inputs if each != b"a sample"]
            other.answer(batch)
        await until(lambda: pool.slot.offset() == 3, "all are committed")
        assert sorted(filter(None, pool.slot.sender.sent)) == [b"0", b"1", b"2"]


async def test_of_a_replica_that_breaks_on_one_batch_the_others_run_again_without_suspicion():
    async with fed() as pool:
        at_once(pool, 2)
        replica = await pool.attached()
        pool.slot.fetched(b"0", b"1")
        guilty, innocent = [await replica.batch() for _ in range(2)]
        replica.say(Broken(guilty.epoch, guilty.batch, "returned 2 results for a batch of 1"))
        await until(lambda: not pool.phases(), "its end is known")
        assert (len(pool.slot.session.suspects), pool.slot.report.counts.batches_lost) == (1, 2)
        other = await pool.attached()
        assert (await other.batch()).inputs == innocent.inputs


async def test_an_event_that_was_cut_too_often_is_not_judged_as_if_it_had_run_alone():
    async with fed() as pool:
        at_once(pool, 2)
        pool.slot.session.suspects.learn(b"a sample")
        replica = await pool.attached()
        pool.slot.fetched(b"0", b"1")
        for _ in range(2):
            await replica.batch()
        often, once = (event for hand in pool.feeder._members[replica.name].hands.values() for event in hand.events)
        often.cuts = feeder._CUTS
        pool.feeder.lost(replica.name)
        assert len(pool.slot.session.suspects) == 1
        assert (often.cuts, often.kills, once.kills) == (feeder._CUTS + 1, 0, 0)


async def test_what_a_replica_has_in_hand_that_is_replaced_for_being_slow_runs_again_without_suspicion(
    monkeypatch: pytest.MonkeyPatch,
):
    async with fed() as pool:
        at_once(pool, 2)
        slow, other = await pool.attached(), await pool.attached()
        pool.slot.fetched(b"0", b"1")
        for _ in range(2):
            await slow.batch()
        monkeypatch.setattr(pool.pool, "stragglers", lambda now_s: [(slow.name, "it is slow")])
        pool.feeder.check_stragglers()
        for number in (b"0", b"1"):
            batch = await other.batch()
            assert batch.inputs == [number]
            other.answer(batch)
        assert (pool.replaced, len(pool.slot.session.suspects)) == ([slow.name], 0)
        assert pool.slot.report.counts.batches_lost == 2


async def test_a_batch_beyond_its_deadline_runs_elsewhere_while_the_others_in_hand_go_on():
    async with fed(batch_deadline_s=0.05) as pool:
        at_once(pool, 2)
        slow = await pool.attached()
        pool.slot.fetched(b"0", b"1")
        late, fine = [await slow.batch() for _ in range(2)]
        other = await pool.attached()
        slow.answer(fine)
        again = await other.batch()
        assert again.inputs == late.inputs
        other.answer(again)
        await until(lambda: pool.slot.offset() == 2, "both are committed")
        assert sorted(pool.slot.sender.sent) == [b"0", b"1"]


async def test_a_batch_beyond_its_deadline_is_not_handed_to_the_replica_that_is_late_with_it():
    async with fed(batch_deadline_s=0.05) as pool:
        at_once(pool, 2)
        slow, other = await pool.attached(), await pool.attached()
        pool.slot.fetched(b"0")
        late = await slow.batch()
        again = await other.batch()
        assert again.inputs == late.inputs
        assert slow.idle()
        other.answer(again)
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        slow.answer(late)
        pool.slot.fetched(b"1", first=1)
        assert (await slow.batch()).inputs == [b"1"]


async def test_a_suspect_waits_until_its_replica_has_nothing_else_in_hand():
    async with fed() as pool:
        at_once(pool, 2)
        pool.slot.session.suspects.learn(b"a sample")
        busy, victim = await pool.attached(), await pool.attached()
        pool.slot.fetched(b"0", b"1", b"2", b"3")
        held = [await busy.batch() for _ in range(2)]
        lost = [await victim.batch() for _ in range(2)]
        victim.die()
        await until(lambda: len(pool.slot.session.suspects) == 2, "they are suspects")
        busy.answer(held[0])
        await until(lambda: len(pool.slot.sender.sent) == 1, "one is sent")
        assert busy.idle()
        busy.answer(held[1])
        assert (await busy.batch()).inputs in [batch.inputs for batch in lost]


async def test_a_batch_that_a_server_does_not_take_runs_again_and_nothing_is_suspected():
    async with fed(limit=2) as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"0", b"1")
        for _ in range(2):
            refused(replica, await replica.batch())
        again = await replica.batch()
        assert again.inputs == [b"0", b"1"]
        assert "the server is away; its events wait" in pool.feeder.trouble
        replica.answer(again)
        await until(lambda: pool.slot.offset() == 2, "both are committed")
        assert (pool.feeder.trouble, len(pool.slot.session.suspects)) == ("", 0)
        assert (pool.slot.report.counts.batches_lost, pool.slot.report.counts.dead_lettered) == (0, 0)


async def test_a_replica_whose_server_takes_nothing_gets_one_batch_at_a_time_until_it_finishes_one():
    async with fed() as pool:
        at_once(pool, 3)
        replica = await pool.attached()
        pool.slot.fetched(*[b"%d" % number for number in range(4)])
        for batch in [await replica.batch() for _ in range(3)]:
            refused(replica, batch)
        for _ in range(2):
            probe = await replica.batch()
            assert replica.idle()
            refused(replica, probe)
        replica.answer(await replica.batch())
        rest = [await replica.batch() for _ in range(3)]
        for batch in rest:
            replica.answer(batch)
        await until(lambda: pool.slot.offset() == 4, "all are committed")


async def test_a_suspect_that_a_server_does_not_take_is_no_more_suspect_for_it():
    async with fed() as pool:
        pool.slot.session.suspects.learn(b"a sample")
        victim = await pool.attached()
        pool.slot.fetched(b"0")
        await victim.batch()
        victim.die()
        await until(lambda: len(pool.slot.session.suspects) == 1, "it is a suspect")
        other = await pool.attached()
        for _ in range(3):
            refused(other, await other.batch())
        while (batch := await other.batch()).inputs != [b"0"]:
            other.answer(batch)
        other.answer(batch)
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        assert pool.slot.sender.sent == [b"0"]


async def test_an_event_is_not_condemned_for_one_that_killed_its_replica_from_another_batch():
    async with fed() as pool:
        at_once(pool, 2)
        pool.slot.session.suspects.learn(b"a sample")
        victim = await pool.attached()
        pool.slot.fetched(b"bad", b"good")
        for _ in range(2):
            await victim.batch()
        victim.die()
        ran: list[bytes] = []
        while ran.count(b"good") < 2:  # it meets the end of a replica, too, once
            replica = await pool.attached()
            while (batch := await replica.batch()).inputs == [b"a sample"]:
                replica.answer(batch)
            ran += [each for each in batch.inputs if isinstance(each, bytes)]
            if ran.count(b"good") < 2:
                replica.die()
                await until(lambda: not pool.phases(), "its end is known")
        replica.answer(batch)
        await until(lambda: pool.slot.offset() == 2, "both are committed")
        assert pool.slot.report.counts.dead_lettered == 1
        assert b"good" in pool.slot.sender.sent


async def test_an_event_is_not_blamed_for_one_of_an_earlier_session_that_its_replica_has_in_hand_still():
    async with fed() as pool:
        at_once(pool, 2)
        victim = await pool.attached()
        pool.slot.fetched(b"earlier")
        await victim.batch()
        pool.slot.session.drop()
        pool.feeder.serve(None)
        pool.slot.session = pool.slot.new_session()
        async with pool.slot.running() as session:
            session.suspects.learn(b"a sample")
            pool.feeder.serve(session)
            pool.slot.fetched(b"good")
            assert (await victim.batch()).inputs == [b"good"]
            victim.die()
            other = await pool.attached()
            pool.pool.replicas[other.name].passed = True
            assert (await other.batch()).inputs == [b"good"]
            other.die()
            last = await pool.attached()
            while (batch := await last.batch()).inputs != [b"good"]:
                last.answer(batch)
            last.answer(batch)
            await until(lambda: pool.slot.offset() == 1, "it is committed")
            assert pool.slot.report.counts.dead_lettered == 0
