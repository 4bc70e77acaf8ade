"""Where refinement starts: candidates whose stages keep to deadlines that divide the target in different ways."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from inferline_stream.estimator.evaluation import Departures, simulate_stage
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.evaluation import SLICE_EVENTS, Evaluator
from inferline_stream.planner.menu import menu
from inferline_stream.planner.problem import (
    Candidate,
    Option,
    Problem,
    batch_limits,
    hardware_kinds,
    in_stock,
    replaced,
    replica_cap,
    replica_counts,
)

Weights = Sequence[float]
"""By stage: of a path's time a stage is given the share of its weight."""

BENDS = (1.0, 0.6, 1.5)
"""Powers put on the share of the target that a stage's deadline is: below 1 early stages get more time."""

DEAREST = 256
"""A stage is not looked at above this many times its least possible price."""


def starts(evaluator: Evaluator, *, mixed: bool = True) -> Iterator[Candidate]:
    """Feasible candidates on the evaluator's first trace, different in how they divide the target."""
    problem, bounds = evaluator.problem, evaluator.bounds
    stages = range(len(problem.shape.stages))
    least = [bounds.least_stage_price(stage) for stage in stages]
    seen: set[Candidate] = set()
    for weights in weightings(bounds.fastest_s, least):
        for bend in BENDS:
            candidate = within_deadlines(evaluator, deadlines_s(problem, weights, bend), mixed=mixed)
            if candidate is not None and candidate not in seen:
                seen.add(candidate)
                yield candidate


def weightings(fastest_s: Sequence[float], least_price: Sequence[float]) -> list[Weights]:
    """Ways to divide time: by least service time, evenly, and by the root of service time times price.

    The last is best where waiting falls off as one over the capacity bought: minimise Σ price·x subject to
    Σ S/x ≤ target.
    """
    rooted = [math.sqrt(time_s * price) for time_s, price in zip(fastest_s, least_price, strict=True)]
    return [fastest_s, [1.0] * len(fastest_s), rooted if all(0 < r < math.inf for r in rooted) else fastest_s]


def deadlines_s(problem: Problem, weights: Weights, bend: float) -> list[float]:
    """Age by which events should have left each stage; the target itself at the end of every path."""
    shape = problem.shape
    before, after = [0.0] * len(weights), [0.0] * len(weights)
    for stage in range(len(weights)):
        parents = (shape.arrows[a].parent for a in shape.parents(stage))
        before[stage] = max((before[p] + weights[p] for p in parents), default=0.0)
    for stage in reversed(range(len(weights))):
        children = (shape.arrows[a].child for a in shape.children(stage))
        after[stage] = max((after[c] + weights[c] for c in children), default=0.0)
    done = [(b + w) / (b + w + a) for w, b, a in zip(weights, before, after, strict=True)]
    return [problem.target_s * share**bend - (problem.measured.hop_overhead_s if share == 1 else 0) for share in done]


def within_deadlines(evaluator: Evaluator, ages_s: Sequence[float], *, mixed: bool) -> Candidate | None:
    """Stage by stage in topological order, the cheapest option with which no more events than allowed are late there.

    Returns:
        A candidate that is feasible on the evaluator's first trace, or None where some stage has no such option.
    """
    departures: dict[int, Departures] = {}
    chosen: list[Option] = []
    left = {name: math.inf if kind.stock is None else kind.stock for name, kind in evaluator.problem.catalogue.items()}
    for stage, age_s in enumerate(ages_s):
        found = _cheapest(evaluator, stage, age_s, upstream=departures, left=left, mixed=mixed)
        if found is None:
            return None
        chosen.append(found[0])
        for a in found[0]:
            left[a.hardware] -= a.replicas
        departures[stage] = found[1]
    candidate = tuple(chosen)
    return candidate if in_stock(evaluator.problem, candidate) and evaluator.feasible(candidate) else None


def _cheapest(
    evaluator: Evaluator,
    stage: int,
    age_s: float,
    *,
    upstream: dict[int, Departures],
    left: dict[str, float],
    mixed: bool,
) -> tuple[Option, Departures] | None:
    workload, bounds = evaluator.workloads[0], evaluator.bounds
    least = bounds.least_stage_price(stage)
    if math.isinf(least):
        return None
    tried: set[Option] = set()
    for dearest in (least * 2.0**i for i in range(1, DEAREST.bit_length())):
        for option in menu(bounds, stage, dearest, thinned=True, mixed=mixed):
            if option in tried or any(a.replicas > left[a.hardware] for a in option):
                continue
            tried.add(option)
            served = simulate_stage(
                workload,
                stage,
                upstream,
                evaluator.station(stage, option),
                late_s=age_s,
                allowed=bounds.allowed[0],
                slice_events=SLICE_EVENTS,
            )
            evaluator.simulated_events += len(workload) if served is None else served.events.size
            if served is not None:
                return option, served
    return None


PLENTY = 64
"""Replicas beyond which the least latency is not looked for on a shared queue without stock limits."""


def quickest(problem: Problem, evaluator: Evaluator) -> tuple[Candidate, float | None]:
    """The candidate with the least latency found, stage by stage, and that latency; None if stock allows none."""
    candidate: Candidate = tuple(
        max((_most(problem, s, k, 1) for k in hardware_kinds(problem, s)), key=lambda o: _throughput(problem, s, o))
        for s in problem.shape.stages
    )
    if not in_stock(problem, candidate):
        return candidate, None
    best = evaluator.quantile_s(candidate)
    for stage, name in enumerate(problem.shape.stages):
        for kind in hardware_kinds(problem, name):
            for limit in batch_limits(problem, name, kind):
                tried = replaced(candidate, stage, _most(problem, name, kind, limit))
                if tried != candidate and in_stock(problem, tried):
                    latency_s = evaluator.quantile_s(tried)
                    if latency_s < best:
                        candidate, best = tried, latency_s
    return candidate, best


def _most(problem: Problem, stage: str, kind: str, limit: int) -> tuple[Allocation, ...]:
    """As many replicas of a kind as the stage can have."""
    cap = replica_cap(problem, stage, kind)
    counts = replica_counts(problem, stage, int(min(cap, max(PLENTY, problem.partitions.get(stage, 0)))))
    return (Allocation(kind, limit, max(counts, default=1)),)


def _throughput(problem: Problem, stage: str, option: Option) -> float:
    return sum(a.replicas * problem.measured.profiles[stage, a.hardware].throughput(a.max_batch_size) for a in option)
