"""A feeder hands batches to replicas and takes their results; over socket pairs, without processes and Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import AsyncIterator

import pytest

from inferline_stream.dataplane.dispatcher.feeder import Feeder
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.frames import Batch, Broken, Call, Done, Leave, Ready, Results, encode_frame
from inferline_stream.dataplane.reports import decode_report, encode_report
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan
from tests.unit.dataplane.dispatcher.doubles import Replica, Slot, until

KIND = "cpu-1"


class Fed:
    """A slot with a feeder and its pool."""

    def __init__(self, limit: int = 4, batch_deadline_s: float = 60.0) -> None:
        self.pool = Pool(batch_deadline_s)
        self.pool.configure(StagePlan({KIND: HardwarePlan(limit)}))
        self.slot = Slot(kick=lambda: self.feeder.kick())
        self.replaced: list[str] = []
        self.feeder = Feeder(
            self.pool,
            self.slot.report,
            changed=lambda: None,
            replace=lambda replica, reason: self.replaced.append(replica),
        )
        self._number = 0
        self.replicas: list[Replica] = []

    async def attached(self, *, ready: bool = True) -> Replica:
        """Attach another replica, and wait until it is known to be ready."""
        ours, theirs = socket.socketpair()
        name = f"r{self._number}"
        self.feeder.attach(ours, name, KIND, self._number)
        self._number += 1
        replica = Replica(name, theirs)
        self.replicas.append(replica)
        if ready:
            replica.ready()
            await until(lambda: self.phases().get(name) == "ready", f"{name} is ready")
        return replica

    def phases(self) -> dict[str, str]:
        """Return the phase of each replica, as reported."""
        return {status.replica: status.phase for status in self.feeder.statuses()}


@contextlib.asynccontextmanager
async def fed(**how: float) -> AsyncIterator[Fed]:
    """A feeder that serves a running session."""
    found = Fed(**how)  # type: ignore[arg-type]
    async with found.slot.running() as session:
        found.feeder.serve(session)
        try:
            yield found
        finally:
            found.feeder.close()
            for replica in found.replicas:
                replica.die()


async def test_a_replica_gets_what_waits_up_to_the_limit_and_the_next_batch_with_its_answer():
    async with fed(limit=4) as pool:
        replica = await pool.attached()
        pool.slot.fetched(*[b"%d" % number for number in range(6)])
        first = await replica.batch()
        assert first.inputs == [b"0", b"1", b"2", b"3"]
        assert replica.idle()
        replica.answer(first)
        second = await replica.batch()
        assert second.inputs == [b"4", b"5"]
        replica.answer(second)
        await until(lambda: pool.slot.offset() == 6, "all are committed")
        assert pool.slot.sender.sent == [b"%d" % number for number in range(6)]


async def test_a_replica_gets_nothing_before_it_is_ready():
    async with fed() as pool:
        replica = await pool.attached(ready=False)
        pool.slot.fetched(b"x")
        assert replica.idle()
        replica.ready()
        assert (await replica.batch()).inputs == [b"x"]


async def test_a_batch_waits_to_be_full_for_the_stages_hold():
    async with fed(limit=4) as pool:
        replica = await pool.attached()
        pool.feeder.hold_s = 3600.0
        pool.slot.fetched(b"0", b"1", b"2")
        assert replica.idle()
        pool.slot.fetched(b"3", first=3)
        batch = await replica.batch()
        assert len(batch.inputs) == 4
        replica.answer(batch)
        pool.feeder.hold_s = 0.02
        pool.slot.fetched(b"4", first=4)
        assert (await replica.batch()).inputs == [b"4"]


async def test_events_of_one_key_are_never_in_two_batches_at_once():
    async with fed(limit=2) as pool:
        replicas = [await pool.attached() for _ in range(2)]
        pool.slot.fetched(b"1", b"2", b"3", key=b"a")
        first = await replicas[0].batch()
        assert (first.inputs, replicas[1].idle()) == ([b"1", b"2"], True)
        pool.slot.fetched(b"other", first=3, key=b"b")
        assert (await replicas[1].batch()).inputs == [b"other"]
        replicas[0].answer(first)
        assert (await replicas[0].batch()).inputs == [b"3"]


async def test_a_retired_replica_finishes_its_batch_before_it_is_sent_away():
    async with fed() as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"x")
        batch = await replica.batch()
        pool.feeder.retire(replica.name)
        assert (pool.phases(), replica.idle()) == ({replica.name: "leaving"}, True)
        pool.slot.fetched(b"y", first=1)
        replica.answer(batch)
        assert isinstance(await replica.next(), Leave)
        await until(lambda: pool.slot.offset() == 1, "its result is committed")
        assert pool.phases() == {}


async def test_results_of_a_session_that_was_dropped_are_worth_nothing():
    async with fed() as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"x")
        late = await replica.batch()
        pool.slot.session.drop()
        pool.feeder.serve(None)
        pool.slot.session = pool.slot.new_session()
        async with pool.slot.running() as session:
            pool.feeder.serve(session)
            pool.slot.fetched(b"x", b"y")
            replica.answer(late)
            again = await replica.batch()
            assert (again.epoch, again.inputs) == (session.epoch, [b"x", b"y"])
            assert pool.slot.sender.sent == []
            replica.answer(again)
            await until(lambda: pool.slot.offset() == 2, "both are committed")
            assert pool.slot.sender.sent == [b"x", b"y"]


async def test_a_result_that_answers_another_batch_is_dropped():
    async with fed() as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"x")
        batch = await replica.batch()
        replica.answer(Batch(batch.epoch, batch.batch + 1, batch.inputs))
        replica.answer(Batch(batch.epoch - 1, batch.batch, batch.inputs))
        replica.answer(batch)
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        assert pool.slot.sender.sent == [b"x"]


def broken(replica: Replica, batch: Batch) -> None:
    replica.say(Broken(batch.epoch, batch.batch, "returned 1 results for a batch of 2"))


def miscounted(replica: Replica, batch: Batch) -> None:
    replica.say(Results(batch.epoch, batch.batch, [Done(b"", 0)], [Call(2, 0.01)], 0.01))


@pytest.mark.parametrize("fails", [lambda replica, batch: replica.die(), broken, miscounted])
async def test_a_batch_whose_replica_is_lost_runs_again_and_its_events_get_through(fails):
    async with fed() as pool:
        victim, other = await pool.attached(), await pool.attached()
        pool.slot.session.suspects.learn(b"a sample")
        pool.slot.fetched(b"x", b"y")
        fails(victim, await victim.batch())
        answered: list[bytes] = []
        while len(answered) < 2:
            batch = await other.batch()
            answered += [each for each in batch.inputs if isinstance(each, bytes) and each != b"a sample"]
            other.answer(batch)
        await until(lambda: pool.slot.offset() == 2, "both are committed")
        assert sorted(filter(None, pool.slot.sender.sent)) == [b"x", b"y"]
        assert (pool.slot.report.counts.batches_lost, set(pool.phases())) == (1, {other.name})


async def test_a_batch_beyond_its_deadline_runs_elsewhere_and_the_late_result_is_dropped():
    async with fed(batch_deadline_s=0.05) as pool:
        slow, other = await pool.attached(), await pool.attached()
        pool.slot.fetched(b"x")
        late = await slow.batch()
        again = await other.batch()
        assert again.inputs == late.inputs
        slow.answer(late)
        other.answer(again)
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        assert pool.slot.sender.sent == [b"x"]
        pool.slot.fetched(b"y", first=1)
        assert (await slow.batch()).inputs == [b"y"], "it serves again once it has answered"


async def test_a_replica_beyond_its_last_deadline_is_replaced():
    async with fed(batch_deadline_s=0.02) as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"x")
        await replica.batch()
        await until(lambda: pool.replaced == [replica.name], "it is replaced")
        assert pool.phases() == {}


async def test_the_only_replica_serves_the_queue_again_once_nothing_is_suspected():
    async with fed() as pool:
        pool.slot.session.suspects.learn(b"a sample")
        victim = await pool.attached()
        pool.slot.fetched(b"x", b"y")
        await victim.batch()
        victim.die()
        await until(lambda: not pool.phases(), "its end is known")
        replica = await pool.attached()
        for _ in range(2):
            replica.answer(await replica.batch())
        pool.slot.fetched(b"z", first=2)
        assert (await replica.batch()).inputs == [b"z"]


async def test_a_replica_that_is_attached_again_loses_no_event_and_does_not_end_with_its_first_connection():
    async with fed() as pool:
        before = await pool.attached()
        pool.slot.session.suspects.learn(b"a sample")
        pool.slot.fetched(b"x")
        await before.batch()
        ours, theirs = socket.socketpair()
        pool.feeder.attach(ours, before.name, KIND, 0)
        before.die()
        pool.replicas.append(again := Replica(before.name, theirs))
        again.ready()
        for inputs in ([b"a sample"], [b"x"]):
            batch = await again.batch()
            assert batch.inputs == inputs
            again.answer(batch)
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        assert pool.phases() == {before.name: "ready"}


def garbled(replica: Replica, batch: Batch) -> None:
    replica._sock.sendall(b"no frame at all")


def endless(replica: Replica, batch: Batch) -> None:
    answer = bytearray(encode_frame(Results(batch.epoch, batch.batch, [], [], 0.1))) + bytes(64)
    answer[4:8] = (40 << 20).to_bytes(4, "little")  # of which no more comes
    replica._sock.sendall(answer)


@pytest.mark.parametrize("fails", [miscounted, garbled, endless])
async def test_a_replica_that_answers_nonsense_is_replaced_since_its_process_lives_on(fails):
    async with fed() as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"x", b"y")
        fails(replica, await replica.batch())
        await until(lambda: pool.replaced == [replica.name], "it is replaced")


async def test_a_long_answer_of_an_earlier_session_is_passed_over_and_the_next_batch_comes():
    async with fed() as pool:
        replica = await pool.attached()
        replica.say(Results(1, 1, [Done(bytes(100_000), 0)], [Call(1, 0.1)], 0.1))
        pool.slot.fetched(b"x")
        replica.answer(await replica.batch())
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        assert pool.phases() == {replica.name: "ready"}


async def test_a_replica_that_is_retired_while_it_loads_can_still_say_that_it_is_ready_and_read_that_it_leaves():
    async with fed() as pool:
        replica = await pool.attached(ready=False)
        pool.feeder.retire(replica.name)
        await asyncio.sleep(0.15)
        replica.ready()
        assert isinstance(await replica.next(), Leave)


async def test_the_queue_is_served_once_fresh_replicas_may_be_even_if_nothing_else_happens():
    async with fed() as pool:
        pool.slot.session.suspects.suspicion.blocked_until_s = asyncio.get_running_loop().time() + 0.1
        replica = await pool.attached()
        pool.slot.fetched(b"x")
        assert replica.idle()
        assert (await replica.batch()).inputs == [b"x"]


async def test_a_suspect_that_is_due_waits_for_the_block_of_fresh_replicas_and_for_no_other_suspect():
    async with fed() as pool:
        pool.slot.fetched(b"huge", b"due")
        huge, due = pool.slot.session.take(2)
        pool.slot.session.handed([huge, due])
        suspects, now_s = pool.slot.session.suspects, asyncio.get_running_loop().time()
        suspects.no_memory(huge, alone=False, now_s=now_s + 3600.0)
        suspects.suspect([[due]], passed=True, now_s=now_s)
        suspects.suspicion.blocked_until_s = now_s + 0.2
        replica = await pool.attached()
        assert replica.idle()
        assert (await replica.batch()).inputs == [b"due"]


async def test_a_batch_whose_connection_breaks_runs_again_without_suspicion():
    async with fed(limit=2) as pool:
        replicas = [await pool.attached() for _ in range(2)]
        pool.slot.fetched(b"1", b"2")
        first = await replicas[0].batch()
        pool.feeder.lost(replicas[0].name)
        again = await replicas[1].batch()
        assert again.inputs == first.inputs
        assert len(pool.slot.session.suspects) == 0
        replicas[1].answer(again)
        await until(lambda: pool.slot.offset() == 2, "both are committed")
        assert pool.slot.report.counts.batches_lost == 1


async def test_what_the_network_takes_of_a_batch_is_counted_for_replicas_on_other_nodes_alone():
    async with fed() as pool:
        near, report = await pool.attached(), pool.slot.report
        pool.slot.fetched(b"near")
        batch = await near.batch()
        await asyncio.sleep(0.05)
        near.answer(batch)  # it says that it took 0.01 s: the kernel may have stopped it for its share of a core
        await until(lambda: pool.slot.offset() == 1, "it is done")
        assert (report.counts.remote_batches, report.counts.network_s) == (0, 0.0)
        near_s = report.counts.batch_stats[KIND][1].service_s
        assert near_s >= 0.04
        pool.feeder.retire(near.name)
        ours, theirs = socket.socketpair()
        pool.feeder.attach(ours, "far", KIND, 7, "node-1")
        far = Replica("far", theirs)
        pool.replicas.append(far)
        far.ready()
        pool.slot.fetched(b"far", first=1)
        batch = await far.batch()
        await asyncio.sleep(0.05)
        far.answer(batch)  # it says that it took 0.01 s
        await until(lambda: pool.slot.offset() == 2, "it is done")
        assert report.counts.remote_batches == 1
        assert report.counts.network_s >= 0.04
        assert report.counts.batch_stats[KIND][1].service_s - near_s == pytest.approx(0.01)


async def test_a_suspect_whose_connection_breaks_runs_alone_again_and_is_not_condemned():
    async with fed(limit=2) as pool:
        pool.feeder.session.suspects.learn(b"sample")
        doomed = await pool.attached()
        pool.slot.fetched(b"1")
        await doomed.batch()
        doomed.die()  # its first kill
        for _ in range(3):
            replica = await pool.attached()
            await replica.batch()
            pool.feeder.lost(replica.name)
        last = await pool.attached()
        while (batch := await last.batch()).inputs != [b"1"]:
            last.answer(batch)  # a probe
        last.answer(batch)
        await until(lambda: pool.slot.offset() == 1, "it is committed")
        assert pool.slot.sender.sent == [b"1"]


async def test_an_event_whose_connections_break_again_and_again_comes_under_suspicion():
    async with fed() as pool:
        pool.slot.fetched(b"1")
        for _ in range(4):
            assert len(pool.slot.session.suspects) == 0
            replica = await pool.attached()
            await replica.batch()
            pool.feeder.lost(replica.name)
        assert len(pool.slot.session.suspects) == 1


async def test_batches_are_smaller_once_a_replica_says_that_its_device_has_no_memory_for_one():
    async with fed(limit=4) as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"1", b"2", b"3", b"4")
        batch = await replica.batch()
        assert len(batch.inputs) == 4
        done = [Done(bytes(each), 0) for each in batch.inputs]
        replica.say(Results(batch.epoch, batch.batch, done, [Call(2, 0.01), Call(2, 0.01)], 0.01, too_large=4))
        await until(lambda: pool.slot.offset() == 4, "all are committed")
        pool.slot.fetched(b"5", b"6", b"7", b"8", first=4)
        assert len((await replica.batch()).inputs) == 2


async def test_a_device_that_has_no_memory_for_an_older_batch_is_not_one_that_was_tried_again(
    monkeypatch: pytest.MonkeyPatch,
):
    """It was handed out before the limit fell: the next larger batch is tried as soon as without it."""
    loop = asyncio.get_running_loop()
    clock_s, later_s = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: clock_s() + later_s[0])
    async with fed(limit=4, batch_deadline_s=3600.0) as pool:
        replicas = [await pool.attached() for _ in range(2)]
        pool.slot.fetched(*[b"%d" % number for number in range(8)])
        for done, replica in enumerate(replicas, 1):
            batch = await replica.batch()
            outcomes = [Done(bytes(each), 0) for each in batch.inputs]
            replica.say(Results(batch.epoch, batch.batch, outcomes, [Call(2, 0.01)] * 2, 0.01, too_large=4))
            await until(lambda done=done: pool.slot.offset() == 4 * done, "it is committed")  # type: ignore[misc]
            assert pool.pool.limit(KIND) == 2
            later_s[0] += 31.0
        pool.slot.fetched(b"8", first=8)
        replicas[0].answer(await replicas[0].batch())
        await until(lambda: pool.slot.offset() == 9, "it is committed")
        assert pool.pool.limit(KIND) == 4


async def test_an_event_that_no_device_has_memory_for_waits_and_is_no_dead_letter_and_others_go_on():
    async with fed(limit=1) as pool:
        pool.slot.session.suspects.learn(b"a sample")
        pool.slot.fetched(b"huge", b"small")
        denied = 0
        while denied < 4 or b"small" not in pool.slot.sender.sent:
            replica = await pool.attached()
            while (batch := await replica.batch()).inputs != [b"huge"]:
                replica.answer(batch)
            replica.say(Broken(batch.epoch, batch.batch, "CUDA out of memory", memory=True, device=True))
            denied += 1
            await until(lambda: not pool.phases(), "the replica is gone")
        assert "no device has memory for 1 of its events" in pool.slot.session.trouble()
        assert b"huge" not in pool.slot.sender.sent
        assert pool.slot.report.counts.dead_lettered == 0
        replica = await pool.attached()
        while b"huge" not in pool.slot.sender.sent:  # somebody has given the memory back
            replica.answer(await replica.batch())
            await asyncio.sleep(0.001)
        await until(lambda: pool.slot.offset() == 2, "both are committed")
        assert pool.slot.session.trouble() == ""


async def test_events_of_a_producer_whose_clock_says_1970_add_a_month_at_most_to_what_is_reported():
    async with fed(limit=2) as pool:
        replica = await pool.attached()
        pool.slot.fetched(b"1", b"2", ago_s=time.time())
        replica.answer(await replica.batch())
        await until(lambda: pool.slot.offset() == 2, "they are committed")
        counts, month_s = pool.slot.report.counts, 30 * 86_400.0
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
async def test_whatever_a_replica_claims_of_a_batch_the_report_can_be_read_and_the_results_count(calls, busy_s):
    async with fed() as pool:
        pool.pool.configure(StagePlan({KIND: HardwarePlan(1, {1: 0.01})}))
        replica = await pool.attached(ready=False)
        replica.say(Ready(replica.name, math.nan, None))
        await until(lambda: pool.phases() == {replica.name: "ready"}, "it is ready")
        for number in range(5):
            pool.slot.fetched(b"x", first=number)
            batch = await replica.batch()
            replica.say(Results(batch.epoch, batch.batch, [Done(b"y", 0)], calls, busy_s))
            await until(lambda done=number + 1: pool.slot.offset() == done, "it is committed")  # type: ignore[misc]
        pool.slot.report.replicas = pool.feeder.statuses()
        report = decode_report(encode_report(pool.slot.report))
        assert sum(map(len, report.counts.batch_stats.values())) <= 1
