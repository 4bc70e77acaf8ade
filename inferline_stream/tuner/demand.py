"""What each stage's replicas must be able to do: events per second, from traffic, branching, speed and backlog."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.forecast import ABSORBED_SHARE, rising_rate, surged
from inferline_stream.tuner.observation import Observation, StageObservation
from inferline_stream.tuner.plan_basis import Basis, Kind, StageBasis
from inferline_stream.tuner.tuner_state import TunerState

BUSY = 0.5
"""Utilization below which records that wait do not wait for want of replicas."""

USEFUL_SUPPLY = 2.0
"""Planned supply counts up to this multiple of the busiest window's rate: whole replicas leave some stages with far
more, and a stage that is hardly used must not grow because its speed wobbles."""


@dataclass(frozen=True, slots=True)
class TrafficMultiple:
    """How much traffic there is, in multiples of the sample's, and where that was seen.

    Args:
        multiple: of the sample's traffic, forecast included.
        reason: what the multiple was seen in.
        detail: in words.
        outgrown: whether what arrived, without any forecast, was beyond the plan and the room that it leaves. Now and
            then the busiest windows of steady traffic exceed those of its sample.
    """

    multiple: float
    reason: Reason
    detail: str
    outgrown: bool


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


def demands(state: TunerState, seen: Observation) -> tuple[TunerState, dict[str, Demand]]:
    """By stage, in topological order; and the state that remembers since when stages need less than the plan."""
    basis, knobs = state.basis, state.basis.knobs
    start_up_s = _longest_start_up_s(basis, seen)
    calm_memory_s = min(max(knobs.calm_memory_s, knobs.calm_start_ups * start_up_s), knobs.plan_memory_s)
    traffic = traffic_of(basis, seen, leaps=_leapt(state, seen, calm_memory_s))
    state = _insured(state, seen, traffic, calm_memory_s)
    if _leapt(state, seen, calm_memory_s):
        floor, memory_s = _floor(basis, traffic, start_up_s), knobs.plan_memory_s
    elif seen.time_s < state.insured_until_s:
        floor, memory_s = basis.calm_floor, knobs.plan_memory_s
    else:
        floor, memory_s = basis.supply, calm_memory_s
    found: dict[str, Demand] = {}
    below_since_s: dict[str, float] = {}
    for stage in basis.stages:
        demand = _demand(basis, stage, seen, traffic)
        profiled = {kind.hardware: kind.throughput for kind in stage.kinds}
        slowed = min((demand.throughputs[hardware] / profiled[hardware] for hardware in profiled), default=1.0)
        # The floor is a number of replicas, given as what they serve when they are as fast as profiled: that they are
        # slower just now is no reason to hold more of them than were bought.
        if demand.needed / slowed < floor[stage.name]:
            below_since_s[stage.name] = since_s = state.below_since_s.get(stage.name, seen.time_s)
            if demand.needed < stage.supply and seen.time_s - since_s >= memory_s:
                found[stage.name] = demand
                continue
            detail = f"the plan's supply is kept for {memory_s / 60:.0f} min after its last use"
            demand = Demand(floor[stage.name], profiled, Reason.INSURANCE, detail, demand.stuck)
        found[stage.name] = demand
    if below_since_s != state.below_since_s:
        state = replace(state, below_since_s=below_since_s)
    return state, found


def _leapt(state: TunerState, seen: Observation, calm_memory_s: float) -> bool:
    """Whether traffic has leapt lately: nothing else is insured after for longer than ``calm_memory_s``.

    So the last ``calm_memory_s`` of a leap's insurance pass as calm, and where replicas take half of `plan_memory_s` to
    start, all of it.
    """
    return state.insured_until_s - seen.time_s > calm_memory_s


def _floor(basis: Basis, traffic: TrafficMultiple, start_up_s: float) -> Mapping[str, float]:
    """Supply by stage that is held after a leap: for as much of another one as comes before it is answered."""
    table, knobs = basis.staffing, basis.knobs
    if table is None or not table.surges or table.leap_share(start_up_s) > knobs.sudden_share:
        return basis.floor  # the sample does not show how fast a leap is, or shows that it is sudden
    multiple = traffic.multiple + table.leap_share(knobs.unanswered_share * start_up_s)
    return {s.name: min(basis.floor[s.name], supply_for(basis, s, multiple)) for s in basis.stages}


def _insured(state: TunerState, seen: Observation, traffic: TrafficMultiple, calm_memory_s: float) -> TunerState:
    """The state that knows until when to insure: for long after a leap, for a while after the plan was not enough.

    What the sample did counts as just before, and a beginning as a time when the plan may not be enough. Only arrivals
    show that it was not: a forecast is answered by the replicas that it asks for, and is often wrong about noise.
    """
    knobs, now_s = state.basis.knobs, seen.time_s
    begins = state.insured_until_s == -math.inf
    leaps = (begins and state.basis.leaps) or (seen.watched_s >= len(seen.recent) and surged(seen.recent))
    until_s = state.insured_until_s
    if leaps:
        until_s = max(until_s, now_s + knobs.plan_memory_s)
    if begins or traffic.outgrown:
        until_s = max(until_s, now_s + calm_memory_s)
    return state if until_s == state.insured_until_s else replace(state, insured_until_s=until_s)


def traffic_of(basis: Basis, seen: Observation, *, leaps: bool = False) -> TrafficMultiple:
    """The larger of what the envelope shows and what the rate is rising to.

    A forecast is of a rate. It is compared with the highest that the sample kept up, which the plan carries: compared
    with the mean of a sample that leaps, a leap like the sample's would ask for several times the plan.

    Args:
        basis: what is planned.
        seen: the pipeline now.
        leaps: whether traffic has leapt lately: a forecast may go further then, and has to rest on more seconds.
    """
    multiple, detail = burst_multiple(basis, seen)
    outgrown = multiple > 1 + ABSORBED_SHARE
    carried_rate = basis.arrival_rate if basis.staffing is None else basis.staffing.carried_rate
    knobs = basis.knobs
    lead_s = knobs.reaction_s + _longest_start_up_s(basis, seen)
    recent = seen.recent[-int(min(seen.watched_s, len(seen.recent))) :] if seen.watched_s >= 1 else ()
    seen_rate = multiple * carried_rate
    limit, believed = (knobs.leap_limit, knobs.leap_belief) if leaps else (knobs.forecast_limit, math.inf)
    rising = functools.partial(rising_rate, recent, lead_s, limit=limit, above=seen_rate, believed=believed)
    rate = rising(confidence=knobs.forecast_confidence)
    if seen_rate < rate <= carried_rate:
        rate = rising(confidence=knobs.inner_confidence)
    if carried_rate > 0 and rate > seen_rate:
        expected = f"{rate:.1f}/s expected within {lead_s:.1f} s, the plan carries {carried_rate:.1f}/s"
        return TrafficMultiple(rate / carried_rate, Reason.RATE_RISING, expected, outgrown)
    return TrafficMultiple(multiple, Reason.ENVELOPE_EXCEEDED, detail, outgrown)


def _longest_start_up_s(basis: Basis, seen: Observation) -> float:
    return max(_start_up_s(kind, stage, seen) for stage in basis.stages for kind in stage.kinds)


def _start_up_s(kind: Kind, stage: StageBasis, seen: Observation) -> float:
    """As measured recently, else as profiled."""
    there = seen.stages.get(stage.name)
    supply = there.supply.get(kind.hardware) if there is not None else None
    return kind.start_up_s if supply is None or supply.start_up_s is None else supply.start_up_s


def burst_multiple(basis: Basis, seen: Observation) -> tuple[float, str]:
    """How many times the sample's rate the envelope shows: the ratio rule, deaf to bursts that waiting absorbs.

    An event may wait for the slack D that the SLO leaves it. A window w with q arrivals therefore needs no
    more than the rate q/(w + D): the horizontal distance of network calculus turned around. The paper compares q/w and
    answers to the largest of them all, which a short burst makes far too large.
    """
    slack_s = basis.knobs.burst_slack_share * basis.slo_s
    live = 0.0
    where = 0
    for i, window_s in enumerate(basis.windows_s):
        rate = seen.envelope[i] / (window_s + slack_s)
        if rate > live:
            live, where = rate, i
    window_s, count, expected = basis.windows_s[where], seen.envelope[where], basis.counts[where]
    return live / max(basis.busiest_rate, 1e-9), f"{count} arrivals within {window_s:.3g} s, planned for {expected}"


def supply_for(basis: Basis, stage: StageBasis, multiple: float) -> float:
    """Supply that a stage needs for a multiple of the sample's traffic: looked up, or by square-root staffing.

    Square-root staffing: the load grows with the traffic, the room above it with its root, as does the spread of the
    arrivals within a time that the room is there for.
    """
    if basis.staffing is not None:
        return basis.staffing.needed(stage.name, multiple)
    load = basis.arrival_rate * stage.visit_ratio
    busiest = max(count / window_s for count, window_s in zip(basis.counts, basis.windows_s, strict=True))
    useful = min(stage.supply, USEFUL_SUPPLY * busiest * stage.visit_ratio)
    return load * multiple + max(useful - load, 0.0) * math.sqrt(multiple)


def _demand(basis: Basis, stage: StageBasis, seen: Observation, traffic: TrafficMultiple) -> Demand:
    knobs, there = basis.knobs, seen.stages.get(stage.name)
    throughputs = {kind.hardware: kind.throughput for kind in stage.kinds}
    reason, detail, multiple = traffic.reason, traffic.detail, traffic.multiple
    if there is None:
        return Demand(supply_for(basis, stage, multiple), throughputs, reason, detail)
    visits = there.visit_ratio
    if visits is not None and stage.visit_ratio > 0 and abs(visits / stage.visit_ratio - 1) > knobs.shift:
        multiple *= visits / stage.visit_ratio
        if visits > stage.visit_ratio:
            reason = Reason.VISIT_RATIO_SHIFTED
            detail = f"{visits:.3g} visits per event, planned for {stage.visit_ratio:.3g}; {detail}"
    needed = supply_for(basis, stage, multiple)
    for kind in stage.kinds:
        measured = there.supply[kind.hardware].throughput if kind.hardware in there.supply else None
        if measured is None or abs(measured / kind.throughput - 1) <= knobs.shift:
            continue
        throughputs[kind.hardware] = measured
        if measured < kind.throughput:
            # Slow replicas matter where they are what limits: up to the utilization planned for, or to one half.
            load = basis.arrival_rate * stage.visit_ratio * multiple
            needed = min(needed, load / max(basis.utilization(stage), BUSY))
            if reason is not Reason.VISIT_RATIO_SHIFTED:
                reason = Reason.THROUGHPUT_FELL
                detail = f"{measured:.3g}/s per replica on {kind.hardware}, profiled at {kind.throughput:.3g}/s"
    stuck = _stuck(there, knobs.stuck_s)
    backlog = sum([lag for p, lag in enumerate(there.partition_lags) if p not in stuck])
    if backlog > basis.backlog_bound[stage.name]:
        arriving = seen.arrival_rate * (visits if visits is not None else stage.visit_ratio)
        # In less time than a replica takes to start, it would cost more to start than it works.
        drain_s = max([knobs.drain_s, *(_start_up_s(kind, stage, seen) for kind in stage.kinds)])
        if arriving + backlog / drain_s > needed:
            needed, reason = arriving + backlog / drain_s, Reason.BACKLOG
            detail = f"{backlog} records wait, the oldest for {there.oldest_lag_s:.2f} s, and {arriving:.1f}/s arrive"
    return Demand(needed, throughputs, reason, detail, stuck)


def _stuck(there: StageObservation, stuck_s: float) -> tuple[int, ...]:
    """Partitions that stand still although their stage works: others move on, or its replicas are not busy."""
    idle = [p for p, since_s in enumerate(there.partition_idle_s) if since_s > stuck_s and there.partition_lags[p] > 0]
    if not idle:
        return ()
    moving = any(since_s <= stuck_s for since_s in there.partition_idle_s)
    unused = there.utilization is not None and there.utilization < BUSY
    return tuple(idle) if moving or unused else ()
