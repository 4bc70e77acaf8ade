"""A backfill beside live traffic, live on the embedded broker: what live events notice of it, and what it makes use of.

Each pair of runs has the same arrivals and the plan that the planner makes for such traffic, on emulated hardware: once
with an empty archive, and once with one that lasts. What the plan leaves idle is the time that replicas spend idle in
the first of them. A backfill uses it up at one stage, which limits how much the others get: the figure is that stage's.
Stages take a tenth of a second and more, so that a machine with other work to do measures the same.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.writer import ANY_PARTITION, Writer
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import EmbeddedKafka
from tests.benchmarks._figures import Figures
from tests.support.emulated_runs import declared_profile, emulated_run, provisioned

_TOPOLOGY = """
from msgspec import Struct

from inferline_stream import Pipeline, Sample, Stage, Topic


class Order(Struct):
    number: int


class Both(Struct):
    parse: Order
    check: Order | None


def same(orders: list[Order]) -> list[Order]:
    return orders


def decide(inputs: list[Both]) -> list[Order]:
    return [both.parse for both in inputs]


def every_third(order: Order) -> bool:
    return order.number % 3 == 0


def stage(name, run, times, after=()):
    return Stage(name, run, hardware=["emulated-cpu"], emulated=times, max_batch_size=max(times), after=after)


parsing = stage("parse", same, {1: "100ms", 4: "160ms"})
checking = stage("check", same, {1: "200ms", 2: "240ms"}, [parsing.when(every_third)])
deciding = stage("decide", decide, {1: "30ms", 8: "160ms"}, [parsing, checking])
pipeline = Pipeline(
    "backfilled",
    slo="1500ms",
    source=[Topic("orders"), Topic("orders-archive", background=True)],
    sink=Topic("decisions"),
    stages=[parsing, checking, deciding],
    sample=Sample(arrivals="none.csv", events="orders.jsonl"),
)
"""
_ARCHIVE = "orders-archive"
_RATE, _ARCHIVED_RATE = 15.0, 40.0
_PROBABILITY = {("parse", "check"): 1 / 3}
_PLANNED_S, _WARM_UP_S = 1200.0, 5.0


@dataclass(frozen=True, slots=True)
class Lived:
    """What one run came to: seconds by stage, from the end of its warm-up to the end of its traffic."""

    p99_s: float
    ready_s: Mapping[str, float]
    live_s: Mapping[str, float]
    background_s: Mapping[str, float]
    finished: int
    """Background events with a result."""


def measure_backfill(*, quick: bool) -> Figures:
    """Return the figures of live runs, which other work on the machine lengthens."""
    seconds, seeds = (20.0, (1,)) if quick else (120.0, (1, 2, 3))
    pairs = []
    for seed in seeds:
        pairs.append(asyncio.run(_pair(seed, seconds)))
        sys.stderr.write(f"backfill, seed {seed}: {pairs[-1]}\n")
    return {
        "backfill_live_p99_ratio": round(statistics.fmean(b.p99_s / a.p99_s for a, b in pairs), 3),
        "backfill_live_p99_s": round(statistics.fmean(b.p99_s for _, b in pairs), 4),
        "backfill_live_idle_used": round(statistics.fmean(idle_used(a, b) for a, b in pairs), 3),
        "backfill_live_rate": round(statistics.fmean(b.finished / seconds for _, b in pairs), 1),
    }


def idle_used(without: Lived, beside: Lived) -> float:
    """Return the share of the idle time of the stage that limits the backfill which it makes use of."""
    shares = []
    for stage, ready_s in beside.ready_s.items():
        live_s = without.live_s[stage] * ready_s / without.ready_s[stage]
        more_s = beside.live_s[stage] + beside.background_s[stage] - live_s
        shares.append(more_s / (ready_s - live_s))
    return max(shares)


async def _pair(seed: int, seconds: float) -> tuple[Lived, Lived]:
    with EmbeddedKafka() as kafka, tempfile.TemporaryDirectory() as folder:
        found, topology = [], Path(folder) / "topology.py"
        topology.write_text(_TOPOLOGY)
        (Path(folder) / "orders.jsonl").write_text("".join(f'{{"number": {n}}}\n' for n in range(300)))
        for archived in (0, round(_ARCHIVED_RATE * seconds)):
            own = Path(folder) / str(archived)
            own.mkdir()
            chosen: dict[str, Any] = {"levels": [(_RATE, seconds)], "probability": _PROBABILITY, "seed": seed}
            run = emulated_run(topology, kafka.bootstrap_servers, own, plan=_plan(topology), **chosen)
            found.append(await _lived(run, archived))
    return found[0], found[1]


def _plan(topology: Path) -> Plan:
    pipeline = load_topology(topology)
    measured = declared_profile(pipeline, _PROBABILITY)
    return provisioned(pipeline, measured, gamma_trace(_RATE, 1.0, _PLANNED_S, np.random.default_rng(0)))


async def _lived(run: Run, archived: int) -> Lived:
    await create_topics(run.bootstrap_servers, topics_of(run.pipeline, run.records.prefix), replication=1)
    yesterday_ms = round(1e3 * (time.time() - 86_400))
    async with Writer(run.bootstrap_servers, "archive") as writer:
        for number in range(archived):
            value, topic = b'{"number": %d}' % number, run.records.prefix + _ARCHIVE
            await writer.add(Record(None, value, (), yesterday_ms, topic, ANY_PARTITION))
        await writer.flush()
    async with open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        reports, stages = under_way.controller.view.reports, under_way.context.shape.stages

        def spent() -> list[dict[str, float]]:
            totals, backgrounds = reports.totals(), {stage: reports.background(stage, _ARCHIVE) for stage in stages}
            return [
                {stage: totals[stage].replica_s for stage in stages},
                {stage: totals[stage].busy_s for stage in stages},
                {stage: backgrounds[stage].busy_s for stage in stages},
            ]

        await asyncio.wait({feeding}, timeout=_WARM_UP_S)
        before = spent()
        await feeding
        ready_s, live_s, background_s = (
            {stage: now[stage] - then[stage] for stage in stages} for then, now in zip(before, spent(), strict=True)
        )
        report = await under_way.report(await under_way.drain())
    of = report.backgrounds[_ARCHIVE]
    if report.lost or (archived and not of.left):
        raise RuntimeError(f"{report.lost} events were lost, and {of.left} of the archive's {archived} were left")
    assert report.p99_s is not None
    return Lived(report.p99_s, ready_s, live_s, background_s, of.events_out)
