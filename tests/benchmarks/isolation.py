"""Sealed replicas beside unsealed ones: what they withstand, what it costs, and how fast they start.

Every cost is measured in turns with its opposite on the same work; the medians of the turns are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.isolation import profiles
from inferline_stream.isolation.probing import Probed, probe
from inferline_stream.isolation.sealing import unsupported
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.testing.directing import Director
from inferline_stream.testing.kafka import EmbeddedKafka

Figures = dict[str, float | int | str | None]

_TOPOLOGY = '''
"""Models of scikit-learn and onnxruntime, imported where the stage is built, as the examples do."""

from inferline_stream import Pipeline, Stage, Topic


class Classify:
    def __init__(self) -> None:
        import numpy
        import onnxruntime
        from sklearn.linear_model import LogisticRegression

        assert onnxruntime
        rng = numpy.random.default_rng(1)
        x = rng.random((256, 16))
        self.model = LogisticRegression()  # as if it were loaded: fitting it would be no part of a start
        self.model.classes_, self.model.intercept_ = numpy.array([0, 1]), numpy.array([-8.0])
        self.model.coef_ = numpy.ones((1, 16))
        self.rows = x

    def __call__(self, numbers: list[int]) -> list[int]:
        return [int(label) for label in self.model.predict(self.rows[[n % 256 for n in numbers]])]


work = Stage("work", Classify, hardware=["cpu-1"], max_batch_size=8)
pipeline = Pipeline("bench", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[work])
'''
_PLAIN, _SEALED, _FORKED = Isolation("none"), Isolation(), Isolation(forked=True)


def measure(quick: bool) -> Figures:
    lacking = unsupported(Isolation())
    if lacking:
        names = ("probes_blocked", "reachable_sealed", "seal_ms", "fork_ready_ms", "cpu_ratio", "memory_mb")
        return {**dict.fromkeys(names), **{f"{name}_reason": lacking[0] for name in names}}
    figures: Figures = {}
    rounds = 3 if quick else 7
    probed = [asyncio.run(probe(_SEALED)) for _ in range(rounds)]
    figures["probes_blocked"] = min(found.blocked for found in probed)
    for name, isolation in (
        ("none", _PLAIN),
        ("launch", Isolation(seal="off")),
        ("imports", Isolation(seal="imports")),
    ):
        figures[f"probes_blocked_{name}"] = asyncio.run(probe(isolation)).blocked
    figures |= _reachable(probed[0])
    figures["seal_ms"] = statistics.median(found.seal_ms for found in probed)
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder, "topology.py")
        topology.write_text(_TOPOLOGY)
        figures |= asyncio.run(_replicas(topology, rounds, events=4_000 if quick else 12_000))
    return figures


def _reachable(strict: Probed) -> Figures:
    """As the kernel's filters have it, on this machine and on the other."""
    here = profiles.machine()
    assert here is not None
    counts: Figures = {"reachable_sealed": strict.held.system_calls}
    counts["reachable_imports"] = profiles.reachable(profiles.sealed(1, imports=True), here)
    counts["reachable_launch"] = profiles.reachable(profiles.launching(1), here)
    for name, other in profiles.MACHINES.items():
        if other is not here:
            counts[f"reachable_sealed_{name}"] = profiles.reachable(profiles.sealed(1), other)
    return counts


async def _replicas(topology: Path, rounds: int, events: int) -> Figures:
    with EmbeddedKafka() as broker:
        async with Director(broker.bootstrap_servers, topology, partitions={"work": 1}) as director:
            figures = await _costs(director, rounds, events)
            return figures | await _starts(director, topology, rounds)


