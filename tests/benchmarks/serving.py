"""Stages whose model is behind a server: what asking costs, plans for a server that slows down under load, and a
pipeline of such a stage between one in process and one that waits, on Apache Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import uvloop

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.names import ENTRY_TIME
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile
from inferline_stream.pipeline.shape import Paths, shape_of
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.profiler.bench_messages import Measure
from inferline_stream.profiler.benches import Bench, benches_here
from inferline_stream.profiler.service_times import measure as measure_times
from inferline_stream.profiler.service_times import measure_contention
from inferline_stream.settings import Settings
from inferline_stream.testing.kafka import EmbeddedKafka
from tests.benchmarks import _served_pipeline
from tests.support.director import Director
from tests.support.model_server import model_server_process

Figures = dict[str, float | int | str | None]

BATCH, CONCURRENCY, MOST_AT_ONCE = 8, 16, 8
SLOW_S, SLOWER_S, RATE, SLO_S, HOP_S = 0.020, 0.008, 60.0, 0.25, 0.01
"""Of a server that slows down: a request alone, each one beside it, and what is asked of it."""

_TOPOLOGY = """
from inferline_stream import Hardware, OpenInference, Pipeline, Stage, Topic

def ask(number: int) -> dict[str, int]:
    return {{"number": number}}

def answer(outputs: dict) -> int:
    return int(outputs["doubled"])

work = Stage("work", server=OpenInference("{url}", model="double", request=ask, response=answer),
             hardware=["client"], max_batch_size={batch}, concurrency={concurrency}, ordered=False)
pipeline = Pipeline("bench", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work],
                    hardware=[Hardware("client", 0.01)])
"""
_CLIENT = Hardware("client", 0.01)
_EVENTS: list[StageInput] = [b"%d" % number for number in range(64)]


def measure(quick: bool) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(_overhead(Path(folder), rounds=3 if quick else 9))
        figures |= asyncio.run(_throughput(Path(folder), rounds=1 if quick else 3, events=1500 if quick else 4000))
        figures |= asyncio.run(_plans(Path(folder), seconds=15.0 if quick else 60.0))
        figures |= uvloop.run(_served_pipeline.measure(Path(folder), quick))
    return figures


def _topology(folder: Path, url: str, batch: int, concurrency: int) -> Path:
    file = folder / "topology.py"
    file.write_text(_TOPOLOGY.format(url=url, batch=batch, concurrency=concurrency))
    return file


@contextlib.asynccontextmanager
async def _bench(topology: Path) -> AsyncIterator[Bench]:
    stage = load_topology(topology).stage("work")
    spec = ReplicaSpec("", "work", str(topology), _CLIENT)
    async with benches_here([spec], Settings(start_timeout_s=60.0)) as benches, benches.bench(stage, spec) as bench:
        yield bench


def _body(numbers: list[int]) -> bytes:
    inputs = {"name": "number", "shape": [len(numbers)], "datatype": "INT64", "data": numbers}
    return msgspec.json.encode({"inputs": [inputs]})


async def _asked(session: aiohttp.ClientSession, url: str, numbers: list[int]) -> None:
    async with session.post(f"{url}/v2/models/double/infer", data=_body(numbers)) as response:
        msgspec.json.decode(await response.read())


async def _overhead(folder: Path, rounds: int) -> Figures:
    """A batch through a dispatcher's hands and a replica, and the same request by a bare client, in turns."""
    ours, bare = [], []
    with model_server_process() as url:
        async with (
            _bench(_topology(folder, url, BATCH, 1)) as bench,
            aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session,
        ):
            for _ in range(rounds):
                ours.append(statistics.median(await bench.time(_EVENTS, Measure(BATCH, 1.0, 50, 400))))
                times = []
                for _ in range(400):
                    began_s = time.perf_counter()
                    await _asked(session, url, list(range(BATCH)))
                    times.append(time.perf_counter() - began_s)
                bare.append(statistics.median(times))
    differences_ms = [(a - b) * 1e3 for a, b in zip(ours, bare, strict=True)]
    return {"oip_overhead_ms": statistics.median(differences_ms), "oip_direct_ms": statistics.median(bare) * 1e3}


