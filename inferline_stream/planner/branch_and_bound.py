"""Proof: depth first over the stages in topological order, until no cheaper plan can exist.

Departures of a stage depend on its own option and those of the stages above it, so candidates that begin alike
share the simulation of their beginning. A beginning is given up when

- too many events are doomed: later, with the fastest possible rest, than the target allows;
- it cannot become cheaper than the best plan so far: each remaining stage needs at least the price at which a
  fluid server keeps up with what now really arrives there (`Bounds`);
- another option of the same or a lower price gave the same departures, and took no scarce kind in its stead.

Until the last stage, shares of devices count as shares: what is paid for the devices is never less.

None of it assumes that more replicas help. The space searched: one hardware kind per stage, batch limits that were
profiled and raise throughput, no batch held.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.evaluation import Departures, arrivals_at, fastest_rest_s, simulate_stage
from inferline_stream.planner.bounds import slowest_rate
from inferline_stream.planner.evaluator import SLICE_EVENTS, Evaluator, Stopped
from inferline_stream.planner.problem import COST_EPSILON, Candidate, Option, in_stock, is_scarce, paid_of, price_of
from inferline_stream.planner.stage_options import stage_options

Upstream = tuple[dict[int, Departures], ...]
"""Per trace, departures of the stages decided."""


LEAST_COUNTED = 20_000
"""Events that each simulation counts for at least: as long as calling it takes."""

_PORTION = 1.3
"""Options are listed up to this many times the price before, and so on."""

_DEAREST = 100
"""Without any feasible candidate, options above this many times the least price are not looked for."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the search ended with.

    Args:
        best: the cheapest candidate; None if none is feasible.
        lower_bound: dollars per hour that no feasible candidate of the space searched is below; the cost of ``best``
            once it is proven.
        proven: whether the whole space was searched.
        stopped: whether the caller ended the search, rather than its effort.
    """

    best: Candidate | None
    lower_bound: float
    proven: bool
    stopped: bool = False


def prove(
    evaluator: Evaluator,
    best: Candidate | None,
    *,
    take: Callable[[Candidate], None] = lambda _: None,
    effort: float = math.inf,
) -> Proof:
    """Search everything that could be cheaper than the best known candidate.

    Args:
        evaluator: of the whole traces; its ``stop`` ends the search, and the gap is stated.
        best: a feasible candidate, or None.
        take: called with every better candidate.
        effort: events to simulate, once per stage and no less than `LEAST_COUNTED` a time, before the search ends and
            states the gap. Of a simulation that is given up only those that came to the stage until then count.
    """
    tree = _Tree(evaluator, best, take=take, effort=effort)
    try:
        tree.descend((), tuple({} for _ in evaluator.workloads), 0.0)
    except (Stopped, KeyboardInterrupt):
        return Proof(tree.best, min(tree.reached, tree.cost), False, stopped=not tree.spent)
    return Proof(tree.best, tree.cost, True)


class _Tree:
    def __init__(
        self,
        evaluator: Evaluator,
        best: Candidate | None,
        *,
        take: Callable[[Candidate], None],
        effort: float,
    ) -> None:
        self._effort = effort
        self._evaluator = evaluator
        self._problem = evaluator.problem
        self._take = take
        self.best = best
        self.cost = math.inf if best is None else paid_of(evaluator.problem, best)
        self.reached = 0.0
        """Cost below which everything has been searched: options of the first stage are tried in order of price."""
        self._fastest = dict(enumerate(evaluator.bounds.fastest_s))
        self._rest_s = [fastest_rest_s(w, self._fastest) for w in evaluator.workloads]

    def descend(self, chosen: Candidate, upstream: Upstream, spent: float) -> None:
        """Search all candidates that begin with what is chosen."""
        stage = len(chosen)
        if stage == len(self._problem.shape.stages):
            paid = paid_of(self._problem, chosen)
            if paid < self.cost - COST_EPSILON and self._evaluator.feasible(chosen):
                self.best, self.cost = chosen, paid
                self._take(chosen)
            return
        rates = self._rates(stage, upstream)
        bounds = self._evaluator.bounds
        least = [bounds.least_stage_price(stage + i, rate) for i, rate in enumerate(rates)]
        rest = sum(least[1:])
        arrivals: list[Departures] = []
        seen: set[tuple[bytes, str | None]] = set()
        for option in self._options(stage, least[0], rates[0], spent + rest):
            price = price_of(self._problem, option)
            if spent + price + rest >= self.cost - COST_EPSILON:
                break
            if stage == 0:
                self.reached = price + rest
            if not in_stock(self._problem, (*chosen, option)):
                continue
            arrivals = arrivals or [
                arrivals_at(w, stage, u) for w, u in zip(self._evaluator.workloads, upstream, strict=True)
            ]
            served = self._served(stage, option, arrivals)
            if served is None:
                continue
            mark = hashlib.sha256(b"".join(d.times_s.tobytes() + d.events.tobytes() for d in served)).digest()
            # What a scarce kind spares in price may be missing below, so it stands in for none but itself. Nor does a
            # share, for which a whole device may have to be paid; and for a share, whose device may be paid, no other.
            kind = option[0].hardware
            shared = self._problem.catalogue[kind].parts > 1
            own = kind if shared or is_scarce(self._problem, kind) else None
            if not seen.isdisjoint({(mark, own), *(() if shared else ((mark, None),))}):
                continue
            seen.add((mark, own))
            below = tuple({**u, stage: d} for u, d in zip(upstream, served, strict=True))
            self.descend((*chosen, option), below, spent + price)

    @property
    def spent(self) -> bool:
        """Whether the effort is used up."""
        return self._effort < 0

    def _options(self, stage: int, least: float, rate: float, others: float) -> Iterator[Option]:
        """Options from the least price upward, in portions, for the best cost falls while they are tried."""
        if math.isinf(least):
            return
        below, above = -math.inf, least * _PORTION + COST_EPSILON
        while below < min(self.cost - others, least * _DEAREST):
            for option in stage_options(self._evaluator.bounds, stage, above):
                fast_enough = self._evaluator.bounds.most_rate(stage, option) > rate
                if fast_enough and price_of(self._problem, option) > below:
                    yield option
            below, above = above, above * _PORTION

    def _served(self, stage: int, option: Option, arrivals: Sequence[Departures]) -> tuple[Departures, ...] | None:
        """Departures per trace; None when too many events are doomed."""
        evaluator = self._evaluator
        evaluator.check()
        if self.spent:
            raise Stopped
        served = []
        for i, workload in enumerate(evaluator.workloads):
            departures = simulate_stage(
                workload,
                stage,
                arrivals[i],
                evaluator.station(stage, option),
                late_s=self._problem.target_s,
                rest_s=self._rest_s[i][stage],
                allowed=evaluator.bounds.allowed[i],
                slice_events=SLICE_EVENTS,
                report=self._count,
            )
            if departures is None:
                return None
            served.append(departures)
        return tuple(served)

    def _count(self, events: int, _largest: int) -> None:
        self._evaluator.count(events)
        self._effort -= max(events, LEAST_COUNTED)

    def _rates(self, stage: int, upstream: Upstream) -> list[float]:
        """Per remaining stage, a rate of service at or below which it cannot keep up with what arrives."""
        bounds = self._evaluator.bounds
        rates = list(bounds.required_rate[stage:])
        apart = bool(self._problem.measured.paths.fan_outs)  # results have numbers of their own
        for i in range(len(upstream)) if stage and not apart else ():
            for place, rate in enumerate(rates):
                opens, closes = self._windows(i, stage + place, upstream[i])
                if opens.size > bounds.allowed[i] and rate < math.inf:
                    rates[place] = max(rate, slowest_rate(opens, closes, bounds.allowed[i], rate))
        return rates

    def _windows(
        self, trace: int, stage: int, decided: dict[int, Departures]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """When each event that counts can arrive at a stage at the earliest, and has to leave it at the latest."""
        workload = self._evaluator.workloads[trace]
        rest = self._rest_s[trace][stage][workload.masks]
        arrives = np.full(len(workload), -np.inf)
        for parent, more_s in self._reach_s(stage, decided).items():
            at = np.full(len(workload), -np.inf)
            at[decided[parent].events] = decided[parent].times_s + more_s
            np.maximum(arrives, at, out=arrives)
        counts = (rest > -np.inf) & (arrives > -np.inf)
        return arrives[counts], (workload.due_s + self._problem.target_s - rest)[counts]

    def _reach_s(self, stage: int, decided: dict[int, Departures]) -> dict[int, float]:
        """Decided stages all of whose events here go on to the stage, with the least time from there."""
        shape, hop_s = self._problem.shape, self._problem.measured.least_hop_s
        found: dict[int, float] = {}
        for a in shape.parents(stage):
            arrow = shape.arrows[a]
            if arrow.conditional:
                continue
            if arrow.parent in decided:
                found[arrow.parent] = max(found.get(arrow.parent, 0.0), hop_s)
            else:
                for above, time_s in self._reach_s(arrow.parent, decided).items():
                    more = time_s + self._fastest[arrow.parent] + hop_s
                    found[above] = max(found.get(above, 0.0), more)
        return found
