"""What leading a pipeline costs: CPU and Kafka requests of one controller of 1, 10 and 100 stages, at rest.

One dispatcher and one replica per stage are reported as real ones are, from another process. A straight line through
the three is read at ten stages and taken a thousand times; what bounds is whichever takes more machines, cores for the
controllers or brokers for their requests.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from aiokafka.conn import AIOKafkaConnection

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.pipeline.names import Names
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import EmbeddedKafka
from inferline_stream.tuner.policy import POLICIES
from tests.support.emulated_runs import emulated_run
from tests.support.fake_actuator import FakeActuator

PIPELINES, STAGES = 1000, 10
BROKER_REQUESTS_PER_S = 50_000
"""A modest broker's; Kafka's own figure for small requests on one machine is several times that."""

_HEAD = """
from inferline_stream import Pipeline, Sample, Stage, Topic


def same(values: list[bytes]) -> list[bytes]:
    return values


stages = []
for number in range({stages}):
    stages.append(Stage(f"s{{number}}", same, after=stages[-1:], hardware=["emulated-cpu"], emulated={{1: "1ms"}}))
pipeline = Pipeline("rest{stages}", slo="60s", source=Topic("in", partitions=8, codec="raw"),
                    sink=Topic("out", partitions=8, codec="raw"), stages=stages,
                    sample=Sample(arrivals="none.csv", events="events.jsonl"))
"""


@contextmanager
def counted() -> Iterator[list[int]]:
    """Requests that this process sends to Kafka."""
    count, send = [0], AIOKafkaConnection.send

    def sent(connection: AIOKafkaConnection, *arguments: object, **more: object) -> object:
        count[0] += 1
        return send(connection, *arguments, **more)

    with mock.patch.object(AIOKafkaConnection, "send", sent):
        yield count


async def at_rest(servers: str, folder: Path, stages: int, seconds: float) -> tuple[float, float]:
    """Cores and Kafka requests per second of one controller."""
    (folder / "topology.py").write_text(_HEAD.format(stages=stages))
    (folder / "events.jsonl").write_text("{}\n")
    run = emulated_run(folder, servers, folder, levels=[(1.0, 1.0)], policy=POLICIES["default"], feed=None)
    names = Names(run.pipeline.name, run.records.prefix)
    topics = topics_of(run.pipeline, run.records.prefix)
    await create_topics(servers, topics)
    echo = [sys.executable, "-m", "tests.benchmarks._echoing_dispatchers", servers, names.prefix, names.pipeline]
    dispatchers = await asyncio.create_subprocess_exec(*echo, stdin=asyncio.subprocess.PIPE)
    reporting = dispatchers.stdin
    assert reporting is not None

    def started(replica: ObservedReplica) -> None:
        reporting.write(f"{replica.replica} {replica.stage}\n".encode())

    try:
        with counted() as sent:
            async with open_run(run, FakeActuator(started=started)) as under_way:
                await under_way.ready()
                await asyncio.sleep(5.0)  # Faust has started
                began_s, spent_s, before = time.monotonic(), time.process_time(), sent[0]
                await asyncio.sleep(seconds)
                took_s = time.monotonic() - began_s
                return (time.process_time() - spent_s) / took_s, (sent[0] - before) / took_s
    finally:
        dispatchers.kill()
        await dispatchers.wait()


def measure(quick: bool) -> dict[str, float | int | str | None]:
    seconds = 6.0 if quick else 20.0
    sizes = (1, 10, 100)
    cores, requests = [], []
    with EmbeddedKafka() as broker:
        for stages in sizes:
            with tempfile.TemporaryDirectory() as folder:
                found = asyncio.run(at_rest(broker.bootstrap_servers, Path(folder), stages, seconds))
                cores.append(found[0])
                requests.append(found[1])
    each_cores, each_requests = (float(np.polyval(np.polyfit(sizes, seen, 1), STAGES)) for seen in (cores, requests))
    brokers = PIPELINES * each_requests / BROKER_REQUESTS_PER_S
    return {
        **{f"cores_{stages}_stages": round(seen, 4) for stages, seen in zip(sizes, cores, strict=True)},
        **{f"requests_per_s_{stages}_stages": round(seen, 1) for stages, seen in zip(sizes, requests, strict=True)},
        "cores_1000_pipelines": round(PIPELINES * each_cores, 1),
        "requests_per_s_1000_pipelines": round(PIPELINES * each_requests),
        "bound_by": (
            f"controllers' CPU: {PIPELINES * each_cores:.0f} cores"
            if PIPELINES * each_cores > brokers
            else f"Kafka requests: {brokers:.1f} brokers of {BROKER_REQUESTS_PER_S}/s"
        ),
    }
