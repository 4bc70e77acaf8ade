"""What the policy knows from a plan, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention
from inferline_stream.tuner.plan_basis import StageBasis, basis_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from tests.unit.tuner.plans import CATALOGUE, measured, plan
from tests.unit.tuner.test_odds import record


def test_a_basis_has_the_plans_replicas_throughputs_and_utilizations():
    basis = basis_of(plan(), measured(), {"x": Hardware("x", 1.5, stock=9), "unused": Hardware("unused", 1.0, stock=1)})
    a, b = basis.stages
    assert (a.planned, a.supply, b.planned, b.supply) == (2, 200.0, 3, 150.0)
    assert basis.planned() == {"a": {"x": 2}, "b": {"x": 3}}
    assert (basis.utilization(a), basis.utilization(b)) == (0.5, pytest.approx(1 / 3))
    assert basis.stock == {"x": 9}
    assert (basis.start_up_s, a.kinds[0].price_per_hour) == (2.0, 1.5)
    assert basis.busiest_rate == 300 / 1.25


def test_without_replicas_a_stage_is_busier_than_any():
    basis = basis_of(plan(), measured(), CATALOGUE)
    idle = StageBasis("none", tuple(replace(kind, planned=0) for kind in basis.stages[0].kinds), 1.0)
    assert basis.utilization(idle) == math.inf


def test_windows_too_short_to_be_sampled_are_left_out():
    assert basis_of(plan(), measured(), CATALOGUE, shortest_window_s=5.0).windows_s == (5.0, 60.0)
    assert basis_of(plan(), measured(), CATALOGUE, shortest_window_s=5.1).windows_s == (60.0,)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: basis_of(plan(), measured(), CATALOGUE, shortest_window_s=61.0),
        lambda: basis_of(replace(plan(), allocations={}), measured(), CATALOGUE),
        lambda: basis_of(replace(plan(), allocations={**plan().allocations, "a": ()}), measured(), CATALOGUE),
    ],
)
def test_a_plan_that_says_too_little_is_refused(broken):
    with pytest.raises(InvalidInput, match="make it again with `inferline-stream plan`"):
        broken()


def test_a_backlog_is_bounded_by_bursts_beyond_what_replicas_do_meanwhile_and_a_batch_more_of_each():
    """Within a little more than 1 s 600 may come to a, and half of them to b, less what is done till a batch before."""
    bound = basis_of(plan(), measured(), CATALOGUE).backlog_bound
    assert bound["a"] == pytest.approx(600 - 200 * (1 - 0.04) + 2 * 4)
    assert bound["b"] == pytest.approx(300 - 150 * (1 - 0.02) + 3 * 1)


def test_a_replica_that_runs_batches_at_once_bounds_it_by_as_many():
    """With 2 batches at once, each of which takes no longer for it, 3 replicas do as much as 6."""
    profile = replace(measured().profiles["b", "x"], contention=(Contention(2, (1.0,)),))
    at_once = replace(plan(), allocations={**plan().allocations, "b": (Allocation("x", 1, 3, concurrency=2),)})
    known = replace(measured(), profiles={**measured().profiles, ("b", "x"): profile})
    six = replace(plan(), allocations={**plan().allocations, "b": (Allocation("x", 1, 6),)})
    bound = basis_of(at_once, known, CATALOGUE).backlog_bound["b"]
    assert bound == basis_of(six, measured(), CATALOGUE).backlog_bound["b"]


def test_nothing_waits_where_nothing_comes_or_nobody_works():
    unvisited = replace(plan(), visit_ratios={"a": 1.0, "b": 0.0})
    assert basis_of(unvisited, measured(), CATALOGUE).backlog_bound["b"] == 0.0
    idle = replace(plan(), allocations={**plan().allocations, "b": (Allocation("x", 1, 0),)})
    assert basis_of(idle, measured(), CATALOGUE).backlog_bound["b"] == 0.0


def test_settings_are_the_policys():
    knobs = PolicySettings(burst_slack_share=0.0)
    assert basis_of(plan(), measured(), CATALOGUE, knobs=knobs).busiest_rate == 300.0


def test_levels_pay_the_whole_of_a_device_that_replicas_of_several_stages_share():
    """2, 5 and 10 halves at $1/h are on 1, 3 and 5 devices."""
    table = Staffing(
        (0.5, 1.0, 20.0), {"a": (100.0, 200.0, 400.0), "b": (50.0, 150.0, 300.0)}, 100.0, record([(1.0, 1.0)])
    )
    half = Hardware("x", 1.0, gpus=1 / 2, gpu_model="Tesla T4")
    levels = basis_of(plan(), measured(), {"x": half}, staffing=table).levels
    assert levels is not None
    assert (levels.multiples.tolist(), levels.cost_per_hour.tolist()) == ([0.5, 1.0, 20.0], [2.0, 6.0, 10.0])
    assert levels.price.most == pytest.approx(6.0 / 3600 / 100.0 / 0.01)


def test_replicas_that_cost_nothing_count_only_where_none_costs_anything():
    """At half and at the whole of the planned rate: one and two replicas of a stage, one and three of the other."""
    table = Staffing(
        (0.5, 1.0, 20.0), {"a": (100.0, 200.0, 200.0), "b": (50.0, 150.0, 150.0)}, 100.0, record([(1.0, 1.0)])
    )
    profiles = {**measured().profiles, ("b", "y"): replace(measured().profiles["b", "x"], hardware="y")}
    mixed = replace(plan(), allocations={**plan().allocations, "b": (Allocation("y", 1, 3),)})
    for price, costs in ((1.0, [1.0, 2.0]), (0.0, [2.0, 5.0])):
        kinds = {"x": Hardware("x", price), "y": Hardware("y", 0.0)}
        levels = basis_of(mixed, replace(measured(), profiles=profiles), kinds, staffing=table).levels
        assert levels is not None
        assert levels.cost_per_hour.tolist() == costs
