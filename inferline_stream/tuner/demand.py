"""What each stage's replicas must be able to do: events per second, from traffic, branching, speed and backlog.

And what is held in reserve beside the traffic's own replicas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.forecast import (
    ABSORBED_SHARE,
    LONGEST_RISE_S,
    SURGE_SPAN_S,
    climbing_rate,
    fallen_to,
    rises,
    rising_rate,
    share_within,
    surged,
)
from inferline_stream.tuner.observation import Observation, StageObservation
from inferline_stream.tuner.plan_basis import Basis, Kind, StageBasis
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.traffic import PEAK_SPAN_S
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
        fallen: whether the rate has surely fallen from its recent peak.
    """

    multiple: float
    reason: Reason
    detail: str
    outgrown: bool
    fallen: bool


@dataclass(frozen=True, slots=True)
class Leaps:
    """What is known of leaps, where traffic has leapt lately.

    Args:
        unanswered: share of the largest rise that comes before replicas that are asked for at once help
            (`PolicySettings.unanswered_share`).
        followed: whether only that share is held in reserve: replicas that are asked for meanwhile carry the rest.
        sudden: whether a leap is as good as over by then, so that a trend shows only what has been.
        rises: by how much the rate rose (`tuner.forecast.rises`); empty if nothing is known of it.
    """

    unanswered: float
    followed: bool
    sudden: bool
    rises: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """What one stage needs.

    Args:
        needed: events per second that its replicas must be able to do.
        throughputs: µ of one replica by hardware kind, as it is now.
        reason: what asks for the most.
        detail: in words.
        stuck: partitions whose offset stands still although the stage could work on them.
        fallen: whether traffic has surely fallen (`PolicySettings.fallen_wait_s`).
    """

    needed: float
    throughputs: Mapping[str, float]
    reason: Reason
    detail: str
    stuck: tuple[int, ...] = ()
    fallen: bool = False


def demands(state: TunerState, seen: Observation) -> tuple[TunerState, dict[str, Demand]]:
    """By stage, in topological order; and the state that remembers since when stages need less than the plan."""
    basis, knobs = state.basis, state.basis.knobs
    state = _with_leaps(state, seen)
    start_up_s = _longest_start_up_s(basis, seen)
    leaps = _leaps(state, seen, start_up_s)
    traffic = traffic_of(basis, seen, leaps)
    # Not where a forecast exceeds the plan: the replicas that it asks for answer it, and it is often wrong about noise.
    if traffic.outgrown or state.outgrown_s == -math.inf:
        state = replace(state, outgrown_s=seen.time_s)
    calm_memory_s = _calm_memory_s(knobs, start_up_s)
    if basis.reserve is not None:
        floor, memory_s = supplies(basis, basis.reserve), math.inf
    elif leaps is not None:
        floor, memory_s = _floor(basis, traffic, leaps), knobs.plan_memory_s
    elif _outgrown(state, seen, calm_memory_s):
        floor, memory_s = basis.floor, knobs.plan_memory_s
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
            detail = (
                f"the plan's supply is kept for {memory_s / 60:.0f} min after its last use"
                if basis.reserve is None
                else f"replicas for {basis.reserve:g} times the planned traffic are always held"
            )
            demand = Demand(floor[stage.name], profiled, Reason.INSURANCE, detail, demand.stuck, demand.fallen)
        found[stage.name] = demand
    if below_since_s != state.below_since_s:
        state = replace(state, below_since_s=below_since_s)
    return state, found


def calm(state: TunerState, seen: Observation) -> bool:
    """Whether traffic has neither leapt nor outgrown the plan lately, so that nothing is held in reserve."""
    calm_memory_s = _calm_memory_s(state.basis.knobs, _longest_start_up_s(state.basis, seen))
    return not _leapt(state, seen) and not _outgrown(state, seen, calm_memory_s)


def _leapt(state: TunerState, seen: Observation) -> bool:
    return seen.time_s - state.leapt_s < state.basis.knobs.plan_memory_s


