"""What a pool costs over a bare aiokafka loop, and gains over a Faust agent: latency, throughput, CPU per record.

All sides pass 1 KB of raw bytes from one topic of 8 partitions to another on Apache Kafka, with acks=all, idempotence
and committed offsets; the bare loop awaits each commit. The pool's CPU is that of its dispatcher and all its replicas.

- `throughput_ratio`, `faust_ratio`: each side in turn works off the same backlog, in several rounds. All of it is
  hopeless to the pool; `deadline_over_entry` is its throughput over that in order of entry.
- `p50_ratio`: pool and loop read the same records at the same time, 250/s, so that the machine's noise meets both.
- `cpu_ratio`: CPU per record at 1,000/s, each side in turn while the other is idle; `cpu_ratio_4` with four replicas.
- `three_stages_p99_ms`: from sending a record to Kafka's append of its result behind three stages of one replica each,
  1,000/s; broker, producer and pools share two cores.
- `slot_us`: CPU per record of a slot's decisions alone, flat out in batches of 64; `slot_keyed_us` with keys, in order;
  `slot_one_us` in batches of one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.benchmarks._machine import Elsewhere
from tests.benchmarks._slot_cost import slot_us
from tests.support.director import Director

PARTITIONS = 8
RECORD_BYTES = 1000
BATCH_SIZE = 64
LATENCY_RATE, CPU_RATE = 250.0, 1000.0
CORES = 2

TOPOLOGY = """
from inferline_stream import Pipeline, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    return values


work = Stage("work", same, hardware=["cpu-1"], max_batch_size={batch})
pipeline = Pipeline("{name}", slo="250ms", source=Topic("{source}", codec="raw"), sink=Topic("{sink}", codec="raw"),
                    stages=[work], order="{order}")
"""
THREE = TOPOLOGY.replace(
    "pipeline",
    """more = Stage("more", same, after=[work], hardware=["cpu-1"], max_batch_size={batch})
