"""A controller dies; the data plane goes on; another one takes over and knows what the first knew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.event_ledger import read_ledger
from inferline_stream.controlplane.records.control_records import encode
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.start_offsets import commit_start_offsets
from inferline_stream.errors import UsageError
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.observability.pipeline_state import StoredPlan
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.version import structure_of
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import Script, on_this_host


async def test_a_standby_takes_over_with_plan_replicas_and_traffic_and_nothing_is_lost(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(60, 16)], changes=[(1.0, {"parse": 2})])
    successor = replace(run, feed=None, policy=Script([]))
    async with (
        on_this_host(run, 180.0) as (first, actuator),
        run.feed(run.bootstrap_servers, first.context.source) as feed,
    ):
        await feed.ready()
        feed.start()

        async def scaled() -> bool:
            return first.controller.view.reports.ready("parse", "emulated-cpu") == 2

        assert await until(scaled, 60.0)
        await asyncio.sleep(1.5)  # what was decided is written down within a moment
        processes = {r.pid for r in await actuator.observe()}
        first.control.cancel()  # it falls silent: no resignation, no heartbeat
        silent_s, out_before = time.monotonic(), first.controller.view.events_out
        async with open_run(successor, actuator) as second:
            await second.ready()
            took_s = time.monotonic() - silent_s
            assert second.controller.leadership.term == first.controller.leadership.term + 1
            assert second.controller.wanted["parse"]["emulated-cpu"] == 2
            assert 40 < second.controller.state.arrival_rate < 80
            now_s = asyncio.get_running_loop().time()
            assert now_s - second.controller.view.growth.watched_since_s > took_s  # no gap: also what came meanwhile
            assert {r.pid for r in await actuator.observe()} == processes
            feed.stop()
            await feed.finished()
            await second.drain()
            ledger = await read_ledger(second.offsets, second.context, first.since)
    assert out_before < ledger.events_out
    assert ledger.lost() == (0, [])
    assert (ledger.events_in, ledger.duplicated) == (ledger.events_out, 0)
    assert not second.controller.view.decisions


async def test_a_leader_with_an_unsettled_transaction_goes_on_in_a_new_term(
    swing, embedded_broker: KafkaServer
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(40, 6)], changes=[(3.0, {"parse": 2})])
    async with asyncio.timeout(180), open_run(run) as under_way:
        await under_way.ready()
        leadership = under_way.controller.leadership
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        await asyncio.sleep(1.0)
        leadership._broken = True  # as after a broker that went away in the middle of a commit
        await feeding

        async def two_work() -> bool:
            return under_way.controller.view.reports.ready("parse", "emulated-cpu") == 2

        assert await until(two_work, 30.0), "the new term did not scale"
        report = await under_way.report(await under_way.drain())
    assert (leadership.renewals, leadership.term) == (1, 2)
    assert (report.lost, report.duplicated) == (0, 0)


@pytest.mark.parametrize("stage", ["check", "gone"])
async def test_other_stages_are_refused_while_records_are_under_way_and_let_in_once_there_are_none(
    swing, embedded_broker: KafkaServer, stage: str
) -> None:
    run: Run = swing(embedded_broker.bootstrap_servers, levels=[(20, 1)])
    names, servers = Names(run.pipeline.name, run.records.prefix), run.bootstrap_servers
    now = structure_of(run.pipeline)
    other = replace(now, edges={**now.edges, "gone": {"parse": False}}, formats={**now.formats, "gone": "json"})
    stored = StoredPlan("another", 1, time.time(), "initial", "", PlanDocument(plan=run.plan), 1, other)
    topics = topics_of(run.pipeline, run.records.prefix)
    await create_topics(servers, [*topics, WantedTopic(names.stage_topic("gone"), 8, "input")], replication=1)
    await commit_start_offsets(servers, run.pipeline, run.records.prefix)
    await write_once(servers, Record.keyed(names.decisions, "plan", encode(stored)))
    under_way = Record.keyed(names.stage_topic(stage), "key", b"1", 3)
    await write_once(servers, under_way)
    with pytest.raises(UsageError) as refused:
        async with asyncio.timeout(60), open_run(run):
            pass
    assert "stage gone is gone" in str(refused.value)
    assert f"1 in {names.group(stage)}" in str(refused.value)
    assert "end the running pipeline first" in str(refused.value).lower()
    async with AIOKafkaConsumer(
        bootstrap_servers=servers, group_id=names.group(stage), enable_auto_commit=False
    ) as consumer:
        partition = TopicPartition(under_way.topic, under_way.partition)
        consumer.assign([partition])
        await consumer.commit({partition: 1})
    async with asyncio.timeout(60), open_run(run) as allowed:
        assert allowed.controller.leadership.term >= 1
        # aiokafka loses its first connection where a client is stopped while it starts.
        while allowed.controller.collector is None:
            await asyncio.sleep(0.02)
