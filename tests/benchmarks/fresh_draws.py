"""How often plans keep their SLO on traffic that they were not made for: with stages of many results, and without.

Random pipelines of three stages, each twice. Once an event has none to twenty results, which the second stage works on
one by one and the third gathers or gets apart. And once an event has one result, and none to twenty come at the same
moment, so that the second stage has as much to do, as unevenly. Both are planned by default for one draw of arrivals
and of everything that is drawn of events. Then the plan stays, and all of that is drawn again.

`kept_many` and `kept_one` are the shares of the draws whose P99 is within the SLO, `kept_difference` the first less the
second with its 95 % interval over the pipelines, which are what is independent of each other. `late_` is the mean share
of events above the SLO, of which it allows 1 %.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.warmup import compile_kernels
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, FanOut, Paths, Shape
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from tests.benchmarks._figures import Figures

MOST = 20
"""Results of an event, or events of a moment: 0 to so many, each number as often."""

MOMENTS = 6_000
"""Of a draw at which events come."""

SIZES = (1, 2, 4, 8, 16)

CATALOGUE = {name: Hardware(name, price) for name, price in (("slow", 0.1), ("fast", 0.45))}


@dataclass(frozen=True, slots=True)
class Kept:
    """Of one plan: share of fresh draws that keep the SLO, mean share of events above it, and dollars per hour."""

    draws: float
    late: float
    cost: float


def measure(quick: bool) -> Figures:
    compile_kernels()
    pairs = []
    for seed in range(8 if quick else 40):
        pairs.append((kept(seed, many=True, draws=10), kept(seed, many=False, draws=10)))
        sys.stderr.write(f"pipeline {seed}: {pairs[-1]}\n")
    apart = np.array([many.draws - one.draws for many, one in pairs])
    resampled = np.random.default_rng(0).choice(apart, (10_000, apart.size)).mean(axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    return {
        "kept_many": round(float(np.mean([many.draws for many, _ in pairs])), 3),
        "kept_one": round(float(np.mean([one.draws for _, one in pairs])), 3),
        "kept_difference": round(float(apart.mean()), 3),
        "kept_difference_interval": f"{low:.3f} … {high:.3f}",
        "late_many": round(float(np.mean([many.late for many, _ in pairs])), 5),
        "late_one": round(float(np.mean([one.late for _, one in pairs])), 5),
        "pipelines": len(pairs),
        "draws_each": 10,
    }


def kept(seed: int, *, many: bool, draws: int) -> Kept:
    """Plan one pipeline for one draw, and see what becomes of others.

    Args:
        seed: of the pipeline; with many results and without it is the same but for these.
        many: whether events have many results.
        draws: fresh ones.
    """
    shape, measured, slo_s, rate, cv = pipeline(seed, many=many)

    def problem(draw: int) -> Problem:
        rng = np.random.default_rng([seed, draw])
        trace = gamma_trace(rate, cv, MOMENTS / rate, rng)
        if not many:
            trace = Trace(np.repeat(trace.arrivals_s, rng.integers(0, MOST + 1, len(trace))))
        return Problem(shape, measured, (trace,), slo_s, CATALOGUE, seed=seed + 1_000 * draw)

    plan = provision(problem(0))
    late = []
    for draw in range(1, draws + 1):
        (trace,), fresh = problem(draw).traces, seed + 1_000 * draw
        found = simulate(
            shape, plan.allocations, measured, trace, order_slo_s=slo_s, order=plan.order, slots=plan.slots, seed=fresh
        )
        latency_s = found.latency_s[~np.isnan(found.latency_s)]
        late.append(float((latency_s > slo_s).mean()))
    return Kept(float(np.mean([share <= 0.01 for share in late])), float(np.mean(late)), plan.cost_per_hour)


def pipeline(seed: int, *, many: bool) -> tuple[Shape, PipelineProfile, float, float, float]:
    """Return a random pipeline: its shape, profiles, SLO in seconds, moments per second, and CV of their gaps.

    With one result an event, what whole events come to gets ten times as many and takes a tenth of the time.
    """
    rng = np.random.default_rng([seed, 17])
    gathers = bool(rng.random() < 0.5)
    shape = Shape(
        ("split", "read", "join"),
        (Arrow(0, 1), Arrow(1, 2, gathers=many and gathers)),
        many=(0,) if many else (),
    )
    profiles: dict[tuple[str, str], Profile] = {}
    for stage, name in enumerate(shape.stages):
        by_event = stage == 0 or (stage == 2 and gathers)
        scale = 1.0 if many or not by_event else 0.1
        fixed_s, each_s = rng.uniform(0.005, 0.03), rng.uniform(0.005, 0.015)
        for kind, slower in (("slow", 1.0), ("fast", rng.uniform(0.2, 0.4))):
            rows = tuple(ServiceTime(b, scale * slower * (fixed_s + each_s * b)) for b in SIZES)
            profiles[name, kind] = Profile(name, kind, rows)
    slo_s = float(rng.uniform(0.4, 1.2))
    rate, cv = float(rng.uniform(20, 60)), float(rng.choice([1.0, 4.0]))
    if not many:
        return shape, PipelineProfile(profiles, Paths((0b11,), (1.0,)), 0.002), slo_s, rate, cv
    counts = tuple(range(MOST + 1))
    fan_out = FanOut(0, counts, (1 / len(counts),) * len(counts), (0b11,), (1.0,))
    return shape, PipelineProfile(profiles, Paths((0,), (1.0,), (fan_out,)), 0.002), slo_s, rate, cv
