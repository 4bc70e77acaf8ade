"""A live run on Apache Kafka with the default policy, and its replay: the same decisions, the same misses and cost.

Afterwards `inferline-stream replay` is given the folder that the run has left; which branches its events took and
which keys they had is not in there: they are drawn.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace
from inferline_stream.runs.archive import read_events, read_record
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._live import stamped
from tests.benchmarks._pipelines import write
from tests.benchmarks._profiled import profiled
from tests.support.emulated_runs import plan_by_hand

LEVELS = ((25.0, 8.0), (60.0, 8.0), (80.0, 4.0), (100.0, 8.0), (40.0, 6.0))
"""Of traffic that steps up, climbs and falls: events per second, and for how many seconds."""

LIMITS = {"parse": 1, "classify": 2, "translate": 1}
"""Batch limits: at 166, 125 and 40 events per second and replica all stages have to grow, and no core is short."""

STEP_S = 0.1
SCALES = ("scale_up", "scale_down")

Asked = dict[tuple[str, int], float]
"""When a stage was first given so many replicas, by (stage, replicas), in seconds after the first event; without the
one replica that each stage begins with, and without what is asked for before there is any traffic."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same traffic live and in replay."""

    live: Asked
    replayed: Asked
    live_miss_rate: float
    replayed_miss_rate: float
    live_cost: float
    """From the first event to the last one, in dollars."""
    replayed_cost: float
    elsewhere_cores: float
    """That others took meanwhile."""

    @property
    def different(self) -> int:
        """Decisions that only one of the two made."""
        return len(self.live.keys() ^ self.replayed.keys())

    @property
    def apart_s(self) -> list[float]:
        """Time between each decision and its counterpart."""
        return [abs(self.live[what] - self.replayed[what]) for what in self.live.keys() & self.replayed.keys()]


Planner = Callable[[Pipeline, PipelineProfile, Trace], Plan]
"""A plan for a pipeline as profiled, and a sample."""


def stepping(name: str) -> tuple[Trace, Trace]:
    """Sample and traffic of `LEVELS`, drawn by name."""
    rng = np.random.default_rng([23, *name.encode()])
    return gamma_trace(LEVELS[0][0], 1.0, 60.0, rng), levels_trace(list(LEVELS), 1.0, rng)


def one_of_each(pipeline: Pipeline, measured: PipelineProfile, sample: Trace) -> Plan:
    """A replica of each stage."""
    replicas = dict.fromkeys((stage.name for stage in pipeline.stages), 1)
    return plan_by_hand(pipeline, measured, sample, replicas, max_batch_sizes=LIMITS)


async def pair(
    bootstrap_servers: str,
    folder: Path,
    name: str,
    traffic: tuple[Trace, Trace],
    planner: Planner = one_of_each,
    *,
    kind: str = "conditional",
    slo: str = "300ms",
) -> Pair:
    """One run and its replay.

    Args:
        bootstrap_servers: of an Apache Kafka.
        folder: for everything that it leaves.
        name: of the pipeline.
        traffic: the sample that is planned for, and what comes.
        planner: makes the plan.
        kind: of `_pipelines.write`.
        slo: of the pipeline.
    """
    sample, trace = traffic
    # A process that starts again takes a core for half a second: on a small machine it is that of replicas at work.
    found = await profiled(bootstrap_servers, write(kind, folder, slo, name, forked=True), sample_s=0.5)
    plan = planner(found.pipeline, found.measured, sample)
    kept = {"policy": POLICIES["default"], "sample": sample, "run_folder": folder / name / "run"}
    run = found.run(plan, trace, folder / name, "key", **kept)
    async with stamped(run) as (under_way, elsewhere):
        loading_s, cost = time.time(), under_way.controller.view.cost
        await under_way.fed(asyncio.Event())
        loading_s = under_way.started_s - loading_s
        cost = under_way.controller.view.cost - cost - plan.cost_per_hour * loading_s / 3600
        others = elsewhere.cores()
        report = await under_way.report(await under_way.drain())
    record, events = read_record(folder / name / "run"), read_events(folder / name / "run")
    live = [(d.time_s - events.began_s, d.replicas) for d in record.decisions if d.action in SCALES]
    late = int(np.count_nonzero(events.latency_s > report.slo_s)) + report.lost
    again = await replayed(folder / name / "run")
    steps = [(step["time_s"], step["replicas"]) for step in again["steps"] if step["action"] in SCALES]
    miss_rate = late / (events.latency_s.size + report.lost)
    return Pair(_asked(live), _asked(steps), miss_rate, again["miss_rate"], cost, again["cost"], others)


async def replayed(run: Path, *options: str) -> dict[str, Any]:
    """What the command reports of a run's record.

    Raises:
        RuntimeError: it fails; what it says is on standard error.
    """
    command = (sys.executable, "-c", "from inferline_stream.cli.main import app; app()", "replay", str(run))
    replay = await asyncio.create_subprocess_exec(
        *command, *options, "--output", "json", stdout=asyncio.subprocess.PIPE
    )
    reported, _ = await replay.communicate()
    if replay.returncode:
        raise RuntimeError(f"`inferline-stream replay {run}` ended with {replay.returncode}")
    found: dict[str, Any] = json.loads(reported)
    return found


def _asked(decisions: Sequence[tuple[float, Mapping[str, Mapping[str, int]]]]) -> Asked:
    found: Asked = {}
    for time_s, replicas in decisions:
        for stage, kinds in replicas.items():
            found.setdefault((stage, sum(kinds.values())), float(time_s))
    return {what: time_s for what, time_s in found.items() if what[1] > 1 and time_s > 2 * STEP_S}
