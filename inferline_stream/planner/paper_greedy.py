"""InferLine's Planner to the letter: Algorithm 1 (initialise) and Algorithm 2 (minimise cost), SoCC 2020 §4.3.

Two readings where the paper leaves room. A stage whose kind has no stock left is passed over for the next bottleneck.
Where more of everything that is available would still miss the SLO, Algorithm 1 ends, instead of adding for ever to
stages that have enough.

Nothing else is skipped that could change the outcome: an action is left unsimulated only when its cost alone, or
`bounds`, already rules it out.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import visit_ratios
from inferline_stream.planner.bounds import Bounds
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    Option,
    Problem,
    batch_limits,
    cost_of,
    fastest_path_s,
    hardware_kinds,
    in_machine,
    in_stock,
    price_of,
    replaced,
)

Feasible = Callable[[Candidate], bool]
"""Whether a candidate meets the target on every trace."""


@dataclass(frozen=True, slots=True)
class Search:
    """What both algorithms ask.

    Args:
        problem: the problem.
        bounds: its lower bounds.
        feasible: the verdict on a candidate.
        most_busy: of a candidate, a stage and a kind: more replicas than this can never be busy at once with
            batch 1, or than there can be.
        report: called with the phase, and with the candidate once one is feasible.
        together: given candidates whose verdicts may be asked for next, so that they are simulated at once.
    """

    problem: Problem
    bounds: Bounds
    feasible: Feasible
    most_busy: Callable[[Candidate, int, str], int]
    report: Callable[[str, Candidate | None], None]
    together: Callable[[Sequence[Candidate]], None] = lambda _: None


def plan_inferline(search: Search) -> Candidate | None:
    """The paper's plan; None when Algorithm 1 finds the problem infeasible."""
    initial = initialise(search)
    return None if initial is None else minimise_cost(search, initial)


_DOUBTED_AFTER = 16
"""Replicas added in vain after which it is asked whether any number would do: that takes as long as adding some."""


def initialise(search: Search) -> Candidate | None:
    """Algorithm 1: fastest hardware, batch 1, and replicas for the bottleneck until the SLO is met.

    Returns:
        The first feasible candidate, or None: T_s exceeds the SLO (the paper's comparison is printed the
        wrong way round), stock is used up, or one stage's is and all that the others could have would not do;
        or, what the paper does not know of, events of one key keep their order and are too many for a replica, or
        service times or hops differ so much that too many events are late however little they wait.
    """
    problem = search.problem
    candidate = fastest_start(problem)
    if candidate is None or fastest_path_s(problem) > problem.target_s:
        return None
    keys = problem.measured.keys
    if keys.shares and keys.ordered and not search.feasible(_with_most(search, candidate)):
        return None
    ended: set[int] = set()
    added = 0
    while not search.feasible(candidate):
        if added == _DOUBTED_AFTER and not search.feasible(_with_most(search, candidate)):
            return None
        for stage in by_bottleneck(problem, candidate):
            larger = with_replica_added(problem, candidate, stage)
            if larger is not None:
                candidate = larger
                break
            # Asked once of each stage that cannot grow: else the others might grow for ever and not help.
            if stage not in ended and not search.feasible(_with_most(search, candidate)):
                return None
            ended.add(stage)
        else:
            return None
        added += 1
        search.report("initialise", None)
    return candidate


def _with_most(search: Search, candidate: Candidate) -> Candidate:
    """The candidate with all replicas that can be busy where another is available, as if each had the stock alone."""
    largest = candidate
    for stage, (held,) in enumerate(candidate):
        if with_replica_added(search.problem, candidate, stage) is not None:
            most = max(held.replicas, search.most_busy(largest, stage, held.hardware))
            largest = replaced(largest, stage, _with_replicas(held, most))
    return largest


def fastest_start(problem: Problem) -> Candidate | None:
    """One replica with batch 1 per stage, on the kind in stock with the least service time, cheaper ones first.

    Where all share a number of cores, on the fastest kind that leaves the stages to come the least that they need.
    """
    candidate: list[Option] = []
    cores = {name: kind.cores for name, kind in problem.catalogue.items()}
    rest = sum(min(cores[kind] for kind in hardware_kinds(problem, stage)) for stage in problem.shape.stages)
    free = problem.cores + 1e-9  # shares of cores are no exact numbers
    left = {name: math.inf if kind.stock is None else kind.stock for name, kind in problem.catalogue.items()}
    for stage in problem.shape.stages:
        rest -= min(cores[kind] for kind in hardware_kinds(problem, stage))
        kinds = [
            kind
            for kind in hardware_kinds(problem, stage)
            if left[kind] > 0
            and cores[kind] + rest <= free
            and in_machine(problem, (*candidate, (Allocation(kind, 1, 1),)))
        ]
        if not kinds:
            return None
        fastest = min(kinds, key=lambda kind: problem.measured.profiles[stage, kind].service_time_s(1))
        left[fastest] -= 1
        free -= cores[fastest]
        candidate.append((Allocation(fastest, 1, 1),))
    return tuple(candidate)


def by_bottleneck(problem: Problem, candidate: Candidate) -> list[int]:
    """Stages by ascending replicas·µ / s: the bottleneck first (λ is common to all and drops out)."""
    ratios = visit_ratios(problem.shape, problem.measured.paths)

    def headroom(stage: int) -> float:
        name = problem.shape.stages[stage]
        return problem.measured.throughput(name, candidate[stage]) / ratios[name] if ratios[name] > 0 else math.inf

    return sorted(range(len(candidate)), key=headroom)


