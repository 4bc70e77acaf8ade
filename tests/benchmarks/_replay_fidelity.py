"""A live run on Apache Kafka with the default policy, and its replay: the same decisions, the same misses.

Traffic steps up, climbs and falls. Afterwards `inferline-stream replay` is given the folder that the run has left;
which branches its events took and which keys they had is not in there: they are drawn.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferline_stream.dataplane.sample_files import read_events as read_sample
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import gamma_trace, levels_trace
from inferline_stream.profiler.pipeline_profiler import profile_pipeline
from inferline_stream.profiler.profiling_options import Options
from inferline_stream.runs.archive import read_events, read_record
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.runs.run import NoDisplay, RecordOptions, Run
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._live import append_time_sink
from tests.benchmarks._machine import Elsewhere
from tests.benchmarks._pipelines import write
from tests.support.emulated_runs import plan_by_hand, trace_feed

LEVELS = ((25.0, 8.0), (60.0, 8.0), (80.0, 4.0), (100.0, 8.0), (40.0, 6.0))
"""Events per second, and for how many seconds."""

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


async def pair(bootstrap_servers: str, folder: Path, name: str) -> Pair:
    """One run and its replay."""
    # A process that starts again takes a core for half a second: on a small machine it is that of replicas at work.
    written = write("conditional", folder, "300ms", name, forked=True)
    pipeline = load_topology(written.topology)
    shape = shape_of(pipeline)
    measured = await profile_pipeline(
        pipeline,
        written.topology,
        read_sample(written.events),
        bootstrap_servers=bootstrap_servers,
        options=Options(broker=bootstrap_servers, sample_s=0.5),
    )
    rng = np.random.default_rng([23, *name.encode()])
    sample = gamma_trace(LEVELS[0][0], 1.0, 60.0, rng)
    plan = plan_by_hand(pipeline, measured, sample, dict.fromkeys(shape.stages, 1), max_batch_sizes=LIMITS)
    run = Run(
        pipeline=pipeline,
        topology=written.topology,
        bootstrap_servers=bootstrap_servers,
        plan=plan,
        measured=measured,
        log_folder=folder / name / "logs",
        records=RecordOptions(prefix=f"{name}-"),
        feed=trace_feed(levels_trace(list(LEVELS), 1.0, rng), written.events, folder / name, "key"),
        policy=POLICIES["default"],
        replans=False,
        sample=sample,
        run_folder=folder / name / "run",
    )
    await append_time_sink(run)
    async with open_run(run, NoDisplay()) as under_way:
        await under_way.ready()
        elsewhere = Elsewhere()
        await under_way.fed(asyncio.Event())
        others = elsewhere.cores()
        report = await under_way.report(await under_way.drain())
    record, events = read_record(folder / name / "run"), read_events(folder / name / "run")
    live = [(d.time_s - events.began_s, d.replicas) for d in record.decisions if d.action in SCALES]
    late = int(np.count_nonzero(events.latency_s > report.slo_s)) + report.lost
    replayed = await _replayed(folder / name / "run")
    steps = [(step["time_s"], step["replicas"]) for step in replayed["steps"] if step["action"] in SCALES]
    miss_rate = late / (events.latency_s.size + report.lost)
    return Pair(_asked(live), _asked(steps), miss_rate, replayed["miss_rate"], others)


async def _replayed(run: Path) -> dict[str, Any]:
    """What the command reports of a run's record.

    Raises:
        RuntimeError: it fails; what it says is on standard error.
    """
    command = (sys.executable, "-c", "from inferline_stream.cli.main import app; app()", "replay", str(run))
    replay = await asyncio.create_subprocess_exec(*command, "--output", "json", stdout=asyncio.subprocess.PIPE)
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
