"""A controller dies; the data plane goes on; another one takes over and knows what the first knew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.controlplane.ledger import read_ledger
from inferline_stream.controlplane.session import Quiet, Run, session
from inferline_stream.controlplane.waiting import until
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.testing.runs import Script


async def test_a_standby_takes_over_with_plan_replicas_and_traffic_and_nothing_is_lost(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(60, 16)], changes=[(1.0, {"parse": 2})])
    successor = replace(run, feed=None, policy=Script([]))
    async with (
        asyncio.timeout(60),
        LocalActuator(run.spec, run.log_folder) as actuator,
        session(run, Quiet(), actuator) as first,
    ):
        await first.ready()
        async with run.feed(run.bootstrap_servers, first.running.source) as feed:
            await feed.ready()
            feed.start()

            async def scaled() -> bool:
                return first.controller.picture.reports.ready("parse", "emulated-cpu") == 2

            assert await until(scaled, 10.0)
            await asyncio.sleep(1.5)  # what was decided is written down within a moment
            processes = {r.pid for r in await actuator.observe()}
            first.control.cancel()  # it falls silent: no resignation, no heartbeat
            silent_s, out_before = time.monotonic(), first.controller.picture.counts.events_out
            async with session(successor, Quiet(), actuator) as second:
                await second.ready()
                took_s = time.monotonic() - silent_s
                assert second.controller.leadership.term == first.controller.leadership.term + 1
                assert second.controller.wanted["parse", "emulated-cpu"] == 2
                assert 40 < second.controller.state.arrival_rate < 80
                now_s = asyncio.get_running_loop().time()
                assert (
                    now_s - second.controller.picture.growth.watched_since_s > took_s
                )  # no gap: also what came meanwhile
                assert {r.pid for r in await actuator.observe()} == processes
                await feed.finished()
                await second.drain()
                ledger = await read_ledger(
                    second.offsets, second.running, first.since, second.controller.picture.partitions
                )
    assert 2.5 < took_s < 5.0
    assert out_before < ledger.events_out
    assert ledger.lost() == (0, [])
    assert (ledger.events_in, ledger.duplicated) == (ledger.events_out, 0)
    assert not second.controller.picture.decisions


async def test_a_leader_with_an_unsettled_transaction_goes_on_in_a_new_term(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(40, 6)], changes=[(3.0, {"parse": 2})])
    async with asyncio.timeout(60), session(run, Quiet()) as under_way:
        await under_way.ready()
        leadership = under_way.controller.leadership
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(1.0)
        leadership._broken = True  # as after a broker that went away in the middle of a commit
        await feeding
        report = await under_way.report(await under_way.drain())
    assert (leadership.renewals, leadership.term) == (1, 2)
    assert (report.lost, report.duplicated) == (0, 0)
    assert report.replicas_most["parse"] == 2
