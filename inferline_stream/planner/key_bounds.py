"""Keys that are too hot for one replica, where a stage processes the events of a key in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inferline_stream.pipeline.plan import Allocation, KeyBound
from inferline_stream.planner.bounds import Bounds, service_rate
from inferline_stream.planner.problem import Candidate, Problem, arrival_rates, batch_limits, hardware_kinds


def busiest_key(problem: Problem, stage: int, held: Sequence[Allocation] = ()) -> KeyBound | None:
    """Return the most frequent key of a stage with what one replica of each kind serves; None if it keeps no order.

    Args:
        problem: the problem.
        stage: position of the stage.
        held: what the stage has; kinds that it has none of count with their best batch limit.
    """
    name, keys = problem.shape.stages[stage], problem.measured.keys
    if not keys.shares or name not in keys.ordered:
        return None
    key, share = keys.shares[0]
    # Batches of one key follow each other: what a replica runs beside them is of no use to it.
    limits = {a.hardware: a.max_batch_size for a in held if a.replicas}
    served: dict[str, float] = {}
    for kind in hardware_kinds(problem, name):
        limit = limits.get(kind, batch_limits(problem, name, kind)[-1])
        served[kind] = service_rate(problem, stage, (Allocation(kind, limit, 1),))
    return KeyBound(key, share * arrival_rates(problem)[stage], served)


def key_bound(problem: Problem, bounds: Bounds, stage: int, held: Sequence[Allocation] = ()) -> KeyBound | None:
    """Return the most frequent key with the kinds one replica of which cannot serve it; None if one of each can.

    Args:
        problem: the problem.
        bounds: of the problem.
        stage: position of the stage.
        held: see `busiest_key`.
    """
    found = busiest_key(problem, stage, held)
    if found is None:
        return None
    needed = max(found.arrival_rate, bounds.key_rate[stage])
    slow = {kind: rate for kind, rate in found.served_rates.items() if rate <= needed}
    return replace(found, served_rates=slow) if slow else None


def key_bounds(problem: Problem, bounds: Bounds, candidate: Candidate) -> dict[str, KeyBound]:
    """Return `key_bound` by stage, of stages that have one."""
    found = {name: key_bound(problem, bounds, s, candidate[s]) for s, name in enumerate(problem.shape.stages)}
    return {name: bound for name, bound in found.items() if bound is not None}


def without_order(problem: Problem, *stages: int) -> Problem:
    """Return the problem as it would be if stages did not keep the order of keys."""
    keys, lifted = problem.measured.keys, {problem.shape.stages[s] for s in stages}
    kept = replace(keys, ordered=tuple(name for name in keys.ordered if name not in lifted))
    return replace(problem, measured=replace(problem.measured, keys=kept))
