"""Which changes of a candidate are worth simulating: a prediction from one simulation per stage and option.

At a base candidate every option of a stage is simulated in that stage alone, with what really arrives there, on
one workload. What an option changes of an event's latency follows from the longest path of the event with
all other stages' times as they were. The effects of two stages are added. That ignores how a change reshapes
the arrivals of later stages: good for ranking, no proof of anything; every plan is simulated before it is taken.

Predictions are made for a sample of events: all of the slowest twentieth, whose latencies decide the
quantile, and some of the others for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.evaluation import Departures, arrivals_at, evaluate, latencies_s, simulate_stage
from inferline_stream.estimator.workload import Workload
from inferline_stream.planner.batch_holds import holds
from inferline_stream.planner.bounds import Bounds, service_rate
from inferline_stream.planner.evaluator import SLICE_EVENTS, Evaluator
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    Option,
    arrival_rates,
    cost_of,
    hardware_kinds,
    price_of,
    replaced,
    replica_cap,
    replica_forms,
)
from inferline_stream.planner.stage_options import THINNING, OptionCache, combined, mixtures, stage_options

SLOWEST = 0.05
"""Share of events, the slowest at the first base, that are all sampled."""

OTHERS = 1500
"""How many of the other events are sampled."""

CROWDED = 3
"""An option that makes more than this many times the allowance of events late is never proposed."""

NEAR = 1.05
"""Options whose predicted quantile is within this ratio of a cheaper one's best are kept beside it."""

FAR = 6
"""Dearer options are proposed up to this many times a stage's least possible price, or to half of an even share of the
whole cost: a second saved in a stage that costs little may be worth much further down."""

TOGETHER = 4096
"""Pairs of changes whose late events are predicted at once: by cost, so that most are never looked at."""

BEST_HOLDS = 2
"""Of the holds of one kind, how many are tried with fewer replicas."""

BLOCK = 128
"""Events after which it is looked whether a pair is lost."""

