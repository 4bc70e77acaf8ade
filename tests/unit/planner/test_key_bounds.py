"""A key hotter than one replica can serve: ruled out unseen, and named with its remedy."""

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.bounds import Bounds
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.key_bounds import without_order
from inferline_stream.planner.plan_document import plan_from_bytes, plan_to_bytes
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.provision import provision
from tests.unit.planner.problems import candidates, meets, plain_problem, prices, random_problem

SLOW_S, FAST_S = 0.04, 0.01
"""25 and 100 events a second, one by one."""


def hot(share, *, rate=60.0, slo_s=0.3, kinds=("slow", "fast"), ordered=("s",)):
    """One stage without batches, and a key with that share of the events."""
    times = {"s": {kind: {"slow": SLOW_S, "fast": FAST_S}[kind] for kind in kinds}}
    trace = gamma_trace(rate, 1.0, 60.0, np.random.default_rng(3))
    problem = plain_problem(times, trace.arrivals_s, slo_s, prices())
    return replace(problem, measured=replace(problem.measured, keys=Keys((("acme", share),), ordered)))


def test_a_key_too_hot_for_one_kind_is_served_by_a_faster_one_and_named_in_plan_and_explanation():
    problem = hot(0.6)
    plan = provision(problem)
    assert {a.hardware for a in plan.allocations["s"]} == {"fast"}
    found = plan.key_bound["s"]
    assert (found.key, found.served_rates) == ("acme", {"slow": pytest.approx(25.0)})
    assert found.arrival_rate == pytest.approx(0.6 * plan.arrival_rate)
    assert plan_from_bytes(plan_to_bytes(plan)) == plan
    (stage,) = explain(plan, problem).stages
    (reason,) = [r for r in stage.reasons if r.startswith("key_bound: ")]
    assert "'acme'" in reason
    assert "Stage(ordered=False)" in reason


def test_where_the_order_is_not_kept_or_no_key_is_hot_cheaper_hardware_does_and_nothing_is_named():
    for problem in (hot(0.6, ordered=()), hot(0.05)):
        plan = provision(problem)
        assert {a.hardware for a in plan.allocations["s"]} == {"slow"}
        assert not plan.key_bound


def test_a_key_too_hot_for_every_kind_makes_the_problem_infeasible_and_is_to_blame():
    with pytest.raises(Infeasible, match=r"stage 's': key_bound: events of key 'acme' come .*Stage\(ordered=False\)"):
        provision(hot(0.6, kinds=("slow",)))
    assert provision(without_order(hot(0.6, kinds=("slow",)), 0)).allocations


def test_what_is_slow_for_the_key_is_ruled_out_before_it_is_simulated():
    evaluator = Evaluator(hot(0.6))
    assert 30 < evaluator.bounds.key_rate[0] < 60
    assert evaluator.bounds.fewest_replicas(0, "slow") is None
    assert not evaluator.feasible(((Allocation("slow", 1, 50),),))
    assert evaluator.evaluations == 0
    assert evaluator.feasible(((Allocation("slow", 1, 1), Allocation("fast", 1, 2)),)) == (evaluator.evaluations == 1)


@pytest.mark.parametrize("seed", range(2, 6))
def test_no_candidate_that_meets_the_target_is_ruled_out_for_its_keys(seed):
    problem = random_problem(seed, stages=1, rate=80.0)
    keys = Keys((("a", 0.5), ("b", 0.3)), problem.shape.stages)
    problem = replace(problem, measured=replace(problem.measured, keys=keys))
    bounds = Evaluator(problem).bounds
    found = [c for c in candidates(problem, 8) if meets(problem, c)]
    assert found
    assert all(bounds.possible(c) for c in found)


def one_key(service_s, arrivals_s, target_s):
    """Every event has the same key, whose order the only stage keeps."""
    problem = plain_problem({"s0": {"x": service_s}}, arrivals_s, target_s, {"x": Hardware("x", 1.0)})
    return Evaluator(replace(problem, measured=replace(problem.measured, keys=Keys((("a", 1.0),), ("s0",))))).bounds


@pytest.mark.parametrize(("service_s", "fewest"), [(0.09, 1), (0.125, None)])
def test_batches_that_a_replica_has_in_hand_at_once_make_no_key_faster(service_s, fewest):
    """Ten events of one key come a second: a replica that has two batches in hand still takes them in turn."""
    bounds = one_key(service_s, np.arange(300) / 10, 1.0)
    assert bounds.fewest_replicas(0, "x", 1, 2) == fewest


def test_a_replica_that_is_no_faster_than_what_does_not_suffice_for_a_key_is_ruled_out():
    rate = one_key(0.5, np.zeros(1), 3.0).key_rate[0]
    at_rate = one_key(1 / rate, np.zeros(1), 3.0)
    assert at_rate.most_rate(0, (Allocation("x", 1, 1),)) == at_rate.key_rate[0] == rate
    assert at_rate.fewest_replicas(0, "x") is None
    assert one_key(0.999 / rate, np.zeros(1), 3.0).fewest_replicas(0, "x") == 1


def test_of_many_keys_the_eight_busiest_are_looked_at():
    """One event of each comes alone, and of the ninth five at once: it would take five times the rate."""
    problem = plain_problem(
        {"s0": {"x": 0.125}}, np.append(np.arange(8.0) * 10, np.full(5, 80.0)), 1.0, {"x": Hardware("x", 1.0)}
    )
    keys = Keys(tuple((f"key {n}", 0.1) for n in range(9)), ("s0",))
    problem = replace(problem, measured=replace(problem.measured, keys=keys))
    numbers = np.append(np.arange(1, 9), np.full(5, 9)).astype(np.uint16)
    bounds = Bounds(problem, [replace(Evaluator(problem).workloads[0], keys=numbers)])
    assert bounds.key_rate == pytest.approx((1.0,), rel=0.011)
