"""A live run on Apache Kafka with the default policy, and its replay: the same decisions, the same misses.

Traffic steps up, climbs and falls. Afterwards every event's entry, path and key are read back from the source topic and
replayed with the plan, the profiles and the policy that ran, the start-up times that were measured, from when on it
decided and watched arrivals, and the delays that `replay` has by default.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inferline_stream.controlplane.run import Quiet, Run
from inferline_stream.controlplane.session import session
from inferline_stream.controlplane.tuning import shortest_window_s
from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.sample_files import read_events
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace
from inferline_stream.profiler.profiling import Options, profile_pipeline
from inferline_stream.replay.conditions import Conditions
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.testing.runs import plan_by_hand, trace_feed
from inferline_stream.tuner.policy import POLICIES, initial_state
from tests.benchmarks._live import append_time_sink, passed
from tests.benchmarks._machine import Elsewhere
from tests.benchmarks._pipelines import PARTITIONS, write
from tests.benchmarks._sources import source_of

LEVELS = ((25.0, 8.0), (60.0, 8.0), (80.0, 4.0), (100.0, 8.0), (40.0, 6.0))
"""Events per second, and for how many seconds."""

LIMITS = {"parse": 1, "classify": 2, "translate": 1}
"""Batch limits: at 166, 125 and 40 events per second and replica all stages have to grow, and no core is short."""

STEP_S = 0.1


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
    written = write("conditional", folder, "300ms", name)
    pipeline = load_topology(written.topology)
    shape, kinds = shape_of(pipeline), catalogue(pipeline.hardware)
    measured = await profile_pipeline(
        pipeline,
        written.topology,
        read_events(written.events),
        bootstrap_servers=bootstrap_servers,
        options=Options(broker=bootstrap_servers, sample_s=0.5),
    )
    rng = np.random.default_rng([23, *name.encode()])
    sample = gamma_trace(LEVELS[0][0], 1.0, 60.0, rng)
    plan = plan_by_hand(
        pipeline, measured, sample, dict.fromkeys(shape.stages, 1), partitions=PARTITIONS, max_batch_sizes=LIMITS
    )
    run = Run(
        pipeline=pipeline,
        topology=written.topology,
        bootstrap_servers=bootstrap_servers,
        plan=plan,
        measured=measured,
        log_folder=folder / name / "logs",
        prefix=f"{name}-",
        feed=trace_feed(levels_trace(list(LEVELS), 1.0, rng), written.events, folder / name, "key"),
        policy=POLICIES["default"],
        replans=False,
    )
    await append_time_sink(run)
    async with session(run, Quiet()) as under_way:
        await under_way.ready()
        elsewhere = Elsewhere()
        await under_way.fed(asyncio.Event())
        others = elsewhere.cores()
        controller = under_way.controller
        decisions = [d for d in controller.picture.decisions if d.action in ("scale_up", "scale_down")]
        start_up_s = [
            found
            for stage in shape.stages
            if (found := controller.picture.reports.start_up_s(stage, "emulated-cpu")) is not None
        ]
        await under_way.drain()
        sent = await passed(under_way)
        source = await source_of(bootstrap_servers, under_way.running.source, shape)
        settings = under_way.running.settings
        deciding = controller.deciding
    assert deciding.began_s is not None
    trace = Trace(source.entry_s - source.entry_s[0])
    profiles = {key: replace(p, start_up_s=statistics.median(start_up_s)) for key, p in measured.profiles.items()}
    started = replace(measured, profiles=profiles)
    state = initial_state(
        plan, started, kinds, objective=pipeline.objective, shortest_window_s=shortest_window_s(settings)
    )
    outcome = replay(
        shape,
        plan.allocations,
        started,
        trace,
        Tuner("default", POLICIES["default"], state, shape, period_s=STEP_S, watched_s=deciding.watched_s),
        catalogue=kinds,
        slo_s=plan.slo_s,
        partitions=dict(plan.partitions),
        conditions=Conditions(step_s=STEP_S),
        workload=prepare(shape, started, trace, recorded=source.recorded),
        quiet_s=source.entry_s[0] - deciding.began_s,
    )
    live = [(d.time_s - source.entry_s[0], d.replicas) for d in decisions]
    stepped = [
        (step.time_s, {stage: sum(by_kind.values()) for stage, by_kind in step.replicas.items()})
        for step in outcome.steps
        if step.action in ("scale_up", "scale_down")
    ]
    reached = int(np.count_nonzero(~np.isnan(outcome.latency_s)))  # the others end before the sink
    late = int(np.count_nonzero(sent.latency_s > plan.slo_s)) + reached - len(sent.latency_s)
    return Pair(_asked(live), _asked(stepped), late / reached, outcome.miss_rate, others)


def _asked(decisions: Sequence[tuple[float, Mapping[str, int]]]) -> Asked:
    found: Asked = {}
    for time_s, replicas in decisions:
        for stage, count in replicas.items():
            found.setdefault((stage, count), float(time_s))
    return {what: time_s for what, time_s in found.items() if what[1] > 1 and time_s > 2 * STEP_S}
