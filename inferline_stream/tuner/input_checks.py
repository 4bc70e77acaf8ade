"""What makes an observation unfit to act on: time that jumped, arrivals or reports that are missing or old."""

from __future__ import annotations

import math
from dataclasses import dataclass

from msgspec.structs import replace

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.tuner_state import TunerState

ARRIVALS_STALE_S = 1.0
"""Arrivals are sampled every 20 ms: a second without a sample means that nobody is looking."""

REPORTS_STALE_S = 3.0
"""A replica reports every 0.5 s and is called dead after 3 s."""

START_S = 1.0
"""Within this long of the first step, arrivals that were never sampled are waited for without a word."""

HISTORY_S = 60.0
"""How long traffic must have been watched without a gap before anything is scaled down: the envelope's span."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One condition that is reported when it begins.

    Args:
        reason: what is wrong.
        where: the stage, or empty for the pipeline's arrivals or clock.
        detail: in words.
    """

    reason: Reason
    where: str
    detail: str


def on_this_clock(state: TunerState, seen: Observation) -> tuple[TunerState, Doubt | None]:
    """The state with its times brought to the observation's clock, which may have jumped or stood still."""
    before = state.time_s
    state = replace(state, time_s=seen.time_s)
    if before is None:
        return replace(state, changed_s=seen.time_s), None
    step_s = seen.time_s - before
    if 0 <= step_s <= state.basis.knobs.jump_s:
        return state, None
    detail = f"time went from {before:.3f} s to {seen.time_s:.3f} s between two steps"
    moved = replace(
        state,
        changed_s=seen.time_s,
        outgrown_s=state.outgrown_s + step_s,
        record=None if state.record is None else state.record.moved(step_s),
        leapt_s=state.leapt_s + step_s,
        woken_s=state.woken_s + step_s,
        away_until_s={kind: until_s + step_s for kind, until_s in state.away_until_s.items()},
        used_s={name: used_s + step_s for name, used_s in state.used_s.items()},
        expected=(),
        choice=None,
        fits_since_s={},
        degraded_since_s={},
        blind_until_s=seen.time_s + HISTORY_S,
    )
    return moved, Doubt(Reason.CLOCK_JUMPED, "", detail)


def doubts(state: TunerState, seen: Observation) -> tuple[Doubt, ...]:
    """Everything that is missing or too old, arrivals first."""
    found = []
    age_s = seen.arrivals_age_s
    if age_s is None or not age_s <= ARRIVALS_STALE_S:
        detail = "no sample of arrivals yet" if age_s is None else f"newest sample of arrivals is {age_s:.1f} s old"
        found.append(Doubt(Reason.INPUT_STALE, "", detail))
    if len(seen.envelope) != len(state.basis.windows_s) or not math.isfinite(seen.arrival_rate):
        found.append(Doubt(Reason.INPUT_STALE, "", "the traffic envelope is incomplete"))
    for stage in state.basis.stages:
        there = seen.stages.get(stage.name)
        if there is None:
            found.append(Doubt(Reason.INPUT_STALE, stage.name, f"nothing is known of stage {stage.name!r}"))
        elif (there.age_s is None or not there.age_s <= REPORTS_STALE_S) and any(
            supply.ready for supply in there.supply.values()
        ):
            since = "have never reported" if there.age_s is None else f"last reported {there.age_s:.1f} s ago"
            found.append(Doubt(Reason.INPUT_STALE, stage.name, f"replicas of stage {stage.name!r} {since}"))
    return tuple(found)
