"""Whole runs on Apache Kafka: real replica processes on emulated hardware."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from inferline_stream.pipeline.names import Names
from inferline_stream.runs.lifecycle import open_run, run_to_report
from inferline_stream.runs.run import NoDisplay, Run
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import emulated_run


@pytest.fixture
def swing(tmp_path: Path) -> partial:
    folder = Path(__file__).parents[1] / "scenarios" / "swing"
    return partial(emulated_run, folder, folder=tmp_path, probability={("parse", "check"): 1 / 3}, key_field="number")


async def lags_by_admin(run: Run) -> dict[str, int]:
    """Lag of every stage's group as any Kafka tool reads it."""
    names = Names(run.pipeline.name, run.records.prefix)
    admin = AIOKafkaAdminClient(bootstrap_servers=run.bootstrap_servers)
    await admin.start()
    try:
        found = {}
        for stage in run.pipeline.stages:
            offsets = await admin.list_consumer_group_offsets(names.group(stage.name))
            assert offsets, f"group {names.group(stage.name)} has committed nothing"
            from aiokafka import AIOKafkaConsumer

            async with AIOKafkaConsumer(bootstrap_servers=run.bootstrap_servers) as consumer:
                ends = await consumer.end_offsets(list(offsets))
            found[stage.name] = sum(ends[tp] - at.offset for tp, at in offsets.items())
        return found
    finally:
        await admin.close()


async def test_traffic_with_replicas_1_3_1_loses_nothing(swing, apache_kafka: KafkaServer) -> None:
    run: Run = swing(
        apache_kafka.bootstrap_servers,
        levels=[(30, 3), (90, 8), (30, 5)],
        changes=[(4.0, {"parse": 3, "check": 2}), (12.0, {"parse": 1, "check": 1})],
    )
    async with asyncio.timeout(150):
        report = await run_to_report(run, NoDisplay(), asyncio.Event())
    assert (report.lost, report.duplicated, report.unknown) == (0, 0, 0)
    assert report.events_in == report.events_out > 800
    assert report.exits == []
    assert report.replicas_most == {"parse": 3, "check": 2, "decide": 1}
    assert [(d.action, d.replicas["parse"]) for d in report.decisions] == [("scale_up", 3), ("scale_down", 1)]
    assert await lags_by_admin(run) == {"parse": 0, "check": 0, "decide": 0}


async def test_a_killed_replica_comes_back_and_nothing_is_lost(swing, apache_kafka: KafkaServer) -> None:
    run: Run = swing(apache_kafka.bootstrap_servers, levels=[(50, 10)], replicas={"parse": 2, "check": 1, "decide": 2})
    async with asyncio.timeout(90), open_run(run, NoDisplay()) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(3.0)
        killed = set()
        for stage in ("parse", "decide"):
            (replica, *_) = [r for r in await under_way.controller.actuator.observe() if r.stage == stage]
            os.kill(replica.pid, signal.SIGKILL)
            killed.add(replica.replica)
            await asyncio.sleep(2.0)
        await feeding
        after = {r.replica for r in await under_way.controller.actuator.observe()}
        ready = {(s.name, k.ready) for s in under_way.controller.state.stages for k in s.replicas}
        report = await under_way.report(await under_way.drain())
    assert report.lost == 0
    assert report.events_in == report.events_out > 400
    assert ready == {("parse", 2), ("check", 1), ("decide", 2)}
    assert not killed & after
    assert [("SIGKILL" in reported) for reported in report.exits] == [True, True]
    assert set(report.lag.values()) == {0}
