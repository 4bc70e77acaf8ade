"""Consumer groups on Apache Kafka in real time: what is learned of them, how `run` scales them, and KEDA's rule beside.

Workers sleep their service times. Four groups run at once for half an hour (``--quick``: two minutes, after up to
five in which they are planned), each on a topic of its own and led by a process of its own: plain aiokafka workers
(``eager``) and confluent-kafka ones by KIP-848 (``kip848``), which commit each batch and are processes that a command
starts and stops; a Faust app (``faust``), known by the sensor that its workers are given; and workers with commits
each five seconds (``timer``), which are watched, not scaled: they get .6 of what they can do, then 1.3 times that,
then .6 again. The traffic of the others is that of `peers`, after a steady minute and a quarter, and is judged from
the first plan on. Beside ours a second group reads the topic of ``eager`` and of ``kip848``: KEDA's Kafka scaler and
the HPA set its number of the same workers, with their defaults.

``learned`` is the throughput of one worker as seen from Kafka, ``worked`` the same by what the workers wrote down,
``ratio`` the one over the other. ``p99`` and ``late`` are by the workers' own times, ``estimated`` as `run` reports
them, ``replayed`` by a replay of the finished run. Costs are of the workers asked for, in dollars per hour.
`python -m tests.benchmarks.adopt_live GROUP… [--minutes N]` runs some of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from aiokafka import AIOKafkaProducer

from inferline_stream import ConsumerGroup, Pipeline
from inferline_stream.actuators.faust_workers import FaustWorkers
from inferline_stream.actuators.group_workers import CommandWorkers
from inferline_stream.baselines.hpa import Keda
from inferline_stream.baselines.rule_inputs import StageSeen
from inferline_stream.controlplane.run_inputs import RunDisplay
from inferline_stream.kafka.group_watch import GroupWatch
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.consumer_group import Command, FaustApp
from inferline_stream.pipeline.group_profile import GroupProfile
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.profiler.group_learner import GroupLearner
from inferline_stream.runs.group_run import GroupReport, GroupRun, run_groups
from inferline_stream.runs.replay_inputs import inputs_of_run
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.benchmarks.peers import RATE, traffic
from tests.integration.grouped.worker import FIXED_S, MOST, PER_EVENT_S

GROUPS = ("eager", "kip848", "faust", "timer")
PARTITIONS, SLO_S, HARDWARE = 24, 5.0, "cpu-1"
TRUE = MOST / (FIXED_S + PER_EVENT_S * MOST)

STEADY_S, PLANNED_WITHIN_S = 75.0, 240.0
"""Traffic before that of `peers`, at the least, and when the first plan is there at the latest."""

TIMER_WORKERS = 2
FAUST_EACH_S = 0.03

_TESTS = Path(__file__).parents[1]
_SCALE = _TESTS / "integration/grouped/scale.py"
_FAUST_APP = _TESTS / "scenarios/fausted"


def measure(quick: bool) -> Figures:
    """Figures of all groups."""
    return figures_of(GROUPS, 2.0 if quick else 30.0)


def figures_of(names: Sequence[str], minutes: float) -> Figures:
    """Figures of some groups, all at once for so many minutes of judged traffic, each in a process of its own."""
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        if len(names) == 1:
            return uvloop.run(_measure(kafka.bootstrap_servers, Path(folder), names[0], 60.0 * minutes))
        there = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
        command = [sys.executable, "-m", "tests.benchmarks.adopt_live", "--minutes", f"{minutes:g}"]
        running = [subprocess.Popen([*command, name], env=there, stdout=subprocess.PIPE) for name in names]
        figures: Figures = {}
        for name, process in zip(names, running, strict=True):
            printed = process.communicate()[0]
            why = f"its process ended with {process.returncode}, see standard error"
            figures |= (
                {f"{name}_ratio": None, f"{name}_ratio_reason": why} if process.returncode else json.loads(printed)
            )
        return figures


async def _measure(servers: str, folder: Path, name: str, length_s: float) -> Figures:
    how = {"faust": _faust, "timer": _timer}.get(name, partial(_scaled, kind=name))
    found = await how(_Topic(servers, f"{name}-{secrets.token_hex(3)}", folder), length_s)
    return {f"{name}_{figure}": value for figure, value in found.items()}


@dataclass(frozen=True, slots=True)
class _Topic:
    """A topic of one group, and the folder of what is kept of it."""

    servers: str
    name: str
    folder: Path

    async def create(self) -> None:
        await create_topics(self.servers, [WantedTopic(self.name, PARTITIONS, "records")], replication=1)

    async def fed(self, times_s: Iterable[float], until: asyncio.Event | None = None) -> None:
        """Send records at these times from now on, or until something has happened."""
        rng, began_s = np.random.default_rng(3), asyncio.get_running_loop().time()
        async with AIOKafkaProducer(bootstrap_servers=self.servers) as producer:
            for time_s in times_s:
                await asyncio.sleep(max(0.0, began_s + time_s - asyncio.get_running_loop().time()))
                if until is not None and until.is_set():
                    return
                await producer.send(self.name, b"event", partition=int(rng.integers(PARTITIONS)))


def _steady(rate: float) -> Iterable[float]:
    rng, time_s = np.random.default_rng(4), 0.0
    while True:
        time_s += float(rng.exponential(1 / rate))
        yield time_s


class _Newest(RunDisplay):
    """When the first plan came into force, on the wall clock."""

    def __init__(self) -> None:
        self.planned, self.since_s = asyncio.Event(), 0.0

    def now(self, state: PipelineState) -> None:
        self.since_s = self.since_s or state.time_s
        self.planned.set()


@dataclass(slots=True)
class _Workers:
    """A group's worker processes; a `GroupWorkers`.

    Args:
        topic: that it reads.
        kind: of `grouped/worker.py`.
        group: its id.
    """

    topic: _Topic
    kind: str
    group: str
    asked: list[tuple[float, int]] = field(default_factory=list)
    """When how many were asked for, on the wall clock."""
    _command: CommandWorkers = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self._command = CommandWorkers(self.run, self.folder)

    @property
    def folder(self) -> Path:
        return self.topic.folder / self.group

    @property
    def run(self) -> str:
        of_worker = [self.kind, self.topic.servers, self.topic.name, self.group, str(self.folder)]
        return shlex.join([sys.executable, str(_SCALE), "{replicas}", "worker.py", *of_worker])

    async def wanted(self) -> int | None:
        return await self._command.wanted()

    async def scale(self, workers: int) -> None:
        await self._command.scale(workers)
        self.asked.append((time.time(), workers))

    def _batches(self) -> list[list[float]]:
        lines = (line for file in self.folder.glob("[0-9]*.txt") for line in file.read_text().splitlines())
        return [[float(word) for word in line.split()] for line in lines]

    def worked(self) -> float:
        """Events per second of one busy worker at full batches."""
        times_s = [batch[1] for batch in self._batches() if batch[0] == MOST]
        return MOST * len(times_s) / sum(times_s)

    def figures(self, since_s: float, until_s: float) -> dict[str, float]:
        """What was judged between two times."""
        batches = [batch for batch in self._batches() if since_s <= batch[2] < until_s]
        latency_s = np.array([batch[2] - made_s for batch in batches for made_s in batch[3:]])
        asked = [(max(at_s, since_s), count) for at_s, count in self.asked if at_s < until_s]
        ends_s = [*(at_s for at_s, _ in asked[1:]), until_s]
        worker_s = sum(count * (end_s - at_s) for (at_s, count), end_s in zip(asked, ends_s, strict=True))
        price = catalogue()[HARDWARE].price_per_hour
        return {
            "cost": round(price * worker_s / (until_s - since_s), 4),
            "late": round(float(np.mean(latency_s > SLO_S)), 5),
            "p99": round(float(np.quantile(latency_s, 0.99)), 3),
            "utilization": round(sum(batch[1] for batch in batches) / worker_s, 3),
            "changes": sum(at_s > since_s for at_s, _ in asked),
        }


async def _scaled(topic: _Topic, length_s: float, kind: str) -> Figures:
    """Ours and KEDA's group on one topic."""
    ours, keda = (_Workers(topic, kind, f"{topic.name}-{name}") for name in ("ours", "keda"))
    await topic.create()
    try:
        await ours.scale(2)
        await keda.scale(2)
        group = ConsumerGroup("read", group=ours.group, topic=topic.name, workers=Command(ours.run), hardware=HARDWARE)
        run = _run(topic, group, {"read": ours})
        rule = asyncio.create_task(_by_keda(topic, keda, run.display))
        report = await _led(topic, run, length_s)
        assert not rule.done(), rule.exception()
        rule.cancel()
        await asyncio.gather(rule, return_exceptions=True)
    finally:
        await ours.scale(0)
        await keda.scale(0)
    since_s, until_s = run.display.since_s, ours.asked[-1][0]
    again = inputs_of_run(topic.folder / "run").replayed()
    mine, others = ours.figures(since_s, until_s), keda.figures(since_s, until_s)
    return {
        **_learned(report, ours.worked()),
        **mine,
        "p99_estimated": None if report.p99_s is None else round(report.p99_s, 3),
        "p99_ratio": None if report.p99_s is None else round(report.p99_s / mine["p99"], 3),
        "late_estimated": None if report.miss_rate is None else round(report.miss_rate, 5),
        "cost_replayed": round(again.cost_per_hour, 4),
        "late_replayed": round(again.miss_rate, 5),
        "changes_replayed": again.changes,
        **{f"keda_{name}": value for name, value in others.items()},
        "keda_cost_ratio": round(mine["cost"] / others["cost"], 3),
    }


