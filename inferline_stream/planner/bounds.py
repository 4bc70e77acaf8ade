"""What no plan can beat, known before anything is simulated.

All of it holds for any queue discipline, so a candidate that a bound rules out is infeasible for sure:

- an event needs at least the least service time of each stage on its path, and a hop between them; where service
  times vary, the least that a batch can draw;
- a stage whose replicas together serve at most R events per second cannot have more events done in time than
  a single fluid server of rate R. For a batch of b holds its replica for S(b) ≥ b/µ, all of it between the
  arrival of its last event and its departure: each event done in time owns a slice of 1/µ inside its own window.
  Windows of one length that open in order of entry are served best first come, first served, dropping what
  would be late; that count is exact for the fluid server.

Where service times vary, rates are higher than those of their means. The batches that take longest are left out of the
mean, as large a share of them as events may be late: events that are late own no slice. And draws may be luckier than
expected by ε, on a short trace more than on a long one. A server slower than what arrives by a share of ε misses a
share of ε, and so not too many before allowed/ε events have come: ε is `LUCK` standard errors of the mean of the
batches that these fill. No mean is lower than the least that a batch can draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.feeds import ways_of
from inferline_stream.estimator.service_table import service_table
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.hardware import MOST_REPLICAS
from inferline_stream.pipeline.live_classes import longest_s
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Profile
from inferline_stream.pipeline.shape import Scope, Shape, visited
from inferline_stream.planner.problem import (
    Candidate,
    Option,
    Problem,
    batch_limits,
    hardware_kinds,
    replica_cap,
    slots,
)

_PRECISION = 1.01
"""Required rates are bisected down to this ratio; the lower end is kept, so the bound stays a bound."""

_ROUNDING = 1e-9
"""Relative room for the order in which the estimator adds up the same times."""

_TINY_S = 1e-12
"""Stands for no time at all where one is divided by it."""

BUSIEST_KEYS = 8
"""Keys that are looked at one by one, the most frequent: where none of them asks too much, others do not either."""

LUCK = 4.0
"""Standard errors by which the mean of what batches draw may lie below what is expected."""


def missed(opens_s: NDArray[np.float64], closes_s: NDArray[np.float64], service_s: float, allowed: int) -> int:
    """Events that a single server with service time ``service_s`` cannot finish, each within its own window.

    First come, first served; an event that would be late is dropped at no cost. Both ends of the windows ascend. Stops
    once more than ``allowed`` are missed.
    """
    free, late = -np.inf, 0
    for i in range(opens_s.size):
        start = max(free, opens_s[i])
        if start + service_s > closes_s[i]:
            late += 1
            if late > allowed:
                break
        else:
            free = start + service_s
    return late


@cache
def _compiled() -> Callable[[NDArray[np.float64], NDArray[np.float64], float, int], int]:
    """`missed` at machine speed; numba is loaded on first use."""
    from numba import njit

    kernel: Callable[[NDArray[np.float64], NDArray[np.float64], float, int], int] = njit(
        nogil=True, cache=True, error_model="numpy"
    )(missed)
    return kernel


class Bounds:
    """Lower bounds of one problem.

    Args:
        problem: the problem; its traces are those the bounds hold for.
        workloads: of its traces.
    """

    def __init__(self, problem: Problem, workloads: Sequence[Workload]) -> None:
        self.problem = problem
        self._latest_s = problem.target_s + longest_s(problem.measured.classes)
        """By the longest SLO of any class."""
        self._workloads = workloads
        self._slots = slots(problem)
        self._routes = [_Route(problem.shape, *way) for way in ways_of(problem.shape, problem.measured.paths)]
        self._counts = [np.bincount(w.masks, minlength=len(self._routes)) for w in workloads]
        self.allowed = tuple(self._allowed(int(w.reaches_sink().sum())) for w in workloads)
        """Per trace, how many of the events that reach the sink may be late."""
        self._least_s: dict[tuple[str, str, int], float] = {}
        self._most_per_s: dict[tuple[str, str, int], float] = {}
        self.fastest_s = tuple(map(self._least_of_any_s, problem.shape.stages))
        """Per stage, least service time of any hardware and batch size."""

    @cached_property
    def required_rate(self) -> tuple[float, ...]:
        """Per stage, a rate of service at or below which no plan meets the target; worked out when first asked for."""
        return tuple(map(self._required_rate, range(len(self.fastest_s))))

    @cached_property
    def key_rate(self) -> tuple[float, ...]:
        """Per stage that keeps the order of keys, a rate at or below which no replica serves the busiest key in time.

        Batches of one key follow each other, so one replica at a time is its fluid server. 0.0 at other stages.
        """
        stages, keys = self.problem.shape.stages, self.problem.measured.keys
        most = min(len(keys.shares), BUSIEST_KEYS) + 1 if any(w.keys.size for w in self._workloads) else 1
        return tuple(
            max((self._required_rate(s, key) for key in range(1, most)), default=0.0) if name in keys.ordered else 0.0
            for s, name in enumerate(stages)
        )

    def _allowed(self, events: int) -> int:
        return events - max(1, math.ceil(self.problem.objective * events * (1 - 1e-12)))

    def _required_rate(self, stage: int, key: int = 0) -> float:
        """Of all events of a stage, or of those of one key."""
        hop_s = self.problem.measured.least_hop_s
        through = [i for i, r in enumerate(self._routes) if r.awaits(stage)]
        if not through:
            return 0.0
        before = min(self._routes[i].before_s(stage, self.fastest_s, hop_s) for i in through)
        after = min(self._routes[i].after_s(stage, self.fastest_s, hop_s) for i in through)
        window_s = (self._latest_s - before - after) * (1 + _ROUNDING)
        rates = []
        for i, workload in enumerate(self._workloads):
            counts = np.isin(workload.masks, through)
            if key:
                counts &= workload.keys == key
            entry_s = workload.entry_s[counts]
            if entry_s.size <= self.allowed[i]:
                rates.append(0.0)
            elif window_s <= 0:
                rates.append(math.inf)
            else:
                rates.append(slowest_rate(entry_s, entry_s + window_s, self.allowed[i]))
        return max(rates)

    def latency_possible(self, candidate: Candidate) -> bool:
        """Whether enough events could be in time if nothing ever waited."""
        stages = self.problem.shape.stages
        least = [self._least_of(stage, option) for stage, option in zip(stages, candidate, strict=True)]
        hop_s = self.problem.measured.least_hop_s
        late = [r.reaches_sink and r.latency_s(least, hop_s) > self._latest_s * (1 + _ROUNDING) for r in self._routes]
        return all(
            int(counts[late].sum()) <= allowed for counts, allowed in zip(self._counts, self.allowed, strict=True)
        )

    def _least_of(self, stage: str, option: Option) -> float:
        """Least service time of a stage, whatever its batches."""
        return min(self._least(stage, a.hardware, a.max_batch_size) for a in option if a.replicas)

    def _least_of_any_s(self, stage: str) -> float:
        kinds = hardware_kinds(self.problem, stage)
        return min(self._least(stage, kind, batch_limits(self.problem, stage, kind)[-1]) for kind in kinds)

    def _least(self, stage: str, kind: str, limit: int) -> float:
        if (stage, kind, limit) not in self._least_s:
            table = service_table(self.problem.measured.profiles[stage, kind], limit)
            self._least_s[stage, kind, limit] = table.least_s
        return self._least_s[stage, kind, limit]

    def possible(self, candidate: Candidate) -> bool:
        """False if the candidate is infeasible for sure."""
        if any(sum(a.replicas for a in option) < self._slots[s] for s, option in enumerate(candidate)):
            return False  # a dispatcher without a replica serves nothing
        rates = (self.most_rate(s, o) for s, o in enumerate(candidate))
        if any(rate <= required for rate, required in zip(rates, self.required_rate, strict=True)):
            return False
        if any(key_rate and self.fastest_rate(s, candidate[s]) <= key_rate for s, key_rate in enumerate(self.key_rate)):
            return False
        return self.latency_possible(candidate)

    def fastest_rate(self, stage: int, option: Option) -> float:
        """Most events per second that one replica of a stage serves, one batch after the other."""
        return max(self.most_rate(stage, (replace(a, replicas=1, concurrency=1),)) for a in option if a.replicas)

    def most_rate(self, stage: int, option: Option) -> float:
        """Most events per second that a stage's replicas serve in time, whatever their batches and their luck."""
        # Nothing is faster beside others than alone.
        return sum(a.replicas * a.concurrency * self._most(stage, a.hardware, a.max_batch_size) for a in option)

    def _most(self, stage: int, kind: str, limit: int) -> float:
        name = self.problem.shape.stages[stage]
        if (name, kind, limit) not in self._most_per_s:
            profile = self.problem.measured.profiles[name, kind]
            allowed = min(self.allowed)
            self._most_per_s[name, kind, limit] = max(
                size / (profile.service_time_s(size) * self._luckiest(profile, size, allowed))
                for size in _sizes(profile, limit)
            )
        return self._most_per_s[name, kind, limit]

    def _luckiest(self, profile: Profile, size: int, allowed: int) -> float:
        """Mean of the times of batches of one size that events in time have, over S(b): the least that is likely."""
        if profile.variation is None:
            return 1.0
        least, mean, deviation = _drawn_in_time(profile, size, self.problem.objective)
        error = LUCK * deviation / math.sqrt(max(1.0, allowed / size))
        return max(least, mean - min(error, error**2))

    def fewest_replicas(
        self, stage: int, hardware: str, max_batch_size: int | None = None, concurrency: int | None = None
    ) -> int | None:
        """Replicas of one kind below which the stage cannot serve fast enough; None if no number it may have can.

        Args:
            stage: position of the stage.
            hardware: the kind.
            max_batch_size: the batch limit; None for the best one.
            concurrency: batches in hand at once; None for the most profiled.
        """
        name = self.problem.shape.stages[stage]
        one = self._largest(name, hardware)
        one = replace(
            one, max_batch_size=max_batch_size or one.max_batch_size, concurrency=concurrency or one.concurrency
        )
        rate = self.most_rate(stage, (one,))
        cap = replica_cap(self.problem, name, hardware)
        needed = math.floor(self.required_rate[stage] / rate) + 1 if rate > 0 else MOST_REPLICAS
        needed = max(needed, self._slots[stage])
        one_by_one = rate / one.concurrency
        if needed > cap or math.isinf(self.required_rate[stage]) or one_by_one <= self.key_rate[stage]:
            return None
        return needed if needed <= MOST_REPLICAS else None

    def affordable(self, stage: int, hardware: str, dollars: float, free: int) -> int:
        """Most replicas of one kind that are worth a look: more than its events, or its slots, are of no use.

        Args:
            stage: position of the stage.
            hardware: the kind.
            dollars: per hour, for all of them.
            free: how many of a kind that costs nothing.
        """
        name, price = self.problem.shape.stages[stage], self.problem.catalogue[hardware].price_per_hour
        bought = dollars / price if price > 0 else free
        of_use = max(*map(len, self._workloads), self._slots[stage])
        return int(min(bought, replica_cap(self.problem, name, hardware), of_use))

    def _largest(self, stage: str, kind: str) -> Allocation:
        """One replica with the largest batch limit and the most batches at once."""
        concurrency = self.problem.measured.profiles[stage, kind].concurrencies[-1]
        return Allocation(kind, batch_limits(self.problem, stage, kind)[-1], 1, concurrency=concurrency)

    def least_price(self, stage: int, hardware: str) -> float:
        """Dollars per hour below which the stage cannot be served by one kind; infinite if not at all."""
        fewest = self.fewest_replicas(stage, hardware)
        return math.inf if fewest is None else fewest * self.problem.catalogue[hardware].price_per_hour

    def least_stage_price(self, stage: int, rate: float | None = None) -> float:
        """Dollars per hour below which the stage cannot be served, hardware kinds mixed in any way.

        Args:
            stage: position of the stage.
            rate: a rate of service that does not suffice; None for `required_rate`.
        """
        name = self.problem.shape.stages[stage]
        offers = []
        for kind in hardware_kinds(self.problem, name):
            one = self.most_rate(stage, (self._largest(name, kind),))
            offers.append((self.problem.catalogue[kind].price_per_hour, one, replica_cap(self.problem, name, kind)))
        return _least_cover(offers, self.required_rate[stage] if rate is None else rate)


