"""The policy of consumer groups: what the default policy wants, in changes that their rebalances allow.

A change of members leaves a hole in which partitions are not served. The default policy would take the backlog of a
hole for demand, ask for more members, and so leave more. Here a known hole's backlog is no demand, and its figures are
no measurement. More members are asked for at once. Where a hole is longer than an event may wait, there are fewer only
when fewer were wanted for a minute, in one step, and while the objective pays for the changes. Where it does not pay
for those that the traffic's levels need, the plan's number is held, which keeps the SLO without any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from msgspec import structs

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.group_profile import owned_queues
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, busiest
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.group_changes import (
    HOUR_S,
    GroupBasis,
    GroupMemory,
    changes_needed,
    lost_s,
    most_wanted,
)
from inferline_stream.tuner.observation import Limits, Observation, StageObservation
from inferline_stream.tuner.plan_basis import Replicas, StageBasis
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import MOST_EVENTS, staffing
from inferline_stream.tuner.tuner_state import TunerState, initial_state

DRAIN_S = 60.0
"""`PolicySettings.drain_s` of groups: members asked for to work off a backlog sooner cost a hole that leaves more."""

QUIET_S = 180.0
"""`GroupBasis.quiet_s` where a change makes events late. Of the benchmark `adopt`'s hours with an SLO of 0.4 s, by
KIP-848, 120 s keeps fewer for 4 % less."""

BRIEF_S = 10.0
"""Where the plan's number is held, more members are asked for once more were wanted for so long without a break."""

HELD_S = HOUR_S
"""The same where the plan's number is held: what was beyond it stays for so long."""

LOOK_BACK_S = 10.0
"""Span over which throughputs and visit ratios are measured: so long after a hole they still have it in them."""

_NO_LIMITS = Limits()


def group_state(
    model: GroupModel, plan: Plan, sample: Trace, *, history: Trace | None = None, shortest_window_s: float = 0.0
) -> TunerState:
    """Return the state before the first step of `group_step`.

    Args:
        model: what was learned of the groups.
        plan: by `tuner.group_plan.plan_groups`, for the sample.
        sample: traffic that the table of staffing is made for.
        history: what the odds, and the changes that traffic takes, are read off; the sample unless given.
        shortest_window_s: see `plan_basis.basis_of`.
    """
    prices = {name: kind.price_per_hour for name, kind in model.catalogue.items()}
    known = sample if history is None else history
    table = staffing(
        model.shape,
        plan,
        model.measured,
        sample,
        prices,
        objective=model.objective,
        sharing=model.sharing,
        history=known,
        within_s=_within_s(model),
    )
    state = initial_state(
        plan,
        model.measured,
        model.catalogue,
        objective=model.objective,
        shortest_window_s=shortest_window_s,
        staffing=table,
        knobs=_settings(model),
    )
    stretch = busiest(sample, MOST_EVENTS)
    queues = owned_queues(model.sharing, {name: sum(a.replicas for a in own) for name, own in plan.allocations.items()})
    at_rest = simulate(model.shape, plan.allocations, model.measured, stretch, partitions=queues)
    slack_s = max(model.slo_s - at_rest.quantile_s(0.5), 0.0)
    lost = [_lost_s(stage, model, plan, slack_s) for stage in state.basis.stages]
    mean_s = sum(lost) / len(lost)
    affordable = (1 - model.objective) * HOUR_S / mean_s if mean_s > 0 else math.inf
    groups = GroupBasis(
        model.sharing,
        QUIET_S if affordable < 2 * HOUR_S / QUIET_S else 0.0,
        affordable,
        changes_needed(table, {s.name: s.kinds[0].throughput for s in state.basis.stages}, known, QUIET_S),
    )
    groups = replace(groups, quiet_s=HELD_S) if groups.holds else groups
    return structs.replace(state, basis=replace(state.basis, groups=groups), groups=GroupMemory(state.wanted))


def _within_s(model: GroupModel) -> float:
    """Latency that levels have to meet: less by what events wait in a change's hole on average, where they may."""
    holes_s = (sharing.rebalance.longest_s for sharing in model.sharing.values() if sharing.rebalance is not None)
    longest_s = max(holes_s, default=0.0)
    return model.slo_s - longest_s / 2 if longest_s <= model.slo_s else model.slo_s


