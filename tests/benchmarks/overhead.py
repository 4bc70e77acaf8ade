"""What a replica costs over a bare aiokafka loop, and gains over a Faust agent: latency, throughput, CPU per record.

All sides pass 1 KB of raw bytes from one topic of 8 partitions to another, with acks=all, idempotence and committed
offsets. Throughput: each side in turn works off the same backlog, in several rounds; `confluent` is the replica on
librdkafka. Latency: replica and loop read the very same records at the same time, so that the machine's noise meets
both. `three_stages_…`: from sending a record to Kafka's append of its result behind three stages of one replica each,
and the CPU time that one replica takes per record, at 250/s and 1,000/s, on aiokafka and on librdkafka (`confluent`);
broker, producer and replicas share the machine's cores.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.dataplane.protocol import KafkaClient
from inferline_stream.dataplane.topics import TopicSettings, create_topics
from inferline_stream.testing.directing import Director
from inferline_stream.testing.kafka import find_apache_kafka

PARTITIONS = 8
RECORD_BYTES = 1000
BATCH_SIZE = 64
LATENCY_RATE = 250.0
THREE_STAGES: list[tuple[KafkaClient, float]] = [("aiokafka", 250.0), ("confluent", 250.0), ("confluent", 1000.0)]

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    return values


work = Stage("work", same, hardware=["cpu-1"])
pipeline = Pipeline("{name}", slo="250ms", source=Topic("{source}", codec="raw"), sink=Topic("{sink}", codec="raw"),
                    stages=[work])
"""
THREE = TOPOLOGY.replace(
    "pipeline",
    """more = Stage("more", same, after=[work], hardware=["cpu-1"])
last = Stage("last", same, after=[more], hardware=["cpu-1"])
pipeline""",
    1,
).replace("[work])\n", "[work, more, last])\n")


def measure(quick: bool) -> dict[str, float | int | str | None]:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_measure(kafka.bootstrap_servers, Path(folder), quick=quick))


async def _measure(bootstrap_servers: str, folder: Path, *, quick: bool) -> dict[str, Any]:
    rounds, backlog, seconds = (2, 16_000, 5.0) if quick else (5, 60_000, 30.0)
    sides = ["replica", "bare", "faust"]
    if librdkafka := importlib.util.find_spec("confluent_kafka") is not None:
        sides.append("confluent")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    cpu_s: dict[str, list[float]] = {side: [] for side in sides}
    source = await _own_topic(bootstrap_servers)
    await _fill(bootstrap_servers, source, backlog)
    for _ in range(rounds):
        for side, found in rates.items():
            # Faust passes a fraction of what the others do; a fraction of the backlog tells its rate.
            enough = backlog // 8 if side == "faust" else backlog
            sink = await _own_topic(bootstrap_servers)
            async with _side(side, bootstrap_servers, folder, source, sink) as pid:
                before_s = _cpu_s(pid)
                found.append(await _rate(bootstrap_servers, sink, enough))
                cpu_s[side].append((_cpu_s(pid) - before_s) / enough)
    latency_s = await _latency(bootstrap_servers, folder, seconds)
    replica_s, bare_s = latency_s["replica"], latency_s["bare"]
    three: dict[str, float | int | str | None] = {}
    for client, rate in THREE_STAGES if librdkafka else THREE_STAGES[:1]:
        three |= await _three_stages(bootstrap_servers, folder, client, rate, seconds)
    return {
        "p50_ratio": statistics.median(replica_s) / statistics.median(bare_s),
        "throughput_ratio": _median_ratio(rates["replica"], rates["bare"]),
        "faust_ratio": _median_ratio(rates["replica"], rates["faust"]),
        "replica_p50_ms": statistics.median(replica_s) * 1e3,
        "bare_p50_ms": statistics.median(bare_s) * 1e3,
        "replica_p99_ms": _quantile(replica_s, 0.99) * 1e3,
        "bare_p99_ms": _quantile(bare_s, 0.99) * 1e3,
        **{f"{side}_records_per_s": statistics.median(found) for side, found in rates.items()},
        **{f"{side}_cpu_us_per_record": statistics.median(found) * 1e6 for side, found in cpu_s.items()},
        **three,
    }


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def _fill(bootstrap_servers: str, topic: str, records: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5) as producer:
        for number in range(records):
            await producer.send(topic, bytes(RECORD_BYTES), key=b"%d" % (number % 1000))


async def _rate(bootstrap_servers: str, topic: str, records: int) -> float:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers)
    async with consumer, asyncio.timeout(120):
        partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        first_s, seen = 0.0, 0
        while True:
            passed = sum((await consumer.end_offsets(partitions)).values())
            now_s = time.perf_counter()
            if passed and not first_s:
                first_s, seen = now_s, passed
            if passed >= records:
                return (passed - seen) / (now_s - first_s)
            await asyncio.sleep(0.01)


