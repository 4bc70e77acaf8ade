"""What the Planner says of its plans."""

import pytest

from inferline_stream.planner.explain import cost_curve, explain
from inferline_stream.planner.problem import replaced
from inferline_stream.planner.provision import provision
from tests.unit.planner.problems import p99_s, random_problem


def _plan(problem, slo_s=None, known=()):
    return provision(
        problem.shape, problem.measured, problem.traces, slo_s or problem.target_s, problem.catalogue, known=known
    )


def _explained(problem, plan):
    return explain(plan, problem.shape, problem.measured, problem.traces, problem.catalogue)


@pytest.mark.parametrize("seed", [1, 2, 4, 6])
def test_each_cheaper_choice_is_cheaper_and_does_to_the_p99_what_is_said(seed):
    problem = random_problem(seed, slack=4.0, rate=120)
    plan = _plan(problem)
    told = _explained(problem, plan)
    candidate = tuple(plan.allocations.values())
    assert [s.stage for s in told.stages] == list(problem.shape.stages)
    assert sum(s.cost_per_hour for s in told.stages) == pytest.approx(plan.cost_per_hour)
    for position, stage in enumerate(told.stages):
        assert stage.next_cheaper
        for other in stage.next_cheaper:
            assert other.cost_change_per_hour < 0
            if other.p99_s is not None:
                assert other.p99_s == p99_s(problem, replaced(candidate, position, other.allocations))
                assert ("would take P99" in other.reason) == (other.p99_s > plan.slo_s)


def test_slack_is_what_the_slo_leaves_and_the_binding_stage_is_named():
    problem = random_problem(2, stages=2, slack=4.0)
    plan = _plan(problem)
    told = _explained(problem, plan)
    assert told.slack_s == pytest.approx(plan.slo_s - plan.predicted_p99_s)
    assert any(stage in told.binding for stage in problem.shape.stages) or "throughput" in told.binding


def test_a_plan_of_another_pipeline_is_refused():
    plan = _plan(random_problem(2, stages=1))
    with pytest.raises(ValueError, match="does not fit"):
        _explained(random_problem(2, stages=2), plan)


def test_the_curve_runs_from_infeasible_to_ever_cheaper():
    problem = random_problem(5, stages=2, rate=120)
    path = problem.target_s
    points = cost_curve([4 * path, path * 0.01, path, 2 * path], lambda slo_s, known: _plan(problem, slo_s, known))
    assert [p.slo_s for p in points] == sorted(p.slo_s for p in points)
    assert points[0].plan is None
    costs = [p.plan.cost_per_hour for p in points if p.plan is not None]
    assert costs == sorted(costs, reverse=True)