last = Stage("last", same, after=[more], hardware=["cpu-1"], max_batch_size={batch})
pipeline""",
    1,
).replace("[work], order", "[work, more, last], order")


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure(kafka.bootstrap_servers, Path(folder), quick=quick))


async def _measure(servers: str, folder: Path, *, quick: bool) -> Figures:
    elsewhere = Elsewhere()
    figures = await _throughput(servers, folder, *((2, 16_000) if quick else (5, 60_000)))
    figures |= await _latency(servers, folder, 5.0 if quick else 30.0)
    figures |= await _cpu(servers, folder, *((1, 4.0) if quick else (5, 10.0)))
    figures |= await _three_stages(servers, folder, 5.0 if quick else 30.0)
    records = 10_000 if quick else 60_000
    figures["slot_us"] = slot_us(records, BATCH_SIZE, keyed=False)
    figures["slot_keyed_us"] = slot_us(records, BATCH_SIZE, keyed=True)
    figures["slot_one_us"] = slot_us(records // 4, 1, keyed=False)
    return {**figures, "cores_elsewhere": elsewhere.cores()}


# Throughput


async def _throughput(servers: str, folder: Path, rounds: int, backlog: int) -> Figures:
    rates: dict[str, list[float]] = {side: [] for side in ("pool", "pool_in_order_of_entry", "pool_4", "bare", "faust")}
    cpu_s: dict[str, list[float]] = {side: [] for side in rates}
    source = await _own_topic(servers)
    await _fill(servers, source, backlog)
    for _ in range(rounds):
        for side, found in rates.items():
            # Faust passes a fraction of what the others do; a fraction of the backlog tells its rate.
            enough = backlog // 8 if side == "faust" else backlog
            sink = await _own_topic(servers)
            async with _side(side, servers, folder, source, sink) as pids:
                before_s = _cpu_s(pids)
                found.append(await _rate(servers, sink, enough))
                cpu_s[side].append((_cpu_s(pids) - before_s) / enough)
    return {
        "throughput_ratio": _median_ratio(rates["pool"], rates["bare"]),
        "throughput_ratio_4": _median_ratio(rates["pool_4"], rates["bare"]),
        "faust_ratio": _median_ratio(rates["pool"], rates["faust"]),
        "deadline_over_entry": _median_ratio(rates["pool"], rates["pool_in_order_of_entry"]),
        **{f"{side}_records_per_s": statistics.median(found) for side, found in rates.items()},
        **{f"{side}_flat_out_cpu_us_per_record": statistics.median(found) * 1e6 for side, found in cpu_s.items()},
    }


def _median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


async def _fill(servers: str, topic: str, records: int) -> None:
    async with AIOKafkaProducer(bootstrap_servers=servers, linger_ms=5) as producer:
        for number in range(records):
            await producer.send(topic, bytes(RECORD_BYTES), key=b"%d" % (number % 1000))


async def _rate(servers: str, topic: str, records: int) -> float:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers)
    async with consumer, asyncio.timeout(120):
        partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        first_s, seen = 0.0, 0
        while True:
            passed: int = sum((await consumer.end_offsets(partitions)).values())
            now_s = time.perf_counter()
            if passed and not first_s:
                first_s, seen = now_s, passed
            if passed >= records:
                return (passed - seen) / (now_s - first_s)
            await asyncio.sleep(0.01)


# Latency and CPU


async def _latency(servers: str, folder: Path, seconds: float) -> Figures:
    """Seconds from sending a record to the broker's append of its successor, side by side."""
    source = await _own_topic(servers)
    sinks = {side: await _own_topic(servers) for side in ("pool", "bare")}
    async with AsyncExitStack() as stack:
        for side, sink in sinks.items():
            await stack.enter_async_context(_side(side, servers, folder, source, sink))
        producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=servers))
        await _stamped(producer, source, 3.0, LATENCY_RATE)  # until the bare loop's group has formed, and all are warm
        since_ns = await _stamped(producer, source, seconds, LATENCY_RATE)
        await asyncio.sleep(1.0)
    ages_s = {side: await _ages(servers, sink, since_ns) for side, sink in sinks.items()}
    return {
        "p50_ratio": statistics.median(ages_s["pool"]) / statistics.median(ages_s["bare"]),
        **{f"{side}_p50_ms": statistics.median(found) * 1e3 for side, found in ages_s.items()},
        **{f"{side}_p99_ms": _quantile(found, 0.99) * 1e3 for side, found in ages_s.items()},
    }


async def _cpu(servers: str, folder: Path, rounds: int, seconds: float) -> Figures:
    """CPU per record at 1,000/s; every side has a source of its own and waits while another has its turn."""
    cpu_us: dict[str, list[float]] = {side: [] for side in ("pool", "pool_4", "bare")}
    ages_s: dict[str, list[float]] = {side: [] for side in cpu_us}
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=servers))
        sides = {}
        for side in cpu_us:
            source, sink = await _own_topic(servers), await _own_topic(servers)
            pids = await stack.enter_async_context(_side(side, servers, folder, source, sink))
            sides[side] = source, sink, pids
            await _stamped(producer, source, 1.0, CPU_RATE)
        for number in range(rounds):
            for side, (source, sink, pids) in sorted(sides.items(), reverse=number % 2 == 1):
                await _stamped(producer, source, 0.5, CPU_RATE)
                before_s, began_s = _cpu_s(pids), time.perf_counter()
                since_ns = await _stamped(producer, source, seconds, CPU_RATE)
                used_s = _cpu_s(pids) - before_s
                cpu_us[side].append(used_s / (CPU_RATE * (time.perf_counter() - began_s)) * 1e6)
                await asyncio.sleep(0.3)
                ages_s[side] += await _ages(servers, sink, since_ns)
    return {
        "cpu_ratio": _median_ratio(cpu_us["pool"], cpu_us["bare"]),
        "cpu_ratio_4": _median_ratio(cpu_us["pool_4"], cpu_us["bare"]),
        **{f"{side}_cpu_us_per_record": statistics.median(found) for side, found in cpu_us.items()},
        **{f"{side}_1000_p50_ms": statistics.median(found) * 1e3 for side, found in ages_s.items()},
        **{f"{side}_1000_p99_ms": _quantile(found, 0.99) * 1e3 for side, found in ages_s.items()},
    }