async def _latency(bootstrap_servers: str, folder: Path, seconds: float) -> dict[str, list[float]]:
    """Seconds from sending a record to the broker's append of its successor, side by side."""
    source = await _own_topic(bootstrap_servers)
    # The broker stamps the sink's records when it appends them.
    sinks = {side: await _own_topic(bootstrap_servers) for side in ("replica", "bare")}
    async with AsyncExitStack() as stack:
        for side, sink in sinks.items():
            await stack.enter_async_context(_side(side, bootstrap_servers, folder, source, sink))
        producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=bootstrap_servers))
        await _stamped(producer, source, 3.0)  # until the bare loop's group has formed, and everybody is warm
        since_ns = await _stamped(producer, source, seconds)
        await asyncio.sleep(1.0)
    return {side: await _ages(bootstrap_servers, sink, since_ns) for side, sink in sinks.items()}


async def _three_stages(
    bootstrap_servers: str, folder: Path, client: KafkaClient, rate: float, seconds: float
) -> dict[str, float | int | str | None]:
    """The same through three stages, as figures."""
    source, sink = await _own_topic(bootstrap_servers), await _own_topic(bootstrap_servers)
    director = Director(bootstrap_servers, _topology(THREE, folder, source, sink), prefix="", max_batch_size=BATCH_SIZE)
    director.kafka_client = client
    async with director, AIOKafkaProducer(bootstrap_servers=bootstrap_servers) as producer:
        await director.start_all()
        await _stamped(producer, source, 3.0, rate)
        processes = [process.pid for process in director.processes.values()]
        before_s = sum(map(_cpu_s, processes))
        since_ns = await _stamped(producer, source, seconds, rate)
        await director.caught_up()
        used_s = sum(map(_cpu_s, processes)) - before_s
    ages_s = await _ages(bootstrap_servers, sink, since_ns)
    name = f"three_stages_{client}_{rate:.0f}"
    return {
        f"{name}_p50_ms": statistics.median(ages_s) * 1e3,
        f"{name}_p99_ms": _quantile(ages_s, 0.99) * 1e3,
        f"{name}_cpu_us_per_record": used_s / len(ages_s) / len(processes) * 1e6,
    }


async def _stamped(producer: AIOKafkaProducer, topic: str, seconds: float, rate: float = LATENCY_RATE) -> int:
    """Send records that hold their own time, evenly spread; returns when the first was sent, in nanoseconds."""
    began_ns = time.time_ns()
    start_s = time.perf_counter()
    for number in range(int(seconds * rate)):
        await asyncio.sleep(max(0.0, start_s + number / rate - time.perf_counter()))
        value = struct.pack("<q", time.time_ns()) + bytes(RECORD_BYTES - 8)
        await producer.send(topic, value, key=b"%d" % (number % 1000))
    await producer.flush()
    return began_ns


async def _ages(bootstrap_servers: str, topic: str, since_ns: int) -> list[float]:
    partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    ages = []
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    sent_ns = struct.unpack_from("<q", record.value)[0]
                    if sent_ns >= since_ns:
                        # The append's time is cut to whole milliseconds: half of one is missing on average.
                        ages.append(record.timestamp / 1e3 + 0.5e-3 - sent_ns / 1e9)
    return ages


async def _own_topic(bootstrap_servers: str) -> str:
    topic = f"overhead-{secrets.token_hex(4)}"
    settings = {"message.timestamp.type": "LogAppendTime"}
    await create_topics(bootstrap_servers, [TopicSettings(topic, PARTITIONS, "a benchmark's own", settings)])
    return topic


@asynccontextmanager
async def _side(side: str, bootstrap_servers: str, folder: Path, source: str, sink: str) -> AsyncIterator[int]:
    if side in ("bare", "faust"):
        async with _other(side, bootstrap_servers, source, sink) as pid:
            yield pid
        return
    topology = _topology(TOPOLOGY, folder, source, sink)
    director = Director(bootstrap_servers, topology, prefix="", max_batch_size=BATCH_SIZE)
    director.kafka_client = "confluent" if side == "confluent" else "aiokafka"
    async with director:
        replica = await director.start("work")
        await director.assign(replica, range(PARTITIONS))
        yield director.processes[replica].pid


def _topology(text: str, folder: Path, source: str, sink: str) -> Path:
    name = f"passing-{secrets.token_hex(4)}"
    topology = folder / f"{name.replace('-', '_')}.py"
    topology.write_text(text.format(name=name, source=source, sink=sink))
    return topology


@asynccontextmanager
async def _other(side: str, bootstrap_servers: str, source: str, sink: str) -> AsyncIterator[int]:
    module = {"bare": "_bare_loop", "faust": "_faust_agent"}[side]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.benchmarks.{module}",
        bootstrap_servers,
        source,
        sink,
        f"{side}-{secrets.token_hex(4)}",
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.kill()
        await process.wait()


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
