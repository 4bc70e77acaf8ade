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
import grpc.aio
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
from tests.benchmarks._figures import Figures
from tests.support.director import Director
from tests.support.grpc_model_server import field, fields
from tests.support.model_server import ServerProcess, model_server_process

BATCH, CONCURRENCY, MOST_AT_ONCE = 8, 16, 8
SLOW_S, SLOWER_S, RATE, SLO_S, HOP_S = 0.020, 0.008, 60.0, 0.25, 0.01
"""Of a server that slows down: a request alone, each one beside it, and what is asked of it."""

PIXELS = (3, 224, 224)
"""Of an image in FP32, 0.6 MB."""

BINARY = "Inference-Header-Content-Length"

_TOPOLOGY = """
import numpy as np
from inferline_stream import Hardware, OpenInference, Pipeline, Stage, TensorFlowServing, Topic

def ask(number: int) -> dict[str, int]:
    return {{"number": number}}

def ask_of_image(number: int) -> dict[str, np.ndarray]:
    return {{"image": np.full({pixels}, number, np.float32)}}

def answer(outputs: dict) -> int:
    return int(outputs["doubled"])

def answer_of_image(outputs: dict) -> int:
    return int(outputs["doubled"][0, 0, 0])

work = Stage("work", server={server}, hardware=["client"], max_batch_size={batch}, concurrency={concurrency},
             ordered=False)
pipeline = Pipeline("bench", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work],
                    hardware=[Hardware("client", 0.01)])
"""
_NUMBERS, _IMAGES = "request=ask, response=answer", "request=ask_of_image, response=answer_of_image"
_PROTOCOLS = {
    "oip": 'OpenInference("{0.url}", model="double", {1})',
    "oip_binary": 'OpenInference("{0.url}", model="double", binary=True, {1})',
    "oip_grpc": 'OpenInference("{0.grpc_url}", model="double", {1})',
    "tensorflow": 'TensorFlowServing("{0.url}", model="double", {1})',
}
_CLIENT = Hardware("client", 0.01)
_EVENTS: list[StageInput] = [b"%d" % number for number in range(64)]


def measure(quick: bool) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(_overhead(Path(folder), rounds=3 if quick else 9))
        figures |= asyncio.run(_throughput(Path(folder), rounds=1 if quick else 3, events=1500 if quick else 4000))
        figures |= asyncio.run(_plans(Path(folder), seconds=15.0 if quick else 60.0))
        figures |= uvloop.run(_served_pipeline.measure(Path(folder), quick))
    return figures


def _topology(folder: Path, asked: str, batch: int, concurrency: int) -> Path:
    file = folder / "topology.py"
    file.write_text(_TOPOLOGY.format(server=asked, batch=batch, concurrency=concurrency, pixels=PIXELS))
    return file


@contextlib.asynccontextmanager
async def _bench(topology: Path) -> AsyncIterator[Bench]:
    stage = load_topology(topology).stage("work")
    spec = ReplicaSpec("", "work", str(topology), _CLIENT)
    async with benches_here([spec], Settings(start_timeout_s=60.0)) as benches, benches.bench(stage, spec) as bench:
        yield bench


