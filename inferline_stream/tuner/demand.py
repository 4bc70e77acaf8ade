"""What each stage's replicas must be able to do: events per second, from traffic, branching, speed and backlog.

And what is held in reserve beside the traffic's own replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from inferline_stream.pipeline.fallback import UNMET_S, UNMET_SHARE
from inferline_stream.pipeline.units import count_of
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.forecast import ABSORBED_SHARE, SURE, expected
from inferline_stream.tuner.levels import LevelChoice, Levels, cheapest
from inferline_stream.tuner.observation import RECENT_S, Observation, StageObservation
from inferline_stream.tuner.odds import ALIKE, TrafficRecord
from inferline_stream.tuner.plan_basis import Basis, Kind, StageBasis
from inferline_stream.tuner.traffic import PEAK_SPAN_S, RATE_WINDOW_S, burst_rate
from inferline_stream.tuner.tuner_state import TunerState

BEGINNING_START_UPS = 2.0
"""`PolicySettings.beginning_s` in start-up times, at least."""

MOST_BURSTY = 2.0
"""Traffic whose busiest seconds have more times its mean rate comes in bursts, which its plan has room for: a rate that
is seen, or expected, for seconds may be one of them, and is no such multiple of the traffic."""

BUSY = 0.5
"""Utilization below which records that wait do not wait for want of replicas."""

USEFUL_SUPPLY = 2.0
"""Planned supply counts up to this multiple of the busiest window's rate: whole replicas leave some stages with far
more, and a stage that is hardly used must not grow because its speed wobbles."""


class TrafficMultiple(Struct, frozen=True):
    """How much traffic there is, in multiples of the sample's, and where that was seen.

    Args:
        multiple: of the sample's traffic that is surely there or coming; what the odds add comes on top.
        reason: what the multiple was seen in.
        detail: in words.
        outgrown: whether what arrived, without any forecast, was beyond the plan and the room that it leaves, and the
            record does not know such traffic. Now and then the busiest windows of steady traffic exceed those of its
            sample.
        fallen: whether the rate has surely fallen from its recent peak.
        expected: what is usual or surely coming, in the unit of the record.
        foreseen: what is usual or likely to come, in the same unit: what is more may be a leap.
        growth: how much more comes back at this time of the week, in the same unit.
        least: multiple that the same replicas are needed for, at least: a level carries more than it was chosen for.
    """

    multiple: float
    reason: Reason
    detail: str
    outgrown: bool
    fallen: bool
    expected: float
    foreseen: float
    growth: float
    least: float


class Demand(Struct, frozen=True):
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
    """What each stage needs now.

    Args:
        state: what is planned, and what has come of what was expected.
        seen: the pipeline now.

    Returns:
        The state that remembers what was seen, and the demand of each stage.
    """
    basis, lead_s = state.basis, _lead_s(state.basis, seen)
    # People who hold a reserve say themselves what the odds are.
    record = state.record if basis.reserve is None else None
    traffic = traffic_of(basis, seen, lead_s, record)
    if traffic.outgrown or state.outgrown_s == -math.inf:
        state = replace(state, outgrown_s=seen.time_s)
    if record is not None and record.leaps and state.leapt_s == -math.inf:
        state = replace(state, leapt_s=seen.time_s)  # what the sample did counts as just before
    if record is not None and basis.levels is not None:
        state = _chosen(_recorded(state, record, seen, traffic, lead_s), basis.levels, seen, traffic, lead_s)
        if state.choice is not None and state.choice.multiple > traffic.multiple:
            traffic = _by_odds(traffic, state.choice)
    state = _degrading(state, seen)
    unmet = {name for name, since_s in state.degraded_since_s.items() if seen.time_s - since_s >= UNMET_S}
    floors = [held for held in (_floor(state, seen, lead_s), _scheduled(basis, seen, lead_s)) if held[0]]
    found: dict[str, Demand] = {}
    for stage in basis.stages:
        demand = _demand(basis, stage, seen, traffic, degraded=stage.name in unmet)
        for held, why in floors:
            # The floor is a number of replicas, given as what they serve when they are as fast as profiled: that they
            # are slower just now is no reason to hold more of them than were bought.
            floor, profiled = held.get(stage.name, 0.0), stage.profiled
            slowed = min((demand.throughputs[hardware] / profiled[hardware] for hardware in profiled), default=1.0)
            if demand.needed / slowed < floor:
                demand = Demand(floor, profiled, Reason.INSURANCE, why, demand.stuck, demand.fallen)
        found[stage.name] = _with_background(stage, seen, demand)
    return state, found


def _with_background(stage: StageBasis, seen: Observation, demand: Demand) -> Demand:
    """The demand, or what background events need beside the mean of live ones where that is more.

    They are served while live events leave replicas idle: so it is the mean load of these that counts, not their peak.
    """
    there = seen.stages.get(stage.name)
    if there is None or not there.background_busy or not stage.planned:
        return demand
    visits = stage.visit_ratio if there.visit_ratio is None else there.visit_ratio
    needed = seen.arrival_rate * visits + there.background_busy * stage.supply / stage.planned
    if needed <= demand.needed:
        return demand
    return replace(demand, needed=needed, reason=Reason.BACKGROUND, detail=f"background events need {seen.background}")


def _degrading(state: TunerState, seen: Observation) -> TunerState:
    """The state that knows since when the fallback of each stage has made more than it is there for."""
    before = state.degraded_since_s
    since_s = {n: before.get(n, seen.time_s) for n, there in seen.stages.items() if there.degraded_share > UNMET_SHARE}
    return state if since_s == before else replace(state, degraded_since_s=since_s)


def _floor(state: TunerState, seen: Observation, lead_s: float) -> tuple[Mapping[str, float], str]:
    """Supply by stage that is held whatever the odds, and why."""
    basis = state.basis
    if basis.reserve is not None:
        why = f"replicas for {basis.reserve:g} times the planned traffic are always held"
        return supplies(basis, basis.reserve), why
    if basis.knobs.beginning_s:
        begun_s = max(basis.knobs.beginning_s, BEGINNING_START_UPS * (lead_s - basis.knobs.reaction_s))
        if seen.time_s - state.outgrown_s < begun_s:
            why = f"no odds are known within {begun_s:.0f} s of a beginning or of traffic beyond the sample"
            return basis.floor, why
    memory_s = basis.knobs.leap_memory_s(lead_s, _late_share(basis, seen))
    if seen.time_s - state.leapt_s < memory_s:
        why = f"traffic has leapt within {memory_s / 60:.0f} min, and another leap may go further"
        if state.choice is None:
            return basis.floor, why
        further = supplies(basis, basis.knobs.insurance[0][0] * state.choice.multiple)
        return {name: min(held, further[name]) for name, held in basis.floor.items()}, why
    return {}, ""


def _scheduled(basis: Basis, seen: Observation, lead_s: float) -> tuple[Mapping[str, float], str]:
    """Supply by stage that people want held by the time that a replica asked for now would work, and why."""
    multiple, why = (0.0, "") if seen.calendar is None else seen.calendar.said(lead_s, basis.arrival_rate)
    return (supplies(basis, multiple) if multiple else {}), why


def _late_share(basis: Basis, seen: Observation) -> float:
    """Share of the events to come that may be late."""
    return 1 - basis.objective if seen.late_share is None else seen.late_share


def _recorded(
    state: TunerState, record: TrafficRecord, seen: Observation, traffic: TrafficMultiple, lead_s: float
) -> TunerState:
    """The state whose record has what came of what was expected one lead ago, once in each `TrafficRecord.every_s`.

    Each second is looked at: a leap is seen as soon as its sample's were.
    What the calendar had foreseen is taken off: what comes back in its hour asks for no reserve in those after it.
    """
    if int(seen.time_s) == state.chosen_s:
        return state
    waiting = (*state.expected, (seen.time_s, traffic.expected, traffic.foreseen, traffic.growth))
    due = [moment for moment in waiting if moment[0] <= seen.time_s - lead_s]
    state = replace(state, expected=waiting[len(due) :])
    known_s = min(seen.watched_s, seen.time_s - state.woken_s)
    if not due or known_s < RATE_WINDOW_S:
        return state
    (_, said, foreseen, growth), came = due[-1], seen.arrival_rate / record.rate
    if (
        known_s >= PEAK_SPAN_S + lead_s
        and record.leapt(foreseen + growth, came)
        and came > record.alike(said, lead_s).max() + growth
    ):
        state = replace(state, leapt_s=seen.time_s)
    if seen.time_s // record.every_s == state.chosen_s // record.every_s:
        return state
    return replace(state, record=record.with_pair(said, max(came - growth, 0.0), seen.time_s))


def _chosen(
    state: TunerState, levels: Levels, seen: Observation, traffic: TrafficMultiple, lead_s: float
) -> TunerState:
    """The state with the level that is cheapest now: chosen once a second, as the record knows moments of it.

    It is chosen at once where more is expected than is alike: the largest of ten looks would always be news. Of fewer
    seconds than a rate takes the record has no moment.
    """
    second, before, expected = int(seen.time_s), state.choice, traffic.expected
    if before is not None and second == state.chosen_s and expected + traffic.growth <= before.expected * (1 + ALIKE):
        return state
    if state.record is None or seen.watched_s < RATE_WINDOW_S:
        return replace(state, chosen_s=second)
    basis, passed_s = state.basis, min(second - state.chosen_s, state.basis.knobs.jump_s)
    share, waits = _late_share(basis, seen), basis.groups is not None and basis.groups.quiet_s > 0
    held = None if waits else before  # who waits for a quiet time has no need to weigh what a change costs
    choice = cheapest(
        levels,
        state.record,
        expected,
        lead_s,
        share,
        growth=traffic.growth,
        held=held,
        held_s=passed_s,
        fallen=traffic.fallen,
    )
    return replace(state, choice=choice, chosen_s=second)


def _by_odds(traffic: TrafficMultiple, choice: LevelChoice) -> TrafficMultiple:
    reason = Reason.INSURANCE if choice.multiple > choice.expected else Reason.RATE_RISING
    least = max(traffic.multiple, choice.least)
    return replace(traffic, multiple=choice.multiple, reason=reason, detail=choice.words, least=least)


def supplies(basis: Basis, multiple: float) -> Mapping[str, float]:
    """Supply by stage for a multiple of the sample's traffic."""
    return {stage.name: supply_for(basis, stage, multiple) for stage in basis.stages}


