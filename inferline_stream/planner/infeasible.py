"""Why no plan meets an SLO, and the smallest one that some plan would meet."""

from __future__ import annotations

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.evaluation import Evaluator
from inferline_stream.planner.problem import (
    Candidate,
    Problem,
    batch_limits,
    fastest_path_s,
    fastest_s,
    hardware_kinds,
    in_stock,
    replaced,
    replica_cap,
    replica_counts,
)

PLENTY = 64
"""Replicas beyond which the smallest SLO is not looked for on a shared queue without stock limits."""


def infeasible(problem: Problem, evaluator: Evaluator) -> Infeasible:
    """The error for a problem that no plan was found for, with the stage that makes it so."""
    quickest, latency_s = _quickest(problem, evaluator)
    slo_s = problem.target_s
    stages = problem.shape.stages
    if fastest_path_s(problem) > slo_s:
        times = {stage: fastest_s(problem, stage) for stage in stages}
        worst = max(times, key=lambda stage: times[stage])
        why = (
            f"an event needs {fastest_path_s(problem):.4g} s when nothing waits, "
            f"{times[worst]:.4g} s of it in stage {worst!r} on its fastest hardware; give that stage faster hardware"
        )
    else:
        worst = _tightest(problem, evaluator, quickest)
        why = f"stage {worst!r} cannot keep up: {_limits(problem, worst)}"
    smallest = None if latency_s is None else latency_s
    hint = "" if smallest is None else f", or ask for an SLO of {smallest:.4g} s or more"
    return Infeasible(f"no plan meets the SLO of {slo_s:.4g} s: {why}{hint}", smallest)


def _quickest(problem: Problem, evaluator: Evaluator) -> tuple[Candidate, float | None]:
    """The candidate with the least latency found, stage by stage, and that latency; None if stock allows none."""
    candidate: Candidate = tuple(
        max((_most(problem, s, k, 1) for k in hardware_kinds(problem, s)), key=lambda o: _rate(problem, s, o))
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
    return (Allocation(kind, limit, max(counts)),)


def _rate(problem: Problem, stage: str, option: tuple[Allocation, ...]) -> float:
    return sum(a.replicas * problem.measured.profiles[stage, a.hardware].throughput(a.max_batch_size) for a in option)


def _tightest(problem: Problem, evaluator: Evaluator, candidate: Candidate) -> str:
    """The stage whose most replicas leave it the least room over the rate it must serve."""
    bounds = evaluator.bounds

    def room(stage: int) -> float:
        needed = bounds.required_rate[stage]
        return _rate(problem, problem.shape.stages[stage], candidate[stage]) / needed if needed > 0 else float("inf")

    return problem.shape.stages[min(range(len(candidate)), key=room)]


def _limits(problem: Problem, stage: str) -> str:
    stocks = [
        f"{problem.catalogue[kind].stock} of {kind!r} in stock"
        for kind in hardware_kinds(problem, stage)
        if problem.catalogue[kind].stock is not None
    ]
    limits = [f"its topic has {problem.partitions[stage]} partitions"] if stage in problem.partitions else []
    return (" and ".join([*limits, *stocks]) or "its queue grows faster than its hardware serves") + "; raise that"
