"""Groups of plain clients on Apache Kafka with emulated service times: what is learned of them from Kafka alone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
import uuid
from contextlib import AsyncExitStack

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from confluent_kafka import Consumer

from inferline_stream.kafka.group_watch import GroupWatch
from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.runs.group_advice import WAYS, advise
from inferline_stream.runs.group_seen import Seen
from inferline_stream.testing.kafka import KafkaServer

FIXED_S, PER_EVENT_S, MOST = 0.04, 0.01, 4
TRUE = MOST / (FIXED_S + PER_EVENT_S * MOST)
WATCHED_S, JOINS_AT_S, LOAD = 13.0, 4.0, 0.6
PARTITIONS = 6


class Worked:
    """What workers measured of themselves: sizes and times of batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, float]] = []

    def throughput(self, size: int) -> float:
        times = [s for b, s in self.batches if b == size]
        return size * len(times) / sum(times)


def _time_s(size: int, rng: random.Random) -> float:
    sigma = math.sqrt(math.log1p(0.3**2))
    return (FIXED_S + PER_EVENT_S * size) * rng.lognormvariate(-(sigma**2) / 2, sigma)


async def _eager_worker(
    servers: str, topic: str, group: str, worked: Worked, *, seed: int, stop: threading.Event
) -> None:
    rng = random.Random(seed)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, enable_auto_commit=False, heartbeat_interval_ms=500
    )
    await consumer.start()
    try:
        while not stop.is_set():  # where it connects just then, a cancelled client leaves its connection open
            found = await consumer.getmany(timeout_ms=100, max_records=MOST)
            if size := sum(map(len, found.values())):
                began_s = time.monotonic()
                await asyncio.sleep(_time_s(size, rng))
                with contextlib.suppress(KafkaError):  # a new generation has begun meanwhile
                    await consumer.commit({tp: records[-1].offset + 1 for tp, records in found.items()})
                worked.batches.append((size, time.monotonic() - began_s))
    finally:
        await consumer.stop()


def _kip848_worker(servers: str, topic: str, group: str, worked: Worked, seed: int, stop: threading.Event) -> None:  # noqa: PLR0917
    rng = random.Random(seed)
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "group.protocol": "consumer",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
        }
    )
    consumer.subscribe([topic])
    while not stop.is_set():
        found = [each for each in consumer.consume(MOST, 0.01) if each.error() is None]
        if found:
            began_s = time.monotonic()
            time.sleep(_time_s(len(found), rng))
            consumer.commit(asynchronous=False)
            worked.batches.append((len(found), time.monotonic() - began_s))
    consumer.close()


async def _produce(servers: str, topic: str, rate: float) -> None:
    rng = random.Random(7)
    async with AIOKafkaProducer(bootstrap_servers=servers, linger_ms=0) as producer:
        due_s = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await producer.send(topic, b"event", partition=rng.randrange(PARTITIONS))
            due_s += rng.expovariate(rate)


async def _topic(servers: str) -> str:
    admin, name = AIOKafkaAdminClient(bootstrap_servers=servers), f"learned-{uuid.uuid4().hex[:8]}"
    await admin.start()
    await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
    await admin.close()
    return name


async def test_throughput_members_and_rebalances_are_seen_of_eager_and_kip848_groups(apache_kafka: KafkaServer) -> None:
    servers = apache_kafka.bootstrap_servers
    topic, stop = await _topic(servers), threading.Event()
    groups = [ConsumerGroup(name, group=f"{topic}-{name}", topic=topic) for name in ("eager", "kip848")]
    worked, pipeline = {g.name: Worked() for g in groups}, Pipeline("learned", slo="5s", stages=groups)
    seen = Seen(pipeline)
    threads: list[threading.Thread] = []
    async with AsyncExitStack() as stack:
        workers: list[asyncio.Task[None]] = []

        def add(seed: int) -> None:
            eager = _eager_worker(servers, topic, groups[0].group, worked["eager"], seed=seed, stop=stop)
            workers.append(asyncio.create_task(eager))
            args = (servers, topic, groups[1].group, worked["kip848"], seed, stop)
            threads.append(threading.Thread(target=_kip848_worker, args=args))
            threads[-1].start()

        add(1)
        add(2)
        producing = asyncio.create_task(_produce(servers, topic, 2 * TRUE * LOAD))
        try:
            await asyncio.sleep(2.0)
            watch = await stack.enter_async_context(GroupWatch(servers, groups))
            assert watch.exact
            began_s, joined = time.monotonic(), False
            async for looks in watch.looks():
                seen.take(looks)
                passed_s = time.monotonic() - began_s
                if not joined and passed_s > JOINS_AT_S:
                    joined = True
                    add(3)
                if passed_s > WATCHED_S:
                    break
        finally:
            stop.set()
            producing.cancel()
            async with asyncio.timeout(60):
                await asyncio.gather(producing, *workers, return_exceptions=True)
            for thread in threads:
                await asyncio.to_thread(thread.join)
    for name, learner in seen.learners.items():
        found = learner.profile()
        assert (found.workers, found.partitions, found.max_batch_size, found.source) == (3, PARTITIONS, MOST, "commits")
        assert found.throughput is not None
        # What other processes hold a worker up for counts for the worker, and need not for what is learned.
        seen_itself = worked[name].throughput(MOST)
        assert 0.9 * seen_itself <= found.throughput.value <= 1.1 * max(seen_itself, TRUE)
        assert found.rebalance is not None
        assert found.rebalance.protocol == name
        assert found.start_up_s is not None
    # A member of KIP-848 hears of its new partitions with its next heartbeat: within 5 s.
    kip848 = seen.learners["kip848"].profile().rebalance
    assert kip848 is not None
    assert 0.5 < kip848.longest_s < 7.0
    advice = advise(pipeline, seen.learners, seen.arrivals(), watched_s=seen.watched_s)
    assert advice.contest is not None
    assert {row.way for row in advice.contest.rows} == WAYS.keys() - {"ours_keda", "ours_hpa"}  # KEDA scales none
    assert advice.p99_s is not None
    assert seen.arrivals().arrival_rate == pytest.approx(2 * TRUE * LOAD, rel=0.2)