def traffic_of(basis: Basis, seen: Observation, lead_s: float, record: TrafficRecord | None = None) -> TrafficMultiple:
    """How much traffic there is, and what is expected of it.

    A forecast counts like against like: what comes of it is read from the record. It counts by itself, and in full,
    where there is no record, or where arrivals have outgrown both it and the sample: no noise seen before explains it.

    Args:
        basis: what is planned.
        seen: the pipeline now.
        lead_s: from asking for a replica to its working.
        record: of what came after moments like this one; None where there is none.
    """
    slack_s = basis.knobs.burst_slack_share * basis.slo_s
    live, where = burst_rate(basis.windows_s, seen.envelope, slack_s)
    burst = live / max(basis.busiest_rate, 1e-9)
    window_s, count, planned = basis.windows_s[where], seen.envelope[where], basis.counts[where]
    detail = f"{count} arrivals within {window_s:.3g} s, planned for {planned}"
    carried_rate = basis.arrival_rate if basis.staffing is None else basis.staffing.carried_rate
    carried_rate = max(carried_rate, basis.busiest_rate / MOST_BURSTY)
    recent = seen.recent[-int(min(seen.watched_s, len(seen.recent))) :] if seen.watched_s >= 1 else ()
    more = 0.0 if seen.calendar is None else seen.calendar.growth(lead_s)
    back = seen.calendar.present + more if seen.calendar is not None and more else 0.0
    found = expected(recent, lead_s)
    fallen = found.fallen_to < 1
    if fallen:
        detail += f", and traffic has fallen to {found.fallen_to:.0%} of its peak since"
    multiple, rate = burst * found.fallen_to, max(found.likely, back)
    foreseen = max(found.usual, found.likely)
    one = max(carried_rate, 1e-9) if record is None else record.rate
    outgrown = burst > 1 + ABSORBED_SHARE and (record is None or not record.knows(found.usual / one, lead_s))
    rest = outgrown, fallen, found.usual / one, foreseen / one, more / one
    if (record is None or outgrown) and carried_rate > 0 and rate > multiple * carried_rate:
        of = f"at this time of the week within {lead_s:.1f} s" if rate == back else f"within {lead_s:.1f} s"
        rising = f"{rate:.1f}/s expected {of}, the plan carries {carried_rate:.1f}/s"
        return TrafficMultiple(rate / carried_rate, Reason.RATE_RISING, rising, *rest, rate / carried_rate)
    if record is not None and multiple <= 1:
        multiple = 0.0  # of what is within the sample, the record knows what comes
    return TrafficMultiple(multiple, Reason.ENVELOPE_EXCEEDED, detail, *rest, multiple)


