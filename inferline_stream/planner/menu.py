"""What one stage may be given: its options in order of price."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.bounds import Bounds, service_rate
from inferline_stream.planner.problem import (
    Option,
    Problem,
    batch_limits,
    hardware_kinds,
    price_of,
    replica_cap,
)

THINNING = 10
"""A thinned menu steps by a replica up to about this many, then by a tenth."""


def menu(bounds: Bounds, stage: int, dearest: float, *, thinned: bool = False, mixed: bool = False) -> list[Option]:
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
        for limit in batch_limits(problem, name, kind):
            fewest = bounds.fewest_replicas(stage, kind, limit)
            if fewest is not None:
                for count in _counts(problem, name, kind, fewest=fewest, dearest=dearest, thinned=thinned):
                    yield (Allocation(kind, limit, count),)


def _counts(problem: Problem, name: str, kind: str, *, fewest: int, dearest: float, thinned: bool) -> Iterator[int]:
    price = problem.catalogue[kind].price_per_hour
    affordable = dearest / price + 1 if price > 0 else fewest * 4 + 8
    most = int(min(affordable, replica_cap(problem, name, kind)))
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
        limits = itertools.product(batch_limits(problem, name, scarce), batch_limits(problem, name, other))
        for limit, other_limit in limits:
            for count in _counts(problem, name, other, fewest=1, dearest=dearest, thinned=True):
                option = combined(problem, [Allocation(scarce, limit, stock), Allocation(other, other_limit, count)])
                if service_rate(problem, stage, option) > bounds.required_rate[stage]:
                    found.append(option)
    return found


def mixtures(bounds: Bounds, stage: int, option: Option) -> list[Option]:
    """Options near a given one that put one or two replicas of another kind in the place of some of it.

    Args:
        bounds: of the problem.
        stage: position of the stage.
        option: where to start from.

    Returns:
        Options that cost less than the one given.
    """
    problem, name = bounds.problem, bounds.problem.shape.stages[stage]
    now = price_of(problem, option)
    found: dict[Option, None] = {}
    for part in option:
        for fewer in range(max(0, part.replicas - 2), part.replicas):
            rest = [a for a in option if a is not part] + [replace(part, replicas=fewer)] * (fewer > 0)
            for kind in hardware_kinds(problem, name):
                if kind == part.hardware:
                    continue
                for limit in batch_limits(problem, name, kind):
                    for count in (1, 2, 3, 4):
                        mixed = combined(problem, [*rest, Allocation(kind, limit, count, part.hold_s)])
                        if len(mixed) > 1 and price_of(problem, mixed) < now:
                            found[mixed] = None
    return sorted(found, key=lambda o: price_of(problem, o))


def combined(problem: Problem, allocations: list[Allocation]) -> Option:
    """One allocation per kind, cheapest kind first; of two batch limits of a kind the later one holds."""
    held: dict[str, Allocation] = {}
    for a in allocations:
        before = held[a.hardware].replicas if a.hardware in held else 0
        held[a.hardware] = replace(a, replicas=a.replicas + before)
    prices = problem.catalogue
    return tuple(sorted(held.values(), key=lambda a: (prices[a.hardware].price_per_hour, a.hardware)))
