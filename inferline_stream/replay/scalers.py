"""Policies as the loop runs them: the production Tuner, a fixed plan, and rules of others."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inferline_stream.baselines.rule_inputs import PipelineRule, PipelineSeen, StageSeen
from inferline_stream.calculus.envelope_state import EnvelopeKernel
from inferline_stream.pipeline.shape import Shape
from inferline_stream.replay.live_observations import with_figures
from inferline_stream.replay.policy_view import Glimpse, View
from inferline_stream.tuner.calendar import Calendar, WeekCounter
from inferline_stream.tuner.decision import Decision
from inferline_stream.tuner.error_budget import DAY_S, ErrorBudget
from inferline_stream.tuner.observation import Observation, StageObservation, Supply
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.traffic import Traffic
from inferline_stream.tuner.tuner_state import TunerState, staffed

LEAST_EVENTS = 200
"""Events below which a recent visit ratio or service time is left out: too few to be one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Replicas wanted from now on, and why.

    Args:
        replicas: stage → hardware kind → replicas; what is missing stays.
        action: in one word.
        reason: in one word.
        detail: in words.
    """

    replicas: Mapping[str, Mapping[str, int]]
    action: str = "scale"
    reason: str = ""
    detail: str = ""


class Scaler(Protocol):
    """Decides on replicas, each `period_s`."""

    name: str
    period_s: float

    def decide(self, view: View) -> Wish | None:
        """What to change now; None for nothing."""


class Fixed:
    """A plan without a Tuner."""

    def __init__(self, name: str = "no tuner") -> None:
        self.name = name
        self.period_s = 60.0

    def decide(self, view: View) -> Wish | None:
        """Never anything."""
        return None


PureStep = Callable[[TunerState, Observation], tuple[TunerState, Decision | None]]


class Tuner:
    """The production policy: the same function as in the live loop, on the same observations.

    Args:
        name: of the policy.
        step: `tuner.policy.step` or another of `POLICIES`.
        state: `initial_state` of the plan.
        shape: the pipeline's DAG.
        period_s: how often it decides.
        slo_window_s: for which the objective holds; the first one begins at time 0, and each where the last one ends.
        later: from when on it decides by which table of staffing, where not from the beginning.
        kernel: of the envelope.
        calendar: what is known of the time ahead at time 0; None where nobody knows when that is.
    """

    def __init__(
        self,
        name: str,
        step: PureStep,
        state: TunerState,
        shape: Shape,
        *,
        period_s: float = 0.1,
        slo_window_s: float = DAY_S,
        later: tuple[float, Staffing] | None = None,
        kernel: EnvelopeKernel | None = None,
        calendar: Calendar | None = None,
    ) -> None:
        self.name = name
        self.period_s = period_s
        self.state = state
        self._later = later
        self._unspent, self._began_s, self._before = ErrorBudget(state.basis.objective, slo_window_s), 0.0, (0, 0)
        self._step = step
        self._traffic = Traffic(state.windows_s, kernel=kernel)
        self._calendar = calendar
        self.weeks = WeekCounter(None if calendar is None else calendar.weeks)
        self._hardware = {s.name: tuple(kind.hardware for kind in s.kinds) for s in state.basis.stages}
        self._planned = {s.name: [kind.throughput for kind in s.kinds] for s in state.basis.stages}
        self._order = shape.stages
        self._parents = [tuple(shape.arrows[a].parent for a in shape.parents(s)) for s in range(len(shape.stages))]
        self._firsts = [entries[0] for entries in shape.sources]
        """Of several sources, a stage at which all events of each enter."""

    def decide(self, view: View) -> Wish | None:
        """One step of the policy."""
        if self._later is not None and view.time_s >= self._later[0]:
            self.state, self._later = staffed(self.state, self._later[1]), None
        self._traffic.add(view.arrivals_s)
        if self._calendar is not None:
            self.weeks.add(self._calendar.time_s + view.time_s, view.arrivals_s.size)
        self.state, decision = self._step(self.state, with_figures(self.observation(view), view.figures))
        if decision is None:
            return None
        return Wish(decision.replicas, decision.action.value, decision.reason.value, decision.detail)

    def observation(self, view: View) -> Observation:
        """What the control plane would see."""
        now_s = view.time_s
        return Observation(
            time_s=now_s,
            envelope=self._traffic.envelope(now_s),
            arrival_rate=self._traffic.arrival_rate(now_s),
            peak_rate=self._traffic.peak_rate(now_s),
            stages=self._stages(view),
            arrivals_age_s=0.0,
            watched_s=view.watched_s,
            recent=self._traffic.recent(now_s),
            late_share=self._budget(view).share(self.state.basis.arrival_rate),
            calendar=self._known(now_s),
        )

    def _known(self, now_s: float) -> Calendar | None:
        known, basis = self._calendar, self.state.basis
        if known is None:
            return None
        return self.weeks.calendar(known.time_s + now_s, known.schedule, basis.start_up_s, basis.objective)

    def _budget(self, view: View) -> ErrorBudget:
        """The SLO's window now, which begins again as that of a live pipeline does."""
        if (passed := (view.time_s - self._began_s) // self._unspent.window_s) >= 1:
            self._began_s += passed * self._unspent.window_s
            self._before = view.events, view.late
        events, late = view.events - self._before[0], view.late - self._before[1]
        whole, passed_s = self._unspent, view.time_s - self._began_s
        return ErrorBudget(whole.objective, whole.window_s, passed_s, events, late)

    def _stages(self, view: View) -> dict[str, StageObservation]:
        ratios = self._visit_ratios(view.now, view.earlier)
        return {name: self._stage(view, s, ratios[s]) for s, name in enumerate(self._order)}

    def _stage(self, view: View, s: int, visit_ratio: float | None) -> StageObservation:
        name, seen, before = self._order[s], view.now[s], view.earlier[s]
        busy_s = seen.busy_s - before.busy_s
        drift = (seen.nominal_s - before.nominal_s) / busy_s if busy_s > 0 else 1.0
        measured = seen.completed - before.completed >= LEAST_EVENTS and abs(drift - 1) > 1e-9
        throughputs = tuple([planned * drift for planned in self._planned[name]]) if measured else ()
        return StageObservation(
            _supply(self._hardware[name], seen.ready, seen.pending, throughputs, seen.leaving),
            view.time_s - seen.time_s,
            visit_ratio,
            (seen.lag - seen.hidden,),
            (),
            0.0 if seen.oldest_s is None else seen.time_s - seen.oldest_s,
            seen.busy_share(before),
            seen.degraded_share(before),
        )

    def _visit_ratios(self, now: Sequence[Glimpse], before: Sequence[Glimpse]) -> list[float | None]:
        """Recent visits per event: shares of the arrows taken, multiplied along the way.

        Arrivals at a stage over arrivals at the pipeline would mistake a backlog upstream for a shift.
        """
        ratios: list[float | None] = []
        total = sum(now[s].arrived - before[s].arrived for s in self._firsts)
        for s, parents in enumerate(self._parents):
            if not parents:
                entered = now[s].arrived - before[s].arrived
                ratios.append(1.0 if not self._firsts else entered / total if total >= LEAST_EVENTS else None)
                continue
            parent = parents[0]
            above, left = ratios[parent], now[parent].completed - before[parent].completed
            if len(parents) > 1 or above is None or left < LEAST_EVENTS:
                ratios.append(None)
            else:
                ratios.append(above * (now[s].arrived - before[s].arrived) / left)
        return ratios


@functools.lru_cache
def _supply(
    hardware: tuple[str, ...],
    ready: tuple[int, ...],
    pending: tuple[int, ...],
    throughputs: tuple[float, ...],
    leaving: tuple[int, ...],
) -> Mapping[str, Supply]:
    """Replicas by kind, the same value as long as they stay what they are."""
    found = itertools.zip_longest(ready, pending, throughputs, leaving)
    return {
        kind: Supply(ready_k, pending_k, throughput, leaving=leaving_k or 0)
        for kind, (ready_k, pending_k, throughput, leaving_k) in zip(hardware, found, strict=True)
    }


class Ruled:
    """A rule of others, on the same plant and as old statistics.

    Args:
        name: of the rule.
        rule: see `baselines.rule_inputs`.
        shape: the pipeline's DAG.
        replicas: by stage, to begin with.
        hardware: by stage, what its replicas run on.
        most: by stage, replicas that are of use, where that has a limit.
        least: by stage, replicas that it keeps, where those are more than one.
        partitions: of each stage's topic, where replicas own them; None for one queue.
    """

    def __init__(
        self,
        name: str,
        rule: PipelineRule,
        shape: Shape,
        *,
        replicas: Mapping[str, int],
        hardware: Mapping[str, str],
        most: Mapping[str, int] | None = None,
        least: Mapping[str, int] | None = None,
        partitions: int | None = None,
    ) -> None:
        self.name = name
        self.period_s = rule.period_s
        self._rule = rule
        self._memory = rule.begin(replicas)
        self._order = shape.stages
        self._hardware = hardware
        self._most, self._least = most or {}, least or {}
        self._partitions = partitions
        self._parents = {
            stage: tuple(shape.stages[shape.arrows[a].parent] for a in shape.parents(s))
            for s, stage in enumerate(shape.stages)
        }
        self._before: tuple[Glimpse, ...] | None = None

    def decide(self, view: View) -> Wish | None:
        """One look."""
        stages = {name: self._seen(s, view.time_s, view.now[s]) for s, name in enumerate(self._order)}
        self._before = view.now
        seen = PipelineSeen(view.time_s, stages, self._parents, tuple(view.arrivals_s.tolist()))
        self._memory, wanted = self._rule.step(self._memory, seen)
        of_use = {
            name: max(min(count, self._most.get(name, count)), self._least.get(name, 0))
            for name, count in wanted.items()
        }
        changed = {name: count for name, count in of_use.items() if count != stages[name].replicas}
        if not changed:
            return None
        up = all(count > stages[name].replicas for name, count in changed.items())
        down = all(count < stages[name].replicas for name, count in changed.items())
        return Wish(
            {name: {self._hardware[name]: count} for name, count in changed.items()},
            "scale_up" if up else "scale_down" if down else "scale",
        )

    def _seen(self, s: int, now_s: float, seen: Glimpse) -> StageSeen:
        before = None if self._before is None else self._before[s]
        since_s = seen.time_s - (0.0 if before is None else before.time_s)
        ready, arrived, completed = sum(seen.ready), seen.arrived, seen.completed
        if before is not None:
            arrived, completed = arrived - before.arrived, completed - before.completed
        busy = seen.busy_share(before) or 0.0
        return StageSeen(
            time_s=now_s,
            replicas=ready + sum(seen.pending),
            ready=ready,
            lag=float(seen.lag),
            arrival=arrived / since_s if since_s > 0 else 0.0,
            processed=completed / since_s if since_s > 0 else 0.0,
            busy=busy,
            cpu=busy,
            partitions=self._partitions,
        )


class Scheduled:
    """Replicas by the clock, known beforehand: it is asked when a step is due, unless it stands for a live policy.

    Args:
        name: of the schedule.
        steps: (time_s, stage → hardware kind → replicas), ascending.
    """

    period_s = math.inf

    def __init__(self, name: str, steps: Sequence[tuple[float, Mapping[str, Mapping[str, int]]]]) -> None:
        self.name = name
        self.steps = tuple(steps)
        self.times_s = np.array([time_s for time_s, _ in steps])
        self._next = 0

    def decide(self, view: View) -> Wish | None:
        """See `due`."""
        return self.due(view.time_s)

    def due(self, now_s: float) -> Wish | None:
        """Whatever has come due since the last time; the last one counts."""
        due = None
        while self._next < len(self.steps) and self.steps[self._next][0] <= now_s + 1e-9:
            due = self.steps[self._next][1]
            self._next += 1
        return None if due is None else Wish(due, "scale", "schedule")
