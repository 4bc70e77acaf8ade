"""What each stage's replicas must be able to do: events per second, from traffic, branching, speed and backlog."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from inferline_stream.tuner.basis import Basis, StageBasis
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.observation import Observation, StageObservation
from inferline_stream.tuner.state import TunerState

SHIFT = 0.1
"""Relative change of a visit ratio or throughput that is acted on: smaller ones are within what is measured."""

USEFUL_SUPPLY = 2.0
"""Planned supply counts up to this multiple of the busiest window's rate: whole replicas leave some stages with far
more, and a stage that is hardly used must not grow because its speed wobbles."""

STUCK_S = 5.0
"""A partition whose committed offset has stood still for this long, with records waiting, is stuck."""

BACKLOG_SHARE = 0.5
"""Share of the SLO that the oldest waiting record may reach before the backlog itself asks for replicas."""

DRAIN_S = 5.0
"""Time within which a backlog is to be gone once the replicas for it are there."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one stage needs.

    Args:
        needed: events per second that its replicas must be able to do.
        throughputs: µ of one replica by hardware kind, as it is now.
        reason: what asks for the most.
        detail: in words.
        stuck: partitions whose offset stands still although the stage could work on them.
    """

    needed: float
    throughputs: Mapping[str, float]
    reason: Reason
    detail: str
    stuck: tuple[int, ...] = ()


def demands(state: TunerState, seen: Observation) -> dict[str, Demand]:
    """By stage, in topological order."""
    multiple, told = traffic_multiple(state.basis, seen)
    return {stage.name: _demand(state.basis, stage, seen, multiple, told) for stage in state.basis.stages}


def traffic_multiple(basis: Basis, seen: Observation) -> tuple[float, str]:
    """How many times the planned traffic is here: the largest ratio of live to planned counts over all windows."""
    ratio, window_s, live, planned = max(
        (live / max(planned, 1), window_s, live, planned)
        for live, planned, window_s in zip(seen.envelope, basis.counts, basis.windows_s, strict=True)
    )
    return ratio, f"{live} arrivals within {window_s:.3g} s, planned for {planned}"


def peak_rate(basis: Basis) -> float:
    """Arrivals per second in the busiest window of the planned traffic, over all lengths."""
    return max(count / window_s for count, window_s in zip(basis.counts, basis.windows_s, strict=True))


def supply_for(load: float, slack: float, multiple: float) -> float:
    """Supply for a multiple of the planned traffic: the load grows with it, the slack for bursts with its root.

    Square-root staffing: arrivals within a time spread around their mean as the root of it, and what
    the Planner added to the load is there for that spread.
    """
    return load * multiple + slack * math.sqrt(multiple)


def _demand(
    basis: Basis,
    stage: StageBasis,
    seen: Observation,
    multiple: float,
    told: str,
) -> Demand:
    there = seen.stages.get(stage.name)
    planned_load = basis.arrival_rate * stage.visit_ratio
    useful = min(stage.supply, USEFUL_SUPPLY * peak_rate(basis) * stage.visit_ratio)
    slack = max(useful - planned_load, 0.0)
    throughputs = {kind.hardware: kind.throughput for kind in stage.kinds}
    needed, reason, detail = supply_for(planned_load, slack, multiple), Reason.ENVELOPE_EXCEEDED, told
    if there is None:
        return Demand(needed, throughputs, reason, detail)
    visits = there.visit_ratio
    if visits is not None and stage.visit_ratio > 0 and abs(visits / stage.visit_ratio - 1) > SHIFT:
        factor = visits / stage.visit_ratio
        needed = supply_for(planned_load, slack, multiple * factor)
        if factor > 1:
            reason = Reason.VISIT_RATIO_SHIFTED
            detail = f"{visits:.3g} visits per event, planned for {stage.visit_ratio:.3g}; {told}"
    for kind in stage.kinds:
        measured = there.supply[kind.hardware].throughput if kind.hardware in there.supply else None
        if measured is not None and abs(measured / kind.throughput - 1) > SHIFT:
            throughputs[kind.hardware] = measured
            if measured < kind.throughput and reason is Reason.ENVELOPE_EXCEEDED:
                reason = Reason.THROUGHPUT_FELL
                detail = f"{measured:.3g}/s per replica on {kind.hardware}, profiled at {kind.throughput:.3g}/s; {told}"
    stuck = _stuck(there)
    backlog = _backlog(basis, there, stuck)
    if backlog > 0:
        arriving = seen.arrival_rate * (visits if visits is not None else stage.visit_ratio)
        if arriving + backlog / DRAIN_S > needed:
            needed, reason = arriving + backlog / DRAIN_S, Reason.BACKLOG
            detail = f"{backlog} records wait, the oldest for {there.oldest_lag_s:.2f} s, and {arriving:.1f}/s arrive"
    return Demand(needed, throughputs, reason, detail, stuck)


def _stuck(there: StageObservation) -> tuple[int, ...]:
    """Partitions that stand still although their stage works: others move on, or its replicas are not busy."""
    idle = [p for p, since_s in enumerate(there.partition_idle_s) if since_s > STUCK_S and there.partition_lags[p] > 0]
    moving = any(since_s <= STUCK_S for since_s in there.partition_idle_s)
    unused = there.utilization is not None and there.utilization < BUSY
    return tuple(idle) if moving or unused else ()


BUSY = 0.5
"""Utilization below which waiting records are not for want of replicas."""


def _backlog(basis: Basis, there: StageObservation, stuck: tuple[int, ...]) -> int:
    """Records that wait for want of replicas; 0 while they are within the SLO's means."""
    if not there.oldest_lag_s > BACKLOG_SHARE * basis.slo_s:
        return 0
    return sum(lag for p, lag in enumerate(there.partition_lags) if p not in stuck)