def _lead_s(basis: Basis, seen: Observation) -> float:
    longest_s = max([_start_up_s(kind, stage, seen) for stage in basis.stages for kind in stage.kinds], default=0.0)
    return basis.knobs.reaction_s + longest_s


def _start_up_s(kind: Kind, stage: StageBasis, seen: Observation) -> float:
    """As measured recently, else as profiled."""
    there = seen.stages.get(stage.name)
    supply = there.supply.get(kind.hardware) if there is not None else None
    return kind.start_up_s if supply is None or supply.start_up_s is None else supply.start_up_s


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


def _demand(basis: Basis, stage: StageBasis, seen: Observation, traffic: TrafficMultiple, *, degraded: bool) -> Demand:
    knobs, there = basis.knobs, seen.stages.get(stage.name)
    throughputs = stage.profiled
    reason, detail, multiple = traffic.reason, traffic.detail, traffic.multiple
    if there is None:
        return Demand(supply_for(basis, stage, multiple), throughputs, reason, detail, fallen=traffic.fallen)
    visits = there.visit_ratio
    shifted = _visits_shifted(stage, visits, seen.arrival_rate, knobs.shift)
    if shifted < 1:
        multiple *= shifted
    elif shifted * traffic.least > multiple:
        multiple, reason = shifted * traffic.least, Reason.VISIT_RATIO_SHIFTED
        detail = f"{visits:.3g} visits per event, planned for {stage.visit_ratio:.3g}; {detail}"
    needed = supply_for(basis, stage, multiple)
    for kind in stage.kinds:
        measured = there.supply[kind.hardware].throughput if kind.hardware in there.supply else None
        if measured is None or abs(measured / kind.throughput - 1) <= knobs.shift:
            continue
        throughputs = {**throughputs, kind.hardware: measured}
        if measured < kind.throughput:
            # Slow replicas matter where they are what limits: up to the utilization planned for, or to one half.
            load = basis.arrival_rate * stage.visit_ratio * multiple
            needed = min(needed, load / max(basis.utilization(stage), BUSY))
            if reason is not Reason.VISIT_RATIO_SHIFTED:
                reason = Reason.THROUGHPUT_FELL
                detail = f"{measured:.3g}/s per replica on {kind.hardware}, profiled at {kind.throughput:.3g}/s"
    stuck = _stuck(there, knobs.stuck_s) if there.partition_idle_s else ()
    backlog = sum([lag for p, lag in enumerate(there.partition_lags) if p not in stuck])
    if backlog > basis.backlog_bound[stage.name]:
        arriving = seen.arrival_rate * (visits if visits is not None else stage.visit_ratio)
        # In less time than a replica takes to start, it would cost more to start than it works.
        drain_s = max([knobs.drain_s, *(_start_up_s(kind, stage, seen) for kind in stage.kinds)])
        if arriving + backlog / drain_s > needed:
            needed, reason = arriving + backlog / drain_s, Reason.BACKLOG
            queued = f"{count_of(backlog, 'record')} in the queue, the oldest for {there.oldest_lag_s:.2f} s"
            detail = f"{queued}, and {arriving:.1f}/s arrive"
    share, busy = there.degraded_share, there.utilization is None or there.utilization >= BUSY
    if degraded and busy:
        supply = sum(own.ready * throughputs.get(kind, 0.0) for kind, own in there.supply.items())
        # The stage itself would have taken `carries` times as long for this share; one replica more in any case.
        lacking = max(1 / (1 - share * (1 - 1 / stage.carries)), 1 + UNMET_SHARE)
        if supply * lacking > needed:
            needed, reason = supply * lacking, Reason.DEGRADED
            detail = f"the fallback made {share:.1%} of the events of ten seconds, and is there for {UNMET_SHARE:.0%}"
    return Demand(needed, throughputs, reason, detail, stuck, traffic.fallen)