@lru_cache(maxsize=4096)
def _drawn_in_time(profile: Profile, size: int, objective: float) -> tuple[float, float, float]:
    """Of the times of batches of one size over S(b): the least, the mean of the share that is in time, the deviation.

    Every piece of a trace has bounds of its own, of the same profiles.
    """
    table = service_table(profile, size)
    units, counts = np.unique(table.units, return_counts=True)
    shares = counts / table.units.size
    if table.largest:
        shares = np.diff(np.cumsum([0.0, *shares]) ** size)
    factors, counts = np.unique(table.factors[size], return_counts=True)
    times = np.outer(table.fixed_s[size] + table.per_unit_s[size] * units, factors).ravel() / table.mean_s[size]
    weights = np.outer(shares, counts / table.factors.shape[1]).ravel()
    order = np.argsort(times)
    times, weights = times[order], weights[order]
    kept = np.minimum(weights, np.maximum(0.0, objective - (np.cumsum(weights) - weights)))
    deviation = math.sqrt(float((weights * (times - 1) ** 2).sum()))
    return float(times[0]), float((kept * times).sum() / kept.sum()), deviation


def slowest_rate(
    opens_s: NDArray[np.float64], closes_s: NDArray[np.float64], allowed: int, enough: float = 0.0
) -> float:
    """A rate at which a fluid server misses more than allowed, within `_PRECISION` of the least that does not.

    Where windows do not open in the order in which they close, they are opened earlier until they do: the bound
    stays one, and first come, first served with drops stays exact for it.

    Args:
        opens_s: earliest start of each event's service; of more events than are allowed to be missed.
        closes_s: latest end.
        allowed: events that may be missed.
        enough: a rate known not to suffice; the result is no lower.
    """
    order = np.argsort(closes_s, kind="stable")
    closes = closes_s[order]
    opens = np.minimum.accumulate(opens_s[order][::-1])[::-1].copy()
    kernel = _compiled()
    if kernel(opens, closes, 0.0, allowed) > allowed:
        return math.inf
    # Below one event in the longest window every event is late; a rate at which all are in time ends the doubling.
    low = max(enough, 1 / max(float((closes - opens).max()), _TINY_S) * (1 - 2 * _ROUNDING))
    high = low * 2
    if kernel(opens, closes, 1 / low, allowed) <= allowed:
        return low
    while kernel(opens, closes, 1 / high, allowed) > allowed:
        low, high = high, high * 2
    while high > low * _PRECISION:
        middle = math.sqrt(low * high)
        if kernel(opens, closes, 1 / middle, allowed) > allowed:
            low = middle
        else:
            high = middle
    return low


