"""The default policy: replicas from what is seen, as one pure step. Live loop and replay call this very function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.demand import Demand, demands
from inferline_stream.tuner.fitting import fewer, more
from inferline_stream.tuner.inferline import inferline_step
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.state import TunerState, initial_state
from inferline_stream.tuner.trust import HISTORY_S, Doubt, doubts, on_this_clock

__all__ = ["POLICIES", "Policy", "TunerState", "inferline_step", "initial_state", "step"]

Policy = Callable[[TunerState, Observation], tuple[TunerState, Decision | None]]

_NO_LIMITS = Limits()


def step(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
    """One step of the default policy.

    Every stage gets at once what its demand needs (`tuner.demand`); nothing is taken from one stage because
    another needs more. A stage gives replicas back when what remains carries its load with a margin, has
    done so for a while, and everything seen is fresh. Asking is idempotent: replicas that were asked
    for and are not ready yet count.

    Args:
        state: from the step before, or `initial_state`.
        seen: the pipeline now.

    Returns:
        The new state, and a decision if replicas change, or if a condition that people should know of
        begins or ends (`Action.HOLD`).
    """
    state, jumped = on_this_clock(state, seen)
    doubted = ((jumped,) if jumped is not None else ()) + doubts(state, seen)
    if any(doubt.where == "" for doubt in doubted):
        return _hold(replace(state, fits_since_s={}), doubted)
    state, needed = demands(state, seen)
    wanted, short = _raised(state, seen, needed)
    troubles = doubted + short + _stuck(needed)
    if wanted != state.wanted:
        leading = max((n for n in state.wanted if wanted[n] != state.wanted[n]), key=lambda n: needed[n].needed)
        demand = needed[leading]
        fits = {name: since_s for name, since_s in state.fits_since_s.items() if wanted[name] == state.wanted[name]}
        decision = Decision(wanted, Action.SCALE_UP, demand.reason, f"stage {leading!r}: {demand.detail}")
        return replace(state, wanted=wanted, changed_s=seen.time_s, fits_since_s=fits), decision
    if doubted:
        return _hold(replace(state, fits_since_s={}), troubles)
    state, lowered = _lowered(state, seen, needed)
    if lowered is not None:
        return state, lowered
    return _hold(state, troubles)


def _raised(
    state: TunerState, seen: Observation, needed: Mapping[str, Demand]
) -> tuple[dict[str, dict[str, int]], tuple[Doubt, ...]]:
    """Replicas for every demand, within stock, partitions and limits; and where they do not suffice."""
    wanted: dict[str, dict[str, int]] = {}
    short = []
    held = {kind.hardware: 0 for stage in state.basis.stages for kind in stage.kinds}
    for by_kind in state.wanted.values():
        for hardware, replicas in by_kind.items():
            held[hardware] += replicas
    stock = {**state.basis.stock, **seen.stock}
    left = {hardware: stock[hardware] - held[hardware] for hardware in held if hardware in stock}
    for stage in state.basis.stages:
        demand, limits = needed[stage.name], seen.limits.get(stage.name, _NO_LIMITS)
        before = state.wanted[stage.name]
        fit = more(stage, before, demand.throughputs, demand.needed, stock=left, maximum=limits.maximum)
        for hardware in left:
            left[hardware] -= fit.replicas.get(hardware, 0) - before.get(hardware, 0)
        wanted[stage.name] = fit.replicas
        if fit.short is not None:
            given = sum(fit.replicas.values())
            short.append(
                Doubt(fit.short, stage.name, f"stage {stage.name!r} needs more than {given} replicas: {demand.detail}")
            )
    return wanted, tuple(short)


def _lowered(state: TunerState, seen: Observation, needed: Mapping[str, Demand]) -> tuple[TunerState, Decision | None]:
    """Give back what each stage's load has fitted without for long enough."""
    basis, knobs, now_s = state.basis, state.basis.knobs, seen.time_s
    fits_since_s: dict[str, float] = {}
    wanted = dict(state.wanted)
    calm = now_s >= state.blind_until_s and seen.watched_s >= HISTORY_S
    for stage in basis.stages if calm else ():
        name = stage.name
        demand, held = needed[name], state.wanted[name]
        if any(kind.pending for kind in seen.stages[name].supply.values()):
            continue
        enough = demand.needed * (1 + knobs.down_margin)
        after = fewer(stage, held, demand.throughputs, enough, seen.limits.get(name, _NO_LIMITS).minimum)
        if after == held:
            continue
        fits_since_s[name] = state.fits_since_s.get(name, now_s)
        if now_s - fits_since_s[name] >= knobs.down_after_s:
            wanted[name] = after
    state = replace(state, fits_since_s=fits_since_s)
    if wanted == state.wanted:
        return state, None
    names = [name for name in wanted if wanted[name] != state.wanted[name]]
    detail = "; ".join(f"stage {name!r} needs {needed[name].needed:.1f}/s" for name in names)
    return (
        replace(state, wanted=wanted, changed_s=now_s),
        Decision(wanted, Action.SCALE_DOWN, Reason.LOAD_FELL, detail),
    )


def _stuck(needed: Mapping[str, Demand]) -> tuple[Doubt, ...]:
    return tuple(
        Doubt(Reason.PARTITION_STUCK, name, f"stage {name!r}: partitions {demand.stuck} stand still")
        for name, demand in needed.items()
        if demand.stuck
    )


def _hold(state: TunerState, troubles: tuple[Doubt, ...]) -> tuple[TunerState, Decision | None]:
    """Tell the first trouble that is new, or that all input is fresh again; else nothing."""
    now = frozenset((doubt.reason, doubt.where) for doubt in troubles)
    for doubt in troubles:
        if (doubt.reason, doubt.where) not in state.told:
            told = (state.told & now) | {(doubt.reason, doubt.where)}
            return replace(state, told=told), Decision(state.wanted, Action.HOLD, doubt.reason, doubt.detail)
    restored = any(reason is Reason.INPUT_STALE for reason, _ in state.told - now)
    state = replace(state, told=state.told & now)
    if restored and not any(doubt.reason is Reason.INPUT_STALE for doubt in troubles):
        return state, Decision(state.wanted, Action.HOLD, Reason.INPUT_RESTORED, "arrivals and reports are fresh again")
    return state, None


POLICIES: Mapping[str, Policy] = MappingProxyType({"default": step, "inferline": inferline_step})
"""Policies by the name that `run` and `replay` know them by."""
