"""What knowing the trace could save: a schedule found by local search, and a bound that no policy can pass."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.kernels import Floats, Ints
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile, Profile
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Scheduled
from inferline_stream.tuner.demand import supply_for
from inferline_stream.tuner.plan_basis import Basis, StageBasis
from inferline_stream.tuner.replica_fit import fewer, more

SLOT_S = 1.0
"""Length of the slots in which a schedule holds as many replicas."""

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
"""Factors on the traffic of each slot, among which the search begins."""

REPLAYS = 80
"""Of the local search."""

NEAR_S = 5.0
"""Windows of traffic up to this long say what a slot needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Stretches of slots that do not touch, in each of which a schedule is changed.

    Args:
        first: (windows,) their first slots.
        end: (windows,) the slots after their last.
        rows: (windows, 2) the rows that change; the same one twice where it is one.
    """

    first: Ints
    end: Ints
    rows: Ints

    def among(self, chosen: NDArray[np.bool_]) -> Windows:
        """Those chosen."""
        return Windows(self.first[chosen], self.end[chosen], self.rows[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Replicas over the trace, and how they did.

    Args:
        needed: (rows, slots) replicas at work, by stage and hardware kind.
        asked: the same with those that are starting.
        outcome: the replay.
        late: (slots + 1,) late events that entered before each slot.
    """

    needed: Ints
    asked: Ints
    outcome: Outcome
    late: Ints


class Hindsight:
    """The space of schedules for one trace.

    Rows are the stages' hardware kinds, so that a stage's mixture may change. A replica is asked for its start-up time
    before the slot that needs it, and stays where it would have to be asked for again before it is gone.

    Args:
        basis: the plan.
        trace: the one to be judged by.
        run: replays a schedule.
        start_up_s: of every replica; None for each profile's.
        slot_s: length of a slot.
    """

    def __init__(
        self,
        basis: Basis,
        trace: Trace,
        run: Callable[[Scheduled], Outcome],
        *,
        start_up_s: float | None,
        slot_s: float,
    ) -> None:
        self.basis, self.slots = basis, math.ceil((trace.arrivals_s[-1] if len(trace) else 0.0) / slot_s) + 1
        self._run, self._slot_s, self._trace = run, slot_s, trace
        kinds = [(s, kind) for s, stage in enumerate(basis.stages) for kind in stage.kinds]
        self.stage_of = np.array([s for s, _ in kinds])
        self.hardware = [kind.hardware for _, kind in kinds]
        # Shares of devices count as such, to choose what is tried; the replays that decide pay whole devices.
        self.price = np.array([kind.price_per_hour * slot_s / 3600 for _, kind in kinds])
        starts_s = [kind.start_up_s if start_up_s is None else start_up_s for _, kind in kinds]
        self.lead = np.array([math.ceil(s / slot_s - 1e-9) for s in starts_s])

    def tried(self, needed: Ints) -> Schedule:
        """Replay a schedule."""
        ahead = [_largest_ahead(row, lead) for row, lead in zip(needed, self.lead, strict=True)]
        asked = self.within(np.array(ahead))
        outcome = self._run(Scheduled("clairvoyant", self._steps(asked)))
        slot = (outcome.entry_s[outcome.judged_s > outcome.slo_s] / self._slot_s).astype(np.int64)
        return Schedule(needed, asked, outcome, _before(np.bincount(slot, minlength=self.slots)))

    def plan(self) -> Ints:
        """The plan's replicas all the time."""
        planned = [kind.planned for stage in self.basis.stages for kind in stage.kinds]
        return np.repeat(np.array(planned)[:, None], self.slots, axis=1)

    def for_traffic(self, multiples: Iterable[float]) -> Ints:
        """The policy's replicas for so many times the sample's traffic in each slot, within all limits."""
        fitted: dict[float, list[int]] = {}
        for multiple in (given := list(multiples)):
            if multiple not in fitted:
                fitted[multiple] = [n for stage in self.basis.stages for n in _fit(self.basis, stage, multiple)]
        return self.within(np.array([fitted[multiple] for multiple in given]).T)

    def within(self, replicas: Ints) -> Ints:
        """The nearest schedule within slots, servers and stock; the later stages and kinds give way."""
        replicas = np.maximum(replicas, 0)
        for s, stage in enumerate(self.basis.stages):
            rows = np.flatnonzero(self.stage_of == s)
            replicas[rows[0]] += np.maximum(max(stage.slots, 1) - replicas[rows].sum(axis=0), 0)
            if stage.most_replicas is not None:
                self._cut(replicas, rows, stage.most_replicas)
        for hardware, stock in self.basis.stock.items():
            self._cut(replicas, np.array([r for r, name in enumerate(self.hardware) if name == hardware]), stock)
        return replicas

    def _cut(self, replicas: Ints, rows: Ints, most: int) -> None:
        """Leave at most so many in these rows, and of every stage as many as it has slots."""
        for row in rows[::-1]:
            stage = self.stage_of[row]
            spare = replicas[self.stage_of == stage].sum(axis=0) - max(self.basis.stages[stage].slots, 1)
            over = np.maximum(replicas[rows].sum(axis=0) - most, 0)
            replicas[row] -= np.minimum(over, np.minimum(replicas[row], np.maximum(spare, 0)))

    def multiples(self) -> Floats:
        """Multiple of the sample's traffic in each slot: the largest of any short window that touches it.

        Windows of trace and sample compare after both are lengthened by the SLO, within which events may wait.
        """
        basis, times = self.basis, self._trace.arrivals_s
        most = np.zeros(self.slots)
        for window_s in (w for w in basis.windows_s if w <= NEAR_S):
            counts = np.arange(1, times.size + 1) - np.searchsorted(times, times - window_s, side="right")
            for back_s in np.arange(0.0, window_s + self._slot_s, self._slot_s):
                slot = np.floor(np.maximum(times - min(back_s, window_s), 0.0) / self._slot_s).astype(np.int64)
                np.maximum.at(most, slot, counts / (window_s + basis.slo_s))
        short = zip(basis.windows_s, basis.counts, strict=True)
        return most / max((n / (w + basis.slo_s) for w, n in short if w <= NEAR_S), default=1.0)

    def _steps(self, asked: Ints) -> list[tuple[float, Mapping[str, Mapping[str, int]]]]:
        steps: list[tuple[float, Mapping[str, Mapping[str, int]]]] = []
        changed = np.ones_like(asked, dtype=bool)
        changed[:, 1:] = asked[:, 1:] != asked[:, :-1]
        for slot in np.flatnonzero(changed.any(axis=0)).tolist():
            wanted: dict[str, dict[str, int]] = {}
            for row in np.flatnonzero(changed[:, slot]).tolist():
                stage = self.basis.stages[self.stage_of[row]].name
                wanted.setdefault(stage, {})[self.hardware[row]] = int(asked[row, slot])
            steps.append((slot * self._slot_s, wanted))
        return steps


