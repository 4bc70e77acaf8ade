"""What sleeping saves on traffic like the sample, and what its cold starts make late. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.tuner.plan_basis import Basis
from inferline_stream.tuner.sleeping_stages import start_up_s
from inferline_stream.tuner.traffic import RATE_WINDOW_S


@dataclass(frozen=True, slots=True)
class Sleeper:
    """What a stage is while it sleeps, and as it wakes. Times are in seconds.

    Args:
        start_up_s: from the event that wakes it to its first replica at work.
        alone_s: service time of one event, and of its way there.
        visit_ratio: visits per event.
        cost_per_hour: dollars per hour of the replicas that it has awake, as planned, less those of what stays.
        stands_by: in words, what stays.
    """

    start_up_s: float
    alone_s: float = 0.0
    visit_ratio: float = 1.0
    cost_per_hour: float = 0.0
    stands_by: str = ""


@dataclass(frozen=True, slots=True)
class IdleCosts:
    """What comes of stages that sleep together, on a trace.

    Args:
        stages: that do.
        after_s: for how long nothing has come to them then.
        cold_start_s: latency of the event that wakes them.
        saved_per_hour: dollars per hour asleep.
        asleep_share: of the trace's time that they sleep.
        wakes: how often they wake.
        late: events that are late by it: those of the time in which the first replicas start, in order of the deadline.
        events: all of the trace.
        stands_by: in words, replicas that stay, and what they cost.
    """

    stages: tuple[str, ...]
    after_s: float
    cold_start_s: float
    saved_per_hour: float
    asleep_share: float
    wakes: int
    late: int
    events: int
    stands_by: str = ""

    def in_words(self, slo_s: float, objective: float) -> str:
        """Say it, and where the SLO cannot hold."""
        cold = self.cold_start_s
        words = (
            f"Idle: {', '.join(self.stages)} sleep after {format_duration(self.after_s)} without work. The event that "
            f"wakes them takes about {format_duration(cold)}"
        )
        if cold <= slo_s:
            return words + f", within the SLO of {format_duration(slo_s)}." + self._saved()
        words += (
            f": beyond the SLO of {format_duration(slo_s)}, as are all that come in the "
            f"{format_duration(cold - slo_s)} after it."
        )
        if not self.wakes:
            return words + " The sample has no such time without events." + self._saved()
        share = self.late / self.events
        wakes = count_of(self.wakes, "time")
        words += f" On the sample they wake {wakes}, and {share:.2%} of the events are late by it"
        if share > 1 - objective:
            return words + f": the SLO cannot hold, which allows {1 - objective:.4g}." + self._saved()
        return words + "." + self._saved()

    def _saved(self) -> str:
        if not self.saved_per_hour:
            return ""
        stays = f" {self.stands_by}." if self.stands_by else ""
        slept = f", for {self.asleep_share:.0%} of the sample" if self.asleep_share else ""
        return f"{stays} Asleep they cost ${self.saved_per_hour:.4f}/h less{slept}."


def sleepers(basis: Basis, plan: Plan, measured: PipelineProfile) -> dict[str, Sleeper]:
    """Return every stage as it is planned and profiled."""
    found = {}
    for stage in basis.stages:
        alone_s = min(measured.profiles[stage.name, a.hardware].service_time_s(1) for a in plan.allocations[stage.name])
        cost = sum(kind.planned * kind.price_per_hour for kind in stage.kinds)
        words = ""
        if (left := basis.stands_by.get(stage.name)) is not None:
            cost -= left.replicas * left.price_per_hour
            how = f"asleep, awake in {format_duration(left.ready_s)}" if left.ready_s else "ready"
            words = f"{left.replicas} of {stage.name} stand by, {how}, for ${left.replicas * left.price_per_hour:.4f}/h"
        ready_s = start_up_s(basis, stage.name)
        found[stage.name] = Sleeper(ready_s, alone_s + measured.least_hop_s, stage.visit_ratio, cost, words)
    return found


def idle_costs(
    shape: Shape, idle: Mapping[str, Idle], of: Mapping[str, Sleeper], trace: Trace, slo_s: float
) -> Iterator[IdleCosts]:
    """Yield what comes of the stages that sleep with the pipeline, and of each that sleeps by its own records.

    Args:
        shape: the DAG.
        idle: by stage, when it sleeps.
        of: every stage.
        trace: arrivals; of a stage that not all events visit, every so many-th is taken to.
        slo_s: beyond it an event is late.
    """
    together = [name for name, each in idle.items() if not each.own]
    groups = [together] if together else []
    for stages in [*groups, *([name] for name, each in idle.items() if each.own)]:
        arrivals_s = trace.arrivals_s
        if idle[stages[0]].own:
            visits = of[stages[0]].visit_ratio
            arrivals_s = arrivals_s[:: max(1, round(1 / visits))] if visits > 0 else arrivals_s[:1]
        # An arrival counts as recent for as long as the rate looks back.
        after_s = idle[stages[0]].after_s
        asleep_s = np.diff(arrivals_s) - (after_s + RATE_WINDOW_S)
        woken_s = arrivals_s[1:][asleep_s > 0]
        cold_s = cold_start_s(shape, {name: idle[name] for name in stages}, of)
        until = np.searchsorted(arrivals_s, woken_s + max(cold_s - slo_s, 0.0), side="left")
        late = int((until - np.searchsorted(arrivals_s, woken_s, side="left")).sum())
        yield IdleCosts(
            tuple(stages),
            after_s,
            cold_s,
            sum(of[name].cost_per_hour for name in stages),
            float(asleep_s[asleep_s > 0].sum() / trace.duration_s) if trace.duration_s else 0.0,
            int(woken_s.size),
            late,
            len(trace),
            "; ".join(words for name in stages if (words := of[name].stands_by)),
        )


def cold_start_s(shape: Shape, asleep: Mapping[str, Idle], of: Mapping[str, Sleeper]) -> float:
    """Return the latency of an event that comes while these stages sleep, along the longest way.

    Those that sleep with the pipeline start as it arrives, one that sleeps by itself as the event gets there.
    """
    done_s: dict[int, float] = {}
    for s, name in enumerate(shape.stages):
        came_s = max((done_s[shape.arrows[bit].parent] for bit in shape.parents(s)), default=0.0)
        if name in asleep:
            start_up_s = of[name].start_up_s
            came_s = came_s + start_up_s if asleep[name].own else max(came_s, start_up_s)
        done_s[s] = came_s + of[name].alone_s
    return max(done_s.values())
