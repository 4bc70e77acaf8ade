"""A pipeline that sleeps between two bursts: nothing is lost or repeated, and the first event wakes it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.idle import Idle
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES


async def test_a_pipeline_that_fell_asleep_is_woken_by_the_next_events_and_loses_none(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(30.0, 2.0)], policy=POLICIES["default"])
    run = replace(run, plan=replace(run.plan, idle=dict.fromkeys(run.plan.allocations, Idle(3.0))))
    async with asyncio.timeout(180), open_run(run) as under_way:

        async def asleep() -> bool:
            state = under_way.controller.state
            return state is not None and any(decision.reason == "idle" for decision in state.decisions)

        await under_way.ready()
        await under_way.fed(asyncio.Event())
        assert await until(asleep, 90.0)
        await asyncio.sleep(1.5)
        await under_way.fed(asyncio.Event())
        report = await under_way.report(await under_way.drain())
    assert report.events_in == report.events_out > 60
    assert (report.lost, report.duplicated) == (0, 0)
    decided = [decision for decision in report.decisions if decision.reason in ("idle", "woken")]
    assert [decision.reason for decision in decided[:2]] == ["idle", "woken"]
    assert not any(decided[0].replicas.values()), "no replica of any stage was left"
    assert all(decided[1].replicas.values())
    assert decided[1].time_s - decided[0].time_s > 1.0
