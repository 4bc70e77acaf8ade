"""Our pool against rules of others on ordinary consumer groups: same pipeline, SLO and traffic, live and in replay.

Two stages on emulated hardware, planned by the default search for `RATE`. Traffic rises to three times that, falls
below it, and jumps. Each contender goes through ten draws of an hour of it in replay (``--quick``: two of ten minutes),
and through ten minutes live on Apache Kafka, one after another (``--quick``: one). Our policy and the paper's own Tuner
scale pools with one queue per stage. KEDA, Flink's autoscaler and its rule deciding every few seconds, Ray Serve and
the coarse-grained pipeline, provisioned for the sample's peak and scaled by AutoScale, scale consumer groups of
`PARTITIONS` partitions: in replay as `compare` has them, live by `_bound_dispatcher`. Their settings are tuned on
another draw of the hour, their defaults among what is tried. All begin with our plan, the coarse-grained one with its
units.

``NAME_cost`` is dollars per hour, ``NAME_misses`` the share of events above the SLO; ``replay`` or ``live``. In replay
they are means with half of their 95 % interval; ``kept`` counts draws in which the objective held, ``beats_ours`` those
in which it held and ours did not, or cost more.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.plan import Plan, cost_per_hour, replicas_of
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.replay.compare import PARTITIONS, Comparison, Tuned, compare
from inferline_stream.replay.contenders import FAMILIES, Contest, ordinary
from inferline_stream.replay.loop import Conditions
from inferline_stream.runs.lifecycle import run_to_report
from inferline_stream.runs.report import RunReport
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._bound_supervisor import bound_actuator
from tests.benchmarks._draws import figures_of, on_draws
from tests.benchmarks._figures import Figures
from tests.benchmarks._live_rule import LiveRule
from tests.support.emulated_runs import declared_profile, emulated_run, provisioned, trace_feed

OURS = ("default", "inferline")
LIVE_PEERS = ("keda", "flink-fast", "ray", "cg-peak")
PEERS = (*LIVE_PEERS, "flink", "clairvoyant")

RATE, SLO = 30.0, "400ms"
START_UP_S = 1.0
SHAPE = ((0, 1), (0.2, 1), (0.3, 3), (0.5, 3), (0.6, 0.6), (0.75, 0.6), (0.76, 3), (0.8, 3), (0.82, 1), (1, 1))
"""Share of the time, and the rate over `RATE`; straight lines between."""

_TOPOLOGY = f"""
from inferline_stream import Isolation, Pipeline, Sample, Stage, Topic


def same(values: list) -> list:
    return values


how = dict(hardware=["emulated-cpu"], max_batch_size=4, isolation=Isolation(forked=True))
read = Stage("read", same, emulated={{1: "60ms", 2: "90ms", 4: "150ms"}}, **how)
rank = Stage("rank", same, after=[read], emulated={{1: "40ms", 2: "60ms", 4: "100ms"}}, **how)
pipeline = Pipeline("peers", slo="{SLO}", source=Topic("in", partitions=8), sink=Topic("out", partitions=8),
                    stages=[read, rank], sample=Sample(arrivals="none.csv", events="events.jsonl"))
