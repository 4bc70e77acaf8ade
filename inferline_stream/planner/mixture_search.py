"""The last of a search: one or two dear replicas of a stage replaced by cheaper ones of another kind, on whole traces.

A dear replica that is hardly used is where mixed kinds pay, and a piece of the traces, the busiest there is, seldom
shows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.bounds import Bounds
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.local_search import with_largest_limits
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    Option,
    cost_of,
    hardware_kinds,
    in_stock,
    replaced,
    replica_forms,
)
from inferline_stream.planner.stage_options import in_place_of

EFFORT = 12_000_000
"""Events simulated, once per stage, before no more is tried: a fraction of a second on long traces."""

WORTH = 0.02
"""Replicas that cost less than this share of the plan are not worth a search."""


def mixed_in(evaluator: Evaluator, candidate: Candidate) -> Iterator[Candidate]:
    """Yield ever cheaper candidates that meet the target, from one that does: what stays has the largest limits.

    Args:
        evaluator: of the whole traces.
        candidate: feasible to the evaluator.
    """
    until = evaluator.simulated_events + EFFORT
    found: Candidate | None = candidate if next(_choices(evaluator.bounds, candidate), None) else None
    while found is not None:
        candidate, found = with_largest_limits(evaluator, found), None
        evaluator.accept(candidate)
        for changed in _several_at_once(evaluator, candidate):
            if evaluator.simulated_events >= until:
                break
            below = cost_of(evaluator.problem, found or candidate) - COST_EPSILON
            found = _cheapest(evaluator, [c for c in changed if cost_of(evaluator.problem, c) < below]) or found
        if found is not None:
            yield found


def _several_at_once(evaluator: Evaluator, candidate: Candidate) -> Iterator[list[Candidate]]:
    """Of each choice the candidates in stock, the last of several choices simulated at once: it is asked for first."""
    problem = evaluator.problem
    every = (
        [c for option in options if in_stock(problem, c := replaced(candidate, stage, option))]
        for stage, options in _choices(evaluator.bounds, candidate)
    )
    below = cost_of(problem, candidate) - COST_EPSILON
    while batch := list(itertools.islice(every, evaluator.width)):
        cheaper = ([c for c in changed if cost_of(problem, c) < below] for changed in batch)
        evaluator.together([changed[-1] for changed in cheaper if changed], glance=True)
        yield from batch


def _choices(bounds: Bounds, candidate: Candidate) -> Iterator[tuple[int, Sequence[Option]]]:
    """Stages, each with options that differ in one count, ascending: the dearest replicas first."""
    problem = bounds.problem
    prices = {name: kind.price_per_hour for name, kind in problem.catalogue.items()}
    worth = WORTH * cost_of(problem, candidate)
    parts = [(stage, part) for stage, option in enumerate(candidate) for part in option]
    for stage, part in sorted(parts, key=lambda p: -prices[p[1].hardware]):
        name, option = problem.shape.stages[stage], candidate[stage]
        for kind in hardware_kinds(problem, name):
            if prices[kind] >= prices[part.hardware] or prices[part.hardware] < worth:
                continue
            for form in replica_forms(problem, name, kind):
                for fewer in range(1, min(2, part.replicas) + 1):
                    one = replace(form, hold_s=part.hold_s)
                    yield stage, in_place_of(bounds, stage, option, part=part, fewer=fewer, one=one)
        if len(option) > 1:
            others = [a for a in option if a is not part]
            yield stage, [_with(option, others, replace(part, replicas=count)) for count in range(1, part.replicas)]


def _with(option: Option, others: Sequence[Allocation], part: Allocation) -> Option:
    return tuple(next(a for a in (*others, part) if a.hardware == kind.hardware) for kind in option)


def _cheapest(evaluator: Evaluator, candidates: Sequence[Candidate]) -> Candidate | None:
    """The first that meets the target, by bisection: the last one is tried first, and without it none does."""
    found: Candidate | None = None
    low, high = 0, len(candidates) - 1
    middle = high
    while low <= high:
        if evaluator.shown_feasible(candidates[middle]):
            found, high = candidates[middle], middle - 1
        elif found is None:
            return None
        else:
            low = middle + 1
        middle = (low + high) // 2
    return found
