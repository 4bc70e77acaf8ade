"""The SLO's window in a replay: what may be late until it ends, and the next one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.policy import initial_state
from tests.unit.replay.test_live_observations import KINDS, MEASURED, ONE, PLAN


def test_each_window_begins_with_a_budget_of_its_own() -> None:
    """A thousand events are planned in 10 s: ten of them may be late, and the fewer are to come, the larger a share."""
    shares = {}

    def step(state, observation):
        shares[round(observation.time_s, 1)] = observation.late_share
        return state, None

    state = initial_state(replace(PLAN, arrival_rate=100.0), MEASURED, KINDS)
    tuner = Tuner("tuner", step, state, ONE, slo_window_s=10.0)
    replay(ONE, PLAN.allocations, MEASURED, Trace(np.arange(90) * 0.3), tuner, catalogue=KINDS, slo_s=0.5, slots={})
    for begins_s in (0.0, 10.0, 20.0):
        assert shares[begins_s + 0.1] == pytest.approx(0.01, rel=0.05)
    assert shares[9.9] == shares[19.9] == pytest.approx(0.072)
