"""Slots change hands while traffic flows: real dispatchers on the embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from inferline_stream.actuators.actuator import ObservedDispatcher
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.runs.report import RunReport
from inferline_stream.testing.kafka import KafkaServer


async def one_of(under_way: LiveRun, stage: str) -> ObservedDispatcher:
    return next(d for d in await under_way.controller.actuator.dispatchers() if d.stage == stage)


async def granted(under_way: LiveRun, stage: str, count: int) -> bool:
    """Whether the stage has so many slots, each with a dispatcher that serves."""
    grants = under_way.controller.slots.table.grants.get(stage, {}).values()
    reports = [under_way.controller.view.reports.newest(g.dispatcher) for g in grants if g.slots == count]
    return len(reports) == count and all(r is not None and r.phase == "serving" for r in reports)


async def through(run: Run, change: Callable[[LiveRun], Awaitable[None]]) -> RunReport:
    async with asyncio.timeout(90), open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(1.0)
        await change(under_way)
        await feeding
        return await under_way.report(await under_way.drain())


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_more_and_fewer_slots_lose_and_repeat_nothing(swing, embedded_broker: KafkaServer, delivery: str) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(40, 10)], delivery=delivery)

    async def change(under_way: LiveRun) -> None:
        for count in (2, 1):
            view = under_way.controller.view
            view.plan = replace(view.plan, slots={"parse": count, "decide": count})
            for stage in view.plan.slots:  # the one reads the source, the other joins
                assert await until(lambda n=count, s=stage: granted(under_way, s, n), 10.0), (
                    f"no {count} slots of {stage}"
                )

    report = await through(run, change)
    assert (report.lost, report.duplicated) == (0, 0)
    assert report.events_in == report.events_out > 300


async def test_a_suspended_dispatcher_is_killed_and_started_again_while_its_replicas_live_on(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(40, 10)])
    before: set[int | None] = set()
    after: set[int | None] = set()

    async def change(under_way: LiveRun) -> None:
        actuator = under_way.controller.actuator
        before.update(r.pid for r in await actuator.observe())
        suspended = await one_of(under_way, "parse")
        os.kill(suspended.pid, signal.SIGSTOP)

        async def started_again() -> bool:
            now = await one_of(under_way, "parse")
            return now.dispatcher == suspended.dispatcher and now.incarnation > suspended.incarnation

        assert await until(started_again, 10.0), "the silent dispatcher was not replaced"
        assert await until(lambda: granted(under_way, "parse", 1), 10.0)
        after.update(r.pid for r in await actuator.observe())

    report = await through(run, change)
    assert after == before
    assert report.lost == 0
    assert report.events_in == report.events_out > 300
