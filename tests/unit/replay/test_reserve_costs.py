"""What a reserve costs and leaves late: of a beginning, of people, and by odds and price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.replay.reserve_costs import frontier, reserve_of
from inferline_stream.tuner.plan_basis import basis_of
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import CATALOGUE, measured, plan, state
from tests.unit.tuner.test_odds import LEVELS, record

KNOBS = PolicySettings(insurance=((2.5, 0.25),))


def test_without_one_it_is_the_plan_and_what_is_insured_beyond_it():
    """Of $5/h a quarter buys one replica: stage `a`, of two with 100/s each, can carry the least."""
    found = reserve_of(basis_of(plan(), measured(), CATALOGUE, knobs=KNOBS))
    assert (found.always, found.replicas, found.cost_per_hour) == (False, {"a": 3, "b": 3}, 6.0)
    assert found.multiple == 3.0, "300/s at both"


def test_a_fallback_carries_a_leap_in_place_of_a_reserve() -> None:
    alone = state(PolicySettings(insurance=((4.0, 2.0),))).basis
    stages = tuple(replace(stage, carries=2.0) for stage in alone.stages)
    carried = reserve_of(replace(alone, stages=stages))
    assert carried.replicas == {stage.name: stage.planned for stage in stages}
    assert carried.saved_per_hour == pytest.approx(reserve_of(alone).cost_per_hour - carried.cost_per_hour)
    assert carried.saved_per_hour > 0
    assert reserve_of(alone).saved_per_hour == 0.0


def test_a_reserve_on_shares_costs_the_devices_that_it_is_on() -> None:
    third = Hardware("x", 1.0, gpus=1 / 3, gpu_model="Tesla T4")
    found = reserve_of(basis_of(plan(), measured(), {"x": third}, knobs=PolicySettings(insurance=((3.1, 0.4),))))
    assert found.replicas == {"a": 4, "b": 3}
    assert found.cost_per_hour == 9.0, "seven thirds are on three devices"


@pytest.mark.parametrize(
    ("reserve", "replicas", "multiple"),
    [(0.0, {"a": 1, "b": 1}, 1.0), (1.0, {"a": 2, "b": 3}, 2.0), (4.0, {"a": 6, "b": 8}, 6.0)],
)
def test_one_that_is_asked_for_grows_with_the_traffic_and_its_room_with_the_root_of_it(reserve, replicas, multiple):
    """At four times the traffic 400 + √4 · 100 of 100/s each at `a`, and 200 + √4 · 100 of 50/s at `b`."""
    found = reserve_of(basis_of(replace(plan(), reserve=reserve), measured(), CATALOGUE))
    assert (found.always, found.replicas) == (True, replicas)
    assert found.cost_per_hour == pytest.approx(sum(replicas.values()))
    assert found.multiple == pytest.approx(multiple)


def test_a_dearer_late_event_buys_fewer_of_them_and_a_reserve_is_what_its_level_costs():
    rng = np.random.default_rng(5)
    known = record([(1.0, float(came)) for came in rng.lognormal(-0.3, 0.4, 1000)])
    found = frontier(LEVELS, known, 6.0)
    priced = [point for point in found if point.share is not None]
    assert [p.cost_per_hour for p in priced] == sorted(p.cost_per_hour for p in priced)
    assert [p.late for p in priced] == sorted((p.late for p in priced), reverse=True)
    assert priced[0].cost_per_hour < priced[-1].cost_per_hour
    (half_more,) = [point for point in found if point.reserve == 1.5]
    assert half_more.cost_per_hour == 6.0
    assert half_more.late == pytest.approx(np.maximum(known.came - 1.5, 0.0).sum() / known.came.sum(), rel=0.02)
