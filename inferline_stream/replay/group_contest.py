"""Consumer groups on arrivals that came: what their members cost and miss, beside other ways to choose their number.

Each way is replayed on the same arrivals, with the pauses that changes of members were seen to cost. Of a long
recording some stretches are judged: the busiest, and of the others, sorted by their load and cut into equal parts, the
middle one of each part, which stands for the part. Ours is planned for what came before each, an hour at most, as `run`
plans again every few minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inferline_stream.baselines.hpa import Behavior, HpaCpu, Keda
from inferline_stream.baselines.rule_inputs import Each, PipelineRule
from inferline_stream.calculus.envelope_state import EnvelopeKernel
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.plan import Allocation, Allocations, replicas_of
from inferline_stream.pipeline.shape import visit_ratios
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.clairvoyant import cheapest
from inferline_stream.replay.group_tuner import GroupTuner
from inferline_stream.replay.hpa_follower import AT_ONCE, UNSET, HpaFollower
from inferline_stream.replay.loop import Conditions, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Ruled, Scaler, Scheduled
from inferline_stream.tuner.group_plan import LEAST_TRAFFIC_S, plan_groups
from inferline_stream.tuner.group_policy import group_state
from inferline_stream.tuner.group_replan import RECENT_S, GroupPlanning, planned
from inferline_stream.tuner.tuner_state import TunerState

STRETCH_S, WARM_UP_S, STRETCHES = 600.0, 300.0, 5
"""A recording is cut into parts of this length. The first is planned for, and so many of the others are judged, each
after a while that is replayed and not judged."""

LEAST_S = 120.0
"""A recording that has less than two of `STRETCH_S` is cut in two, if each is so long."""

PERIOD_S = 1.0
"""Between two decisions of our policy here. Twice a second cost and misses are the same within 2 %."""

_BEGUN_UTILIZATION = 0.7
"""At which every rule begins."""

_HINDSIGHT_SLOT_S, _HINDSIGHT_REPLAYS = 5.0, 12

Way = Literal["now", "ours", "ours_keda", "ours_hpa", "fixed", "keda", "hpa", "hindsight"]


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Arrivals that are replayed together.

    Args:
        trace: with the warm-up before.
        judged_from_s: on its clock.
        stands_for_s: how much of the recording it stands for.
        before: what came in the hour before it is judged; None where the recording is too short.
    """

    trace: Trace
    judged_from_s: float
    stands_for_s: float
    before: Trace | None = None

    @property
    def length_s(self) -> float:
        """How much of it is judged."""
        return float(self.trace.arrivals_s[-1]) - self.judged_from_s


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
        cost_error: standard error of the cost over the stretches; None of a single one. They are taken to be drawn
            independently: as each stands for others with its load, the error is less.
        miss_error: likewise of the miss rate.
    """

    way: Way
    cost_per_hour: float
    miss_rate: float
    p99_s: float
    changes_per_hour: float
    keeps_objective: bool
    members: Mapping[str, int] | None = None
    cost_error: float | None = None
    miss_error: float | None = None


@dataclass(frozen=True, slots=True)
class GroupContest:
    """Every way on the same arrivals.

    Args:
        rows: those that could be judged.
        too_few: why no number of members keeps the SLO, on what is judged or on what ours is planned for; None where
            one does.
        judged_s: how much of the recording was replayed and judged.
        planned_from_s: length of what ours is planned for, the longest before any stretch; None where the recording is
            too short, and ours is planned for what it is judged on.
        holds: whether our policy mostly holds its plan's number, since the objective does not pay for the changes that
            the traffic's levels would take.
    """

    rows: tuple[GroupRow, ...]
    too_few: str | None
    judged_s: float
    planned_from_s: float | None = None
    holds: bool = False

    def row(self, way: Way) -> GroupRow | None:
        """The row of that way, if there is one."""
        return next((row for row in self.rows if row.way == way), None)


def cut(trace: Trace) -> tuple[Stretch, ...]:
    """Return what of a recording, with at least one arrival, is judged, by its load, each with what came before."""
    times_s = trace.arrivals_s
    end_s = float(times_s[-1])
    # The last arrival comes a little before the recording's end.
    count = max(math.floor(end_s / STRETCH_S + 0.05), 2 if end_s >= 2 * LEAST_S else 1)
    length_s = STRETCH_S if count > STRETCHES + 1 else end_s / count
    enough = int(np.searchsorted(times_s, times_s[0] + LEAST_TRAFFIC_S))
    first = 1 + math.floor(float(times_s[enough]) / length_s) if enough < len(trace) else count
    if first >= count:
        return (Stretch(trace, 0.0, end_s),)
    counts = np.diff(np.searchsorted(times_s, np.arange(first, count + 1) * length_s))
    by_load = np.argsort(counts, kind="stable")
    others = np.array_split(by_load[:-1], STRETCHES - 1)
    found = []
    for part in (*(each for each in others if each.size), by_load[-1:]):
        begin_s = float(first + part[part.size // 2]) * length_s
        warm_s = min(WARM_UP_S, begin_s)
        window = trace.window(begin_s - warm_s, begin_s + length_s)
        if len(window) and float(window.arrivals_s[-1]) > warm_s:
            before = trace.window(max(begin_s - RECENT_S, 0.0), begin_s)
            found.append(Stretch(window, warm_s, part.size * length_s, before))
    return tuple(found)


def contest(
    model: GroupModel,
    trace: Trace,
    now: Mapping[str, int],
    *,
    tolerances: Mapping[str, float] | None = None,
    kernel: EnvelopeKernel | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> GroupContest:
    """Judge every way to choose the members of groups on arrivals that came.

    Ours is planned for what came before each stretch, where there is enough. The fixed number is the smallest in
    hindsight: it begins with a plan for what is judged, and members are taken away while all stretches together keep
    the objective. Rules of others have their default settings.

    Args:
        model: what was learned of the groups.
        trace: arrivals, from 0 on; at least two.
        now: members that run now, by group.
        tolerances: by group that a HorizontalPodAutoscaler scales, its own: how we would do through it comes apart.
        kernel: of the envelope.
        progress: called with the way that is being judged.
    """
    arena = _GroupArena(model, cut(trace))
    planned_from_s = max((s.before.duration_s for s in arena.stretches if s.before is not None), default=None)
    rows, too_few, holds = [], None, False

    def judge(way: Way, replayed: Sequence[_Replayed], members: Mapping[str, int] | None = None) -> None:
        rows.append(arena.row(way, replayed, members))

    progress("now")
    judge("now", arena.fixed(now), now)
    sample = _joined(arena.stretches)
    try:
        progress("fixed")
        plan = plan_groups(model, sample)
    except Infeasible as error:
        too_few = str(error)
    else:
        held = arena.smallest({name: replicas_of(each) for name, each in plan.allocations.items()})
        judge("fixed", arena.fixed(held), held)
        progress("hindsight")
        judge("hindsight", arena.hindsight(group_state(model, plan, sample)))
        progress("ours")
        try:
            plans = [
                planned(model, sample if s.before is None or not len(s.before) else s.before) for s in arena.stretches
            ]
        except Infeasible as error:
            too_few = f"{error}; so it was before a stretch that is judged, for which ours is planned"
        else:
            holding = [s.stands_for_s for s, plan in zip(arena.stretches, plans, strict=True) if plan.holds]
            holds = sum(holding) > sum(s.stands_for_s for s in arena.stretches) / 2
            judge("ours", arena.ours(plans, kernel))
            through: tuple[tuple[Way, Behavior], ...] = (("ours_keda", AT_ONCE), ("ours_hpa", UNSET))
            for way, behavior in through if tolerances else ():
                progress(way)
                judge(way, arena.ours(plans, kernel, (tolerances or {}, behavior)))
    rules: tuple[tuple[Way, PipelineRule], ...] = (("keda", Each(Keda())), ("hpa", Each(HpaCpu())))
    for way, rule in rules:
        progress(way)
        judge(way, arena.ruled(way, rule))
    judged_s = sum(s.length_s for s in arena.stretches)
    return GroupContest(tuple(rows), too_few, judged_s, planned_from_s, holds)


def replayed_p99_s(model: GroupModel, trace: Trace, members: Mapping[str, int]) -> float:
    """Return the P99 of so many members all the time on a whole trace."""
    arena = _GroupArena(model, (Stretch(trace, 0.0, _end_s(trace)),))
    return arena.row("now", arena.fixed(members), members).p99_s


def _joined(judged: Sequence[Stretch]) -> Trace:
    """The stretches one after another."""
    ends_s = np.cumsum([0.0, *(float(s.trace.arrivals_s[-1]) for s in judged)])
    return Trace(np.concatenate([s.trace.arrivals_s + at_s for s, at_s in zip(judged, ends_s[:-1], strict=True)]))


@dataclass(frozen=True, slots=True, eq=False)
class _Replayed:
    """A stretch's outcome, and the members that its replay began with."""

    outcome: Outcome
    begun: Mapping[str, int]


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

    def _replay(self, stretch: Stretch, scaler: Scaler, begun: Mapping[str, int]) -> _Replayed:
        outcome = replay(
            self._model.shape,
            self._allocations(begun),
            self._model.measured,
            stretch.trace,
            scaler,
            catalogue=self._model.catalogue,
            slo_s=self._model.slo_s,
            slots={},
            conditions=Conditions(step_s=PERIOD_S),
            sharing=self._model.sharing,
        )
        return _Replayed(outcome, begun)

    def fixed(self, members: Mapping[str, int]) -> list[_Replayed]:
        """So many members all the time."""
        return [self._replay(s, Fixed("fixed"), members) for s in self.stretches]

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

    def ours(
        self,
        plans: Sequence[GroupPlanning],
        kernel: EnvelopeKernel | None,
        through: tuple[Mapping[str, float], Behavior] | None = None,
    ) -> list[_Replayed]:
        """Our policy, by the plan of each stretch and those that follow it, or through an autoscaler."""
        found = []
        for stretch, plan in zip(self.stretches, plans, strict=True):
            begun = plan.members if plan.holds else self._begun(stretch)
            made_s = None if stretch.before is None else stretch.judged_from_s
            scaler: Scaler = GroupTuner(plan, begun, period_s=PERIOD_S, made_s=made_s, kernel=kernel)
            if through is not None:
                scaler = HpaFollower(scaler, begun, self._model.hardware, *through)
            found.append(self._replay(stretch, scaler, begun))
        return found

    def hindsight(self, state: TunerState) -> list[_Replayed]:
        """A schedule that knows the arrivals beforehand."""
        found = []
        for stretch in self.stretches:
            begun = self._begun(stretch)

            def run(scaler: Scheduled, stretch: Stretch = stretch, begun: Mapping[str, int] = begun) -> Outcome:
                return self._replay(stretch, scaler, begun).outcome

            outcome = cheapest(state.basis, stretch.trace, run, slot_s=_HINDSIGHT_SLOT_S, replays=_HINDSIGHT_REPLAYS)
            found.append(_Replayed(outcome, begun))
        return found

    def ruled(self, name: str, rule: PipelineRule) -> list[_Replayed]:
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
                most=self._model.most,
                partitions=max(self._model.partitions.values()),
            )
            found.append(self._replay(stretch, scaler, begun))
        return found

    def row(self, way: Way, replayed: Sequence[_Replayed], members: Mapping[str, int] | None) -> GroupRow:
        """Put the stretches together, each by what it stands for."""
        dollars, hours, late, events = (np.zeros(len(replayed)) for _ in range(4))
        changes, latencies, weights = 0.0, [], []
        for k, (stretch, run) in enumerate(zip(self.stretches, replayed, strict=True)):
            weight = stretch.stands_for_s / stretch.length_s if stretch.length_s > 0 else 0.0
            paid, changed = self._held(run, stretch)
            dollars[k], hours[k], changes = weight * paid, stretch.stands_for_s / 3600.0, changes + weight * changed
            judged = run.outcome.judged_s[run.outcome.entry_s >= stretch.judged_from_s]
            judged = judged[~np.isnan(judged)]
            late[k], events[k] = weight * int((judged > self._model.slo_s).sum()), weight * judged.size
            latencies.append(judged)
            weights.append(np.full(judged.size, weight))
        miss_rate, miss_error = _ratio(late, events)
        cost, cost_error = _ratio(dollars, hours)
        return GroupRow(
            way,
            cost,
            miss_rate,
            _quantile_s(np.concatenate(latencies), np.concatenate(weights), 0.99),
            changes / float(hours.sum()) if hours.any() else 0.0,
            miss_rate <= 1 - self._model.objective,
            members,
            cost_error,
            miss_error,
        )

    def _held(self, run: _Replayed, stretch: Stretch) -> tuple[float, int]:
        """What the members cost that were wanted while the stretch was judged, and how often that changed."""
        held, at_s = {name: run.begun.get(name, 1) for name in self._one}, stretch.judged_from_s
        dollars, changes, end_s = 0.0, 0, float(stretch.trace.arrivals_s[-1])
        for step in (*run.outcome.steps, None):
            until_s = end_s if step is None else min(max(step.time_s, at_s), end_s)
            dollars += sum(self._price[name] * count for name, count in held.items()) * (until_s - at_s) / 3600.0
            at_s = until_s
            if step is not None:
                wanted = {name: sum(kinds.values()) for name, kinds in step.replicas.items()}
                if step.time_s >= stretch.judged_from_s:
                    changes += sum(held[name] != count for name, count in wanted.items())
                held |= wanted
        return dollars, changes


def _end_s(trace: Trace) -> float:
    return float(trace.arrivals_s[-1])


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64]) -> tuple[float, float | None]:
    """The ratio of two sums over stretches, and its standard error (Cochran 1977, §2.11); None of a single stretch."""
    total, n = float(under.sum()), over.size
    ratio = float(over.sum()) / total if total else 0.0
    if n < 2 or not total:
        return ratio, None
    return ratio, math.sqrt(n / (n - 1) * float(((over - ratio * under) ** 2).sum())) / total


def _quantile_s(latency_s: NDArray[np.float64], weight: NDArray[np.float64], level: float) -> float:
    if not latency_s.size:
        return 0.0
    order = np.argsort(latency_s)
    shares = np.cumsum(weight[order])
    return float(latency_s[order][min(int(np.searchsorted(shares, level * shares[-1])), order.size - 1)])
