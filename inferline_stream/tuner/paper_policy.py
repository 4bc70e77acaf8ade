"""The paper's Tuner to the letter (InferLine, SoCC 2020, §5), weaknesses included: the yardstick."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.mixture import following, leaving
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.plan_basis import Basis, StageBasis
from inferline_stream.tuner.tuner_state import TunerState

STABLE_S = 15.0
"""No scale-down sooner after any change of configuration: three times the paper's start-up time of 5 s."""

_ROUNDING = 1e-9


def inferline_step(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
    """One step of the paper's Tuner.

    Scale up at once when any live rate r_i = q_i/ΔT_i exceeds the sample's, all stages to
    k_m = ⌈r_max·s_m/(µ_m·ρ_m)⌉, r_max being the largest *exceeding* rate; only ever adds. Scale down after
    15 s without any change to k_m = ⌈λ_new·s_m/(µ_m·ρ_p)⌉, λ_new being the largest rate of 5 s windows over
    the last 30 s and ρ_p the least of all ρ_m (of stages that cost money); never below one for each dispatcher.
    """
    basis = state.basis
    state = replace(state, time_s=seen.time_s, changed_s=seen.time_s if state.time_s is None else state.changed_s)
    exceeding = [
        (live / window_s, window_s)
        for live, planned, window_s in zip(seen.envelope, basis.counts, basis.windows_s, strict=True)
        if live > planned
    ]
    if exceeding:
        rate, window_s = max(exceeding)
        target = {s.name: _replicas(s, s.planned * rate / basis.arrival_rate) for s in basis.stages}
        wanted = {
            s.name: _moved(s, state.wanted[s.name], max(target[s.name], _total(state.wanted[s.name])))
            for s in basis.stages
        }
        detail = f"{rate:.1f}/s within {window_s:.3g} s exceeds the plan's envelope"
        return _decided(state, seen, wanted, Decision(wanted, Action.SCALE_UP, Reason.ENVELOPE_EXCEEDED, detail))
    if seen.time_s - state.changed_s < STABLE_S:
        return state, None
    lowest = min(basis.utilization(stage) for stage in _paid(basis))
    wanted = {}
    for stage in basis.stages:
        load = stage.planned * (seen.peak_rate / basis.arrival_rate) * (basis.utilization(stage) / lowest)
        held = state.wanted[stage.name]
        wanted[stage.name] = _moved(stage, held, min(_replicas(stage, load), _total(held)))
    detail = f"no 5 s of the last 30 s above {seen.peak_rate:.1f}/s"
    return _decided(state, seen, wanted, Decision(wanted, Action.SCALE_DOWN, Reason.LOAD_FELL, detail))


def _paid(basis: Basis) -> Sequence[StageBasis]:
    """Stages that cost money: the paper knows no others, and one that is next to idle would hold all the rest."""
    return [s for s in basis.stages if any(k.price_per_hour > 0 for k in s.kinds)] or basis.stages


def _decided(
    state: TunerState, seen: Observation, wanted: dict[str, dict[str, int]], decision: Decision
) -> tuple[TunerState, Decision | None]:
    if wanted == state.wanted:
        return state, None
    return replace(state, wanted=wanted, changed_s=seen.time_s), decision


def _replicas(stage: StageBasis, load: float) -> int:
    """⌈load⌉, at least one for each dispatcher; a load that rounding lifted above a whole number is that number."""
    return max(stage.slots, math.ceil(load * (1 - _ROUNDING)))


def _total(held: Mapping[str, int]) -> int:
    return sum(held.values())


def _moved(stage: StageBasis, held: Mapping[str, int], replicas: int) -> dict[str, int]:
    """The replicas held, brought to a total by the plan's mixture. The paper's plans have one kind per stage."""
    now = {kind.hardware: held.get(kind.hardware, 0) for kind in stage.kinds}
    while (total := sum(now.values())) < replicas:
        now[following(stage.mixture, now, now)] += 1
    for _ in range(total - replicas):
        now[leaving(stage.mixture, now, [kind for kind, count in now.items() if count])] -= 1
    return now