def _outgrown(state: TunerState, seen: Observation, calm_memory_s: float) -> bool:
    return seen.time_s - state.outgrown_s < calm_memory_s


def _calm_memory_s(knobs: PolicySettings, start_up_s: float) -> float:
    return min(max(knobs.calm_memory_s, knobs.calm_start_ups * start_up_s), knobs.plan_memory_s)


def _with_leaps(state: TunerState, seen: Observation) -> TunerState:
    """The state that knows when traffic last leapt and how fast. What the sample did counts as just before.

    How fast is learned once a leap is over: before, what has come of it would pass for all of it.
    """
    if state.outgrown_s == -math.inf and state.basis.leaps:
        state = replace(state, leapt_s=seen.time_s)
    if seen.watched_s < len(seen.recent):
        return replace(state, leap=()) if state.leap else state
    leaping = surged(seen.recent)
    if leaping:
        state = replace(state, leapt_s=seen.time_s)
    if not state.leap:
        return replace(state, leap=seen.recent, leap_counted_s=seen.time_s) if leaping else state
    since_s = int(seen.time_s - state.leap_counted_s)
    if since_s:
        leap = (*state.leap, *seen.recent[-since_s:])[-LONGEST_RISE_S - 2 * SURGE_SPAN_S :]
        state = replace(state, leap=leap, leap_counted_s=state.leap_counted_s + since_s)
    return state if leaping else replace(state, leap=(), rises=_larger(state.rises, rises(state.leap)))