Times = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of a stage with its predicted effect on the latency of every sampled event."""

    option: Option
    price: float
    effect_s: Times


@dataclass(frozen=True, slots=True)
class Proposal:
    """A changed candidate with its cost and how many events it is predicted to have late."""

    cost: float
    late: float
    candidate: Candidate


class Surrogate:
    """Predictions around a base that moves.

    Args:
        evaluator: whose first workload is used.
        bounds: of the whole traces, which options have to keep to.
        base: a candidate that is not overloaded.
    """

    def __init__(self, evaluator: Evaluator, bounds: Bounds, base: Candidate) -> None:
        self._evaluator = evaluator
        self._bounds = bounds
        self._workload: Workload = evaluator.workloads[0]
        self._target_s = evaluator.problem.target_s
        self._completions: dict[tuple[int, Candidate], OptionCache[Times | None]] = {}
        self._sample: NDArray[np.int64] | None = None
        self._rates = arrival_rates(evaluator.problem)
        self._in_vain: dict[tuple[int, str], int] = {}
        """By stage and kind, the number of replicas that no hold sufficed for: fewer are not tried again."""
        self.allowed = evaluator.bounds.allowed[0]
        """Late events that the workload allows."""
        self.move(base)

    def move(self, base: Candidate) -> None:
        """Predict around another candidate."""
        stages = range(len(base))
        evaluation = evaluate(self._workload, self._evaluator.stations(base), keep=stages, latencies=False)
        self._evaluator.count(evaluation.simulated_events)
        self.base = base
        self._departures: Mapping[int, Departures] = evaluation.departures
        self._arrivals: dict[int, Departures] = {}
        if self._sample is None:
            self._choose_sample(self._workload.judged_s(latencies_s(self._workload, self._departures)))
        self._trace_paths()
        self.late = self._late(self._latency_s)
        """Predicted late events of the base itself."""

    def _choose_sample(self, latency_s: Times) -> None:
        known = np.flatnonzero(~np.isnan(latency_s))
        order = known[np.argsort(-latency_s[known], kind="stable")]
        slowest = max(int(SLOWEST * known.size), 3 * self.allowed, 1)
        rest = np.sort(order[slowest:])
        step = max(1, rest.size // OTHERS)
        others = rest[::step]
        self._sample = np.concatenate([order[:slowest], others])
        self._weights = np.concatenate([np.ones(min(slowest, known.size), np.int64), np.full(others.size, step)])

    def _trace_paths(self) -> None:
        """Per sampled event: arrival at and time in each stage, and the longest paths through and past each."""
        shape, hop_s = self._workload.shape, self._workload.hop_s
        assert self._sample is not None
        masks, scope = self._workload.masks[self._sample], shape.counted()
        completions = [self._sampled(stage, self._departures[stage]) for stage in range(len(shape.stages))]
        gone = [~np.isnan(completion) for completion in completions]
        taken = [
            self._workload.takes(a)[masks]
            if shape.scope_after(arrow.parent) == scope
            else gone[arrow.parent] & gone[arrow.child]
            for a, arrow in enumerate(shape.arrows)
        ]
        self._before = [[(shape.arrows[a].parent, taken[a]) for a in shape.parents(s)] for s in range(len(gone))]
        """By stage, what it comes after, and which of the sampled events come that way."""
        for stage, feed in enumerate(self._workload.feeds):
            if feed.gathers is not None:  # an event without results comes from where it was given none
                self._before[stage].append((feed.gathers, gone[stage] & gone[feed.gathers]))
        self._entry_s = self._workload.entry_s[self._sample]
        self._sink_s = self._workload.hop_s - (self._workload.due_s[self._sample] - self._entry_s)
        self._arrival_s: list[Times] = []
        self._visits: list[NDArray[np.bool_]] = []
        spent: list[Times] = []
        for stage, completion in enumerate(completions):
            before = self._before[stage]
            arrival = np.full(self._sample.size, -np.inf) if before else self._entry_s + hop_s
            for parent, takes in before:
                finished = self._arrival_s[parent] + spent[parent]
                np.maximum(arrival, np.where(takes, finished + hop_s, -np.inf), out=arrival)
            visits = gone[stage]
            self._visits.append(visits)
            self._arrival_s.append(np.where(visits, arrival, -np.inf))
            spent.append(np.where(visits, completion - arrival, 0.0))
        self._spent_s = spent
        self._latency_s = self._longest_s(None)
        self._past_s = [self._longest_s(stage) for stage in range(len(shape.stages))]
        after = self._after_s()
        self._through_s = [self._arrival_s[s] - self._entry_s + spent[s] + after[s] for s in range(len(shape.stages))]

    def _longest_s(self, without: int | None) -> Times:
        """Longest path of each event from entry to sink, as the target judges it; −∞ where all lead through a stage."""
        shape, hop_s = self._workload.shape, self._workload.hop_s
        finish: list[Times] = []
        for stage in range(len(shape.stages)):
            before = self._before[stage]
            start = np.full(self._entry_s.size, -np.inf if before else 0.0)
            for parent, takes in before:
                np.maximum(start, np.where(takes, finish[parent], -np.inf), out=start)
            blocked = stage == without
            finish.append(np.full_like(start, -np.inf) if blocked else start + hop_s + self._spent_s[stage])
        ends = [np.where(self._visits[final], finish[final], -np.inf) for final in shape.finals()]
        longest_s: Times = np.maximum.reduce(ends) + self._sink_s
        return longest_s

    def _after_s(self) -> list[Times]:
        """Longest path of each event from completion of a stage to the sink; −∞ where nothing leads there."""
        shape, hop_s = self._workload.shape, self._workload.hop_s
        after = [np.full(self._entry_s.size, -np.inf) for _ in shape.stages]
        for final in shape.finals():
            after[final] = self._sink_s.copy()
        for stage in reversed(range(len(shape.stages))):
            for child, before in enumerate(self._before):
                onward = hop_s + self._spent_s[child] + after[child]
                for takes in (takes for parent, takes in before if parent == stage):
                    np.maximum(after[stage], np.where(takes, onward, -np.inf), out=after[stage])
        return after

    def _sampled(self, stage: int, departures: Departures) -> Times:
        """When what the sampled events come from, or are made of, left a stage; NaN where nothing did."""
        every = np.full(len(self._workload), np.nan)
        every[departures.events] = departures.times_s
        assert self._sample is not None
        found: Times = self._workload.seen_from_sink(stage, every)[self._sample - self._workload.last.start]
        return found

    def _completion_s(self, stage: int, option: Option) -> Times | None:
        """When the sampled events leave the stage with that option; None if too many are late for sure."""
        above = tuple(self.base[a] for a in sorted(self._evaluator.above[stage] - {stage}))
        known = self._completions.setdefault((stage, above), OptionCache())
        if option not in known:
            reported: list[int] = []
            if stage not in self._arrivals:
                self._arrivals[stage] = arrivals_at(self._workload, stage, self._departures)
            departures = simulate_stage(
                self._workload,
                stage,
                self._arrivals[stage],
                self._evaluator.station(stage, option),
                late_s=self._target_s,
                allowed=CROWDED * self.allowed + 1,
                slice_events=SLICE_EVENTS,
                report=lambda _arrived, largest: reported.append(largest),
            )
            (largest,) = reported
            self._evaluator.count(self._departures[stage].events.size)
            known.add(option, None if departures is None else self._sampled(stage, departures), largest)
        return known[option]

    def _effect_s(self, stage: int, option: Option) -> Times | None:
        completion = self._completion_s(stage, option)
        if completion is None:
            return None
        change = np.where(self._visits[stage], completion - self._arrival_s[stage] - self._spent_s[stage], 0.0)
        return np.maximum(self._past_s[stage], self._through_s[stage] + change) - self._latency_s

    def _late(self, latency_s: Times) -> float:
        return float(self._weights[latency_s > self._target_s].sum())

    def _quantile_s(self, latency_s: Times) -> float:
        most = self.allowed + 1  # fewer than are sampled, and no weight is below 1
        slowest = np.argpartition(latency_s, latency_s.size - most)[-most:]
        slowest = slowest[np.argsort(-latency_s[slowest])]
        place = int(np.searchsorted(np.cumsum(self._weights[slowest]), self.allowed, side="right"))
        return float(latency_s[slowest[place]])

    def choices(self, stage: int, dearest: float) -> list[Choice]:
        """Options of a stage that no cheaper one beats, cheapest first."""
        options = stage_options(self._bounds, stage, dearest, thinned=True)
        options += mixtures(self._bounds, stage, self.base[stage])
        options += nearby(self._bounds, stage, self.base[stage])
        options += self._held(stage)
        problem = self._evaluator.problem
        found = []
        for option in dict.fromkeys(options):
            effect = self._effect_s(stage, option)
            if effect is not None:
                found.append((price_of(problem, option), self._quantile_s(self._latency_s + effect), option, effect))
        found.sort(key=lambda f: (f[0], f[1]))
        kept: list[Choice] = []
        best = np.inf
        for price, quantile, option, effect in found:
            if quantile <= best * NEAR:
                kept.append(Choice(option, price, effect))
            best = min(best, quantile)
        return kept

    def _held(self, stage: int) -> list[Option]:
        """Options that hold batches and cost less than the base's, with which its events seem to be in time.

        Of each kind the holds are tried just below the base's price; the best of them with ever fewer replicas.
        """
        problem, name = self._evaluator.problem, self._evaluator.problem.shape.stages[stage]
        price, within_s = price_of(problem, self.base[stage]), self._within_s(stage)
        found: list[Option] = []
        for kind in hardware_kinds(problem, name):
            pairs = holds(problem, stage, kind, rate=self._rates[stage], within_s=within_s)
            forms = replica_forms(problem, name, kind)
            count = self._bounds.affordable(stage, kind, price - COST_EPSILON, free=0)
            if count <= self._in_vain.get((stage, kind), 0):
                continue
            began = len(found)
            while pairs and count > 0:
                options = [
                    (replace(form, replicas=count, hold_s=hold_s),)
                    for limit, hold_s in pairs
                    for form in forms
                    if form.max_batch_size == limit
                ]
                # The largest limits first: those that no batch reaches need not be simulated.
                tried = [(i, o) for i, o in enumerate(options) if self._keeps_up(stage, o)]
                ranked = sorted((self._alone_s(stage, o), i) for i, o in reversed(tried))
                best = [options[i][0] for late_s, i in ranked[:BEST_HOLDS] if late_s <= self._target_s * NEAR]
                pairs = list(dict.fromkeys((a.max_batch_size, a.hold_s) for a in best))
                found += [options[i] for late_s, i in ranked if late_s <= self._target_s * NEAR]
                if len(found) == began:
                    self._in_vain[stage, kind] = count
                count -= max(1, count // THINNING)
        return found

    def _within_s(self, stage: int) -> float:
        """What the target leaves the stage of the slowest events' time."""
        visits = (self._weights == 1.0) & np.isfinite(self._through_s[stage])
        if not visits.any():
            return 0.0
        return self._target_s - float(np.median((self._through_s[stage] - self._spent_s[stage])[visits]))

    def _alone_s(self, stage: int, option: Option) -> float:
        """Predicted quantile if only this stage changes."""
        effect = self._effect_s(stage, option)
        return math.inf if effect is None else self._quantile_s(self._latency_s + effect)

    def _keeps_up(self, stage: int, option: Option) -> bool:
        return service_rate(self._evaluator.problem, stage, option) > self._bounds.required_rate[stage]

    def proposals(self, below: float, target_late: float) -> Iterator[Proposal]:
        """Candidates that change one stage or two, cost less than ``below`` and are predicted to be good enough.

        Yields:
            Cheapest first; of equal cost those with fewer late events first.
        """
        problem, base = self._evaluator.problem, self.base
        cost = cost_of(problem, base)
        prices = [price_of(problem, option) for option in base]
        saving = max(p - self._bounds.least_stage_price(s) for s, p in enumerate(prices)) + below - cost
        least, share = self._bounds.least_stage_price, cost / (2 * len(base))
        dearest = [max(p, min(p + max(saving, 0.0), max(FAR * least(s), share))) for s, p in enumerate(prices)]
        menus = list(self._evaluator.spread.map(lambda s: self.choices(s, dearest[s]), range(len(base))))
        offers = [(stage, choice) for stage, choices in enumerate(menus) for choice in choices]
        seen = {base}
        for cost_then, late, changed in self._cheapest(offers, prices, below - cost, target_late):
            candidate = base
            for offer in changed:
                stage, choice = offers[offer]
                candidate = replaced(candidate, stage, choice.option)
            if candidate not in seen:
                seen.add(candidate)
                yield Proposal(cost_then, late, candidate)

    def _cheapest(
        self, offers: Sequence[tuple[int, Choice]], prices: Sequence[float], room: float, target_late: float
    ) -> Iterator[tuple[float, float, tuple[int, ...]]]:
        """One offer or two, by cost and late events, with both; looked at only as far as they are asked for."""
        if not offers:
            return
        cost = cost_of(self._evaluator.problem, self.base)
        stages = np.array([stage for stage, _ in offers])
        price = np.array([choice.price for _, choice in offers])
        before = np.array(prices)[stages]
        effects_s = np.stack([choice.effect_s for _, choice in offers])
        alone = np.flatnonzero(price - before < room)
        late_alone = np.array([self._late(self._latency_s + effect_s) for effect_s in effects_s])
        saved, dearer = before - price, price - before
        down, up = np.nonzero(
            (saved + room > 0)[:, None] & (dearer >= 0) & (dearer - saved[:, None] < room) & (stages[:, None] != stages)
        )
        costs = np.concatenate([cost + price[alone] - before[alone], cost + dearer[up] - saved[down]])
        pairs = np.stack([np.concatenate([alone, down]), np.concatenate([alone, up])])
        order = np.argsort(costs, kind="stable")
        costs, pairs = costs[order], pairs[:, order]
        ends = np.flatnonzero(np.diff(costs, append=math.inf))  # of equal cost all are looked at together
        spare_s = self._target_s - self._latency_s
        first = 0
        while first < costs.size:
            end = int(ends[min(int(np.searchsorted(ends, first + TOGETHER)), ends.size - 1)]) + 1
            one, other = pairs[:, first:end]
            late = late_by_pair(effects_s, spare_s, self._weights, (one, other), target_late)
            late = np.where(one == other, late_alone[one], late)
            good = np.flatnonzero(late <= target_late)
            for i in good[np.lexsort((late[good], costs[first + good]))]:
                both = (int(one[i]),) if one[i] == other[i] else (int(one[i]), int(other[i]))
                yield float(costs[first + i]), float(late[i]), both
            first = end