async def _by_keda(topic: _Topic, workers: _Workers, ours: _Newest) -> None:
    """Set the number of workers as KEDA and the HPA would, from our first plan on."""
    await ours.planned.wait()
    rule, count = Keda(), workers.asked[-1][1]
    memory = rule.begin(count)
    async with Offsets(topic.servers) as offsets:
        while True:
            committed = await offsets.committed(workers.group, topic.name, PARTITIONS)
            ends = (await offsets.ends({topic.name: PARTITIONS}))[topic.name]
            lag = sum(end - max(0, each.offset) for end, each in zip(ends, committed, strict=True))
            seen = StageSeen(time.time(), count, count, float(lag), partitions=PARTITIONS)
            memory, wanted = rule.step(memory, seen)
            if wanted != count:
                count = wanted
                await workers.scale(count)
            await asyncio.sleep(rule.period_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run(GroupRun):
    display: _Newest = field(default_factory=_Newest)


def _run(topic: _Topic, group: ConsumerGroup, workers: Mapping[str, _Workers | FaustWorkers]) -> _Run:
    return _Run(
        pipeline=Pipeline(topic.name, slo=f"{SLO_S:g}s", stages=[group]),
        topology=topic.folder / "topology.py",
        bootstrap_servers=topic.servers,
        workers=workers,
        metric=lambda _: next((each.throughput() for each in workers.values() if isinstance(each, FaustWorkers)), None),
        log_folder=topic.folder,
        run_folder=topic.folder / "run",
    )


async def _led(topic: _Topic, run: _Run, length_s: float) -> GroupReport:
    """Lead a group from steady traffic to the end of that of `peers`."""
    stop, planned = asyncio.Event(), run.display.planned
    async with AsyncExitStack() as stack:
        leading = asyncio.create_task(run_groups(run, stop))
        stack.callback(leading.cancel)
        steady = asyncio.create_task(topic.fed(_steady(RATE), planned))
        stack.callback(steady.cancel)
        await asyncio.sleep(STEADY_S)
        waiting = asyncio.create_task(planned.wait())
        stack.callback(waiting.cancel)
        await asyncio.wait({leading, waiting}, timeout=PLANNED_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if leading.done():
            raise RuntimeError("the run ended before it had planned") from leading.exception()
        if not planned.is_set():
            raise TimeoutError(f"there was no plan within {PLANNED_WITHIN_S:g} s of steady traffic")
        await steady
        await topic.fed(traffic(length_s, np.random.default_rng(3)).arrivals_s.tolist())
        stop.set()
        return await leading


async def _faust(topic: _Topic, length_s: float) -> Figures:
    """A Faust app, by its sensor."""
    words = {"KAFKA": topic.servers, "TOPIC": topic.name, "GROUP": topic.name, "TIMES": str(topic.folder)}
    os.environ.update({f"SHOP_{name}": value for name, value in words.items()}, SHOP_EACH_S=str(FAUST_EACH_S))
    await topic.create()
    app = FaustApp("shop:app")
    group = ConsumerGroup("look", group=topic.name, topic=topic.name, workers=app, hardware=HARDWARE)
    logs, data = topic.folder / "logs", topic.folder / "data"
    async with FaustWorkers(app.app, _FAUST_APP, "look", topic.name, logs=logs, data=data) as workers:
        report = await _led(topic, _run(topic, group, {"look": workers}), length_s)
    times_s = [float(word) for file in topic.folder.glob("*.txt") for word in file.read_text().split()]
    changes = sum(decision.action.startswith("scale") for decision in report.decisions)
    return {**_learned(report, len(times_s) / sum(times_s)), "changes": changes}


async def _timer(topic: _Topic, length_s: float) -> Figures:
    """Commits on a timer: known from overload alone."""
    workers, learner = _Workers(topic, "timer", f"{topic.name}-workers"), GroupLearner("work")
    group = ConsumerGroup("work", group=workers.group, topic=topic.name)
    whole_s, full = STEADY_S + length_s, TIMER_WORKERS * TRUE
    third_s, known_before, known_after_s = whole_s / 3, None, None
    rng, levels = np.random.default_rng(6), (0.6, 1.3, 0.6)
    came_s = [
        level * third_s + np.sort(rng.uniform(0, third_s, rng.poisson(third_s * share * full)))
        for level, share in enumerate(levels)
    ]
    await topic.create()
    await workers.scale(TIMER_WORKERS)
    feeding = asyncio.create_task(topic.fed(np.concatenate(came_s).tolist()))
    began_s = looked_s = time.monotonic()
    try:
        async with GroupWatch(topic.servers, [group]) as watch:
            async for looks in watch.looks():
                learner.take(looks["work"])
                now_s = time.monotonic()
                if now_s >= looked_s + 5.0:
                    looked_s, found = now_s, learner.profile().throughput
                    if now_s < began_s + third_s:
                        known_before = found
                    elif found is not None and known_after_s is None:
                        known_after_s = now_s - began_s - third_s
                if now_s > began_s + whole_s:
                    break
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await workers.scale(0)
    return {
        "known_before_overload": int(known_before is not None),
        "known_after_s": None if known_after_s is None else round(known_after_s),
        **_ratio(learner.profile(), workers.worked()),
    }


def _learned(report: GroupReport, worked: float) -> Figures:
    (profile,) = report.groups
    return _ratio(profile, worked)


def _ratio(profile: GroupProfile, worked: float) -> Figures:
    learned = None if profile.throughput is None else profile.throughput.value
    return {
        "source": profile.source,
        "learned": None if learned is None else round(learned, 2),
        "worked": round(worked, 2),
        "ratio": None if learned is None else round(learned / worked, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.adopt_live")
    parser.add_argument("group", nargs="+", choices=GROUPS)
    parser.add_argument("--minutes", type=float, default=30.0)
    chosen = parser.parse_args()
    sys.stdout.write(json.dumps(figures_of(chosen.group, chosen.minutes), indent=1) + "\n")