def _fit(basis: Basis, stage: StageBasis, multiple: float) -> list[int]:
    throughputs = {kind.hardware: kind.throughput for kind in stage.kinds}
    needed = supply_for(basis, stage, multiple)
    fit = more(stage, {k.hardware: k.planned for k in stage.kinds}, throughputs, needed, stock=basis.stock)
    held = fewer(stage, fit.replicas, throughputs, needed, stage.slots)
    return [held[kind.hardware] for kind in stage.kinds]


def _largest_ahead(values: Ints, slots: int) -> Ints:
    """At each slot the largest value of it and the next so many."""
    padded = np.concatenate([values, np.zeros(slots, values.dtype)])
    largest: Ints = np.lib.stride_tricks.sliding_window_view(padded, slots + 1)[: values.size].max(axis=1)
    return largest


def cheapest(
    basis: Basis,
    trace: Trace,
    run: Callable[[Scheduled], Outcome],
    *,
    start_up_s: float | None = None,
    slot_s: float = SLOT_S,
    replays: int = REPLAYS,
) -> Outcome:
    """The cheapest schedule found that keeps the objective; the one with the fewest misses if none does.

    The search begins with the better of the plan alone and of what the policy holds for the traffic of each slot. It
    then changes replicas by one in windows of all lengths. A replay tries one change in each of many windows that do
    not touch, as the time at which an event entered says which window made it late. Of the changes, those are kept that
    together save most within the misses allowed, if the replay of all of them agrees.

    Args:
        basis: the plan.
        trace: the one to be judged by.
        run: replays a schedule.
        start_up_s: of every replica in these replays; None for each profile's.
        slot_s: length of the slots in which a schedule holds as many replicas.
        replays: of the search.
    """
    space = Hindsight(basis, trace, run, start_up_s=start_up_s, slot_s=slot_s)
    allowed = 1 - basis.objective
    best = _beginning(space, allowed)
    rng = np.random.default_rng([0, space.slots])
    lengths = [length for k in range(20) if (length := space.slots >> k) >= 1]
    tries = 0
    while tries < replays:
        length = lengths[tries % len(lengths)]
        trial, windows = _changed(space, best, length, rng)
        tries += 1
        if not windows.first.size:
            continue
        tried = [best, space.tried(trial)]
        kept = windows.among(_exchanged(*_differences(space, best, tried[1], windows), best.outcome, allowed))
        if 0 < kept.first.size < windows.first.size:
            wanted = best.needed.copy()
            for first, end, rows in zip(kept.first, kept.end, kept.rows, strict=True):
                wanted[rows, first:end] = trial[rows, first:end]
            tried.append(space.tried(wanted))
            tries += 1
        best = min(tried, key=lambda s: s.outcome.rank(allowed))
    return best.outcome


def _beginning(space: Hindsight, allowed: float) -> Schedule:
    """The better of the plan alone and the smallest of `FACTORS` that keeps the objective, or the largest."""
    best = space.tried(space.plan())
    multiples = space.multiples()
    tried: dict[float, Schedule] = {}

    def keeps(factor: float) -> bool:
        tried[factor] = space.tried(space.for_traffic((multiples * factor).tolist()))
        return tried[factor].outcome.miss_rate <= allowed

    bisect.bisect_left(FACTORS, True, key=keeps)
    return min((best, *tried.values()), key=lambda s: s.outcome.rank(allowed))