def _visits_shifted(stage: StageBasis, visits: float | None, arrival_rate: float, shift: float) -> float:
    """How many times as often as planned a stage is visited; 1 where that is within what is measured.

    More may be chance: where each event visits it or does not, the share of those that do has the spread of a binomial.
    That a stage needs less is believed at once, as replicas go after a while only.
    """
    planned = stage.visit_ratio
    if visits is None or not planned or not arrival_rate:
        return 1.0
    times = visits / planned
    if times - 1 <= shift:
        return times if times < 1 - shift else 1.0
    chance = SURE * math.sqrt((1 - planned if planned < 1 else 1.0) / (planned * arrival_rate * RECENT_S))
    return times if times - 1 > chance else 1.0


def _stuck(there: StageObservation, stuck_s: float) -> tuple[int, ...]:
    """Partitions that stand still although their stage works: others move on, or its ready replicas are not busy."""
    idle = [p for p, since_s in enumerate(there.partition_idle_s) if since_s > stuck_s and there.partition_lags[p] > 0]
    if not idle or not any(own.ready for own in there.supply.values()):
        return ()
    moving = any(since_s <= stuck_s for since_s in there.partition_idle_s)
    unused = there.utilization is not None and there.utilization < BUSY
    return tuple(idle) if moving or unused else ()
