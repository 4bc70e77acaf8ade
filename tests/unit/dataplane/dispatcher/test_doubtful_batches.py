"""Replicas whose batches have no success: who is at fault, and what that costs; over socket pairs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from inferline_stream.dataplane.dispatcher import doubtful_batches, replica_trust
from inferline_stream.dataplane.frames import Batch, Broken, Done, Failed, Results, Returned
from inferline_stream.dataplane.replica.stage_call import run_batch
from tests.unit.dataplane.dispatcher.doubles import Replica, until
from tests.unit.dataplane.dispatcher.test_feeder import KIND, Fed, fed

SAMPLE = b"a sample"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubtful_batches, "ASIDE_S", (0.01, 0.05))
    monkeypatch.setattr(doubtful_batches, "BLAMELESS_ASIDE_S", (0.01, 0.05))
    monkeypatch.setattr(replica_trust, "END_S", 0.05)


@contextlib.asynccontextmanager
async def runs(pool: Fed, behave: Callable[[Replica, Batch], None]) -> AsyncIterator[None]:
    """Have every replica that is attached, also later, answer its batches in some way; replaced ones come again."""
    tasks: dict[str, asyncio.Task[None]] = {}

    async def serve(replica: Replica) -> None:
        with contextlib.suppress(AssertionError, OSError):
            while True:
                with contextlib.suppress(TimeoutError):
                    behave(replica, await replica.batch())

    async def attach() -> None:
        while True:
            for name in set(pool.replaced) - done:
                done.add(name)
                await pool.attached()
            for replica in pool.replicas:
                if replica.name not in tasks:
                    tasks[replica.name] = asyncio.create_task(serve(replica))
            await asyncio.sleep(0.001)

    done: set[str] = set()
    attaching = asyncio.create_task(attach())
    try:
        yield
    finally:
        for task in (attaching, *tasks.values()):
            task.cancel()
        await asyncio.gather(attaching, *tasks.values(), return_exceptions=True)


def refuses(replica: Replica, batch: Batch, *, busy: bool = False) -> None:
    replica.say(Returned(batch.epoch, batch.batch, "the server answers 500", busy=busy))


def fails(replica: Replica, batch: Batch) -> None:
    replica.say(Results(batch.epoch, batch.batch, [Failed("E", "bad", "")] * len(batch.inputs), [], 0.01))


class Gpu:
    """A replica whose device takes no call any more after a bad event, or from the start."""

    def __init__(self, *, dead: bool = False) -> None:
        self.dead = dead
        self.took: list[int] = []

    def answer(self, replica: Replica, batch: Batch) -> None:
        self.took.append(len(batch.inputs))
        outcomes, calls, _ = run_batch(self._call, lambda value: Done(value, 0), batch.inputs)
        replica.say(Results(batch.epoch, batch.batch, outcomes, calls, 0.01))

    def _call(self, values: list[bytes]) -> list[bytes]:
        self.dead = self.dead or b"bad" in values
        if self.dead:
            raise RuntimeError("the device is lost")
        return values


@pytest.mark.parametrize("limit", [1, 4])
async def test_events_that_a_healthy_server_never_takes_stop_nothing_and_become_dead_letters(limit):
    def behave(replica: Replica, batch: Batch) -> None:
        (refuses if b"bad" in batch.inputs else Replica.answer)(replica, batch)

    async with fed(limit=limit) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(*[b"bad"] * 8, *[b"good"] * 50)
        await until(lambda: pool.slot.offset() == 58, "all are done")
        assert pool.slot.report.counts.dead_lettered == 8
        assert pool.slot.sender.sent.count(b"good") == 50
        assert pool.slot.sender.sent.count(b"bad") == 8, "as letters"
        assert pool.slot.session.trouble() == pool.feeder.trouble == ""


async def test_an_event_is_at_fault_after_so_many_refusals_and_its_letter_says_why():
    tries = 0

    def behave(replica: Replica, batch: Batch) -> None:
        nonlocal tries
        tries += batch.inputs == [b"bad"]
        (refuses if b"bad" in batch.inputs else Replica.answer)(replica, batch)

    async with fed(limit=1) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        ended: list[Failed] = []
        finished = pool.slot.session.finished

        def note(events, outcomes):
            ended.extend(each for each in outcomes if isinstance(each, Failed))
            finished(events, outcomes)

        pool.slot.session.finished = note  # type: ignore[method-assign]
        await pool.attached()
        pool.slot.fetched(b"bad")
        await until(lambda: pool.slot.offset() == 1, "it is done")
        assert tries == doubtful_batches.REFUSALS
        why = "not taken 6 times, while the same replica's server took others: the server answers 500"
        assert [(each.type, each.message) for each in ended] == [("Unserved", why)]


@pytest.mark.parametrize("busy", [False, True])
async def test_a_server_that_is_away_blames_no_event_and_loses_none_and_takes_them_in_their_order(busy):
    away, asked, tried = True, 0, 0

    def behave(replica: Replica, batch: Batch) -> None:
        nonlocal asked, tried
        asked += away
        tried += away and batch.inputs != [SAMPLE]
        if away:
            refuses(replica, batch, busy=busy)
        else:
            replica.answer(batch)

    async with fed(limit=1) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(*[b"%d" % number for number in range(20)])
        await until(lambda: asked > 4, "the server was asked again and again")
        assert tried == 1, "samples ask it, not events"
        assert "answers 500" in pool.feeder.trouble
        away = False
        await until(lambda: pool.slot.offset() == 20, "all are done")
        assert pool.slot.sender.sent == [b"%d" % number for number in range(20)]
        assert pool.slot.report.counts.dead_lettered == 0


async def test_an_event_for_which_a_server_is_always_busy_is_not_blamed_and_holds_up_no_other():
    refused = 0

    def behave(replica: Replica, batch: Batch) -> None:
        nonlocal refused
        if batch.inputs == [b"x"] and refused < 3 * doubtful_batches.REFUSALS:
            refused += 1
            refuses(replica, batch, busy=True)
        else:
            replica.answer(batch)

    async with fed(limit=1) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(b"x", *[b"other"] * 9)
        await until(lambda: pool.slot.offset() == 10, "all are done")
        assert pool.slot.sender.sent == [*[b"other"] * 9, b"x"]


async def test_an_event_for_which_a_server_is_always_busy_holds_up_none_of_its_batch():
    def behave(replica: Replica, batch: Batch) -> None:
        if b"x" in batch.inputs:
            refuses(replica, batch, busy=True)
        else:
            replica.answer(batch)

    async with fed(limit=4) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(b"x", *[b"other"] * 7)
        await until(lambda: pool.slot.sender.sent == [b"other"] * 7, "the others are done")
        assert pool.slot.report.counts.dead_lettered == 0


async def test_a_batch_that_fails_as_a_whole_is_believed_once_the_replica_has_passed_a_sample():
    def behave(replica: Replica, batch: Batch) -> None:
        if SAMPLE in batch.inputs:
            assert pool.slot.report.counts.dead_lettered == 0
            replica.answer(batch)
        else:
            fails(replica, batch)

    async with fed(limit=4) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(b"1", b"2", b"3")
        await until(lambda: pool.slot.offset() == 3, "they are dead letters")
        assert (pool.slot.report.counts.dead_lettered, pool.replaced) == (3, [])


async def test_a_replica_that_fails_on_a_sample_too_is_replaced_and_costs_no_event():
    behaviours = {"r0": fails}

    def behave(replica: Replica, batch: Batch) -> None:
        behaviours.get(replica.name, Replica.answer)(replica, batch)

    async with fed(limit=4) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(*[b"%d" % number for number in range(10)])
        await until(lambda: pool.slot.offset() == 10, "all are done")
        assert (pool.slot.report.counts.dead_lettered, pool.replaced) == (0, ["r0"])
        assert sorted(pool.slot.sender.sent) == [b"%d" % number for number in range(10)]


async def test_replicas_that_all_fail_dead_letter_nothing_and_say_so():
    async with fed(limit=4) as pool, runs(pool, fails):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(*[b"%d" % number for number in range(10)])
        await until(lambda: "may be at fault" in pool.slot.session.trouble(), "it says so")
        assert pool.slot.report.counts.dead_lettered == 0


async def test_one_bad_event_that_breaks_its_replica_is_one_dead_letter_of_160():
    gpus: dict[str, Gpu] = {}

    def behave(replica: Replica, batch: Batch) -> None:
        gpus.setdefault(replica.name, Gpu()).answer(replica, batch)

    async with fed(limit=16) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        await pool.attached()
        pool.slot.fetched(*[b"good"] * 16, b"bad", *[b"good"] * 143)
        await until(lambda: pool.slot.offset() == 160, "all are done")
        assert pool.slot.report.counts.dead_lettered == 1
        assert pool.slot.sender.sent.count(b"good") == 159


async def test_of_four_replicas_a_broken_one_takes_one_batch_before_it_is_tested_and_replaced():
    gpus = {"r0": Gpu(dead=True)}

    def behave(replica: Replica, batch: Batch) -> None:
        gpus.setdefault(replica.name, Gpu()).answer(replica, batch)

    async with fed(limit=8) as pool, runs(pool, behave):
        pool.slot.session.suspects.learn(SAMPLE)
        for _ in range(4):
            await pool.attached()
        for first in range(0, 200, 4):
            pool.slot.fetched(*[b"good"] * 4, first=first)
            await asyncio.sleep(0.005)
        await until(lambda: pool.slot.offset() == 200, "all are done")
        assert pool.replaced == ["r0"]
        assert gpus["r0"].took == [4, 1], "a batch, and the sample"
        assert pool.slot.report.counts.dead_lettered == 0


async def test_a_retired_replica_leaves_what_is_in_doubt_to_others():
    async with fed(limit=2) as pool:
        pool.slot.session.suspects.learn(SAMPLE)
        leaving, other = await pool.attached(), await pool.attached()
        pool.slot.fetched(b"1", b"2")
        batch = await leaving.batch()
        pool.feeder.retire(leaving.name)
        fails(leaving, batch)
        again = await other.batch()
        assert again.inputs == [b"1", b"2"]
        other.answer(again)
        await until(lambda: pool.slot.offset() == 2, "both are done")


async def test_what_is_in_doubt_does_not_hold_up_a_drain():
    async with fed(limit=2) as pool:
        pool.slot.session.suspects.learn(SAMPLE)
        replica = await pool.attached()
        pool.slot.fetched(b"1")
        batch = await replica.batch()
        draining = asyncio.create_task(pool.slot.session.drain())
        await asyncio.sleep(0)
        fails(replica, batch)
        async with asyncio.timeout(5.0):
            await draining
        assert (pool.slot.offset(), pool.slot.report.counts.dead_lettered) == (0, 0), "the next owner runs it again"


async def test_what_is_in_hand_of_a_halted_partition_does_not_run_again():
    async with fed(limit=1) as pool:
        doubted, lost = await pool.attached(), await pool.attached()
        pool.slot.fetched(b"1", b"2")
        batch = await doubted.batch()
        await lost.batch()
        pool.slot.session.halt("the topic was deleted")
        refuses(doubted, batch)
        pool.feeder.lost(lost.name)
        pool.feeder.retire(doubted.name)
        await until(lambda: not pool.phases(), "both are gone")
        assert len(pool.slot.session.queue) == 0


async def test_suspects_of_a_halted_partition_do_not_run_again():
    async with fed(limit=2) as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"1", b"2")
        await replica.batch()
        replica.die()
        session = pool.slot.session
        await until(lambda: len(session.suspects) == 2, "both are suspects")
        session.halt("the topic was deleted")
        assert len(session.suspects) == 0


# Processes that do not get ready, or do not end


async def test_a_replica_that_hangs_as_it_starts_is_replaced():
    async with fed() as pool:
        ours, theirs = socket.socketpair()
        pool.replicas.append(Replica("hangs", theirs))
        pool.feeder.attach(ours, "hangs", KIND, 0, start_limit_s=0.05)
        await until(lambda: pool.replaced == ["hangs"], "it is replaced")
        assert pool.phases() == {}


def breaks(replica: Replica, batch: Batch) -> None:
    replica.say(Broken(batch.epoch, batch.batch, "returned 1 results for a batch of 2"))


@pytest.mark.parametrize("ends", [breaks, lambda replica, batch: replica.die()])
async def test_a_replica_whose_process_lives_on_after_its_connection_is_replaced(ends):
    async with fed() as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"x")
        ends(replica, await replica.batch())
        await until(lambda: pool.replaced == [replica.name], "it is replaced")


async def test_a_replica_that_may_have_a_batch_in_hand_has_that_batchs_time_to_be_ready_again():
    async with fed(batch_deadline_s=60.0) as pool:
        for name, again in (("new", False), ("again", True)):
            ours, theirs = socket.socketpair()
            pool.replicas.append(Replica(name, theirs))
            pool.feeder.attach(ours, name, KIND, 0, start_limit_s=0.05, again=again)
        await until(lambda: pool.replaced == ["new"], "the new one is replaced")
        assert pool.phases() == {"again": "starting"}
