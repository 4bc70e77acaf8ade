"""Stages that one dispatcher cannot serve: planned as the pools that they are."""

from dataclasses import replace

import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Overheads
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.plan_document import plan_from_bytes, plan_to_bytes
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.provision import provision
from tests.unit.planner.problems import chain


def busy(slot_rate):
    problem = chain(0.3, rate=400.0, events=6000, slo=2.0)
    return replace(problem, measured=replace(problem.measured, overheads=Overheads(slot_rate)))


def test_a_plan_has_as_many_dispatchers_as_its_rate_needs_and_is_simulated_with_them():
    one, three = (provision(busy(slot_rate)) for slot_rate in (1e6, 150.0))
    assert not one.slots
    assert three.slots == {"s0": 3}
    assert three.cost_per_hour > one.cost_per_hour
    problem = busy(150.0)
    found = simulate(problem.shape, three.allocations, problem.measured, problem.traces[0], order_slo_s=three.slo_s)
    assert found.p99_s == three.predicted_p99_s <= three.slo_s
    assert plan_from_bytes(plan_to_bytes(three)) == three
    (stage,) = explain(three, problem).stages
    assert any(
        reason.startswith("3 dispatchers, since one is planned for 150 records a second") for reason in stage.reasons
    )


def test_why_there_are_two_dispatchers_is_said_and_of_one_nothing():
    for slot_rate, said in ((1e6, 0), (250.0, 1)):
        problem = busy(slot_rate)
        (stage,) = explain(provision(problem), problem).stages
        assert sum("dispatchers, since" in reason for reason in stage.reasons) == said


@pytest.mark.parametrize(("replicas", "possible"), [(2, False), (3, True)])
def test_a_dispatcher_without_a_replica_serves_nothing(replicas, possible):
    evaluator = Evaluator(replace(busy(150.0), target_s=50.0))
    candidate = ((Allocation("x", 8, replicas),),)
    assert evaluator.bounds.possible(candidate) == possible
    assert evaluator.bounds.fewest_replicas(0, "x", 8) == 3