async def _costs(director: Director, rounds: int, events: int) -> Figures:
    """CPU per event and memory of one replica, sealed and unsealed in turns."""
    cpu_us: dict[Isolation, list[float]] = {_PLAIN: [], _SEALED: []}
    memory_mb: dict[Isolation, list[float]] = {_PLAIN: [], _SEALED: []}
    for turn in range(rounds):
        for isolation in (_PLAIN, _SEALED) if turn % 2 == 0 else (_SEALED, _PLAIN):
            replica = await director.start("work", isolation=isolation)
            process = director.processes[replica].pid
            await _send(director, events)  # beforehand, so that every batch is full
            before_s = _cpu_s(process)
            await director.assign(replica, [0], max_batch_size=8)
            await _done(director, replica, events)
            cpu_us[isolation].append((_cpu_s(process) - before_s) / events * 1e6)
            memory_mb[isolation].append(_private_mb(process))
            await director.drain(replica)
    plain, sealed = statistics.median(cpu_us[_PLAIN]), statistics.median(cpu_us[_SEALED])
    pairs = [after / before for before, after in zip(cpu_us[_PLAIN], cpu_us[_SEALED], strict=True)]
    return {
        "cpu_ratio": statistics.median(pairs),
        "cpu_us_per_event": plain,
        "cpu_us_per_event_sealed": sealed,
        "memory_mb": max(0.0, statistics.median(memory_mb[_SEALED]) - statistics.median(memory_mb[_PLAIN])),
    }


async def _done(director: Director, replica: str, events: int) -> None:
    reports = director.reports
    await director.until(lambda: reports[replica].events >= events, f"{events} events are done", 60.0)


async def _send(director: Director, events: int) -> None:
    for number in range(events):
        await director.producer.send(director.names.topic("in"), b"%d" % number)
    await director.producer.flush()


async def _starts(director: Director, topology: Path, rounds: int) -> Figures:
    """From asking an actuator for a replica to its report that it is ready, delivered by the broker."""
    took_ms: dict[str, list[float]] = {"plain": [], "cold": [], "fork": []}
    async with _actuators(director, topology) as actuators:
        for _ in range(rounds):
            for name, actuator in actuators.items():
                already = await _names(actuator)
                began_s = time.perf_counter()
                await actuator.scale("work", "cpu-1", len(already) + 1)
                (new,) = await _names(actuator) - already
                await director.until(lambda new=new: _is_ready(director, new), f"{new} is ready", 60.0)
                took_ms[name].append((time.perf_counter() - began_s) * 1e3)
                await actuator.scale("work", "cpu-1", len(already), [new])
                await actuator.next_exit()
    fork, cold, plain = (statistics.median(took_ms[name]) for name in ("fork", "cold", "plain"))
    return {"fork_ready_ms": fork, "cold_ready_ms": cold, "plain_ready_ms": plain, "fork_speedup": cold / fork}


@contextlib.asynccontextmanager
async def _actuators(director: Director, topology: Path) -> AsyncIterator[dict[str, LocalActuator]]:
    def specs(isolation: Isolation) -> Callable[[str, str], ReplicaSpec]:
        def spec(stage: str, hardware: str) -> ReplicaSpec:
            kind = catalogue()[hardware]
            where = (str(topology), director.prefix, director.bootstrap_servers)
            return ReplicaSpec("", stage, *where, kind, 8, isolation=isolation)

        return spec

    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = {}
        for name, isolation in (("plain", _PLAIN), ("cold", _SEALED), ("fork", _FORKED)):
            actuator = LocalActuator(specs(isolation), folder / name, drain_timeout_s=0.0)
            found[name] = await stack.enter_async_context(actuator)
        await found["fork"].scale("work", "cpu-1", 1)  # the first brings its parent, and stays
        async with asyncio.timeout(60):
            while not found["fork"].forks("work", "cpu-1"):
                await asyncio.sleep(0.05)
        yield found


def _is_ready(director: Director, replica: str) -> bool:
    return replica in director.reports and director.reports[replica].phase == "ready"


async def _names(actuator: LocalActuator) -> set[str]:
    return {place.replica for place in await actuator.observe()}


def _cpu_s(process: int) -> float:
    """Of all threads that live, to the nanosecond; the system's own sum counts in hundredths of a second."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _private_mb(process: int) -> float:
    """Memory that would be free again if the process ended."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
