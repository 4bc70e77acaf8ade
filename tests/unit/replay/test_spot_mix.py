"""How much of a plan may be spot: as much as nobody notices, and no more where replicas start too late."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.pipeline.spot import Spot
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.loop import Loss, replay
from inferline_stream.replay.scalers import Fixed, Tuner
from inferline_stream.replay.spot_mix import SpotMix, spot_mix
from inferline_stream.tuner.policy import initial_state, step

ONE = Shape(("a",), ())
TRACE = Trace(np.arange(600) / 10.0)
"""Ten events a second for a minute, which four replicas of 2.5 each serve to the last one."""


def kinds(spot: Spot):
    return catalogue([Hardware("x", 1.0, spot=spot)])


def measured(start_up_s: float, service_s: float = 0.3) -> PipelineProfile:
    profile = Profile("a", "x", (ServiceTime(1, service_s),), start_up_s=start_up_s)
    return PipelineProfile({("a", "x"): profile}, independent_paths(ONE, {})).with_spot({"a": ["x", "x-spot"]})


def plan(on_demand: int = 0, spot: int = 4) -> Plan:
    held = (Allocation("x", 1, on_demand), Allocation("x-spot", 1, spot))
    return Plan("p", 0.5, {"a": held}, 1.2, 0.3, 10.0, ((1.0, 11), (10.0, 101)), {"a": 1.0}, {"a": 0.75})


@functools.cache
def mixed(spot: Spot, start_up_s: float) -> SpotMix:
    found = spot_mix(plan(), ONE, measured(start_up_s), kinds(spot), trace=TRACE, objective=0.99)
    assert found is not None
    return found


def on_demand(found: SpotMix) -> int:
    return {a.hardware: a.replicas for a in found.plan.allocations["a"]}["x"]


def test_all_of_it_is_spot_where_a_notice_is_longer_than_a_start() -> None:
    found = mixed(Spot(0.3, notice="2m"), start_up_s=30.0)
    assert on_demand(found) == 0
    assert found.plan.cost_per_hour == pytest.approx(4 * 0.3)
    (loss,) = found.losses
    assert (loss.late, loss.replicas, loss.every_h, loss.cost_per_hour) == (0.0, 4, 10.0, 4.0)
    assert "Spot: $1.2000/h, 70% less than $4.0000/h on demand. x-spot (4 replicas) goes about every 10 h" in (
        found.in_words()
    )


@pytest.mark.parametrize(("start_up_s", "expected"), [(20.0, 0), (60.0, 2), (130.0, 3)])
def test_without_a_notice_so_much_is_on_demand_that_an_hour_s_hundredth_is_late(
    start_up_s: float, expected: int
) -> None:
    """A start of t s leaves 10 − 3.33 k events a second too many for t s, 1 % of 36,000 may be late.

    Those that wait meanwhile are hopeless and go last: late is about what comes too many.
    """
    found = mixed(Spot(0.3, notice="0s"), start_up_s)
    assert on_demand(found) == expected
    too_many = max(0.0, 10 - expected / 0.3) * (start_up_s + 1)
    assert found.losses[0].late * 36_000 == pytest.approx(too_many, abs=25)
    assert found.losses[0].late <= 0.01
    if expected:
        fewer = max(0.0, 10 - (expected - 1) / 0.3) * (start_up_s + 1)
        assert fewer > 360, "one less would have been too few"
        assert found.safer_per_hour == pytest.approx(found.plan.cost_per_hour + 0.7)


def test_people_s_bound_of_what_stands_in_is_the_cost_of_the_worst_hour() -> None:
    """Two replicas of 3.3 events a second, of which one is enough for two a second."""
    calm = Trace(np.arange(120) / 2.0)
    found = spot_mix(plan(spot=2), ONE, measured(5.0), kinds(Spot(0.3, most=1.0)), trace=calm, objective=0.99)
    assert found is not None
    assert (on_demand(found), found.losses[0].late, found.losses[0].cost_per_hour) == (0, 0.0, 1.0)


def test_the_mix_of_a_mix_is_the_same_and_a_plan_without_spot_stays_as_it_is() -> None:
    spot = Spot(0.3, notice="0s")
    found = mixed(spot, 60.0)
    again = spot_mix(found.plan, ONE, measured(60.0), kinds(spot), trace=TRACE, objective=0.99)
    assert again == found
    alone = replace(plan(), allocations={"a": (Allocation("x", 1, 4),)})
    assert spot_mix(alone, ONE, measured(5.0), kinds(spot), trace=TRACE, objective=0.99) is None


def test_none_of_it_is_spot_where_people_pay_too_little_for_what_stands_in() -> None:
    spot, slow = Spot(0.3, most=1.0), measured(5.0, 0.39)  # one of them is too few for five events a second
    found = spot_mix(plan(spot=2), ONE, slow, kinds(spot), trace=Trace(np.arange(300) / 5.0), objective=0.99)
    assert found is not None
    assert on_demand(found) == 2
    assert (found.losses, found.plan.cost_per_hour) == ((), 2.0)
    assert "Spot: none, all is on demand for $2.0000/h." in found.in_words()


def test_the_closed_loop_replaces_what_has_a_notice_before_it_is_taken_and_takes_it_back() -> None:
    """The price is that of spot, but for twelve minutes on demand."""
    spot, trace = Spot(0.3, notice="2m"), Trace(np.arange(16_000) / 10.0)
    of, catalogue_ = measured(20.0), kinds(spot)
    losses = [Loss(600.0, "x-spot", 120.0, away_s=300.0)]
    tuner = Tuner("tuner", step, initial_state(plan(), of, catalogue_), ONE, period_s=1.0)
    more = {"catalogue": catalogue_, "slo_s": 0.5, "slots": {}, "losses": losses}
    tuned = replay(ONE, plan().allocations, of, trace, tuner, **more)
    alone = replay(ONE, plan().allocations, of, trace, Fixed(), **more)
    assert tuned.late == 0
    assert alone.late > 5_000, "nothing works after it"
    assert [each.reason for each in tuned.steps if each.reason.startswith("spot")] == ["spot_lost", "spot_back"]
    on_demand_h = tuned.replica_hours["a", "x"]
    assert 4 * (120 + 600) / 3600 * 0.9 < on_demand_h < 6 * (120 + 600 + 120) / 3600
