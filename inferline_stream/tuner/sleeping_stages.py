"""Which stages sleep: after a time without work no replica is left, and the first event wakes them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.units import format_duration
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.plan_basis import Basis
from inferline_stream.tuner.tuner_state import TunerState

_AT_ITS_LIMITS = Limits()


class Rest(Struct, frozen=True):
    """What sleeps after a step.

    Args:
        stages: to have no replica.
        why: by stage that falls asleep, or wakes, the reason and its words.
    """

    stages: frozenset[str] = frozenset()
    why: Mapping[str, tuple[Reason, str]] = {}


def rested(state: TunerState, seen: Observation, *, doubted: bool) -> tuple[TunerState, Rest]:
    """Return which stages sleep now, and the state that remembers when each was used last.

    Args:
        state: from the step before.
        seen: the pipeline now.
        doubted: whether something seen is missing or old: then nothing falls asleep.
    """
    if not state.basis.idle:
        return state, Rest()
    used_s, stages, why = {}, set[str](), {}
    sleeping, now_s = state.sleeping, seen.time_s
    # What people have said of traffic to come is awaited awake.
    lead_s, rate = state.basis.start_up_s + state.basis.knobs.reaction_s, state.basis.arrival_rate
    said = seen.calendar is not None and seen.calendar.said(lead_s, rate)[0] > 0
    unsure = doubted or now_s < state.blind_until_s
    for name, idle in state.basis.idle.items():
        asleep = name in sleeping
        last_s = state.used_s.get(name, now_s)
        used_s[name] = now_s if not asleep and name not in state.used_s else last_s
        asked = said or seen.limits.get(name, _AT_ITS_LIMITS).awake
        used = _used(name, idle, seen)
        if asked or used:
            used_s[name] = now_s
            if asleep and used:
                why[name] = Reason.WOKEN, _wakes(state.basis, name, now_s - last_s if name in state.used_s else None)
        elif asleep or (not unsure and min(now_s - last_s, seen.watched_s) >= idle.after_s):
            stages.add(name)
            if not asleep:
                why[name] = Reason.IDLE, _sleeps(state.basis, name, idle)
    if any(reason is Reason.WOKEN and not state.basis.idle[name].own for name, (reason, _) in why.items()):
        # Nothing is known of what comes: it is a beginning. And a level that was kept has no replicas any more.
        state = replace(state, outgrown_s=now_s, woken_s=now_s, choice=None)
    return replace(state, used_s=used_s), Rest(frozenset(stages), why)


def _used(name: str, idle: Idle, seen: Observation) -> bool:
    """Whether a stage has something to do, or the pipeline by which it sleeps."""
    if seen.background_left or (not idle.own and seen.arrival_rate > 0):
        return True
    counted = [seen.stages[name]] if idle.own and name in seen.stages else seen.stages.values()
    return any(stage.lag or (stage.utilization or 0.0) > 0 for stage in counted)


def start_up_s(basis: Basis, name: str) -> float:
    """Return how long the first replica of a stage that sleeps takes to work, as profiled."""
    if (left := basis.stands_by.get(name)) is not None:
        return left.ready_s
    (stage,) = (stage for stage in basis.stages if stage.name == name)
    planned = [kind.start_up_s for kind in stage.kinds if kind.planned] or [kind.start_up_s for kind in stage.kinds]
    return min(planned) + basis.knobs.reaction_s


def _sleeps(basis: Basis, name: str, idle: Idle) -> str:
    what = "no record has come to it" if idle.own else "no event has come"
    stays = "its dispatchers stay" if not idle.standby else f"its dispatchers and {idle.standby} on standby stay"
    return (
        f"{what} for {format_duration(idle.after_s)}: {stays}, and the next event waits about "
        f"{format_duration(start_up_s(basis, name))} for a replica"
    )


def _wakes(basis: Basis, name: str, slept_s: float | None) -> str:
    without = "" if slept_s is None else f" after {format_duration(slept_s)} without any"
    return f"an event has come{without}: its first replica is ready in about {format_duration(start_up_s(basis, name))}"
