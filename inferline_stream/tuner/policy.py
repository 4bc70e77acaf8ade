"""The default policy: replicas from what is seen, as one pure step. Live loop and replay call this very function."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from msgspec.structs import replace

from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import count_of
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.demand import Demand, demands
from inferline_stream.tuner.input_checks import HISTORY_S, START_S, Doubt, doubts, on_this_clock
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.paper_policy import inferline_step
from inferline_stream.tuner.plan_basis import Replicas, StageBasis
from inferline_stream.tuner.replica_fit import fewer, more, supply, within
from inferline_stream.tuner.sleeping_stages import rested
from inferline_stream.tuner.spot_losses import SpotSupply, spot_supply
from inferline_stream.tuner.traffic import RATE_WINDOW_S, Traffic
from inferline_stream.tuner.tuner_state import TunerState, initial_state

__all__ = ["POLICIES", "Policy", "TunerState", "foreseen", "inferline_step", "initial_state", "step"]

Policy = Callable[[TunerState, Observation], tuple[TunerState, Decision | None]]

QUIET_S = 30.0
"""A condition that was reported is reported again only after it has been away for this long."""

_NO_LIMITS = Limits()

_ANY = 1e-9
"""Events per second that take a replica."""


def step(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
    """One step of the default policy.

    Every stage gets at once what its demand needs (`tuner.demand`); nothing is taken from one stage because
    another needs more. A stage gives replicas back when what remains carries its load, has done so for a while,
    and everything seen is fresh. Limits that people set apply at once. Asking is
    idempotent: replicas that were asked for and are not ready yet count.

    Args:
        state: from the step before, or `initial_state`.
        seen: the pipeline now.

    Returns:
        The new state, and a decision if replicas change, or if a condition that people should know of
        begins or ends (`Action.HOLD`).
    """
    before_s = state.time_s
    state, jumped = on_this_clock(state, seen)
    doubted = ((jumped,) if jumped is not None else ()) + doubts(state, seen)
    if doubted and before_s is not None:
        state = _not_counted(state, seen.time_s - before_s)
    if any(doubt.where == "" for doubt in doubted):
        starting = seen.arrivals_age_s is None and jumped is None and seen.time_s - state.changed_s < START_S
        return (state, None) if starting else _hold(state, doubted)
    state, rest = rested(state, seen, doubted=bool(doubted))
    state, spot = spot_supply(state, seen)
    state, needed = demands(state, seen)
    wanted, limited, short = _raised(state, seen, needed, doubted, (rest.stages, spot))
    troubles = doubted + short + _stuck(needed)
    if wanted != state.wanted:
        return _changed(state, seen, wanted, needed, limited=limited, why={**spot.why, **rest.why})
    if doubted:
        return _hold(state, troubles)
    state, lowered = _lowered(state, seen, needed)
    if lowered is not None:
        return state, lowered
    return _hold(state, troubles)


def _not_counted(state: TunerState, step_s: float) -> TunerState:
    """The state after a step that was not seen whole: in it, a load has not fitted fewer replicas."""
    return replace(state, fits_since_s={name: since_s + step_s for name, since_s in state.fits_since_s.items()})


def foreseen(policy: Policy, state: TunerState, seen: Observation, arrivals: Trace | None) -> Decision | None:
    """What a policy would ask for while its first new replica starts, asked for at once.

    Until a rate has been seen, and a replica for it has started, a pipeline has only what it began with. What is known
    of that time is looked at before it begins, second by second, as the policy will see it.

    Args:
        policy: its step.
        state: to begin with.
        seen: the pipeline before its first replica is ready, with the records that wait.
        arrivals: that are known to come, from the beginning on; None where nobody knows any.

    Returns:
        The last decision that asks for more; None if there is none.
    """
    traffic, last = Traffic(state.windows_s), None
    known_s = RATE_WINDOW_S + state.basis.knobs.reaction_s + state.basis.start_up_s
    for second in range(1, math.ceil(known_s) + 1):
        if arrivals is not None:
            traffic.add(arrivals.window(second - 1, second).arrivals_s + (second - 1))
        then = replace(
            seen,
            time_s=float(second),
            envelope=traffic.envelope(second),
            arrival_rate=traffic.arrival_rate(second),
            peak_rate=traffic.peak_rate(second),
            recent=traffic.recent(second),
            watched_s=float(second),
            arrivals_age_s=0.0,
        )
        state, decision = policy(state, then)
        if decision is not None and decision.action is Action.SCALE_UP:
            last = decision
    return last


def _raised(
    state: TunerState,
    seen: Observation,
    needed: Mapping[str, Demand],
    doubted: tuple[Doubt, ...],
    supplied: tuple[Collection[str], SpotSupply],
) -> tuple[Mapping[str, Mapping[str, int]], tuple[str, ...], tuple[Doubt, ...]]:
    """Replicas for every demand within stock and limits; stages that limits decide; where it is short."""
    wanted: dict[str, Mapping[str, int]] = {}
    limited, short = [], []
    resting, spot = supplied
    stock = {**state.basis.stock, **seen.stock}
    stock |= {kind: min(count, stock.get(kind, count)) for kind, count in spot.stock.items()}
    left = {hardware: count - _held(spot.held, hardware) for hardware, count in stock.items()}
    awake = {name: held for name, held in spot.held.items() if name not in resting}
    dealt = _dealt(state, seen, needed, left, awake) if left else {}
    sleeping = state.sleeping
    for stage in state.basis.stages:
        demand, limits = needed[stage.name], seen.limits.get(stage.name, _NO_LIMITS)
        before = spot.held[stage.name]
        if stage.name in resting:
            wanted[stage.name] = none = dict.fromkeys(before, 0)
            left = _less(left, before, none)
            continue
        any_ = _ANY if stage.name in sleeping else 0.0  # one that wakes gets a replica, whatever comes
        supply_needed, most = max(demand.needed, any_), limits.maximum
        bounded = stage.name in dealt and (most is None or dealt[stage.name] < most)
        bound = max(dealt[stage.name], 1) if bounded else most
        fit = more(stage, before, demand.throughputs, supply_needed, stock=left, maximum=bound)
        if bounded and fit.short is Reason.LIMIT_CHANGED:
            fit = replace(fit, short=Reason.STOCK_EXHAUSTED)
        now = fit.replicas
        if limits is not _NO_LIMITS or stage.slots > 1:
            # A stage that is not seen is not made smaller, even if people ask for it.
            fewest = _fewest(stage, limits, now)
            still, most = _less(left, before, now), None if doubted else limits.maximum
            now = within(stage, now, demand.throughputs, minimum=fewest, maximum=most, stock=still)
            if now != fit.replicas:
                limited.append(stage.name)
            least, total = fewest if most is None else min(fewest, most), sum(now.values())
            if total < least and fit.short is None:
                lacking = f"is to have {count_of(least, 'replica')}, and there is stock for {total}"
                short.append(Doubt(Reason.STOCK_EXHAUSTED, stage.name, f"stage {stage.name!r} {lacking}"))
        left = _less(left, before, now)
        wanted[stage.name] = now
        if fit.short is not None and not (fit.short is Reason.SERVER_LIMIT and demand.reason is Reason.INSURANCE):
            given = count_of(sum(now.values()), "replica")
            short.append(Doubt(fit.short, stage.name, f"stage {stage.name!r} needs more than {given}: {demand.detail}"))
    return wanted, tuple(limited), tuple(short)


def _dealt(
    state: TunerState, seen: Observation, needed: Mapping[str, Demand], stock: Mapping[str, int], awake: Replicas
) -> Mapping[str, int]:
    """Return the replicas that each stage gets where there are not enough for all; nothing where there are.

    An event is as late as its slowest stage makes it: so each next replica goes to the stage that has the least of what
    it needs. Those that have more already keep it.

    Args:
        state: what is planned.
        seen: what people allow.
        needed: of each stage.
        stock: replicas by kind that can still be added.
        awake: what the stages hold that get any.
    """
    stages = {stage.name: stage for stage in state.basis.stages if stage.name in awake}
    now, left = {name: dict(awake[name]) for name in stages}, dict(stock)
    open_, short = set(stages), False

    def part(name: str) -> float:
        return supply(now[name], needed[name].throughputs) / max(needed[name].needed, _ANY)

    while open_:
        name = min(sorted(open_), key=part)
        most, demand, held = seen.limits.get(name, _NO_LIMITS).maximum, needed[name], now[name]
        next_ = sum(held.values()) + 1
        bound = next_ if most is None else min(next_, most)
        fit = more(stages[name], held, demand.throughputs, demand.needed, stock=left, maximum=bound)
        if fit.replicas == held:
            open_.discard(name)
            short = short or fit.short is Reason.STOCK_EXHAUSTED
        left, now[name] = _less(left, held, fit.replicas), fit.replicas
    return {name: sum(held.values()) for name, held in now.items()} if short else {}


def _less(stock: Mapping[str, int], before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """What is left of the stock."""
    return {kind: count + before.get(kind, 0) - now.get(kind, 0) for kind, count in stock.items()}


def _fewest(stage: StageBasis, limits: Limits, held: Mapping[str, int]) -> int:
    """The least that a stage may have: what people allow, and a replica for each dispatcher if it has any at all."""
    return max(limits.minimum, stage.slots) if any(held.values()) else limits.minimum


def _held(replicas: Replicas, hardware: str) -> int:
    return sum(by_kind.get(hardware, 0) for by_kind in replicas.values())


def _changed(
    state: TunerState,
    seen: Observation,
    wanted: Mapping[str, Mapping[str, int]],
    needed: Mapping[str, Demand],
    *,
    limited: tuple[str, ...],
    why: Mapping[str, tuple[Reason, str]],
) -> tuple[TunerState, Decision]:
    """The decision that asks for other replicas at once."""
    changed = [name for name in state.wanted if wanted[name] != state.wanted[name]]
    leading = max(changed, key=lambda name: (name not in limited, needed[name].needed))
    more_of = any(
        any(count > state.wanted[name].get(kind, 0) for kind, count in wanted[name].items())
        if name in why
        else sum(wanted[name].values()) > sum(state.wanted[name].values())
        for name in changed
    )
    action = Action.SCALE_UP if more_of else Action.SCALE_DOWN
    caused = [name for name in changed if name in why and (why[name][0] is not Reason.IDLE or not more_of)]
    if caused:
        leading = caused[0]
        reason, detail = why[leading]
    elif leading in limited:
        limits = seen.limits.get(leading, _NO_LIMITS)
        most = "any number of" if limits.maximum is None else f"{limits.maximum}"
        (stage,) = (stage for stage in state.basis.stages if stage.name == leading)
        least, total = _fewest(stage, limits, wanted[leading]), sum(wanted[leading].values())
        if stage.slots > limits.minimum and total == least > sum(state.wanted[leading].values()):
            reason, detail = Reason.DISPATCHERS_NEED_REPLICAS, f"each of its {stage.slots} dispatchers needs a replica"
        else:
            reason, detail = Reason.LIMIT_CHANGED, f"{least} to {most} replicas are allowed"
    else:
        reason, detail = needed[leading].reason, needed[leading].detail
    fits = {name: since_s for name, since_s in state.fits_since_s.items() if name not in changed}
    state = replace(state, wanted=wanted, changed_s=seen.time_s, fits_since_s=fits)
    return state, Decision(wanted, action, reason, f"stage {leading!r}: {detail}")


def _lowered(state: TunerState, seen: Observation, needed: Mapping[str, Demand]) -> tuple[TunerState, Decision | None]:
    """Give back what each stage's load has fitted without for long enough."""
    basis, knobs, now_s = state.basis, state.basis.knobs, seen.time_s
    fitting: dict[str, Mapping[str, int]] = {}
    for stage in basis.stages:
        name = stage.name
        demand, held = needed[name], state.wanted[name]
        if any(kind.pending for kind in seen.stages[name].supply.values()):
            continue
        limits = seen.limits.get(name, _NO_LIMITS)
        after = fewer(stage, held, demand.throughputs, demand.needed, limits.minimum)
        if stage.slots > 1 and sum(after.values()) < (least := _fewest(stage, limits, after)):
            after = fewer(stage, held, demand.throughputs, demand.needed, least)
        if after != held:
            fitting[name] = after
    fits_since_s = {name: state.fits_since_s.get(name, now_s) for name in fitting}
    if fits_since_s != state.fits_since_s:
        state = replace(state, fits_since_s=fits_since_s)
    if not fitting or now_s < state.blind_until_s or seen.watched_s < HISTORY_S:
        return state, None
    fallen = any(demand.fallen for demand in needed.values())
    wait_s = min(knobs.fallen_wait_s, knobs.down_after_s) if fallen else knobs.down_after_s
    names = [name for name, since_s in fits_since_s.items() if now_s - since_s >= wait_s]
    if not names:
        return state, None
    wanted = {**state.wanted, **{name: fitting[name] for name in names}}
    detail = "; ".join(_kept(name, fitting[name], needed[name].throughputs) for name in names)
    detail += f"; the load has fitted that for {wait_s:.0f} s"
    decision = Decision(wanted, Action.SCALE_DOWN, Reason.LOAD_FELL, detail)
    return replace(state, wanted=wanted, changed_s=now_s), decision


