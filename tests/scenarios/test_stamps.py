"""Arrivals seen by record timestamps, where producers write in transactions and log growth would count their ends."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest
from aiokafka import AIOKafkaProducer

from inferline_stream.controlplane.observe.collector import SourceTimestamps
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import ArrivalTicks, encode
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import write_once
from inferline_stream.pipeline.names import Names
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import one_stage


async def in_transactions(producer: AIOKafkaProducer, topic: str, times_ms: list[int], *, abort: bool = False) -> None:
    for i, time_ms in enumerate(times_ms):
        await producer.begin_transaction()
        await (await producer.send(topic, b"x", partition=i % 2, timestamp_ms=time_ms))
        await (producer.abort_transaction() if abort else producer.commit_transaction())


async def test_each_committed_record_counts_once_at_its_own_time_also_for_the_next_controller(
    embedded_broker: KafkaServer,
) -> None:
    names, servers = Names(f"p{secrets.token_hex(4)}"), embedded_broker.bootstrap_servers
    source = names.topic(f"in-{names.pipeline}")
    await create_topics(
        servers, [WantedTopic(source, 2, "events"), WantedTopic(names.arrivals, 1, "arrivals")], replication=1
    )
    context = PipelineContext(one_stage(names.pipeline, source, "timestamps"), KafkaCluster(servers), Settings())
    now_ms = int(time.time() * 1e3)
    early, late = [now_ms - 4000 + 100 * i for i in range(10)], [now_ms - 1000 + 50 * i for i in range(6)]
    async with (
        asyncio.timeout(60),
        AIOKafkaProducer(bootstrap_servers=servers, transactional_id=f"t-{names.pipeline}") as producer,
    ):
        await in_transactions(producer, source, early)
        await in_transactions(producer, source, [now_ms - 2000, now_ms - 1999], abort=True)
        async with SourceTimestamps(context, {source: 2}) as stamps:
            assert [s * 1e3 for s, _ in await stamps.read(1.0)] == pytest.approx(early)
            await in_transactions(producer, source, late)
            heard: list[float] = []
            while len(heard) < len(late):
                heard += [s for s, _ in await stamps.read(0.5)]
            assert [s * 1e3 for s in sorted(heard)] == pytest.approx(late)
            assert sum(stamps.counts) == 16
            counts = list(stamps.counts)
            await in_transactions(producer, source, [0, now_ms + 10**10])
            wrong: list[float] = []
            while len(wrong) < 2:
                wrong += [s for s, _ in await stamps.read(0.5)]
            assert [s for s in wrong if not now_ms / 1e3 <= s <= time.time()] == [], "they count from when they came"
            assert sum(stamps.counts) == 18
        async with Offsets(servers) as offsets:
            ends = (await offsets.ends({source: 2}))[source]
        assert sum(ends) == 2 * 20  # what log growth would have counted: every record and every end of a transaction
        # An earlier controller has written down what came before `late`; the next one counts on from there.
        reported = ArrivalTicks([float(late[0] - 1)], [[100, 50]], [100, 50], float(late[0] - 2))
        await write_once(servers, Record.keyed(names.arrivals, source, encode(reported)))
        async with SourceTimestamps(context, {source: 2}) as successor:
            assert len(await successor.read(1.0)) == 16
            assert sum(successor.counts) == 150 + len(late)
    assert counts == [8, 8]