def _changed(space: Hindsight, best: Schedule, length: int, rng: np.random.Generator) -> tuple[Ints, Windows]:
    """A schedule with one change in each of many windows of so many slots, and those windows.

    A row of what costs most is taken most often. It has one replica less, or one more where events were late; where a
    stage mixes kinds, another kind of it may have one more, or less.
    """
    apart = max(length // 2, 2) if length < space.slots else 0
    start = int(rng.integers(length + apart)) - length + 1 if apart else 0
    first = np.arange(start, space.slots, length + apart)
    end, first = np.minimum(first + length, space.slots), np.maximum(first, 0)
    spent = (space.price if space.price.any() else 1.0) * (best.asked.sum(axis=1) + 1)  # where none costs anything
    rows = np.repeat(rng.choice(spent.size, first.size, p=spent / spent.sum())[:, None], 2, axis=1)
    steps = np.where((best.late[end] > best.late[first]) & (rng.random(first.size) < 0.5), 1, -1)
    trial = best.needed.copy()
    for i, (row, _) in enumerate(rows.tolist()):
        trial[row, first[i] : end[i]] += steps[i]
        others = np.flatnonzero((space.stage_of == space.stage_of[row]) & (space.price > 0))
        if others.size > 1 and (other := int(rng.choice(others))) != row:
            rows[i, 1] = other
            trial[other, first[i] : end[i]] -= steps[i]
    trial = space.within(trial)
    changed = _before((trial != best.needed).any(axis=0))
    return trial, Windows(first, end, rows).among(changed[end] > changed[first])


def _differences(space: Hindsight, best: Schedule, tried: Schedule, windows: Windows) -> tuple[Floats, Ints]:
    """By window: the dollars that its change costs, and the events that it makes late, by when they entered."""
    between = (windows.end[:-1] + windows.first[1:]) // 2
    late = np.diff((tried.late - best.late)[np.concatenate([[0], between, [space.slots]])])
    spent = np.array([_before(row) for row in (tried.asked - best.asked) * space.price[:, None]])
    dollars = np.zeros(late.size)
    for k, counts in enumerate((True, windows.rows[:, 1] != windows.rows[:, 0])):
        rows = windows.rows[:, k]
        asked = np.maximum(windows.first - space.lead[rows], 0)
        dollars += counts * (spent[rows, windows.end] - spent[rows, asked])
    return dollars, late


def _exchanged(dollars: Floats, late: Ints, outcome: Outcome, allowed: float) -> NDArray[np.bool_]:
    """Which changes together save most within the misses allowed: all that are worth one price of a late event.

    Where more is missed than allowed, those that make fewer events late.
    """
    if outcome.miss_rate > allowed:
        return late < 0
    chosen = (dollars <= 0) & (late <= 0) & ((dollars < 0) | (late < 0))
    trades = np.flatnonzero(dollars * late < 0)
    price = -dollars[trades] / late[trades]
    trades = trades[np.argsort(price)]
    saves = dollars[trades] < 0
    # At the price of the i-th, those from it on save more than their late events cost, and those up to it cost less.
    totals = [
        np.cumsum(np.where(saves, value[trades], 0)[::-1])[::-1] + np.cumsum(np.where(saves, 0, value[trades]))
        for value in (dollars, late)
    ]
    may = allowed * outcome.known - outcome.late - late[chosen].sum()
    if (possible := np.flatnonzero((totals[1] <= may) & (totals[0] < 0))).size:
        best = possible[np.argmin(totals[0][possible])]
        chosen[trades] = np.where(saves, np.arange(trades.size) >= best, np.arange(trades.size) <= best)
    return chosen


def _before(values: NDArray[Any]) -> NDArray[Any]:
    """The sum of all values before each, and of all."""
    return np.concatenate([[0], np.cumsum(values)])


def work_bound(
    allocations: Allocations,
    measured: PipelineProfile,
    visits: Mapping[str, float],
    catalogue: Catalogue,
    *,
    objective: float,
) -> float:
    """Dollars below which no policy can serve the objective's share of these visits.

    Every event takes at least 1/µ of a replica's time at the best batch size of the kind that gives the most events
    per dollar; replicas would have to be busy without a break, and batches beside others as fast as alone. Where a
    fallback is faster it counts as if it made every event: in a short run its share bounds little.

    Args:
        allocations: the kinds and batch limits of each stage.
        measured: profiles.
        visits: events that visit each stage.
        catalogue: prices.
        objective: share of events to be served.
    """
    total = 0.0
    for stage, held in allocations.items():
        per_event = min(
            catalogue[a.hardware].price_per_hour
            / 3600
            / max(
                a.concurrency * profile.throughput(b)
                for profile in _versions(measured.profiles[stage, a.hardware])
                for b in range(1, a.max_batch_size + 1)
            )
            for a in held
        )
        total += visits[stage] * objective * per_event
    return total


def _versions(profile: Profile) -> list[Profile]:
    fallback = profile.of_fallback()
    return [profile] if fallback is None else [profile, fallback]
