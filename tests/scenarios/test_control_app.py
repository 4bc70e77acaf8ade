"""The Faust app on the embedded broker: its agent brings every report, its timer ticks, and the loop notices if not."""

from __future__ import annotations

import asyncio
import secrets
import threading
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

from inferline_stream.controlplane.faust_app import control_app
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import one_stage


async def groups(servers: str, names: Names) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        return sorted(name for name, *_ in await admin.list_consumer_groups() if name.startswith(names.control_groups))
    finally:
        await admin.close()


async def group_of_an_ended_term(servers: str, names: Names) -> None:
    """What a controller leaves that was killed: a group with an offset and no members."""
    group = f"{names.control_groups}0"
    async with AIOKafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False) as consumer:
        consumer.assign([TopicPartition(names.stage_stats, 0)])
        await consumer.commit({TopicPartition(names.stage_stats, 0): 0})
    assert await groups(servers, names) == [group]


async def test_the_agent_brings_each_record_with_its_offset_and_the_timer_ticks(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    names, servers = Names(f"p{secrets.token_hex(4)}"), embedded_broker.bootstrap_servers
    await create_topics(servers, [WantedTopic(names.stage_stats, 1, "reports")], replication=1)
    records: list[tuple[int, int, bytes | None]] = []
    ticks: list[float] = []

    async def tune() -> None:
        ticks.append(asyncio.get_running_loop().time())

    async def heard() -> bool:
        return len(records) >= 3 and len(ticks) >= 5

    context = PipelineContext(one_stage(names.pipeline), KafkaCluster(servers), Settings())
    app = control_app(context, 1, folder=str(tmp_path), take=lambda *record: records.append(record), tune=tune)
    await group_of_an_ended_term(servers, names)
    async with asyncio.timeout(180), app:
        await KafkaCluster(servers).delete_groups(lambda group: group == f"{names.control_groups}0")
        assert await groups(servers, names) in ([], [f"{names.control_groups}1"])
        for number in range(3):
            await write_once(servers, Record.keyed(names.stage_stats, "a", b"%d" % number))
        assert await until(heard, 60.0)
    assert records == [(0, number, b"%d" % number) for number in range(3)]
    assert await groups(servers, names) == []


async def test_an_app_that_is_stopped_while_its_consumer_joins_leaves_no_connection_open(
    embedded_broker: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, servers = Names(f"p{secrets.token_hex(4)}"), embedded_broker.bootstrap_servers
    await create_topics(servers, [WantedTopic(names.stage_stats, 1, "reports")], replication=1)
    joined, has_partitions = asyncio.Event(), threading.Event()
    assigned, thread_stops = faust.App._on_partitions_assigned, AIOKafkaConsumerThread.on_thread_stop
    stopping: list[faust.App] = []

    async def once_it_stops(app: faust.App, *partitions: Any) -> None:
        stopping.append(app)
        joined.set()
        while not app.should_stop:
            await asyncio.sleep(0.01)
        await assigned(app, *partitions)
        has_partitions.set()

    async def after_that(thread: AIOKafkaConsumerThread) -> None:
        while not has_partitions.is_set():
            await asyncio.sleep(0.01)
        await thread_stops(thread)

    monkeypatch.setattr(faust.App, "_on_partitions_assigned", once_it_stops)
    monkeypatch.setattr(AIOKafkaConsumerThread, "on_thread_stop", after_that)
    context = PipelineContext(one_stage(names.pipeline), KafkaCluster(servers), Settings())
    app = control_app(context, 1, folder=str(tmp_path), take=ignored, tune=nothing)
    entering = asyncio.create_task(app.__aenter__())  # ends once there are partitions
    async with asyncio.timeout(60):
        await joined.wait()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
    connections = stopping[0].consumer._thread._consumer._client._conns.values()
    assert connections
    assert not any(connection.connected() for connection in connections)


def ignored(partition: int, offset: int, value: bytes | None) -> None: ...


async def nothing() -> None: ...


async def test_a_run_hears_by_its_agents_and_goes_on_by_itself_where_there_are_none(
    swing, embedded_broker: KafkaServer
) -> None:
    hosted: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 3)])
    alone: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 3)], faust=False)
    for run, by_agents in ((hosted, True), (alone, False)):
        async with asyncio.timeout(180), open_run(run) as under_way:
            await under_way.ready()
            controller = under_way.controller

            async def brought(controller=controller) -> bool:
                return controller.collector.agent.drives and controller.timer.drives

            assert await until(brought, 10.0 if by_agents else 1.0) is by_agents
            await under_way.fed(asyncio.Event())
            report = await under_way.report(await under_way.drain())
        assert (report.lost, report.events_in) == (0, report.events_out)
        assert controller.failures == 0