def with_replica_added(problem: Problem, candidate: Candidate, stage: int) -> Candidate | None:
    """The candidate with a replica more of a stage; None where stock ends."""
    (allocation,) = candidate[stage]
    grown = replaced(candidate, stage, _with_replicas(allocation, allocation.replicas + 1))
    return grown if in_stock(problem, grown) else None


def with_replica_removed(problem: Problem, candidate: Candidate, stage: int) -> Candidate | None:
    """The candidate with a replica less of a stage; None at one replica."""
    (allocation,) = candidate[stage]
    count = allocation.replicas - 1
    return replaced(candidate, stage, _with_replicas(allocation, count)) if count else None


def with_batch_doubled(problem: Problem, candidate: Candidate, stage: int) -> Candidate | None:
    """The candidate with the next larger profiled batch size that raises throughput; None at the largest."""
    (allocation,) = candidate[stage]
    sizes = batch_limits(problem, problem.shape.stages[stage], allocation.hardware)
    larger = next((size for size in sizes if size > allocation.max_batch_size), None)
    if larger is None:
        return None
    return replaced(candidate, stage, (replace(allocation, max_batch_size=larger),))


def minimise_cost(search: Search, candidate: Candidate) -> Candidate:
    """Algorithm 2: while some action on some stage gives a cheaper feasible candidate, take the cheapest.

    A doubled batch costs the same: it is taken only when nothing cheaper is feasible, so that a replica
    can go later.
    """
    stages = range(len(candidate))
    search.report("minimise", candidate)
    while True:
        best = _cheapest_action(search, candidate)
        if best is None:
            doubled = (with_batch_doubled(search.problem, candidate, stage) for stage in stages)
            best = next((c for c in doubled if c is not None and search.feasible(c)), None)
        if best is None:
            return candidate
        candidate = best
        search.report("minimise", candidate)


def _cheapest_action(search: Search, candidate: Candidate) -> Candidate | None:
    """The cheapest feasible result of removing a replica or downgrading hardware that costs less than now.

    Actions wait in a heap by a lower bound on what they would cost, so the dear ones are never worked out.
    """
    problem, now = search.problem, cost_of(search.problem, candidate)
    order = itertools.count()
    waiting: list[tuple[float, int, Candidate | None, int]] = []
    for stage in range(len(candidate)):
        removed = with_replica_removed(problem, candidate, stage)
        if removed is not None:
            heapq.heappush(waiting, (cost_of(problem, removed), next(order), removed, stage))
        kind = next_cheaper(problem, candidate, stage)
        if kind is not None:
            least = search.bounds.least_price(stage, kind)
            rest = now - price_of(problem, candidate[stage])
            heapq.heappush(waiting, (rest + least, next(order), None, stage))
    while waiting:
        cost, place, changed, stage = heapq.heappop(waiting)
        if cost >= now - COST_EPSILON:
            return None
        search.together([c for c in (changed, *(entry[2] for entry in waiting[:1])) if c is not None])
        if changed is None:
            downgraded = downgrade(search, candidate, stage)
            if downgraded is not None:
                heapq.heappush(waiting, (cost_of(problem, downgraded), place, downgraded, -1))
        elif stage < 0 or search.feasible(changed):
            return changed
    return None


def next_cheaper(problem: Problem, candidate: Candidate, stage: int) -> str | None:
    """The next cheaper kind of hardware for a stage; None at the cheapest."""
    kinds = hardware_kinds(problem, problem.shape.stages[stage])
    (allocation,) = candidate[stage]
    price = problem.catalogue[allocation.hardware].price_per_hour
    return next((k for k in reversed(kinds) if problem.catalogue[k].price_per_hour < price), None)


def downgrade(search: Search, candidate: Candidate, stage: int) -> Candidate | None:
    """One stage on its next cheaper hardware, re-initialised and locally minimised, all other stages frozen.

    Returns:
        The result if it is feasible and cheaper than the candidate, else None.
    """
    problem = search.problem
    kind = next_cheaper(problem, candidate, stage)
    if kind is None:
        return None
    local = _first_feasible(search, candidate, stage, kind)
    if local is None:
        return None
    while True:
        removed, doubled = (change(problem, local, stage) for change in (with_replica_removed, with_batch_doubled))
        search.together([c for c in (removed, doubled) if c is not None])
        if removed is not None and search.feasible(removed):
            local = removed
            continue
        if doubled is None or not search.feasible(doubled):
            break
        local = doubled
    return local if cost_of(problem, local) < cost_of(problem, candidate) - COST_EPSILON else None


MANY_COUNTS = 8
"""Replica counts that are tried before it is asked whether any could do."""


def _first_feasible(search: Search, candidate: Candidate, stage: int, kind: str) -> Candidate | None:
    """Algorithm 1 on one stage: batch 1, replicas from one up until the whole pipeline meets the SLO.

    Given up after `MANY_COUNTS` where even more replicas than the stage could ever have busy would not do.
    """
    problem = search.problem

    def with_count(count: int) -> Candidate:
        return replaced(candidate, stage, (Allocation(kind, 1, count),))

    if not search.bounds.latency_possible(with_count(1)):
        return None
    most = search.most_busy(candidate, stage, kind)
    for count in range(1, most + 1):
        if count == MANY_COUNTS + 1 and not search.feasible(with_count(most)):
            return None
        if count % 2:
            search.together([c for c in (with_count(count), with_count(count + 1)) if in_stock(problem, c)])
        if in_stock(problem, larger := with_count(count)) and search.feasible(larger):
            return larger
    return None


def _with_replicas(allocation: Allocation, count: int) -> Option:
    return (replace(allocation, replicas=count),)