"""


def traffic(duration_s: float, rng: np.random.Generator) -> Trace:
    """Poisson arrivals whose rate follows `SHAPE`."""
    shares, rates = zip(*SHAPE, strict=True)
    highest = RATE * max(rates)
    arrivals_s = np.cumsum(rng.exponential(1 / highest, int(1.2 * highest * duration_s) + 100))
    arrivals_s = arrivals_s[arrivals_s < duration_s]
    wanted = RATE * np.interp(arrivals_s / duration_s, shares, rates)
    return Trace(arrivals_s[rng.random(arrivals_s.size) * highest < wanted])


@dataclass(frozen=True, slots=True)
class Ground:
    """What all contenders meet."""

    folder: Path
    pipeline: Pipeline
    measured: PipelineProfile
    sample: Trace
    plan: Plan


def measure(quick: bool) -> Figures:
    """Costs and misses of each contender."""
    with tempfile.TemporaryDirectory() as folder:
        ground = _ground(Path(folder))
        length_s, seeds = (600.0, range(11, 13)) if quick else (3600.0, range(11, 21))
        draws = [traffic(length_s, np.random.default_rng(seed)) for seed in seeds]
        contenders, replayed = on_draws(partial(_replayed, ground, traffic(length_s, np.random.default_rng(2))), draws)
        figures: Figures = {"planned_cost": ground.plan.cost_per_hour}
        figures |= {f"replay_{name}": figure for name, figure in figures_of(contenders).items()}
        with find_apache_kafka() as kafka:
            for name in (*OURS, *LIVE_PEERS):
                setting = {} if name in OURS else replayed.tuned[name, False]
                figures |= asyncio.run(_live(ground, kafka.bootstrap_servers, name, setting, 60.0 if quick else 600.0))
        return figures


def _ground(folder: Path) -> Ground:
    (folder / "topology.py").write_text(_TOPOLOGY)
    (folder / "events.jsonl").write_text("".join(f'{{"n":{n}}}\n' for n in range(200)))
    pipeline = load_topology(folder / "topology.py")
    measured = declared_profile(pipeline, {}, START_UP_S)
    sample = gamma_trace(RATE, 1.0, 300.0, np.random.default_rng(1))
    return Ground(folder, pipeline, measured, sample, provisioned(pipeline, measured, sample))


def _replayed(ground: Ground, tuning: Trace, trace: Trace, tuned: Tuned | None) -> Comparison:
    return compare(
        shape_of(ground.pipeline),
        ground.plan,
        ground.measured,
        ground.sample,
        trace,
        tune_on=tuning,
        tuned=tuned,
        catalogue=catalogue(ground.pipeline.hardware),
        policies=(*OURS, *PEERS),
        conditions=Conditions(START_UP_S),
        kernel=compiled_kernel(),
    )


async def _live(
    ground: Ground, bootstrap_servers: str, name: str, setting: Mapping[str, float], duration_s: float
) -> Figures:
    """One contender on Kafka."""
    folder = ground.folder / name
    folder.mkdir()
    trace = traffic(duration_s, np.random.default_rng(3))
    run = emulated_run(ground.folder, bootstrap_servers, folder, levels=[(1.0, 1.0)], plan=ground.plan)
    feed = trace_feed(trace, ground.folder / "events.jsonl", folder)
    run = replace(run, measured=ground.measured, feed=feed, sample=ground.sample)
    if name in OURS:
        report = await run_to_report(replace(run, policy=POLICIES[name]), asyncio.Event())
    else:
        report = await _on_groups(ground, run, name, setting)
    return {
        f"live_{name}_cost": round(report.cost / report.duration_s * 3600, 4),
        f"live_{name}_misses": None if report.slo_miss_rate is None else round(report.slo_miss_rate, 5),
        f"live_{name}_lost": report.lost,
        f"live_{name}_most": sum(report.replicas_most.values()),
    }


async def _on_groups(ground: Ground, run: Run, name: str, setting: Mapping[str, float]) -> RunReport:
    """A rule of others on a queue for each replica."""
    (family,) = (family for family in FAMILIES if family.name == name)
    shape, kinds = shape_of(run.pipeline), catalogue(run.pipeline.hardware)
    contest = Contest(shape, ground.plan, ground.measured, ground.sample, START_UP_S)
    held = ordinary(family.allocations(contest) if family.allocations else ground.plan.allocations, ground.measured)
    rule = LiveRule(
        family.make(contest, setting),
        shape,
        ground.plan.visit_ratios,
        contest.hardware(),
        {stage: replicas_of(allocations) for stage, allocations in held.items()},
        PARTITIONS,
    )
    plan = replace(ground.plan, allocations=held, cost_per_hour=cost_per_hour(held, kinds))
    with bound_actuator(run.log_folder) as actuator:
        async with actuator:
            return await run_to_report(replace(run, plan=plan, policy=rule), asyncio.Event(), actuator)
