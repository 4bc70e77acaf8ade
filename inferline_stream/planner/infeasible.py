"""Why no plan meets an SLO, and the smallest one that some plan would meet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Profile
from inferline_stream.pipeline.units import count_of
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.key_bounds import busiest_key, without_order
from inferline_stream.planner.problem import (
    Candidate,
    Option,
    Problem,
    cores_of,
    fastest_path_s,
    fastest_s,
    hardware_kinds,
    in_stock,
    replaced,
    replica_cap,
    replica_forms,
)

PLENTY = 64
"""Replicas beyond which the least latency is not looked for."""


def infeasible(problem: Problem, evaluator: Evaluator) -> Infeasible:
    """The error for a problem that no plan was found for, with the stage that makes it so."""
    best, latency_s = lowest_latency(problem, evaluator)
    if latency_s is not None and latency_s <= problem.target_s:  # the paper's greedy goes only where each step pays
        return Infeasible(
            f"the paper's algorithm finds no plan for the SLO of {problem.target_s:.4g} s, and there is one; leave "
            "--algorithm out"
        )
    hint = ""
    if latency_s is not None:
        hint = f", or ask for an SLO of {_above(latency_s)} s or more, the smallest that a plan was found for"
    why = _why(problem, evaluator, best)
    return Infeasible(f"no plan meets the SLO of {problem.target_s:.4g} s: {why}{hint}", latency_s)


def _why(problem: Problem, evaluator: Evaluator, best: Candidate) -> str:
    """Why the plan of the lowest latency does not meet the SLO, and what to do about it."""
    if fastest_path_s(problem) > problem.target_s:
        times = {stage: fastest_s(problem, stage) for stage in problem.shape.stages}
        worst = max(times, key=lambda stage: times[stage])
        return (
            f"an event needs {fastest_path_s(problem):.4g} s when nothing waits, "
            f"{times[worst]:.4g} s of it in stage {worst!r} on its fastest hardware; give that stage faster hardware"
        )
    if why := _key(problem, best) or _hops(problem, best) or _service_times(problem, best):
        return why
    worst = _tightest(problem, evaluator, best)
    return f"stage {worst!r} cannot keep up: {_limits(problem, worst)}"


def does_not_fit(problem: Problem, candidate: Candidate) -> Infeasible:
    """The error where the cheapest plan takes more cores than replicas may have."""
    stages = zip(problem.shape.stages, candidate, strict=True)
    parts = [f"{stage} {a.replicas} × {a.hardware}" for stage, option in stages for a in option]
    needed = sum(cores_of(problem.catalogue, option) for option in candidate)
    return Infeasible(
        f"no plan that meets the SLO of {problem.target_s:.4g} s fits on this machine: beside everything else that "
        f"runs, replicas may have {problem.cores:.2f} cores, and the cheapest plan takes {needed:.2f} "
        f"({', '.join(parts)}). Use a machine with {count_of(math.ceil(needed - problem.cores), 'core')} more, a "
        "longer SLO or faster code; --oversubscribe runs it all the same, and then no P99 is credible"
    )


def _above(seconds: float) -> str:
    """Seconds with four digits, rounded up: an SLO that the message names must be one that can be met."""
    unit = Decimal(1).scaleb(Decimal(seconds).adjusted() - 3)
    return f"{Decimal(seconds).quantize(unit, ROUND_CEILING).normalize():f}"


def _tightest(problem: Problem, evaluator: Evaluator, candidate: Candidate) -> str:
    """The stage whose most replicas leave it the least room over the rate it must serve."""
    bounds = evaluator.bounds

    def room(stage: int) -> float:
        needed = bounds.required_rate[stage]
        served = problem.measured.throughput(problem.shape.stages[stage], candidate[stage])
        return served / needed if needed > 0 else math.inf

    return problem.shape.stages[min(range(len(candidate)), key=room)]


def _key(problem: Problem, candidate: Candidate) -> str:
    """The key that is to blame, where the SLO would be met if no stage kept the order of keys; else nothing."""
    found = {s: key for s in range(len(candidate)) if (key := busiest_key(problem, s)) is not None}
    if not found or Evaluator(without_order(problem, *found)).quantile_s(candidate) > problem.target_s:
        return ""
    worst = max(found, key=lambda s: found[s].arrival_rate / max(found[s].served_rates.values()))
    return f"stage {problem.shape.stages[worst]!r}: {found[worst]}"


def _hops(problem: Problem, candidate: Candidate) -> str:
    """What is to do about the time between stages, where the SLO would be met if it always were the mean."""
    measured = problem.measured
    alike = replace(problem, measured=replace(measured, hop_spread_s=()))
    if not measured.hop_spread_s or Evaluator(alike).quantile_s(candidate) > problem.target_s:
        return ""
    slow_s = measured.hop_overhead_s + measured.hop_spread_s[-1]
    return (
        f"when it was measured, a record took {measured.hop_overhead_s:.4g} s from one stage to the next, and one in a "
        f"hundred {slow_s:.4g} s; where Kafka or this machine was busy then, measure it again with "
        "`inferline-stream profile --again`"
    )


def _service_times(problem: Problem, candidate: Candidate) -> str:
    """The stage whose service times differ too much, where the SLO would be met if they all were means."""
    measured = problem.measured

    def quantile_s(profiles: Mapping[tuple[str, str], Profile]) -> float:
        return Evaluator(replace(problem, measured=replace(measured, profiles=profiles))).quantile_s(candidate)

    if quantile_s(measured.steady().profiles) > problem.target_s:
        return ""
    worst = min(
        problem.shape.stages,
        key=lambda s: quantile_s({k: p.steady() if k[0] == s else p for k, p in measured.profiles.items()}),
    )
    return (
        f"service times of stage {worst!r} differ too much from one event to the next; give that stage faster hardware"
    )


def _limits(problem: Problem, stage: str) -> str:
    stocks = [
        f"{problem.catalogue[kind].stock} of {kind!r} in stock"
        for kind in hardware_kinds(problem, stage)
        if problem.catalogue[kind].stock is not None
    ]
    return (" and ".join(stocks) or "its queue grows faster than its hardware serves") + "; raise that"


def lowest_latency(problem: Problem, evaluator: Evaluator) -> tuple[Candidate, float | None]:
    """The candidate with the least latency found, stage by stage, and that latency.

    None for the latency if the stock does not suffice for the most that each stage alone could have.
    """
    candidate: Candidate = tuple(
        max(
            (_most(problem, s, Allocation(k, 1, 1)) for k in hardware_kinds(problem, s)),
            key=lambda o: problem.measured.throughput(s, o),
        )
        for s in problem.shape.stages
    )
    if not in_stock(problem, candidate):
        return candidate, None
    best = evaluator.quantile_s(candidate)
    for stage, name in enumerate(problem.shape.stages):
        for kind in hardware_kinds(problem, name):
            for form in replica_forms(problem, name, kind):
                tried = replaced(candidate, stage, _most(problem, name, form))
                if tried != candidate and in_stock(problem, tried):
                    latency_s = evaluator.quantile_s(tried)
                    if latency_s < best:
                        candidate, best = tried, latency_s
    return candidate, best


def _most(problem: Problem, stage: str, form: Allocation) -> Option:
    """As many replicas of a kind as the stage can have."""
    return (replace(form, replicas=max(1, int(min(replica_cap(problem, stage, form.hardware), PLENTY)))),)
