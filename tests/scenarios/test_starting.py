"""Where a run begins that finds its pipeline's topics and groups as another has left them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import DeleteGroupsRequest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.pipeline_topics import ready_topics, topics_of
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.runs.lifecycle import open_run, run_to_report
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.tuner.policy import POLICIES


async def wait_at_the_source(run: Run, events: int) -> None:
    source = Names(run.pipeline.name, run.records.prefix).topic(run.pipeline.source.name)
    for number in range(events):
        record = Record.keyed(source, str(number), b'{"number": %d}' % number, number % 8)
        await write_once(run.bootstrap_servers, record)


async def forget(servers: str, group: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin._send_request(DeleteGroupsRequest([group]), await admin.find_coordinator(group))
    await admin.close()


async def test_a_backlog_is_worked_off_and_distinguished_from_live_traffic(swing, embedded_broker: KafkaServer) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(30, 3)])
    async with asyncio.timeout(180):
        first = await run_to_report(run, asyncio.Event())
        await wait_at_the_source(run, 50)
        second = await run_to_report(run, asyncio.Event())
    assert (first.backlog, first.backlog_done_s) == (0, None)
    assert (second.backlog, second.lost, second.duplicated) == (50, 0, 0)
    assert second.events_in == second.events_out == first.events_in + 50
    assert second.backlog_done_s is not None


@pytest.mark.parametrize(("known", "waiting", "reason"), [(120.0, 0, "rate_rising"), (None, 1000, "backlog")])
async def test_the_first_replicas_are_those_for_what_is_known_to_come(
    known: float | None, waiting: int, reason: str, swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(1, 1)], policy=POLICIES["default"])
    run = replace(run, records=replace(run.records, start="earliest"))
    topics = topics_of(run.pipeline, run.records.prefix)
    await ready_topics(run.bootstrap_servers, topics, create=True, replication=1)
    async with RecordProducer(run.bootstrap_servers) as producer:
        source = Names(run.pipeline.name, run.records.prefix).topic(run.pipeline.source.name)
        for number in range(waiting):
            await producer.send(source, b'{"number": %d}' % number, key=str(number).encode())
        await producer.flush()
    arrivals = None if known is None else gamma_trace(known, 1.0, 30.0, np.random.default_rng(1))
    async with asyncio.timeout(180), open_run(replace(run, arrivals=arrivals)) as starting:
        (decision,) = starting.controller.decider.decisions
        assert (decision.action, decision.reason) == ("scale_up", reason)
        assert sum(decision.replicas["parse"].values()) > 1
        assert starting.controller.wanted == decision.replicas
        assert starting.controller.state is None, "no replica has been looked at yet"
        await starting.ready()
        assert [(d.action, d.reason) for d in starting.controller.decider.decisions] == [("scale_up", reason)]
        await starting.controller.retire(starting.context.shape.stages, 10.0)


async def test_an_offset_that_a_known_group_has_lost_halts_its_partitions_until_people_say_where_to_go_on(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(30, 1)])
    group = Names(run.pipeline.name, run.records.prefix).group("parse")
    async with asyncio.timeout(120):
        first = await run_to_report(run, asyncio.Event())
        await forget(run.bootstrap_servers, group)  # as Kafka does in time
        since = datetime.now(UTC).isoformat()
        await wait_at_the_source(run, 20)
        async with open_run(replace(run, feed=None)) as halted:
            await halted.ready()
            reports = halted.controller.view.reports

            async def reported() -> bool:
                newest = [report for name in reports.living() if (report := reports.newest(name)) is not None]
                return any(set(report.halted.values()) == {"its group has committed no offset"} for report in newest)

            assert await until(reported, 60.0)
            topic = halted.context.source
            assert await halted.offsets.committed(group, topic, 8) == (Committed(-1),) * 8
            await halted.controller.retire(halted.context.shape.stages, 10.0)
        again = await run_to_report(replace(run, records=replace(run.records, start=since)), asyncio.Event())
    assert (again.backlog, again.lost) == (20, 0)
    assert again.events_in == again.events_out == first.events_in + 20