class _Bare:
    """A client that does what a protocol takes and no more: requests are laid out beforehand, answers are decoded."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = server.url
        self._session = aiohttp.ClientSession(headers={"Content-Type": "application/json"})
        self._channel = grpc.aio.insecure_channel(server.grpc_url.removeprefix("grpc://"))
        self._infer = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    async def __aenter__(self) -> _Bare:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()
        await self._channel.close()

    async def ask(self, protocol: str, numbers: list[int]) -> None:
        raw = np.array(numbers, "<i8").tobytes()
        tensor = {"name": "number", "shape": [len(numbers)], "datatype": "INT64"}
        if protocol == "oip_grpc":
            inputs = field(1, b"number") + field(2, b"INT64") + field(3, bytes([len(numbers)]))
            answer = await self._infer(field(1, b"double") + field(5, inputs) + field(7, raw))
            np.frombuffer(dict(fields(answer))[6], "<i8").tolist()
            return
        path, headers, body = (
            "/v2/models/double/infer",
            {},
            msgspec.json.encode({"inputs": [tensor | {"data": numbers}]}),
        )
        if protocol == "tensorflow":
            path, body = (
                "/v1/models/double:predict",
                msgspec.json.encode({"instances": [{"number": n} for n in numbers]}),
            )
        elif protocol == "oip_binary":
            body = msgspec.json.encode({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}]})
            headers, body = {BINARY: str(len(body))}, body + raw
        async with self._session.post(self._url + path, data=body, headers=headers) as response:
            content = await response.read()
            header = int(response.headers.get(BINARY, len(content)))
            msgspec.json.decode(content[:header])


async def _overhead(folder: Path, rounds: int) -> Figures:
    """A batch through a dispatcher's hands and a replica, and the same request by a bare client, in turns."""
    figures: Figures = {}
    with model_server_process() as server:
        async with _Bare(server) as client:
            for protocol, asked in _PROTOCOLS.items():
                ours, bare = [], []
                async with _bench(_topology(folder, asked.format(server, _NUMBERS), BATCH, 1)) as bench:
                    for _ in range(rounds):
                        ours.append(statistics.median(await bench.time(_EVENTS, Measure(BATCH, 1.0, 50, 400))))
                        times = []
                        for _ in range(400):
                            began_s = time.perf_counter()
                            await client.ask(protocol, list(range(BATCH)))
                            times.append(time.perf_counter() - began_s)
                        bare.append(statistics.median(times))
                differences_ms = [(a - b) * 1e3 for a, b in zip(ours, bare, strict=True)]
                figures[f"{protocol}_overhead_ms"] = statistics.median(differences_ms)
                figures[f"{protocol}_direct_ms"] = statistics.median(bare) * 1e3
        for protocol in ("oip", "oip_binary", "oip_grpc"):
            async with _bench(_topology(folder, _PROTOCOLS[protocol].format(server, _IMAGES), 1, 1)) as bench:
                times = await bench.time(_EVENTS, Measure(1, 2.0, 5, 20 * rounds))
                figures[f"{protocol}_image_ms"] = statistics.median(times) * 1e3
    return figures


async def _throughput(folder: Path, rounds: int, events: int) -> Figures:
    """Events of a backlog that pass a stage in a second, over what a bare client gets with as many under way."""
    ours, bare = [], []
    with model_server_process(0.04) as server, EmbeddedKafka() as broker:
        topology = _topology(folder, _PROTOCOLS["oip"].format(server, _NUMBERS), 1, CONCURRENCY)
        async with (
            Director(broker.bootstrap_servers, topology, partitions={"work": 4}, max_batch_size=1) as director,
            _Bare(server) as client,
        ):
            await director.start()
            for turn in range(rounds):
                await director.put([b"%d" % number for number in range(events)])
                await director.until_finished("work", (turn + 1) * events, 300.0)
                times_s = sorted(record.time_ms / 1e3 for record in await director.results())[turn * events :]
                middle = times_s[events // 10 : -events // 10]
                ours.append((len(middle) - 1) / (middle[-1] - middle[0]))
                bare.append(await _bare_rate(client, events))
    return {
        "async_throughput_ratio": statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
        "async_events_per_s": statistics.median(ours),
    }


async def _bare_rate(client: _Bare, events: int) -> float:
    numbers = iter(range(events))

    async def worker() -> None:
        for number in numbers:
            await client.ask("oip", [number])

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(worker())
    return events / (time.perf_counter() - began_s)


async def _plans(folder: Path, seconds: float) -> Figures:
    """Plans for a server that slows down under load, made with and without knowing that, and what each comes to."""
    rng = np.random.default_rng(5)
    sample, live = gamma_trace(RATE, 1.0, 120.0, rng), gamma_trace(RATE, 1.0, seconds, rng)
    with model_server_process(SLOW_S, SLOWER_S) as server:
        topology = _topology(folder, _PROTOCOLS["oip"].format(server, _NUMBERS), 1, MOST_AT_ONCE)
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
