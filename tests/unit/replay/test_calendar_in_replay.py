"""A schedule and what weeks have taught, in a replay: by the function and the weeks of a live run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from inferline_stream import Every
from inferline_stream.pipeline.schedule import TrafficSchedule
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.calendar import BIN_S, Calendar, PastWeeks
from inferline_stream.tuner.policy import initial_state, step
from tests.unit.replay.test_live_observations import KINDS, MEASURED, ONE, PLAN

MONDAY_S = 4 * 86_400.0
"""The epoch began on a Thursday."""


def replayed(calendar: Calendar | None, seconds: int = 400) -> tuple[list[tuple[float, str]], Tuner]:
    state = initial_state(replace(PLAN, arrival_rate=20.0), MEASURED, KINDS)
    tuner = Tuner("default", step, state, ONE, calendar=calendar)
    trace = Trace(np.arange(5 * seconds) * 0.2)
    outcome = replay(ONE, PLAN.allocations, MEASURED, trace, tuner, catalogue=KINDS, slo_s=0.5, slots={})
    return [(s.time_s, s.detail) for s in outcome.steps if s.action == "scale_up" and "schedule" in s.detail], tuner


def test_replicas_are_there_when_a_window_begins_on_the_clock_of_the_replay() -> None:
    schedule = TrafficSchedule((Every("mon 09:05-09:06", reserve=20.0),))
    steps, _ = replayed(Calendar(MONDAY_S + 9 * 3600, schedule))
    start_up_s = max(profile.start_up_s for profile in MEASURED.profiles.values())
    (asked_s,) = {time_s for time_s, _ in steps}
    assert 300 - start_up_s - 1.2 <= asked_s <= 300 - start_up_s - 1.0 + 0.11
    assert replayed(None)[0] == []


def test_a_replay_learns_as_a_live_run_does() -> None:
    """It goes on from the weeks that were known; five events a second, whatever the step."""
    known = PastWeeks(int(MONDAY_S // BIN_S) - 3, np.array([1.0, 2.0]))
    _, tuner = replayed(Calendar(MONDAY_S, weeks=known), 320)
    assert tuner.weeks.weeks.first == known.first
    assert np.allclose(tuner.weeks.weeks.rates, [1.0, 2.0, np.nan, 5.0], rtol=0.02, equal_nan=True)
