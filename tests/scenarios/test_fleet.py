"""Replicas replaced and standing by while traffic flows: real processes on the embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import KafkaServer


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
