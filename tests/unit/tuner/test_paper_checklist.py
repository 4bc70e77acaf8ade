"""The paper's Tuner, item by item, against numbers worked out by hand (InferLine §5)."""

import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.calculus.envelope import trace_envelope
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.decision import Action, Reason
from inferline_stream.tuner.paper_policy import inferline_step
from inferline_stream.tuner.tuner_state import initial_state
from tests.unit.tuner.plans import CATALOGUE, SHAPE, measured, plan, seen, state

CALM = (290, 590, 5900)
"""Below the plan in every window."""


def totals(decision) -> dict[str, int]:
    return {stage: sum(kinds.values()) for stage, kinds in decision.replicas.items()}


def test_within_the_plan_nothing_changes():
    assert inferline_step(state(), seen(0.0))[1] is None


@pytest.mark.parametrize("multiple", [1.01, 1.25, 1.5, 2.0, 3.7])
def test_traffic_of_x_times_lambda_gets_x_times_the_planned_replicas_rounded_up(multiple):
    exceeding = (290, 590, round(6000 * multiple))
    _, decision = inferline_step(state(), seen(0.0, exceeding))
    assert totals(decision) == {"a": math.ceil(2 * multiple), "b": math.ceil(3 * multiple)}
    assert (decision.action, decision.reason) == (Action.SCALE_UP, Reason.ENVELOPE_EXCEEDED)


def test_the_rate_is_the_largest_of_the_exceeding_windows_only():
    """The 1 s window shows 290/s but is within the plan; the 60 s window exceeds with 110/s."""
    _, decision = inferline_step(state(), seen(0.0, (290, 590, 6600)))
    assert totals(decision) == {"a": 3, "b": 4}


def test_a_burst_at_the_same_mean_rate_scales_up_in_the_same_step():
    _, decision = inferline_step(state(), seen(0.0, (310, 590, 5900)))
    assert totals(decision) == {"a": math.ceil(2 * 3.1), "b": math.ceil(3 * 3.1)}


def test_scaling_up_only_ever_adds():
    tuner, first = inferline_step(state(), seen(0.0, (290, 590, 12000)))
    assert totals(first) == {"a": 4, "b": 6}
    _, second = inferline_step(tuner, seen(0.1, (290, 590, 6600)))
    assert second is None


def test_replicas_that_are_pending_are_not_asked_for_twice():
    exceeding = (290, 590, 9000)
    tuner, first = inferline_step(state(), seen(0.0, exceeding))
    assert first is not None
    assert inferline_step(tuner, seen(0.1, exceeding, ready=(2, 3), pending=(1, 2)))[1] is None


@pytest.mark.parametrize("began_s", [0.0, 1000.0])
def test_nothing_is_taken_away_within_fifteen_seconds_of_a_change(began_s):
    tuner, _ = inferline_step(state(), seen(began_s, (290, 590, 12000)))
    for time_s in np.arange(0.1, 14.9, 0.1):
        tuner, decision = inferline_step(tuner, seen(began_s + float(time_s), CALM, peak_rate=50.0))
        assert decision is None
    _, decision = inferline_step(tuner, seen(began_s + 15.0, CALM, peak_rate=50.0))
    assert decision.action is Action.SCALE_DOWN


def test_scaling_down_uses_the_least_utilization_and_the_peak_of_the_last_half_minute():
    """λ_new 50/s, ρ_p = 1/3: ⌈50·1/(100/3)⌉ = 2 and ⌈50·½/(50/3)⌉ = 2."""
    tuner, _ = inferline_step(state(), seen(0.0, (290, 590, 12000)))
    _, decision = inferline_step(tuner, seen(15.0, CALM, peak_rate=50.0))
    assert totals(decision) == {"a": 2, "b": 2}


def test_the_last_replica_stays():
    tuner, _ = inferline_step(state(), seen(0.0))
    _, decision = inferline_step(tuner, seen(20.0, (0, 0, 0), peak_rate=0.0))
    assert totals(decision) == {"a": 1, "b": 1}


def test_replaying_the_sample_that_was_planned_on_changes_nothing():
    trace = Trace(np.arange(0.0, 90.0, 0.0101))
    tuner = state()
    windows = tuple(window for window, _ in plan().envelope)
    planned = dict(trace_envelope(trace, windows))
    assert all(planned[window] <= count for window, count in plan().envelope)
    outcome = replay(
        SHAPE,
        plan().allocations,
        measured(),
        trace,
        Tuner("inferline", inferline_step, tuner, SHAPE),
        catalogue=CATALOGUE,
        slo_s=0.5,
        slots={},
    )
    assert outcome.changes == 0


def test_a_stage_that_costs_nothing_holds_no_other_to_its_utilization():
    """At half the planned rate half of a's two replicas do; b's utilization of a tenth would leave it both."""
    catalogue = {"x": CATALOGUE["x"], "free": Hardware("free", 0.0)}
    profiled = measured()
    free = replace(profiled.profiles["b", "x"], hardware="free")
    profiled = replace(profiled, profiles={("a", "x"): profiled.profiles["a", "x"], ("b", "free"): free})
    planned = replace(
        plan(),
        allocations={**plan().allocations, "b": (Allocation("free", 1, 3),)},
        utilization={"a": 0.5, "b": 0.1},
        cost_per_hour=2.0,
    )
    tuner, _ = inferline_step(initial_state(planned, profiled, catalogue), seen(0.0, CALM))
    _, decision = inferline_step(tuner, seen(15.0, CALM, peak_rate=50.0))
    assert decision.replicas["a"] == {"x": 1}
