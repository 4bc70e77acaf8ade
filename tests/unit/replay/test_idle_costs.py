"""What sleeping saves and makes late, against arrivals worked out by hand and against the closed loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.idle_costs import Sleeper, cold_start_s, idle_costs, sleepers
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.policy import initial_state, step
from inferline_stream.tuner.policy_settings import PolicySettings

SHAPE = Shape(("a", "b"), (Arrow(0, 1),))
OF = {"a": Sleeper(3.0, 0.1, cost_per_hour=1.0), "b": Sleeper(5.0, 0.2, 0.5, cost_per_hour=2.0)}
TOGETHER = {"a": Idle(60.0), "b": Idle(60.0)}


@pytest.mark.parametrize(
    ("asleep", "cold_s"),
    [
        (TOGETHER, 5.2),  # b is ready when a has long been done with it
        ({"a": Idle(60.0)}, 3.0 + 0.1 + 0.2),
        ({"b": Idle(60.0, own=True)}, 0.1 + 5.0 + 0.2),  # it starts as the event gets there
        ({}, 0.1 + 0.2),
    ],
)
def test_a_cold_start_is_the_longest_way_through_stages_that_start_together_or_one_after_another(
    asleep: dict[str, Idle], cold_s: float
) -> None:
    assert cold_start_s(SHAPE, asleep, OF) == pytest.approx(cold_s)


def test_late_are_those_that_come_in_the_cold_start_after_a_gap_that_is_long_enough() -> None:
    times = [0.0, 64.0, 164.0, 165.0, 168.0, 169.5, 1000.0]  # gaps of 64 s are none: arrivals count for 5 s more
    (found,) = idle_costs(SHAPE, TOGETHER, OF, Trace(np.array(times)), 0.2)
    assert (found.wakes, found.late, found.events) == (2, 3 + 1, 7)
    assert found.asleep_share == pytest.approx((100 - 65 + 830.5 - 65) / 1000)
    assert found.saved_per_hour == 3.0
    assert "57.14% of the events are late by it: the SLO cannot hold, which allows 0.01." in found.in_words(0.2, 0.99)
    assert "within the SLO of 6s" in found.in_words(6.0, 0.99)


@pytest.mark.parametrize(
    ("standby", "wake_s"),
    [(0, None), (1, None), (1, 1.5)],
    ids=["none stays", "one stands by", "one stands by with its server asleep"],
)
def test_the_closed_loop_sleeps_as_long_and_is_late_as_often_as_predicted(standby: int, wake_s: float | None) -> None:
    """Six bursts of 60 s, four minutes apart."""
    rng = np.random.default_rng(5)
    bursts = [begin + np.cumsum(rng.exponential(0.2, 300)) for begin in np.arange(6) * 240.0]
    trace = Trace(np.concatenate(bursts))
    kinds = {"x": Hardware("x", 1.0, asleep_per_hour=0.1)}
    profiles = {(s, "x"): Profile(s, "x", (ServiceTime(1, 0.05),), start_up_s=4.0, wake_s=wake_s) for s in SHAPE.stages}
    measured = PipelineProfile(profiles, independent_paths(SHAPE, {}))
    held = {stage: (Allocation("x", 1, 1),) for stage in SHAPE.stages}
    plan = Plan(
        "p", 0.5, held, 2.0, 0.3, 5.0, ((1.0, 15), (10.0, 75), (60.0, 340)),
        {"a": 1.0, "b": 1.0}, {"a": 0.25, "b": 0.25}, idle=dict.fromkeys(SHAPE.stages, Idle(60.0, standby=standby)),
    )  # fmt: skip

    def ran(of: Plan):
        state, period_s = initial_state(of, measured, kinds), 1.0 if wake_s is None else 0.25
        tuner = Tuner("tuner", step, state, SHAPE, period_s=period_s)
        return replay(SHAPE, held, measured, trace, tuner, catalogue=kinds, slo_s=0.5, slots={})

    of = sleepers(initial_state(plan, measured, kinds).basis, plan, measured)
    (said,) = idle_costs(SHAPE, plan.idle, of, trace, 0.5)
    asleep, awake = ran(plan), ran(replace(plan, idle={}))
    assert said.wakes == 5 == sum(each.reason == "woken" for each in asleep.steps)
    waits_s = {(0, None): 4.0 + PolicySettings().reaction_s, (1, None): 0.0, (1, 1.5): 1.5}[standby, wake_s]
    assert said.cold_start_s == pytest.approx(waits_s + 2 * 0.05)
    assert asleep.late - awake.late == pytest.approx(said.late, rel=0.25)
    price = 0.1 if wake_s else 1.0
    assert said.saved_per_hour == pytest.approx(2.0 - 2 * standby * price)
    assert asleep.cost <= awake.cost - 0.9 * said.asleep_share * said.saved_per_hour * asleep.duration_s / 3600