async def _three_stages(servers: str, folder: Path, seconds: float) -> Figures:
    """The same through three stages, on two cores with everything else."""
    if len(os.sched_getaffinity(0)) != CORES:
        sys.stderr.write(f"overhead: three stages run on {len(os.sched_getaffinity(0))} cores, not on {CORES}\n")
    source, sink = await _own_topic(servers), await _own_topic(servers)
    director = Director(servers, _topology(THREE, folder, source, sink), prefix="", max_batch_size=BATCH_SIZE)
    async with director, AIOKafkaProducer(bootstrap_servers=servers) as producer:
        await director.start()
        await _stamped(producer, source, 3.0, CPU_RATE)
        pids = (await director.pids()).values()
        before_s = _cpu_s(pids)
        since_ns = await _stamped(producer, source, seconds, CPU_RATE)
        used_s = _cpu_s(pids) - before_s
        await director.caught_up()
    ages_s = await _ages(servers, sink, since_ns)
    return {
        "three_stages_p50_ms": statistics.median(ages_s) * 1e3,
        "three_stages_p99_ms": _quantile(ages_s, 0.99) * 1e3,
        "three_stages_cpu_us_per_record_and_stage": used_s / len(ages_s) / 3 * 1e6,
        "three_stages_lost": int(seconds * CPU_RATE) - len(ages_s),
    }


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def _stamped(producer: AIOKafkaProducer, topic: str, seconds: float, rate: float) -> int:
    """Send records that hold their own time, evenly spread; returns when the first was sent, in nanoseconds."""
    began_ns = time.time_ns()
    start_s = time.perf_counter()
    for number in range(int(seconds * rate)):
        wait_s = start_s + number / rate - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        value = struct.pack("<q", time.time_ns()) + bytes(RECORD_BYTES - 8)
        await producer.send(topic, value, key=b"%d" % (number % 1000))
    await producer.flush()
    return began_ns


async def _ages(servers: str, topic: str, since_ns: int) -> list[float]:
    partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    ages = []
    async with AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest") as consumer:
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


# Sides


async def _own_topic(servers: str) -> str:
    topic = f"overhead-{secrets.token_hex(4)}"
    settings = {"message.timestamp.type": "LogAppendTime"}
    await create_topics(servers, [WantedTopic(topic, PARTITIONS, "a benchmark's own", settings)])
    return topic


@asynccontextmanager
async def _side(side: str, servers: str, folder: Path, source: str, sink: str) -> AsyncIterator[Collection[int]]:
    """Start a side, and give the processes that count."""
    if side in ("bare", "faust"):
        async with _other(side, servers, source, sink) as pid:
            yield (pid,)
        return
    order = "entry" if side == "pool_in_order_of_entry" else "deadline"
    topology = _topology(TOPOLOGY, folder, source, sink, order)
    async with Director(servers, topology, prefix="", max_batch_size=BATCH_SIZE) as director:
        await director.start(replicas=4 if side == "pool_4" else 1)
        yield (await director.pids()).values()


def _topology(text: str, folder: Path, source: str, sink: str, order: str = "deadline") -> Path:
    name = f"passing-{secrets.token_hex(4)}"
    topology = folder / f"{name.replace('-', '_')}.py"
    topology.write_text(text.format(name=name, source=source, sink=sink, batch=BATCH_SIZE, order=order))
    return topology


@asynccontextmanager
async def _other(side: str, servers: str, source: str, sink: str) -> AsyncIterator[int]:
    module = {"bare": "_bare_loop", "faust": "_faust_agent"}[side]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"tests.benchmarks.{module}",
        servers,
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


def _cpu_s(pids: Collection[int]) -> float:
    """CPU seconds that processes have used: proc(5), utime and stime."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
