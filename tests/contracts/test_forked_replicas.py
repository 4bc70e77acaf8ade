"""Replicas forked from a parent that has imported their stage's code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.isolation.sealing import unsupported
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import Isolation, isolation_of
from inferline_stream.testing.directing import Director

pytestmark = pytest.mark.skipif(
    bool(unsupported(Isolation())), reason=f"no sandbox on {platform.system()} {platform.release()}"
)

TOPOLOGY = """
from inferline_stream import Isolation, Pipeline, Stage, Topic


class Work:
    def __init__(self) -> None:
        import numpy

        self.draw = numpy.random.random

    def __call__(self, numbers: list[int]) -> list[float]:
        return [self.draw() for number in numbers]


work = Stage("work", Work, hardware=["cpu-1"], isolation=Isolation(forked=True))
pipeline = Pipeline("forked", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
"""

THREADED = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"


@contextlib.asynccontextmanager
async def running(servers: str, folder: Path, topology: str) -> AsyncIterator[tuple[Director, LocalActuator]]:
    """A pipeline of one stage of two partitions, and an actuator for it."""
    file = folder / "topology.py"
    file.write_text(topology)
    async with Director(servers, file, partitions={"work": 2}) as director:

        def spec(stage: str, hardware: str) -> ReplicaSpec:
            isolation = isolation_of(director.pipeline.stage(stage).isolation)
            kind = catalogue()[hardware]
            return ReplicaSpec(
                "", stage, str(file), director.prefix, director.bootstrap_servers, kind, 16, isolation=isolation
            )

        async with LocalActuator(spec, folder / "logs", drain_timeout_s=0.0) as actuator:
            yield director, actuator


async def ready(director: Director, actuator: LocalActuator, count: int) -> list[str]:
    """Scale, and wait until so many replicas are ready; their names, oldest first."""
    await actuator.scale("work", "cpu-1", count)
    names = [place.replica for place in await actuator.observe()]
    reports = director.reports
    await director.until(
        lambda: all(name in reports and reports[name].phase == "ready" for name in names), f"{count} are ready", 30.0
    )
    return names


async def parent_of(actuator: LocalActuator, replica: str) -> int:
    (pid,) = [place.pid for place in await actuator.observe() if place.replica == replica]
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


async def test_later_replicas_are_forked_sealed_and_as_good_as_any(embedded_broker, tmp_path, caplog):
    caplog.set_level("INFO")
    async with running(embedded_broker.bootstrap_servers, tmp_path, TOPOLOGY) as (director, actuator):
        (first,) = await ready(director, actuator, 1)
        await director.until(lambda: "replicas are forked from now on" in caplog.text, "the parent is ready", 30.0)
        first, second = await ready(director, actuator, 2)
        assert await parent_of(actuator, first) == os.getpid()
        assert await parent_of(actuator, second) not in (os.getpid(), 1)
        assert [place.way for place in await actuator.observe()] == ["alone", "fork"]
        held = director.reports[second].isolation
        assert replace(held, system_calls=None) == replace(director.reports[first].isolation, system_calls=None)
        assert (held.sealed, held.missing) == (True, ())
        assert director.reports[second].start_up_s < director.reports[first].start_up_s
        await director.assign(first, [0])
        await director.assign(second, [1])
        for number in range(40):
            topic = director.names.topic("in")
            await director.producer.send(topic, b"%d" % number, partition=number % 2)
        await director.producer.flush()
        await director.caught_up()
        results = [record.value for record in await director.read(director.names.topic("out"))]
        assert len(set(results)) == 40  # every replica draws its own numbers


async def test_what_became_of_a_forked_replica_is_known_and_it_is_started_again(embedded_broker, tmp_path, caplog):
    caplog.set_level("INFO")
    async with running(embedded_broker.bootstrap_servers, tmp_path, TOPOLOGY) as (director, actuator):
        await ready(director, actuator, 1)
        await director.until(lambda: "replicas are forked from now on" in caplog.text, "the parent is ready", 30.0)
        _, second = await ready(director, actuator, 2)
        (pid,) = [place.pid for place in await actuator.observe() if place.replica == second]
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            ended = await actuator.next_exit()
        assert (ended.replica, ended.exit_code, ended.reason) == (second, -9, "killed by SIGKILL")
        while [place.replica for place in await actuator.observe()][1] == second:
            await asyncio.sleep(0.02)
        _, third = await ready(director, actuator, 2)
        assert await parent_of(actuator, third) not in (os.getpid(), 1)
        await actuator.scale("work", "cpu-1", 1, [third])
        async with asyncio.timeout(30):
            ended = await actuator.next_exit()
        assert (ended.replica, ended.exit_code, ended.expected) == (third, 0, True)


async def test_where_imports_start_threads_replicas_start_by_themselves(embedded_broker, tmp_path, caplog):
    async with running(embedded_broker.bootstrap_servers, tmp_path, THREADED + TOPOLOGY) as (director, actuator):
        await ready(director, actuator, 1)
        await director.until(lambda: "importing its code started 1 threads" in caplog.text, "the parent says so", 30.0)
        _, second = await ready(director, actuator, 2)
        assert await parent_of(actuator, second) == os.getpid()
