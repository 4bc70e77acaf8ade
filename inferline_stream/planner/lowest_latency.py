"""The candidate with the least latency: what is left when nothing else is feasible, and the smallest SLO there is."""

from __future__ import annotations

from dataclasses import replace

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import (
    Candidate,
    Option,
    Problem,
    hardware_kinds,
    in_stock,
    replaced,
    replica_cap,
    replica_forms,
)

PLENTY = 64
"""Replicas beyond which the least latency is not looked for."""


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
