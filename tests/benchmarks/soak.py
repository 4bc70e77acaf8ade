"""Half an hour on Apache Kafka at 70 % utilization, scaled up or down every 20 s: what leaks, and is anything lost?

A branch and a join on emulated hardware. Growth is what a process had more in the last quarter of its time than in the
second: of the controller, of the supervisor, the worst of all dispatchers, and the worst of all replicas that lived for
at least half of the run. Tasks of replicas are counted by the stages themselves. `descriptors` and `groups` are counted
before the first change, when every connection is made, and after the last event, with as many replicas: a run ends with
what it began with.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.support.emulated_runs import emulated_run
from tests.support.soak import CONTROLLER, SUPERVISOR, Counts, Growth, ProcessSample, counts, growth, soak

SOAKED = Path(__file__).parents[1] / "scenarios" / "soaked"
RATE = 175.0
"""70 % of what the fewer replicas pass."""

FEW, MORE = {"parse": 2, "check": 1, "decide": 1}, {"parse": 3, "check": 2, "decide": 2}
CHANGE_S = 20.0


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return asyncio.run(soaked(kafka.bootstrap_servers, Path(folder), 48.0 if quick else 1800.0))


async def soaked(bootstrap_servers: str, folder: Path, seconds: float, rate: float = RATE) -> Figures:
    """The figures of a run with so many seconds of traffic; replicas write to the folder."""
    changes_s = np.arange(CHANGE_S / 2, seconds - 5.0, CHANGE_S)
    changes_s = changes_s[: len(changes_s) // 2 * 2]  # it ends with the fewer ones, as it begins
    run = emulated_run(
        SOAKED,
        bootstrap_servers,
        folder,
        levels=[(rate, seconds)],
        changes=[(float(at_s), FEW if number % 2 else MORE) for number, at_s in enumerate(changes_s)],
        replicas=FEW,
        probability={("parse", "check"): 1 / 3},
        planned_rate=rate,
        key_field="number",
    )
    async with open_run(run) as under_way:
        await under_way.ready()
        counting = asyncio.create_task(_begun(under_way))
        async with soak(under_way) as looks:
            await under_way.fed(asyncio.Event())
        began = await counting
        ended = await _settled(under_way, began)
        report = await under_way.report(await under_way.drain())
        tasks = await _tasks(under_way)
    grown = {name: found for name, seen in looks.items() if (found := growth(seen)) and _lived(seen, seconds)}
    own, supervisor = grown.pop(CONTROLLER), grown.pop(SUPERVISOR)
    slots = [name for name in grown if name.rpartition("-")[0] in {f"{stage}-0" for stage in FEW}]
    dispatchers = [grown.pop(name) for name in slots]
    replicas = list(grown.values())
    return {
        "lost": report.lost,
        "duplicated": report.duplicated,
        "memory_growth_mb": max((g.memory_mb for g in replicas), default=None),
        "descriptors_growth": max((g.descriptors for g in replicas), default=None),
        "tasks_growth": max((last - early for early, last in tasks.values()), default=None),
        **{f"controller_{figure}": value for figure, value in _named(own).items()},
        "supervisor_memory_growth_mb": supervisor.memory_mb,
        "supervisor_descriptors_growth": supervisor.descriptors,
        "dispatcher_memory_growth_mb": max((g.memory_mb for g in dispatchers), default=None),
        "dispatcher_descriptors_growth": max((g.descriptors for g in dispatchers), default=None),
        "descriptors_began": began.descriptors,
        "descriptors_ended": ended.descriptors,
        "groups_began": len(began.groups),
        "groups_ended": len(ended.groups),
        "groups_of_the_beginning": len(ended.groups & began.groups),
        "memory_warm_mb": sum(found.warm_mb for found in (own, supervisor, *dispatchers)),
        "memory_ended_mb": sum(found.warm_mb + found.memory_mb for found in (own, supervisor, *dispatchers)),
        "controller_mb": looks[CONTROLLER][-1].memory_mb,
        "dispatcher_mb_max": max((looks[name][-1].memory_mb for name in slots), default=None),
        "replica_mb_max": max(looks[name][-1].memory_mb for name in looks.keys() - {CONTROLLER, SUPERVISOR, *slots}),
        "events": report.events_in,
        "p99_ms": None if report.p99_s is None else report.p99_s * 1e3,
        "changes": sum(decision.applied for decision in report.decisions),
        "replicas": len(looks) - 2 - len(slots),
        "lived_long": len(replicas),
        "exits": len(report.exits),
        "failures": under_way.controller.loop.failures,
    }


async def _begun(under_way: LiveRun) -> Counts:
    """Count shortly before the first change."""
    await asyncio.sleep(CHANGE_S / 2 - 2.0)
    return await counts(under_way)


async def _settled(under_way: LiveRun, began: Counts) -> Counts:
    """Count again, once replicas that are to go are gone; they may take some seconds."""
    for _ in range(20):
        ended = await counts(under_way)
        if ended.descriptors <= began.descriptors:
            break
        await asyncio.sleep(0.5)
    return ended


def _lived(looks: list[ProcessSample], seconds: float) -> bool:
    return looks[-1].time_s - looks[0].time_s > seconds / 2


def _named(found: Growth) -> dict[str, float | None]:
    return {
        "memory_growth_mb": found.memory_mb,
        "descriptors_growth": found.descriptors,
        "tasks_growth": found.tasks,
    }


async def _tasks(under_way: LiveRun) -> Mapping[str, tuple[int, int]]:
    """Of each replica, by process: how many tasks it had when a quarter of its results were out, and in the end."""
    counts: dict[str, list[int]] = {}
    (sink,) = under_way.context.sinks.values()
    partitions = await under_way.offsets.partitions(sink)
    ends = (await under_way.offsets.ends({sink: partitions}))[sink]
    servers = under_way.run.bootstrap_servers
    async with TopicFollower(servers, sink) as follower:
        records = sorted(await follower.read_to(dict(enumerate(ends))), key=lambda record: record.time_ms)
    for record in records:
        for process, tasks in msgspec.json.decode(record.value or b"")["replicas"].items():
            counts.setdefault(process, []).append(tasks)
    return {process: (max(seen[: len(seen) // 4 + 1]), seen[-1]) for process, seen in counts.items()}
