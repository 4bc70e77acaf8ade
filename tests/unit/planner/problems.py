"""Small planning problems for the planner's tests, and an evaluation that owes nothing to the planner."""

from __future__ import annotations

import math

import numpy as np

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.problem import Problem

SIZES = (1, 2, 4, 8)


def prices(**stock):
    """Three kinds, the dearer the faster; stock by name."""
    return {
        name: Hardware(name, price, stock=stock.get(name))
        for name, price in (("slow", 0.1), ("middle", 0.35), ("fast", 1.0))
    }


def random_problem(seed, stages=None, *, rate=60.0, duration_s=20.0, cv=None, partitions=0, catalogue=None, slack=None):
    """A random DAG of one to three stages; faster hardware is dearer, but not in proportion."""
    rng = np.random.default_rng(seed)
    count = stages or int(rng.integers(1, 4))
    names = tuple(f"s{i}" for i in range(count))
    if count == 3 and rng.random() < 0.3:
        arrows, taken = (Arrow(0, 1, True), Arrow(0, 2)), {("s0", "s1"): 0.4}
        arrows = (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2))
    else:
        arrows, taken = tuple(Arrow(i, i + 1) for i in range(count - 1)), {}
    shape = Shape(names, arrows)
    profiles = {}
    for name in names:
        base = float(rng.uniform(0.01, 0.05))
        for kind, speed in (("slow", 1.0), ("middle", rng.uniform(2, 5)), ("fast", rng.uniform(4, 15))):
            share = float(rng.uniform(0.1, 0.9))
            times = tuple(ServiceTime(b, base / speed * (1 - share + share * b)) for b in SIZES)
            profiles[name, kind] = Profile(name, kind, times)
    measured = PipelineProfile(profiles, independent_paths(shape, taken))
    fastest = [min(profiles[n, k].service_time_s(1) for k in ("slow", "middle", "fast")) for n in names]
    target_s = shape.longest_path_s(fastest) * (slack or float(rng.choice([1.5, 3.0, 6.0])))
    trace = gamma_trace(rate, cv or float(rng.choice([1.0, 4.0])), duration_s, rng)
    return Problem(
        shape,
        measured,
        (trace,),
        target_s,
        catalogue or prices(),
        partitions=dict.fromkeys(names, partitions) if partitions else {},
    )


def p99_s(problem, candidate, trace=None):
    """P99 by a simulation from scratch, without bounds, cached departures or early ends."""
    found = simulate(
        problem.shape,
        dict(zip(problem.shape.stages, candidate, strict=True)),
        problem.measured,
        trace or problem.traces[0],
        queues=problem.queues,
        partitions=problem.partitions,
        seed=problem.seed,
    )
    return found.quantile_s(problem.objective)


def meets(problem, candidate):
    """Whether the candidate meets the target, by `p99_s`."""
    return not math.isnan(p := p99_s(problem, candidate)) and p <= problem.target_s
