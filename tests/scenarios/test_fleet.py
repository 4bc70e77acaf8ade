"""Replicas replaced, standing by and planned again while traffic flows: real processes on the embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import numpy as np
import pytest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES


async def set_by_people(under_way: LiveRun, override: Override) -> None:
    await write_once(
        under_way.run.bootstrap_servers,
        Record.keyed(under_way.context.names.control, override.key, encode(override)),
    )


async def names(under_way: LiveRun, stage: str) -> set[str]:
    return {r.replica for r in await under_way.controller.actuator.observe() if r.stage == stage}


async def test_newer_code_replaces_replicas_and_dispatchers_without_an_event_lost_or_repeated(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(
        embedded_broker.bootstrap_servers, levels=[(40, 9)], replicas={"parse": 2, "check": 1, "decide": 1}
    )
    async with asyncio.timeout(180), open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(1.0)
        stages = under_way.context.shape.stages
        before = {stage: await names(under_way, stage) for stage in stages}
        dispatchers = {d.dispatcher for d in await under_way.controller.actuator.dispatchers()}
        least = dict.fromkeys(stages, 9)
        await set_by_people(under_way, Override("code", value=time.time(), who="a test"))

        async def replaced() -> bool:
            for stage in stages:
                least[stage] = min(least[stage], under_way.controller.view.reports.ready(stage, "emulated-cpu"))
            served = {d.dispatcher for d in await under_way.controller.actuator.dispatchers()}
            slots = under_way.controller.slots.table.grants
            settled = all(grant.begins for held in slots.values() for grant in held.values())
            old = served & dispatchers or any([before[stage] & await names(under_way, stage) for stage in stages])
            return settled and not old

        assert await until(replaced, 60.0)
        await feeding
        after = {stage: await names(under_way, stage) for stage in stages}
        report = await under_way.report(await under_way.drain())
    assert {stage: len(found) for stage, found in after.items()} == {"parse": 2, "check": 1, "decide": 1}
    assert least == {"parse": 2, "check": 1, "decide": 1}
    assert (report.lost, report.duplicated, report.exits) == (0, 0, [])
    assert report.events_in == report.events_out > 250
    assert [(d.action, d.reason) for d in report.decisions] == [("replace", "new_code")]


async def test_a_standby_works_at_once_where_another_died_and_is_replaced(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(40, 7)])
    async with asyncio.timeout(180), open_run(run) as under_way:
        await under_way.ready()
        await set_by_people(under_way, Override("standby", "parse", 1))
        reports = under_way.controller.view.reports

        def ready() -> int:
            return reports.ready("parse", "emulated-cpu")

        async def stands_by() -> bool:
            return ready() == 2

        async def one_is_left() -> bool:
            return ready() == 1

        assert await until(stands_by, 60.0)
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(2.0)
        (counts,) = under_way.controller.state.stages[0].replicas
        assert (counts.ready, counts.standby) == (1, 1)
        working = next(r for r in await under_way.controller.actuator.observe() if r.stage == "parse")
        os.kill(working.pid, signal.SIGKILL)
        assert await until(one_is_left, 5.0, every_s=0.002)
        assert await until(stands_by, 60.0)
        await feeding
        report = await under_way.report(await under_way.drain())
    assert report.lost == 0
    assert report.events_in == report.events_out > 200


async def test_another_slo_and_price_set_by_people_are_planned_for_and_applied_while_events_flow(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(
        embedded_broker.bootstrap_servers,
        levels=[(100, 12)],
        replicas={"parse": 2, "check": 2, "decide": 1},
        planned_rate=100.0,
        replans=True,
        sample=gamma_trace(100.0, 1.0, 30.0, np.random.default_rng(3)),
        policy=POLICIES["default"],
        settings=Settings(planner_effort_s=2.0),
    )
    async with asyncio.timeout(600), open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(6.5)
        await set_by_people(under_way, Override("slo", value=0.25))
        await set_by_people(under_way, Override("price", "emulated-cpu", 5.0))
        controller = under_way.controller

        async def planned() -> bool:
            (check, *others) = controller.view.plan.allocations["check"]
            return controller.view.plan.slo_s == 0.25 and check.hardware == "emulated-gpu-small" and not others

        async def moved() -> bool:
            held = {r.hardware for r in await controller.actuator.observe() if r.stage == "check"}
            ready = controller.view.reports.ready("check", "emulated-gpu-small")
            return held == {"emulated-gpu-small"} and ready > 0

        async def staffed() -> bool:
            return controller.decider.tables.staffed

        # The SLO and the price may be planned for one after the other: twice a process that starts and searches for
        # planner_effort_s, on cores that the run needs, too. Then another one simulates the plan at many rates.
        assert await until(planned, 180.0), "no plan for the SLO and the price"
        assert await until(moved, 180.0), "no replicas of the cheaper kind alone"
        assert await until(staffed, 180.0), "no table for the plan"
        table = controller.decider.memory.state.basis.staffing
        await feeding
        report = await under_way.report(await under_way.drain())
    assert report.slo_s == 0.25
    assert [plan.reason for plan in controller.decider.plans][:2] == ["initial", "limit_changed"]
    assert table is not None
    planned_replicas = sum(a.replicas for a in controller.view.plan.allocations["parse"])
    speed = controller.view.planned_throughput("parse", "emulated-cpu")
    assert table.needed("parse", 1.0) == pytest.approx(planned_replicas * speed)  # at its own traffic it is the plan
    assert (report.lost, report.duplicated) == (0, 0)
    assert controller.failures == 0
