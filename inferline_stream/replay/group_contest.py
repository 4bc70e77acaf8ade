"""Consumer groups on arrivals that came: what their members cost and miss, beside other ways to choose their number.

Each way is replayed on the same arrivals, with the pauses that changes of members were seen to cost. A recording longer
than an hour is judged by some stretches of it: the busiest, and of the others, sorted by their load and cut into equal
parts, the middle one of each part, which stands for the part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inferline_stream.baselines.hpa import HpaCpu, Keda
from inferline_stream.baselines.rule_inputs import Each, PipelineRule
from inferline_stream.calculus.envelope_state import EnvelopeKernel
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.plan import Allocation, Allocations, Plan
from inferline_stream.pipeline.shape import visit_ratios
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.clairvoyant import cheapest
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Ruled, Scaler, Tuner
from inferline_stream.tuner.group_plan import plan_groups
from inferline_stream.tuner.group_policy import group_state, group_step
from inferline_stream.tuner.tuner_state import TunerState

WHOLE_S = 3600.0
"""Up to this length a recording is replayed as a whole."""

STRETCH_S, WARM_UP_S, STRETCHES = 600.0, 300.0, 5
"""A longer one by so many stretches of this length, each after a while that is replayed and not judged."""

PERIOD_S = 1.0
"""Between two decisions of our policy here. Twice a second cost and misses are the same within 2 %."""

_BEGUN_UTILIZATION = 0.7
"""At which every rule begins."""

_HINDSIGHT_SLOT_S, _HINDSIGHT_REPLAYS = 5.0, 12

Way = Literal["now", "ours", "fixed", "keda", "hpa", "hindsight"]


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Arrivals that are replayed together.

    Args:
        trace: with the warm-up before.
        judged_from_s: on its clock.
        stands_for_s: how much of the recording it stands for.
    """

    trace: Trace
    judged_from_s: float
    stands_for_s: float


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One way to choose the members.

    Args:
        way: which.
        cost_per_hour: mean dollars.
        miss_rate: share of events above the SLO.
        p99_s: P99 of the end-to-end latency; infinite where more than 1 % never ended.
        changes_per_hour: of members, over all groups.
        keeps_objective: whether the misses are within what it allows.
        members: of those that never change them, by group.
    """

    way: Way
    cost_per_hour: float
    miss_rate: float
    p99_s: float
    changes_per_hour: float
    keeps_objective: bool
    members: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class GroupContest:
    """Every way on the same arrivals.

    Args:
        rows: those that could be judged.
        too_few: why no number of members keeps the SLO; None where one does.
        judged_s: how much of the recording was replayed and judged.
        holds: whether our policy holds its plan's number, since the objective does not pay for the changes that the
            traffic's levels would take.
    """

    rows: tuple[GroupRow, ...]
    too_few: str | None
    judged_s: float
    holds: bool = False

    def row(self, way: Way) -> GroupRow | None:
        """The row of that way, if there is one."""
        return next((row for row in self.rows if row.way == way), None)


def stretches(trace: Trace) -> tuple[Stretch, ...]:
    """Return what of a recording is replayed."""
    times_s = trace.arrivals_s
    windows = math.floor(float(times_s[-1]) / STRETCH_S) if len(trace) else 0
    if not len(trace) or float(times_s[-1]) <= WHOLE_S or windows <= STRETCHES:
        return (Stretch(trace, 0.0, float(times_s[-1]) if len(trace) else 0.0),)
    counts = np.diff(np.searchsorted(times_s, np.arange(windows + 1) * STRETCH_S))
    by_load = np.argsort(counts, kind="stable")
    parts = [*np.array_split(by_load[:-1], STRETCHES - 1), by_load[-1:]]
    found = []
    for part in parts:
        begin_s = float(part[part.size // 2]) * STRETCH_S
        warm_s = min(WARM_UP_S, begin_s)
        window = trace.window(begin_s - warm_s, begin_s + STRETCH_S)
        if len(window):
            found.append(Stretch(window, warm_s, part.size * STRETCH_S))
    return tuple(found)


def contest(
    model: GroupModel,
    trace: Trace,
    now: Mapping[str, int],
    *,
    kernel: EnvelopeKernel | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> GroupContest:
    """Judge every way to choose the members of groups on arrivals that came.

    Ours is planned for what is judged, and so is the fixed number to begin with; members are then taken away while all
    stretches together keep the objective. Rules of others have their default settings.

    Args:
        model: what was learned of the groups.
        trace: arrivals, from 0 on; at least two.
        now: members that run now, by group.
        kernel: of the envelope.
        progress: called with the way that is being judged.
    """
    arena = _GroupArena(model, stretches(trace))
    rows, too_few, holds = [], None, False

    def judge(way: Way, outcomes: Sequence[Outcome], members: Mapping[str, int] | None = None) -> None:
        rows.append(arena.row(way, outcomes, members))

    progress("now")
    judge("now", arena.fixed(now), now)
    sample = _joined(arena.stretches)
    try:
        progress("fixed")
        plan = plan_groups(model, sample)
    except Infeasible as error:
        too_few = str(error)
    else:
        held = arena.smallest({name: sum(a.replicas for a in each) for name, each in plan.allocations.items()})
        judge("fixed", arena.fixed(held), held)
        progress("ours")
        state = group_state(model, plan, sample)
        holds = state.basis.groups is not None and state.basis.groups.holds
        judge("ours", arena.ours(state, plan, kernel))
        progress("hindsight")
        judge("hindsight", arena.hindsight(state))
    rules: tuple[tuple[Way, PipelineRule], ...] = (("keda", Each(Keda())), ("hpa", Each(HpaCpu())))
    for way, rule in rules:
        progress(way)
        judge(way, arena.ruled(way, rule))
    judged_s = sum(float(s.trace.arrivals_s[-1]) - s.judged_from_s for s in arena.stretches)
    return GroupContest(tuple(rows), too_few, judged_s, holds)


def _joined(judged: Sequence[Stretch]) -> Trace:
    """The stretches one after another."""
    ends_s = np.cumsum([0.0, *(float(s.trace.arrivals_s[-1]) for s in judged)])
    return Trace(np.concatenate([s.trace.arrivals_s + at_s for s, at_s in zip(judged, ends_s[:-1], strict=True)]))


class _GroupArena:
    def __init__(self, model: GroupModel, judged: tuple[Stretch, ...]) -> None:
        self._model, self.stretches = model, judged
        profiles = {name: model.measured.profiles[name, kind] for name, kind in model.hardware.items()}
        self._one = {name: Allocation(p.hardware, p.batch_sizes[-1], 1) for name, p in profiles.items()}
        self._throughput = {name: p.throughput(p.batch_sizes[-1]) for name, p in profiles.items()}
        self._visits = visit_ratios(model.shape, model.measured.paths)
        self._price = {name: model.catalogue[kind].price_per_hour for name, kind in model.hardware.items()}

    def _allocations(self, members: Mapping[str, int]) -> Allocations:
        return {name: (replace(one, replicas=max(1, members.get(name, 1))),) for name, one in self._one.items()}

    def _begun(self, stretch: Stretch) -> dict[str, int]:
        """Members for the traffic that a stretch begins with."""
        head_s = stretch.judged_from_s or min(60.0, float(stretch.trace.arrivals_s[-1]))
        rate = len(stretch.trace.window(0.0, head_s)) / max(head_s, 1e-9)
        return {
            name: self._model.sharing[name].useful(
                max(1, math.ceil(rate * self._visits[name] / (_BEGUN_UTILIZATION * throughput)))
            )
            for name, throughput in self._throughput.items()
        }

    def _replay(self, stretch: Stretch, scaler: Scaler, allocations: Allocations) -> Outcome:
        return replay(
            self._model.shape,
            allocations,
            self._model.measured,
            stretch.trace,
            scaler,
            catalogue=self._model.catalogue,
            slo_s=self._model.slo_s,
            slots={},
            conditions=Conditions(step_s=PERIOD_S),
            sharing=self._model.sharing,
        )

    def fixed(self, members: Mapping[str, int]) -> list[Outcome]:
        """So many members all the time."""
        return [self._replay(s, Fixed("fixed"), self._allocations(members)) for s in self.stretches]

    def smallest(self, members: Mapping[str, int]) -> dict[str, int]:
        """Take members away, dearest first, while all stretches together keep the objective."""
        held = dict(members)
        shrinking = sorted((name for name in held if held[name] > 1), key=lambda name: -self._price[name])
        while shrinking:
            name = shrinking[0]
            fewer = {**held, name: self._fewer(name, held[name])}
            if self.row("fixed", self.fixed(fewer), fewer).keeps_objective:
                held = fewer
            if held is not fewer or held[name] == 1:
                shrinking.pop(0)
        return held

    def _fewer(self, name: str, members: int) -> int:
        """The next smaller number that is of use."""
        useful = self._model.sharing[name].useful
        return next((n for n in range(members - 1, 1, -1) if useful(n) == n), 1)

    def ours(self, state: TunerState, plan: Plan, kernel: EnvelopeKernel | None) -> list[Outcome]:
        """Our policy."""
        found = []
        for stretch in self.stretches:
            begun = self._begun(stretch)
            if state.basis.groups is not None and state.basis.groups.holds:
                begun = {name: sum(a.replicas for a in each) for name, each in plan.allocations.items()}
            wanted = {name: {self._one[name].hardware: count} for name, count in begun.items()}
            memory = None if state.groups is None else replace(state.groups, asked=wanted)
            first = replace(state, wanted=wanted, groups=memory)
            tuner = Tuner("ours", group_step, first, self._model.shape, period_s=PERIOD_S, kernel=kernel)
            found.append(self._replay(stretch, tuner, self._allocations(begun)))
        return found

    def hindsight(self, state: TunerState) -> list[Outcome]:
        """A schedule that knows the arrivals beforehand."""
        return [
            cheapest(
                state.basis,
                stretch.trace,
                lambda scaler, s=stretch: self._replay(s, scaler, self._allocations(self._begun(s))),  # type: ignore[misc]  # mypy
                slot_s=_HINDSIGHT_SLOT_S,
                replays=_HINDSIGHT_REPLAYS,
            )
            for stretch in self.stretches
        ]

    def ruled(self, name: str, rule: PipelineRule) -> list[Outcome]:
        """A rule of others."""
        found = []
        for stretch in self.stretches:
            begun = self._begun(stretch)
            scaler = Ruled(
                name,
                rule,
                self._model.shape,
                replicas=begun,
                hardware=self._model.hardware,
                most=self._model.partitions,
                partitions=max(self._model.partitions.values()),
            )
            found.append(self._replay(stretch, scaler, self._allocations(begun)))
        return found

    def row(self, way: Way, outcomes: Sequence[Outcome], members: Mapping[str, int] | None) -> GroupRow:
        """Put the stretches together, each by what it stands for."""
        cost = hours = changes = 0.0
        latencies, weights = [], []
        for stretch, outcome in zip(self.stretches, outcomes, strict=True):
            length_s = float(stretch.trace.arrivals_s[-1]) - stretch.judged_from_s
            weight = stretch.stands_for_s / length_s if length_s > 0 else 0.0
            dollars, changed = self._held(outcome, stretch, members or self._begun(stretch))
            cost, changes = cost + weight * dollars, changes + weight * changed
            hours += stretch.stands_for_s / 3600.0
            judged = outcome.judged_s[outcome.entry_s >= stretch.judged_from_s]
            judged = judged[~np.isnan(judged)]
            latencies.append(judged)
            weights.append(np.full(judged.size, weight))
        latency_s, weight_of = np.concatenate(latencies), np.concatenate(weights)
        total = float(weight_of.sum())
        late = float(weight_of[latency_s > self._model.slo_s].sum()) / total if total else 0.0
        return GroupRow(
            way,
            cost / hours if hours else 0.0,
            late,
            _quantile_s(latency_s, weight_of, 0.99),
            changes / hours if hours else 0.0,
            late <= 1 - self._model.objective,
            members,
        )

    def _held(self, outcome: Outcome, stretch: Stretch, begun: Mapping[str, int]) -> tuple[float, int]:
        """What the members cost that were wanted while the stretch was judged, and how often that changed."""
        held, at_s = {name: begun.get(name, 1) for name in self._one}, stretch.judged_from_s
        dollars, changes, end_s = 0.0, 0, float(stretch.trace.arrivals_s[-1])
        for step in (*outcome.steps, None):
            until_s = end_s if step is None else min(max(step.time_s, at_s), end_s)
            dollars += sum(self._price[name] * count for name, count in held.items()) * (until_s - at_s) / 3600.0
            at_s = until_s
            if step is not None:
                wanted = {name: sum(kinds.values()) for name, kinds in step.replicas.items()}
                if step.time_s >= stretch.judged_from_s:
                    changes += sum(held[name] != count for name, count in wanted.items())
                held |= wanted
        return dollars, changes


def _quantile_s(latency_s: NDArray[np.float64], weight: NDArray[np.float64], level: float) -> float:
    if not latency_s.size:
        return 0.0
    order = np.argsort(latency_s)
    shares = np.cumsum(weight[order])
    return float(latency_s[order][min(int(np.searchsorted(shares, level * shares[-1])), order.size - 1)])