def nearby(bounds: Bounds, stage: int, option: Option) -> list[Option]:
    """The option with up to two replicas less or more of one kind, at every batch limit."""
    problem, name = bounds.problem, bounds.problem.shape.stages[stage]
    found: list[Option] = []
    for part in option:
        others = [a for a in option if a is not part]
        cap = replica_cap(problem, name, part.hardware)
        counts = [n for n in range(part.replicas - 2, part.replicas + 3) if 0 < n <= cap]
        for form in reversed(replica_forms(problem, name, part.hardware)):
            found += [combined(problem, [*others, replace(form, hold_s=part.hold_s, replicas=n)]) for n in counts]
    return [o for o in found if service_rate(problem, stage, o) > bounds.required_rate[stage]]


def late_by_pair(effects_s: Times, spare_s: Times, weights: Ints, pairs: tuple[Ints, Ints], most: float) -> Ints:
    """Return by pair how many events are late; where there are more than ``most``, some number above it.

    Args:
        effects_s: (changes, events) what each change adds to the latency of each event.
        spare_s: (events,) how far each event is from being late; the first ones should be those nearest to it.
        weights: (events,) how many events each stands for.
        pairs: (pairs,) the one change, and the other.
        most: late events of interest.
    """
    late = np.empty(pairs[0].size, dtype=np.int64)
    limit = np.int64(min(most, 2.0**62)) if most >= 0 else np.int64(-1)
    _compiled()(effects_s, (spare_s, weights), pairs, limit, late)
    return late


def count_pairs(
    effects_s: Times, events_at: tuple[Times, Ints], pairs: tuple[Ints, Ints], most: np.int64, late: Ints
) -> None:
    """`late_by_pair`, written to ``late``; ``events_at`` are the room and the weight of each event."""
    spare_s, weights = events_at
    one, other = pairs
    events = spare_s.size
    for pair in range(one.size):
        mine, others = effects_s[one[pair]], effects_s[other[pair]]
        total = np.int64(0)
        first = 0
        while first < events and total <= most:
            end = min(first + BLOCK, events)
            for i in range(first, end):
                if others[i] > spare_s[i] - mine[i]:
                    total += weights[i]
            first = end
        late[pair] = total


@cache
def _compiled() -> Callable[[Times, tuple[Times, Ints], tuple[Ints, Ints], np.int64, Ints], None]:
    from numba import njit

    kernel: Callable[[Times, tuple[Times, Ints], tuple[Ints, Ints], np.int64, Ints], None] = njit(
        nogil=True, cache=True, error_model="numpy"
    )(count_pairs)
    return kernel