def _least_cover(offers: Sequence[tuple[float, float, float]], required: float) -> float:
    """Least cost of whole units whose rates sum to more than required; offers are (price, rate, most units)."""
    if math.isinf(required):
        return math.inf
    ordered = sorted(offers, key=lambda offer: offer[0] / offer[1])
    best = math.inf

    def cover(position: int, left: float, spent: float) -> None:
        nonlocal best
        if left < 0:
            best = min(best, spent)
            return
        if position == len(ordered):
            return
        price, rate, most = ordered[position]
        if spent + left * price / rate >= best:
            return
        count = int(min(math.floor(left / rate) + 1, most))
        for units in range(count, -1, -1):
            cover(position + 1, left - units * rate, spent + units * price)

    cover(0, required, 0.0)
    return best


class _Route:
    """The stages and arrows that events of a scope with one mask take; none before they were apart is known.

    Nothing is awaited of events other than those whose latencies count: many results may be late with one of these.
    """

    def __init__(self, shape: Shape, scope: Scope, mask: int) -> None:
        self._shape = shape
        self.visits = visited(shape, mask, scope)
        self._finals = [final for final in shape.finals() if self.visits[final] and scope == shape.counted()]
        self.reaches_sink = bool(self._finals)
        arrows = [a for i, a in enumerate(shape.arrows) if mask >> i & 1 and self.visits[a.parent]]
        self._parents = [[a.parent for a in arrows if a.child == s] for s in range(len(shape.stages))]
        self._children = [[a.child for a in arrows if a.parent == s] for s in range(len(shape.stages))]

    def awaits(self, stage: int) -> bool:
        """Whether the stage is visited, and a sink after it gets something."""
        return self.visits[stage] and not self._shape.downstream(stage).isdisjoint(self._finals)

    def before_s(self, stage: int, service_s: Sequence[float], hop_s: float) -> float:
        """Least time from entry to arrival at a stage."""
        return hop_s + max(
            (self.before_s(p, service_s, hop_s) + service_s[p] for p in self._parents[stage]), default=0.0
        )

    def after_s(self, stage: int, service_s: Sequence[float], hop_s: float) -> float:
        """Least time from completion of a stage to the sink; 0 where nothing of it is awaited there."""
        return max(
            (hop_s + service_s[c] + self.after_s(c, service_s, hop_s) for c in self._children[stage]),
            default=hop_s if stage in self._finals else 0.0,
        )

    def latency_s(self, service_s: Sequence[float], hop_s: float) -> float:
        """Latency if nothing ever waits."""
        return max(self.before_s(end, service_s, hop_s) + service_s[end] + hop_s for end in self._finals)


def service_rate(problem: Problem, stage: int, option: Option) -> float:
    """Events per second that a stage's replicas serve in the batches that suit them best, on average."""
    name = problem.shape.stages[stage]
    return sum(
        a.replicas * _best_throughput(problem.measured.profiles[name, a.hardware], a.max_batch_size, a.concurrency)
        for a in option
    )


@lru_cache(maxsize=4096)
def _best_throughput(profile: Profile, limit: int, concurrency: int) -> float:
    levels = {c for c in (*profile.concurrencies, concurrency) if c <= concurrency}
    return max(c * size / profile.service_time_s(size, c) for size in _sizes(profile, limit) for c in levels)


def _sizes(profile: Profile, limit: int) -> set[int]:
    """Where the most can be: the profiled batch sizes up to a limit. Between them S(b) is linear, b/S(b) monotone."""
    return {size for size in (*profile.batch_sizes, limit) if size <= limit}