def _larger(some: tuple[float, ...], others: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(max(a, b) for a, b in itertools.zip_longest(some, others, fillvalue=0.0))


def _leaps(state: TunerState, seen: Observation, start_up_s: float) -> Leaps | None:
    """None where traffic has not leapt lately. Of leaps of which nothing is known, all is held, and trends go on."""
    if not _leapt(state, seen):
        return None
    staffing, knobs = state.basis.staffing, state.basis.knobs
    # What a sample that does not leap rises by is noise.
    known = state.rises if staffing is None or not staffing.surges else _larger(staffing.rises, state.rises)
    unanswered = share_within(known, knobs.unanswered_share * start_up_s)
    followed = share_within(known, start_up_s) <= knobs.sudden_share
    return Leaps(unanswered, followed, any(known) and unanswered > knobs.sudden_share, known)


def _floor(basis: Basis, traffic: TrafficMultiple, leaps: Leaps) -> Mapping[str, float]:
    """Supply by stage that is held after a leap: for as much of another one as comes before it is answered."""
    if not leaps.followed:
        return basis.floor
    part = supplies(basis, traffic.multiple + leaps.unanswered)
    return {name: min(supply, part[name]) for name, supply in basis.floor.items()}


def supplies(basis: Basis, multiple: float) -> Mapping[str, float]:
    """Supply by stage for a multiple of the sample's traffic."""
    return {stage.name: supply_for(basis, stage, multiple) for stage in basis.stages}


def traffic_of(basis: Basis, seen: Observation, leaps: Leaps | None = None) -> TrafficMultiple:
    """The larger of what the envelope shows and what the rate is rising to.

    A forecast is of a rate. It is compared with the highest that the sample kept up, which the plan carries: compared
    with the mean of a sample that leaps, a leap like the sample's would ask for several times the plan.

    Args:
        basis: what is planned.
        seen: the pipeline now.
        leaps: where traffic has leapt lately, a forecast may go further, and has to rest on more seconds. Where leaps
            are sudden, it stops at the present end of its line, until traffic has outgrown the plan. Where they are
            followed, a climb from a level counts, too, and where people hold a reserve: they expect leaps.
    """
    multiple, detail = burst_multiple(basis, seen)
    outgrown = multiple > 1 + ABSORBED_SHARE
    carried_rate = basis.arrival_rate if basis.staffing is None else basis.staffing.carried_rate
    knobs = basis.knobs
    lead_s = knobs.reaction_s + _longest_start_up_s(basis, seen)
    recent = seen.recent[-int(min(seen.watched_s, len(seen.recent))) :] if seen.watched_s >= 1 else ()
    looked_for = knobs.fallen_wait_s < knobs.down_after_s and seen.watched_s >= len(seen.recent)
    share = fallen_to(seen.recent) if looked_for else 1.0
    if share < 1:
        multiple, recent = multiple * share, recent[-SURGE_SPAN_S:]
        detail += f", and traffic has fallen to {share:.0%} of its peak since"
    seen_rate = multiple * carried_rate
    limit, believed = knobs.forecast_limit, math.inf
    if leaps is not None:
        limit, believed = 1.0 if leaps.sudden and not outgrown else knobs.leap_limit, knobs.leap_belief
    rate = rising_rate(
        recent,
        lead_s,
        confidence=knobs.forecast_confidence,
        limit=limit,
        above=seen_rate,
        believed=believed,
        carried=carried_rate,
        inner_confidence=knobs.inner_confidence,
    )
    if basis.reserve or (leaps is not None and leaps.followed):
        known = () if leaps is None else leaps.rises
        rate = climbing_rate(recent, lead_s, limit=knobs.climb_limit, above=rate, known=known)
    if carried_rate > 0 and rate > seen_rate:
        expected = f"{rate:.1f}/s expected within {lead_s:.1f} s, the plan carries {carried_rate:.1f}/s"
        return TrafficMultiple(rate / carried_rate, Reason.RATE_RISING, expected, outgrown, share < 1)
    return TrafficMultiple(multiple, Reason.ENVELOPE_EXCEEDED, detail, outgrown, share < 1)


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
    answers to the largest of them all, which a short burst makes far too large. Windows longer than `PEAK_SPAN_S`, in
    which the others are looked for, show only what is over.
    """
    slack_s = basis.knobs.burst_slack_share * basis.slo_s
    live = 0.0
    where = 0
    for i, window_s in enumerate(basis.windows_s):
        if window_s > PEAK_SPAN_S:
            break
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
        return Demand(supply_for(basis, stage, multiple), throughputs, reason, detail, fallen=traffic.fallen)
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
    return Demand(needed, throughputs, reason, detail, stuck, traffic.fallen)


def _stuck(there: StageObservation, stuck_s: float) -> tuple[int, ...]:
    """Partitions that stand still although their stage works: others move on, or its replicas are not busy."""
    idle = [p for p, since_s in enumerate(there.partition_idle_s) if since_s > stuck_s and there.partition_lags[p] > 0]
    if not idle:
        return ()
    moving = any(since_s <= stuck_s for since_s in there.partition_idle_s)
    unused = there.utilization is not None and there.utilization < BUSY
    return tuple(idle) if moving or unused else ()


@dataclass(frozen=True, slots=True)
class Reserve:
    """Replicas that are held whatever the traffic, or after leaps and for a while from the start on.

    Args:
        always: whether whatever the traffic, because people said for how much of it.
        replicas: by stage, the plan's among them.
        cost_per_hour: dollars per hour of them all.
        multiple: of the planned rate, that every stage carries with them at full utilization.
    """

    always: bool
    replicas: Mapping[str, int]
    cost_per_hour: float
    multiple: float


def reserve_of(basis: Basis) -> Reserve:
    """Without a staffing table, what a multiple of the traffic needs is known by square-root staffing."""
    supply = basis.floor if basis.reserve is None else supplies(basis, basis.reserve)
    replicas, cost, multiple = {}, 0.0, math.inf
    for stage in basis.stages:
        # A stage of several hardware kinds keeps their mixture.
        held = math.ceil(supply[stage.name] / stage.supply * stage.planned - 1e-9) if stage.supply else 0
        held = max(held, stage.slots if stage.planned else 0)  # a dispatcher keeps one
        replicas[stage.name] = held
        if stage.planned:
            cost += held / stage.planned * sum(kind.planned * kind.price_per_hour for kind in stage.kinds)
        if (rate := basis.arrival_rate * stage.visit_ratio) > 0 and stage.planned:
            multiple = min(multiple, held / stage.planned * stage.supply / rate)
    return Reserve(basis.reserve is not None, replicas, cost, multiple)
