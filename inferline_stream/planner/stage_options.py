"""What one stage may be given: its options in order of price, and what became of those that were simulated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, TypeVar

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.bounds import Bounds, service_rate
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Option,
    Problem,
    hardware_kinds,
    price_of,
    replica_forms,
)

T = TypeVar("T")

THINNING = 10
"""A thinned menu steps by a replica up to about this many, then by a tenth."""

TRIED_COUNTS = 4
"""Replica counts of another kind that are tried in the place of some of the present one."""

MOST_BESIDE = 2
"""Replicas of another kind that are tried beside the present ones."""


def stage_options(
    bounds: Bounds, stage: int, dearest: float, *, thinned: bool = False, mixed: bool = False
) -> list[Option]:
    """Options whose price does not exceed a limit, cheapest first, of one hardware kind each.

    Left out are replica counts that `Bounds` rules out.

    Args:
        bounds: of the problem.
        stage: position of the stage.
        dearest: highest price in dollars per hour.
        thinned: leave out some of many replica counts.
        mixed: also options that add another kind to the whole of a finite stock.
    """
    problem = bounds.problem
    every = [*_options(bounds, stage, dearest, thinned=thinned), *(topped_up(bounds, stage, dearest) if mixed else ())]
    options = [option for option in every if price_of(problem, option) <= dearest]
    # Of one price the largest batch limit comes first: under bursts it is the likeliest to do.
    return sorted(options, key=lambda option: (price_of(problem, option), -option[0].max_batch_size))


def _options(bounds: Bounds, stage: int, dearest: float, *, thinned: bool) -> Iterator[Option]:
    problem, name = bounds.problem, bounds.problem.shape.stages[stage]
    for kind in hardware_kinds(problem, name):
        for form in replica_forms(problem, name, kind):
            fewest = bounds.fewest_replicas(stage, kind, form.max_batch_size, form.concurrency)
            if fewest is not None:
                most = bounds.affordable(stage, kind, dearest + COST_EPSILON, free=fewest * 4 + 8)
                for count in _counts(fewest, most, thinned=thinned):
                    yield (replace(form, replicas=count),)


def _counts(fewest: int, most: int, *, thinned: bool) -> Iterator[int]:
    last = 0
    for count in range(fewest, most + 1):
        if not thinned or not last or count - last >= count // THINNING:
            last = count
            yield count


def topped_up(bounds: Bounds, stage: int, dearest: float) -> list[Option]:
    """The whole stock of one kind and some of another, for kinds whose stock is finite."""
    problem, name = bounds.problem, bounds.problem.shape.stages[stage]
    kinds = hardware_kinds(problem, name)
    found: list[Option] = []
    for scarce, other in itertools.permutations(kinds, 2):
        stock = problem.catalogue[scarce].stock
        if stock is None or stock * problem.catalogue[scarce].price_per_hour > dearest:
            continue
        forms = itertools.product(replica_forms(problem, name, scarce), replica_forms(problem, name, other))
        for form, other_form in forms:
            for count in _counts(1, bounds.affordable(stage, other, dearest, free=12), thinned=True):
                option = combined(problem, [replace(form, replicas=stock), replace(other_form, replicas=count)])
                if service_rate(problem, stage, option) > bounds.required_rate[stage]:
                    found.append(option)
    return found


def mixtures(bounds: Bounds, stage: int, option: Option) -> list[Option]:
    """Options near a given one with replicas of another kind in the place of one or two of it, or beside all of it.

    In their place are several counts: what a dear replica serves may take many cheap ones. Beside are one or two, where
    they cost less than another replica of the same kind.

    Args:
        bounds: of the problem.
        stage: position of the stage.
        option: where to start from.

    Returns:
        Options that are fast enough, cheapest first.
    """
    problem, name = bounds.problem, bounds.problem.shape.stages[stage]
    found: dict[Option, None] = {}
    for part, kind in itertools.product(option, hardware_kinds(problem, name)):
        for fewer, form in itertools.product((0, 1, 2), replica_forms(problem, name, kind)):
            if kind == part.hardware or fewer > part.replicas:
                continue
            one = replace(form, hold_s=part.hold_s)
            every = in_place_of(bounds, stage, option, part=part, fewer=fewer, one=one)
            if fewer == 0:
                tried = every[:MOST_BESIDE]
            else:
                last = len(every) - 1
                tried = [every[last * step // (TRIED_COUNTS - 1)] for step in range(TRIED_COUNTS) if every]
            found |= dict.fromkeys(mixed for mixed in tried if len(mixed) > 1)
    return sorted(found, key=lambda o: price_of(problem, o))


def in_place_of(
    bounds: Bounds, stage: int, option: Option, *, part: Allocation, fewer: int, one: Allocation
) -> list[Option]:
    """Options with replicas of another kind in the place of some, by their number; those of no use are left out.

    Args:
        bounds: of the problem.
        stage: position of the stage.
        option: where to start from.
        part: what of it there are fewer of.
        fewer: by how many.
        one: a replica of the other kind.

    Returns:
        Options that are fast enough and cost less; with none fewer, less than another replica like the present.
    """
    problem = bounds.problem
    rest = [a for a in option if a is not part]
    rest += [replace(part, replicas=part.replicas - fewer)] * (part.replicas > fewer)
    missing = bounds.required_rate[stage] - service_rate(problem, stage, tuple(rest))
    fewest = max(1, math.floor(missing / service_rate(problem, stage, (one,))) + 1)
    room = price_of(problem, option) - price_of(problem, tuple(rest))
    room += problem.catalogue[part.hardware].price_per_hour if fewer == 0 else 0.0
    most = bounds.affordable(stage, one.hardware, room - COST_EPSILON, free=fewest + TRIED_COUNTS)
    counts = range(fewest, most + 1)
    return [combined(problem, [*rest, replace(one, replicas=count)]) for count in counts]


def combined(problem: Problem, allocations: list[Allocation]) -> Option:
    """One allocation per kind, cheapest kind first; of two forms of a kind the later one holds."""
    held: dict[str, Allocation] = {}
    for a in allocations:
        before = held[a.hardware].replicas if a.hardware in held else 0
        held[a.hardware] = replace(a, replicas=a.replicas + before)
    prices = problem.catalogue
    return tuple(sorted(held.values(), key=lambda a: (prices[a.hardware].price_per_hour, a.hardware)))


class OptionCache(Generic[T]):
    """What became of each option of one stage, all given the same arrivals.

    A batch limit that no batch reaches changes nothing.
    """

    def __init__(self) -> None:
        self._found: dict[Option, T] = {}
        # By kind, replicas, hold and concurrency: the largest batch under a limit not reached, and what came of it.
        self._unreached: dict[tuple[str, int, float, int], tuple[int, T]] = {}

    def __contains__(self, option: Option) -> bool:
        if option not in self._found and len(option) == 1:
            largest, result = self._unreached.get(_without_limit(option), (option[0].max_batch_size, None))
            if largest < option[0].max_batch_size:
                self._found[option] = result  # type: ignore[assignment]  # None only beside a limit that is reached
        return option in self._found

    def __getitem__(self, option: Option) -> T:
        return self._found[option]

    def add(self, option: Option, result: T, largest: int) -> None:
        """Remember a result under which the largest batch had so many events."""
        self._found[option] = result
        if len(option) == 1 and largest < option[0].max_batch_size:
            self._unreached[_without_limit(option)] = (largest, result)


def _without_limit(option: Option) -> tuple[str, int, float, int]:
    return option[0].hardware, option[0].replicas, option[0].hold_s, option[0].concurrency