async def _throughput(folder: Path, rounds: int, events: int) -> Figures:
    """Events of a backlog that pass a stage in a second, over what a bare client gets with as many under way."""
    ours, bare = [], []
    with model_server_process(0.04) as url, EmbeddedKafka() as broker:
        topology = _topology(folder, url, 1, CONCURRENCY)
        async with (
            Director(broker.bootstrap_servers, topology, partitions={"work": 4}, max_batch_size=1) as director,
            aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session,
        ):
            await director.start()
            for turn in range(rounds):
                await director.put([b"%d" % number for number in range(events)])
                await director.until_finished("work", (turn + 1) * events, 300.0)
                times_s = sorted(record.time_ms / 1e3 for record in await director.results())[turn * events :]
                middle = times_s[events // 10 : -events // 10]
                ours.append((len(middle) - 1) / (middle[-1] - middle[0]))
                bare.append(await _bare_rate(session, url, events))
    return {
        "async_throughput_ratio": statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
        "async_events_per_s": statistics.median(ours),
    }


async def _bare_rate(session: aiohttp.ClientSession, url: str, events: int) -> float:
    numbers = iter(range(events))

    async def worker() -> None:
        for number in numbers:
            await _asked(session, url, [number])

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(worker())
    return events / (time.perf_counter() - began_s)


async def _plans(folder: Path, seconds: float) -> Figures:
    """Plans for a server that slows down under load, made with and without knowing that, and what each comes to."""
    rng = np.random.default_rng(5)
    sample, live = gamma_trace(RATE, 1.0, 120.0, rng), gamma_trace(RATE, 1.0, seconds, rng)
    with model_server_process(SLOW_S, SLOWER_S) as url:
        topology = _topology(folder, url, 1, MOST_AT_ONCE)
        async with _bench(topology) as bench:
            times, variation, _ = await measure_times(bench, _EVENTS, 1, seconds=4.0)
            contention, _ = await measure_contention(bench, _EVENTS, times, MOST_AT_ONCE, seconds=2.0)
        knows = Profile("work", "client", times, 0.0, variation, 0.0, contention, 1)
        ignores = replace(knows, contention=(), most_replicas=None)
        figures: Figures = {}
        for name, profile in (("concurrency", knows), ("batch", ignores)):
            plan = _planned(topology, profile, sample)
            if plan is None:
                figures |= {f"p99_{name}_plan_ms": None, f"p99_{name}_plan_ms_reason": "no plan meets the SLO"}
                continue
            (held,) = plan.allocations["work"]
            p99_s = await _run(topology, held, live)
            figures |= {
                f"{name}_plan": f"{held.replicas} × {held.concurrency} at once",
                f"predicted_{name}_plan_ms": plan.predicted_p99_s * 1e3,
                f"p99_{name}_plan_ms": p99_s * 1e3,
                f"slo_kept_by_{name}_plan": int(p99_s <= SLO_S),
            }
    return {"slo_ms": SLO_S * 1e3, **figures}


def _planned(topology: Path, profile: Profile, sample: Trace) -> Plan | None:
    measured = PipelineProfile({("work", "client"): profile}, Paths((0,), (1.0,)), HOP_S)
    try:
        return provision(Problem(shape_of(load_topology(topology)), measured, (sample,), SLO_S, {"client": _CLIENT}))
    except Infeasible:
        return None


async def _run(topology: Path, held: Allocation, live: Trace) -> float:
    """P99 from the source to the sink, in seconds, of traffic like the sample."""
    with EmbeddedKafka() as broker:
        async with Director(broker.bootstrap_servers, topology, partitions={"work": 4}, max_batch_size=1) as director:
            await director.start(replicas=held.replicas)
            await director.grant("work", concurrency=held.concurrency)
            await asyncio.sleep(0.5)
            topic, began_s, sent = director.names.topic("in"), time.time() + 0.1, []
            for number, at_s in enumerate(live.arrivals_s):
                await asyncio.sleep(max(0.0, began_s + at_s - time.time()))
                sent.append(await director.producer.send(topic, b"%d" % number))
            await asyncio.gather(*sent)
            await director.until(lambda: director.total("work", "events") == len(live), "all are done", 60.0)
            records = await director.results()
    latencies_s = [record.time_ms / 1e3 - int(dict(record.headers)[ENTRY_TIME]) / 1e6 for record in records]
    return float(np.quantile(latencies_s, 0.99))