def _kept(name: str, after: Mapping[str, int], throughputs: Mapping[str, float]) -> str:
    count = sum(after.values())
    replicas = "1 replica, which serves" if count == 1 else f"{count} replicas, which serve"
    return f"stage {name!r} keeps {replicas} up to {supply(after, throughputs):.1f}/s in full batches"


def _stuck(needed: Mapping[str, Demand]) -> tuple[Doubt, ...]:
    return tuple(
        Doubt(Reason.PARTITION_STUCK, name, f"stage {name!r}: partitions {demand.stuck} stand still")
        for name, demand in needed.items()
        if demand.stuck
    )


def _hold(state: TunerState, troubles: tuple[Doubt, ...]) -> tuple[TunerState, Decision | None]:
    """Report the first trouble that is new, or that all input is fresh again; else nothing.

    A trouble that comes and goes is reported again only once it has been away for a while.
    """
    if not troubles and not state.reported:
        return state, None
    assert state.time_s is not None
    now_s, present = state.time_s, {(doubt.reason, doubt.where) for doubt in troubles}
    stale = any(reason is Reason.INPUT_STALE for reason, _ in present)
    reported = {
        key: now_s if key in present else seen_s
        for key, seen_s in state.reported.items()
        if key in present or (now_s - seen_s < QUIET_S and (stale or key[0] is not Reason.INPUT_STALE))
    }
    new = next((doubt for doubt in troubles if (doubt.reason, doubt.where) not in reported), None)
    if new is not None:
        reported[new.reason, new.where] = now_s
        return replace(state, reported=reported), Decision(state.wanted, Action.HOLD, new.reason, new.detail)
    restored = not stale and any(reason is Reason.INPUT_STALE for reason, _ in state.reported)
    state = replace(state, reported=reported)
    if restored:
        return state, Decision(state.wanted, Action.HOLD, Reason.INPUT_RESTORED, "arrivals and reports are fresh again")
    return state, None


POLICIES: Mapping[str, Policy] = MappingProxyType({"default": step, "inferline": inferline_step})
"""Policies by the name that `run` and `replay` know them by."""
