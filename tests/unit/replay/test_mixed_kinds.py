"""A plan that mixes hardware kinds, under twice its traffic: a kind's full batches are cheap, and too late."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from inferline_stream.calculus.envelope import trace_envelope, windows_s
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.replay.clairvoyant import cheapest
from inferline_stream.replay.loop import replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Scaler, Tuner
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.staffing_table import staffing
from inferline_stream.tuner.tuner_state import TunerState

SHAPE = Shape(("s",), ())
KINDS = {"steady": Hardware("steady", 1.0), "bulk": Hardware("bulk", 0.3)}
SLO_S, BULK_S = 0.5, 0.8
MEASURED = PipelineProfile(
    {
        ("s", "steady"): Profile("s", "steady", (ServiceTime(1, 0.02), ServiceTime(4, 0.06)), start_up_s=2.0),
        ("s", "bulk"): Profile("s", "bulk", (ServiceTime(1, 0.1), ServiceTime(32, BULK_S)), start_up_s=2.0),
    },
    Paths((0,), (1.0,)),
)
"""Full batches cost half as much an event on `bulk`, and take longer than the SLO there."""

SAMPLE = gamma_trace(150.0, 1.0, 60.0, np.random.default_rng(3))
HELD = (Allocation("steady", 4, 3), Allocation("bulk", 32, 1))
PLAN = Plan(
    pipeline="mixed",
    slo_s=SLO_S,
    allocations={"s": HELD},
    cost_per_hour=3.3,
    predicted_p99_s=0.1,
    arrival_rate=SAMPLE.arrival_rate,
    envelope=tuple(trace_envelope(SAMPLE, windows_s(0.1))),
    visit_ratios={"s": 1.0},
    utilization={"s": 0.6},
)


@cache
def planned() -> TunerState:
    table = staffing(SHAPE, PLAN, MEASURED, SAMPLE, {name: kind.price_per_hour for name, kind in KINDS.items()})
    return initial_state(PLAN, MEASURED, KINDS, staffing=table)


def twice() -> Trace:
    rng = np.random.default_rng(4)
    parts = [gamma_trace(rate, 1.0, 60.0, rng).arrivals_s for rate in (150.0, 300.0, 150.0)]
    return Trace(np.concatenate([part + 60.0 * i for i, part in enumerate(parts)]))


def replayed(scaler: Scaler) -> Outcome:
    return replay(SHAPE, PLAN.allocations, MEASURED, twice(), scaler, catalogue=KINDS, slo_s=SLO_S, slots={})


def decided(policy: str) -> Outcome:
    return replayed(Tuner(policy, POLICIES[policy], planned(), SHAPE))


@pytest.mark.parametrize(
    "outcome",
    [
        lambda: decided("default"),
        lambda: decided("inferline"),
        lambda: cheapest(planned().basis, twice(), replayed),
    ],
    ids=["default", "inferline", "hindsight"],
)
def test_a_policy_that_keeps_the_plans_mixture_keeps_the_slo_under_twice_the_traffic(outcome: Callable[[], Outcome]):
    assert simulate(SHAPE, PLAN.allocations, MEASURED, SAMPLE, order_slo_s=SLO_S).p99_s < SLO_S < BULK_S
    assert outcome().miss_rate <= 0.01
