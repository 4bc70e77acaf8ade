"""Going down in cost: from a feasible candidate to cheaper ones that differ in one stage or two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from inferline_stream.pipeline.plan import hold_of
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.predicted_changes import Surrogate
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    batch_limits,
    cost_of,
    in_stock,
    paid_of,
    price_of,
    replaced,
)
from inferline_stream.planner.stage_options import stage_options

MOST_MOVES = 20
"""Other options that are tried for a stage on a share."""

TOLERANCE = 0.3
"""Predictions may be off by this share of the allowed late events before a candidate is not even tried."""

REPAIR_COST = 1.5
"""A repair may cost this many times the candidate it starts from."""


def descend(surrogate: Surrogate, evaluator: Evaluator, candidate: Candidate, *, tries: int) -> Iterator[Candidate]:
    """The candidate, then ever cheaper ones: the cheapest feasible proposal each time, until none is.

    Args:
        surrogate: proposes; its workload may be a piece of the evaluator's traces.
        evaluator: decides.
        candidate: feasible to the evaluator.
        tries: proposals of one round to simulate at most.
    """
    problem = evaluator.problem
    found: Candidate | None = candidate
    while found is not None:
        candidate = found
        yield candidate
        evaluator.accept(candidate)
        surrogate.move(candidate)
        late = evaluator.late(candidate)
        assert late is not None
        target = surrogate.late + (_spare(evaluator, late) + TOLERANCE) * surrogate.allowed
        below = cost_of(problem, candidate) - COST_EPSILON
        found = _first_feasible(surrogate, evaluator, below=below, target_late=target, tries=tries)


def repair(surrogate: Surrogate, evaluator: Evaluator, candidate: Candidate, *, tries: int) -> Candidate | None:
    """The cheapest feasible candidate near one that is infeasible to the evaluator, or None.

    Args:
        surrogate: proposes.
        evaluator: decides.
        candidate: infeasible, but not overloaded.
        tries: proposals to simulate at most, for each of two degrees of caution.
    """
    problem = evaluator.problem
    surrogate.move(candidate)
    by_trace = zip(evaluator.workloads, evaluator.latencies_s(candidate), strict=True)
    late = [int((workload.judged_s(latency_s) > problem.target_s).sum()) for workload, latency_s in by_trace]
    dearest = REPAIR_COST * cost_of(problem, candidate)
    for caution in (0.0, TOLERANCE):
        target = surrogate.late + (_spare(evaluator, late) - caution) * surrogate.allowed
        found = _first_feasible(surrogate, evaluator, below=dearest, target_late=max(target, 0.0), tries=tries)
        if found is not None:
            return found
    return None


def without_lone_shares(evaluator: Evaluator, candidate: Candidate) -> Candidate:
    """The same, but for stages that move off shares of devices whose rest nobody has, where that costs less.

    A search goes down in shares, and whole devices are paid: of each kind's last device, that is.

    Args:
        evaluator: decides.
        candidate: feasible to the evaluator.
    """
    problem = evaluator.problem
    for stage, option in enumerate(candidate):
        if all(problem.catalogue[part.hardware].parts == 1 for part in option):
            continue
        paid = paid_of(problem, candidate)
        room = max(problem.catalogue[part.hardware].parts * price_of(problem, (part,)) for part in option)
        others = (replaced(candidate, stage, other) for other in stage_options(evaluator.bounds, stage, room))
        cheaper = (c for c in others if in_stock(problem, c) and paid_of(problem, c) < paid - COST_EPSILON)
        candidate = next((c for c in islice(cheaper, MOST_MOVES) if evaluator.feasible(c)), candidate)
    return candidate


def without_needless_holds(evaluator: Evaluator, candidate: Candidate) -> Candidate:
    """The same hardware, limits and replicas, in which a stage holds batches only where the target is missed without.

    Args:
        evaluator: decides.
        candidate: feasible to the evaluator.
    """
    for stage, option in enumerate(candidate):
        if hold_of(option):
            eager = replaced(candidate, stage, tuple(replace(part, hold_s=0.0) for part in option))
            if evaluator.feasible(eager):
                candidate = eager
    return candidate


def with_largest_limits(evaluator: Evaluator, candidate: Candidate) -> Candidate:
    """The same hardware and replicas with the largest batch limits that the evaluator still calls feasible.

    A limit costs nothing, and a larger one is capacity in hand when traffic bursts beyond the sample: the Tuner can add
    replicas, but never changes a limit. Stage by stage in topological order, each kind for itself.

    Args:
        evaluator: decides.
        candidate: feasible to the evaluator.
    """
    problem = evaluator.problem
    evaluator.accept(candidate)
    for stage, name in enumerate(problem.shape.stages):
        for place, part in enumerate(candidate[stage]):
            before, after = candidate[stage][:place], candidate[stage][place + 1 :]
            larger = [
                replaced(candidate, stage, (*before, replace(part, max_batch_size=limit), *after))
                for limit in reversed(batch_limits(problem, name, part.hardware))
                if limit > part.max_batch_size
            ]
            found = next((c for c in evaluator.ahead(larger) if evaluator.shown_feasible(c)), None)
            if found is not None:
                candidate = found
                evaluator.accept(candidate)
    return candidate


def _spare(evaluator: Evaluator, late: Sequence[int]) -> float:
    """Share of the allowance left on the evaluator's traces; below 0 when it is exceeded.

    Carried over in proportion: a piece that is busier or calmer than the whole then misleads little.
    """
    return min((a - n) / max(a, 1) for a, n in zip(evaluator.bounds.allowed, late, strict=True))


def _first_feasible(
    surrogate: Surrogate, evaluator: Evaluator, *, below: float, target_late: float, tries: int
) -> Candidate | None:
    proposed = (p.candidate for p in surrogate.proposals(below, target_late))
    tried = islice((c for c in proposed if in_stock(evaluator.problem, c)), tries)
    return next((c for c in evaluator.ahead(tried) if evaluator.shown_feasible(c)), None)
