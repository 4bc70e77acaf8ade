"""Sealed replicas beside unsealed ones: what they withstand, what it costs, and how fast they start.

Every cost is measured in turns with its opposite on the same work; the medians of the turns are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from inferline_stream.isolation import syscall_rules
from inferline_stream.isolation.seal import unsupported
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.testing.kafka import EmbeddedKafka
from tests.benchmarks._figures import Figures
from tests.support.director import Director
from tests.support.probes import Probed, probe

_TOPOLOGY = '''
"""Models of scikit-learn and onnxruntime, imported where the stage is built, as the examples do."""

from inferline_stream import Isolation, Pipeline, Stage, Topic


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


work = Stage("work", Classify, hardware=["cpu-1"], max_batch_size=8, isolation=ISOLATION)
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
    figures["probes_blocked_gpu"] = asyncio.run(probe(_SEALED, gpu=True)).blocked
    figures |= _reachable(probed[0])
    figures["seal_ms"] = statistics.median(found.seal_ms for found in probed)
    with tempfile.TemporaryDirectory() as folder:
        figures |= asyncio.run(_replicas(Path(folder), rounds, events=4_000 if quick else 12_000))
    return figures


def _reachable(strict: Probed) -> Figures:
    """As the kernel's filters have it, on this machine and on the other."""
    here = syscall_rules.machine()
    assert here is not None
    counts: Figures = {"reachable_sealed": strict.held.system_calls}
    counts["reachable_imports"] = syscall_rules.reachable(syscall_rules.sealed(1, imports=True), here)
    counts["reachable_launch"] = syscall_rules.reachable(syscall_rules.launching(1), here)
    for name, other in syscall_rules.MACHINES.items():
        if other is not here:
            counts[f"reachable_sealed_{name}"] = syscall_rules.reachable(syscall_rules.sealed(1), other)
    return counts


async def _replicas(folder: Path, rounds: int, events: int) -> Figures:
    with EmbeddedKafka() as broker:
        async with contextlib.AsyncExitStack() as stack:
            pools = {}
            for name, isolation in (("plain", _PLAIN), ("cold", _SEALED), ("fork", _FORKED)):
                topology = folder / f"{name}.py"
                topology.write_text(_TOPOLOGY.replace("ISOLATION", repr(isolation)))
                director = Director(broker.bootstrap_servers, topology, partitions={"work": 1}, max_batch_size=8)
                pools[name] = await stack.enter_async_context(director)
                await director.start()
                await director.warm()
            return await _costs(pools, rounds, events) | await _starts(pools, rounds)


async def _costs(pools: dict[str, Director], rounds: int, events: int) -> Figures:
    """CPU per event and memory of one replica, sealed and unsealed in turns."""
    cpu_us: dict[str, list[float]] = {"plain": [], "cold": []}
    memory_mb: dict[str, list[float]] = {"plain": [], "cold": []}
    for turn in range(rounds):
        for name in sorted(cpu_us, reverse=turn % 2 == 1):
            director = pools[name]
            await director.scale("work", 0)
            await director.scale("work", 1)
            (replica,) = director.ready("work")
            process = await director.kill(replica.replica, signal.SIGSTOP)
            await director.put([b"%d" % number for number in range(events)])  # beforehand: every batch is full
            before_s, done = _cpu_s(process), director.total("work", "events")
            os.kill(process, signal.SIGCONT)
            await director.until_finished("work", done + events, 60.0)
            cpu_us[name].append((_cpu_s(process) - before_s) / events * 1e6)
            memory_mb[name].append(_private_mb(process))
    plain, sealed = statistics.median(cpu_us["plain"]), statistics.median(cpu_us["cold"])
    pairs = [after / before for before, after in zip(cpu_us["plain"], cpu_us["cold"], strict=True)]
    return {
        "cpu_ratio": statistics.median(pairs),
        "cpu_us_per_event": plain,
        "cpu_us_per_event_sealed": sealed,
        "memory_mb": max(0.0, statistics.median(memory_mb["cold"]) - statistics.median(memory_mb["plain"])),
    }


async def _starts(pools: dict[str, Director], rounds: int) -> Figures:
    """From asking a supervisor for a replica to its word that it is ready, by its own log."""
    took_ms: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(rounds):
        for name, director in pools.items():
            already = {replica.replica for replica in director.ready("work")}
            asked_s = time.time()
            await director.scale("work", 2)
            (new,) = {replica.replica for replica in director.ready("work")} - already
            took_ms[name].append((director.ready_s(new) - asked_s) * 1e3)
            await director.scale("work", 1)
    fork, cold, plain = (statistics.median(took_ms[name]) for name in ("fork", "cold", "plain"))
    return {"fork_ready_ms": fork, "cold_ready_ms": cold, "plain_ready_ms": plain, "fork_speedup": cold / fork}


def _cpu_s(process: int) -> float:
    """Of all threads that live, to the nanosecond; the system's own sum counts in hundredths of a second."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _private_mb(process: int) -> float:
    """Memory that would be free again if the process ended."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
