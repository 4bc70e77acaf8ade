"""A replica that stands by while traffic flows: real processes on the embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal

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
