"""What the Planner says of its plans."""

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.plan_explanation import cost_curve, explain, latency_shares
from inferline_stream.planner.problem import Problem, price_of, replaced
from inferline_stream.planner.provision import provision
from inferline_stream.planner.stage_options import stage_options
from tests.unit.planner.problems import chain, p99_s, plain_problem, random_problem


def _plan(problem, slo_s=None, known=()):
    return provision(replace(problem, target_s=slo_s or problem.target_s), known=known)


@pytest.mark.parametrize("seed", [1, 4])
def test_each_cheaper_choice_is_cheaper_and_does_to_the_p99_what_is_said(seed):
    problem = random_problem(seed, slack=4.0, rate=120)
    plan = _plan(problem)
    reported = explain(plan, problem)
    candidate, bounds = tuple(plan.allocations.values()), Evaluator(problem).bounds
    assert [s.stage for s in reported.stages] == list(problem.shape.stages)
    assert sum(s.cost_per_hour for s in reported.stages) == pytest.approx(plan.cost_per_hour)
    assert any(other.p99_s is not None for stage in reported.stages for other in stage.next_cheaper)
    for position, stage in enumerate(reported.stages):
        assert stage.next_cheaper
        for other in stage.next_cheaper:
            assert other.cost_change_per_hour < 0
            if other.p99_s is not None:
                assert other.p99_s == p99_s(problem, replaced(candidate, position, other.allocations))
                assert ("would take P99" in other.reason) == (other.p99_s > plan.slo_s)
                ((part,), price) = other.allocations, price_of(problem, other.allocations)
                any_size = replace(part, max_batch_size=1)
                alike = [
                    o for o in stage_options(bounds, position, price) if replace(o[0], max_batch_size=1) == any_size
                ]
                assert other.p99_s == min(p99_s(problem, replaced(candidate, position, option)) for option in alike)


def test_a_held_stage_says_what_its_batches_and_its_p99_would_be_without():
    problem = chain(0.9)
    plan = _plan(problem)
    ((held,),) = plan.allocations.values()
    (stage,) = explain(plan, problem).stages
    eager = ((replace(held, hold_s=0.0),),)
    found = simulate(problem.shape, {"s0": eager[0]}, problem.measured, problem.traces[0], order_slo_s=plan.slo_s)
    hold = next(reason for reason in stage.reasons if "waits for a fuller batch" in reason)
    assert f"{held.hold_s * 1e3:g}ms: batches" in hold
    assert f"would be of {found.stages['s0'].mean_batch_size:.1f}" in hold
    assert hold.endswith(f"P99 would be {format_duration(found.p99_s)}")
    assert found.p99_s > plan.slo_s
    fewer = ((replace(held, replicas=held.replicas - 1),),)
    assert stage.reasons[-1].endswith(f"P99 would be {format_duration(p99_s(problem, fewer))}")
    (cheaper,) = stage.next_cheaper
    assert cheaper.p99_s <= p99_s(problem, fewer), "the next-cheaper choice may hold its batches, too"


def test_the_hardware_is_named_with_what_an_event_costs_on_it_and_on_the_cheapest():
    kinds = {"x": {1: 0.02, 4: 0.03}, "y": {1: 0.001, 4: 0.003}}
    profiles = {("s0", k): Profile("s0", k, tuple(ServiceTime(b, s) for b, s in t.items())) for k, t in kinds.items()}
    base = chain(0.9)
    problem = Problem(
        base.shape,
        PipelineProfile(profiles, base.measured.paths),
        (gamma_trace(50.0, 1.0, 20.0, np.random.default_rng(1)),),
        0.015,
        {"x": Hardware("x", 0.1), "y": Hardware("y", 4.0)},
    )
    (stage,) = explain(_plan(problem), problem).stages
    assert stage.allocations[0].hardware == "y"
    assert stage.reasons[0] == (
        "y serves a batch of 1 in 1ms, x in 20ms, though for less money: "
        f"${0.1 / 3600 * 0.03 / 4 * 1e6:.3g} per million events in full batches "
        f"against ${4 / 3600 * 0.003 / 4 * 1e6:.3g}"
    )
    assert not any("waits for a fuller batch" in reason for reason in stage.reasons)


def test_slack_is_what_the_slo_leaves_and_the_binding_stage_is_named():
    problem = random_problem(2, stages=2, slack=4.0)
    plan = _plan(problem)
    reported = explain(plan, problem)
    assert reported.slack_s == pytest.approx(plan.slo_s - plan.predicted_p99_s)
    assert any(stage in reported.binding for stage in problem.shape.stages) or "throughput" in reported.binding


def test_a_plan_of_another_pipeline_is_refused():
    plan = _plan(random_problem(2, stages=1))
    with pytest.raises(ValueError, match="does not fit"):
        explain(plan, random_problem(2, stages=2))


def test_the_curve_runs_from_infeasible_to_ever_cheaper():
    problem = random_problem(5, stages=2, rate=120)
    path = problem.target_s
    points = cost_curve([4 * path, path * 0.01, path, 2 * path], lambda slo_s, known: _plan(problem, slo_s, known))
    assert [p.slo_s for p in points] == sorted(p.slo_s for p in points)
    assert points[0].plan is None
    costs = [p.plan.cost_per_hour for p in points if p.plan is not None]
    assert costs == sorted(costs, reverse=True)


def test_a_curve_that_is_interrupted_ends_before_the_slo_that_no_plan_was_found_for():
    problem = plain_problem({"a": {"x": 0.1}}, np.arange(20.0), 2.0, {"x": Hardware("x", 1.0)})

    def plan_for(slo_s, known):
        if known:
            raise KeyboardInterrupt
        return _plan(problem, slo_s, known)

    assert [point.slo_s for point in cost_curve([0.4, 0.2, 0.3], plan_for)] == [0.2]


@pytest.mark.parametrize(
    ("slow_s", "reason", "binding"),
    [
        (
            0.25,
            "3 × slow, batches up to 1 would meet the SLO at 250 ms, with less margin than was asked for",
            "latency",
        ),
        (0.375, "3 × slow, batches up to 1 would take P99 to 375 ms, the SLO is 250 ms", "latency"),
        (0.5, "3 × slow, batches up to 1 would take P99 to 500 ms, the SLO is 250 ms", "throughput"),
    ],
)
def test_a_cheaper_choice_at_the_slo_meets_it_and_one_at_twice_the_slo_lacks_throughput(slow_s, reason, binding):
    catalogue = {"slow": Hardware("slow", 1.0), "fast": Hardware("fast", 4.0)}
    problem = plain_problem({"a": {"slow": slow_s, "fast": 0.125}}, np.arange(20.0), 0.25, catalogue)
    plan = _plan(replace(problem, catalogue={"fast": catalogue["fast"]}))
    reported = explain(plan, problem)
    assert [other.reason for other in reported.stages[0].next_cheaper] == [reason]
    assert reported.binding == f"{binding} of stage 'a': {reason}"


def test_stages_share_the_time_as_their_services_do_where_nothing_waits():
    problem = plain_problem({"a": {"x": 0.1}, "b": {"x": 0.3}}, np.arange(20.0), 2.0, {"x": Hardware("x", 1.0)})
    assert latency_shares(_plan(problem), problem) == pytest.approx({"a": 0.25, "b": 0.75})