def _settings(model: GroupModel) -> PolicySettings:
    """Without what is held for leaps where members asked for in one work before those who came with it are late."""
    usual = PolicySettings(drain_s=DRAIN_S)
    lead_s = usual.reaction_s + max(profile.start_up_s for profile in model.measured.profiles.values())
    return replace(usual, insurance=()) if lead_s <= model.slo_s else usual


def _lost_s(stage: StageBasis, model: GroupModel, plan: Plan, slack_s: float) -> float:
    """Seconds of the pipeline's traffic that one more member costs, at the plan's utilization."""
    sharing = model.sharing[stage.name]
    after = sharing.useful(stage.planned + 1)
    ratio = min(plan.visit_ratios[stage.name], 1.0)
    return ratio * lost_s(sharing, stage.planned, after, utilization=plan.utilization[stage.name], slack_s=slack_s)


def group_step(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
    """One step of the policy of consumer groups; see `policy.step`, which it asks.

    Args:
        state: from the step before, or `group_state`.
        seen: the groups now: members are ready once they have joined, and pending until then.

    Returns:
        The new state, and a decision if numbers of members change, or if a condition that people should know of begins
        or ends.
    """
    basis, memory = state.basis.groups, state.groups
    assert basis is not None
    assert memory is not None
    if state.time_s is None or not 0 <= seen.time_s - state.time_s <= state.basis.knobs.jump_s:
        memory = GroupMemory(memory.asked)
    memory = _with_members(memory, seen)
    asked, decision = step(structs.replace(state, wanted=memory.asked), _excused(state, basis, memory, seen))
    wanted_now = {s.name: _wanted(s, basis, asked.wanted[s.name], seen) for s in state.basis.stages}
    memory = _remembered(replace(memory, asked=asked.wanted), basis, wanted_now, seen.time_s)
    if decision is not None and decision.action is Action.SCALE_UP:
        memory = replace(memory, raised=decision)
    elif decision is not None and decision.action is Action.HOLD:  # it is given once; members change a step later
        return structs.replace(asked, wanted=state.wanted, groups=memory), replace(decision, replicas=state.wanted)
    wanted, lowered = dict(state.wanted), []
    for stage in state.basis.stages:
        held, target = sum(state.wanted[stage.name].values()), wanted_now[stage.name]
        if target < held:
            target = _lowered(stage, basis, memory, seen, held=held)
            lowered += [stage.name] * (target < held)
        elif basis.holds:
            target = _raised(stage, memory, seen, held=held)
        if target != held:
            wanted[stage.name] = {stage.kinds[0].hardware: target}
    state = structs.replace(asked, wanted=state.wanted, groups=memory)
    if wanted == state.wanted:
        return state, None
    changed = [name for name in wanted if wanted[name] != state.wanted[name]]
    memory = replace(memory, changes_s=(*memory.changes_s, *[seen.time_s] * len(changed)))
    raised = [name for name in changed if name not in lowered]
    state = structs.replace(state, wanted=wanted, changed_s=seen.time_s, groups=memory)
    # Where the plan's number is held, members follow a while after the default policy has asked for them.
    why = memory.raised if basis.holds else decision
    return state, _decision(wanted, raised, lowered, why, basis)


def _with_members(memory: GroupMemory, seen: Observation) -> GroupMemory:
    """The memory that knows when the members of each group changed last, by us or not."""
    ready = {name: sum(kind.ready for kind in there.supply.values()) for name, there in seen.stages.items()}
    changed = [name for name, count in ready.items() if memory.ready.get(name, count) != count]
    if ready == memory.ready:
        return memory
    return replace(memory, ready=ready, since_s={**memory.since_s, **dict.fromkeys(changed, seen.time_s)})


def _excused(state: TunerState, basis: GroupBasis, memory: GroupMemory, seen: Observation) -> Observation:
    """What was seen without what holes explain: a hole upstream also bunches what comes to the groups behind it."""
    if not memory.since_s:
        return seen
    passed_s = seen.time_s - max(memory.since_s.values())
    longest_s = max((s.rebalance.longest_s for s in basis.sharing.values() if s.rebalance is not None), default=0.0)
    stages = {}
    for stage in state.basis.stages:
        there = seen.stages.get(stage.name)
        if there is None:
            continue
        arriving = seen.arrival_rate * (stage.visit_ratio if there.visit_ratio is None else there.visit_ratio)
        supply = memory.ready[stage.name] * stage.kinds[0].throughput
        # What a hole left is gone after its length times ρ / (1 − ρ).
        drained_s = min(longest_s * arriving / max(supply - arriving, 1e-9), DRAIN_S)
        if passed_s <= longest_s + drained_s + LOOK_BACK_S:
            there = _within_a_hole(there, arriving * longest_s)
        stages[stage.name] = there
    return structs.replace(seen, stages=stages)


def _within_a_hole(there: StageObservation, excused: float) -> StageObservation:
    return structs.replace(
        there,
        supply={hardware: structs.replace(supply, throughput=None) for hardware, supply in there.supply.items()},
        visit_ratio=None,
        partition_lags=(max(0, there.lag - round(excused)),),
        partition_idle_s=(),
    )


def _wanted(stage: StageBasis, basis: GroupBasis, asked: Mapping[str, int], seen: Observation) -> int:
    """Members that are of use, the plan's at least where that is held, within the limits that people set."""
    limits, count = seen.limits.get(stage.name, _NO_LIMITS), sum(asked.values())
    useful = basis.sharing[stage.name].useful(count) if count else 0
    useful = max(useful, stage.planned) if basis.holds else useful
    return max(useful if limits.maximum is None else min(useful, limits.maximum), limits.minimum)


def _remembered(memory: GroupMemory, basis: GroupBasis, wanted: Mapping[str, int], now_s: float) -> GroupMemory:
    """The memory with what is wanted now, without what is older than anything that is asked of it."""
    lately = {}
    for name, count in wanted.items():
        known = memory.lately.get(name, ())
        if not known or known[-1][1] != count:
            known = (*known, (now_s, count))
        while len(known) > 1 and known[1][0] <= now_s - basis.quiet_s:
            known = known[1:]
        lately[name] = known
    changes_s = tuple(time_s for time_s in memory.changes_s if time_s > now_s - HOUR_S)
    return replace(memory, lately=lately, changes_s=changes_s)


def _raised(stage: StageBasis, memory: GroupMemory, seen: Observation, *, held: int) -> int:
    """Members where the plan's number is held and more are wanted: what was wanted all the time lately."""
    lately, limits, before_s = memory.lately[stage.name], seen.limits.get(stage.name, _NO_LIMITS), seen.time_s - BRIEF_S
    least = held if lately[0][0] > before_s else -most_wanted([(time_s, -count) for time_s, count in lately], before_s)
    return max(held, least, limits.minimum)


def _lowered(stage: StageBasis, basis: GroupBasis, memory: GroupMemory, seen: Observation, *, held: int) -> int:
    """Members of a group of which fewer are wanted."""
    lately, maximum = memory.lately[stage.name], seen.limits.get(stage.name, _NO_LIMITS).maximum
    if maximum is not None and held > maximum:
        return maximum
    if not basis.quiet_s:
        return lately[-1][1]
    before_s = seen.time_s - basis.quiet_s
    if lately[0][0] > before_s or any(time_s > before_s for time_s in memory.changes_s):
        return held
    # What is lowered is raised again some time: that are two changes.
    if not basis.holds and len(memory.changes_s) + 2 > basis.changes_per_hour:
        return held
    return min(held, most_wanted(lately, before_s))


def _decision(
    wanted: Replicas, raised: list[str], lowered: list[str], asked: Decision | None, basis: GroupBasis
) -> Decision:
    if raised:
        if asked is not None and asked.action is Action.SCALE_UP:
            return replace(asked, replicas=wanted)
        return Decision(wanted, Action.SCALE_UP, Reason.LIMIT_CHANGED, f"group {raised[0]!r}: more members are allowed")
    counts = ", ".join(f"{name!r} keeps {sum(wanted[name].values())}" for name in lowered)
    why = f"no more were wanted for {basis.quiet_s:.0f} s" if basis.quiet_s else "the load fits that"
    return Decision(wanted, Action.SCALE_DOWN, Reason.LOAD_FELL, f"group {counts}; {why}")
