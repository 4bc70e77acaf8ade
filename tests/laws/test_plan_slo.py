"""What holds of every plan: its SLO on its own trace, its price among looser SLOs, its document."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.planner.plan_document import plan_from_bytes, plan_to_bytes
from inferline_stream.planner.plan_explanation import cost_curve
from inferline_stream.planner.problem import Problem, fastest_path_s
from inferline_stream.planner.provision import Algorithm, SearchSettings, provision
from tests.support.hypothesis_profiles import examples
from tests.unit.planner.problems import p99_s, random_problem

few = settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.too_slow])
fewer = settings(few, max_examples=examples(6))  # several plans each


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Random DAGs of up to three stages on three kinds, calm and bursty, from impossible SLOs to loose ones."""
    return random_problem(
        draw(st.integers(0, 2**20)),
        rate=draw(st.sampled_from([10.0, 40.0, 120.0])),
        duration_s=draw(st.sampled_from([6.0, 12.0])),
        cv=draw(st.sampled_from([0.5, 1.0, 4.0])),
        partitions=draw(st.sampled_from([0, 1, 6, 31])),
        slack=draw(st.floats(0.8, 8.0)),
    )


def plan_for(problem: Problem, slo_s: float, algorithm: Algorithm, known: tuple[Plan, ...] = ()) -> Plan:
    asked = replace(problem, target_s=slo_s, order_slo_s=problem.target_s)
    return provision(asked, SearchSettings(algorithm), known=known, pipeline="p")


@few
@given(problems(), st.sampled_from(["default", "inferline", "exact"]))
def test_a_plan_meets_its_slo_on_the_trace_it_was_made_for(problem: Problem, algorithm: Algorithm) -> None:
    possible = fastest_path_s(problem) <= problem.target_s
    try:
        plan = plan_for(problem, problem.target_s, algorithm)
    except Infeasible as error:
        smallest = error.smallest_slo_s
        assert problem.partitions or not possible  # else replicas are unlimited here
        assert smallest is None or smallest > problem.target_s
        return
    simulated_s = p99_s(problem, tuple(plan.allocations.values()))
    assert simulated_s == plan.predicted_p99_s <= plan.slo_s == problem.target_s
    assert plan.cost_per_hour == pytest.approx(cost_per_hour(plan.allocations, problem.catalogue))
    assert plan.lower_bound_per_hour <= plan.cost_per_hour + 1e-9


@fewer
@given(problems(), st.lists(st.floats(0.5, 6.0), min_size=3, max_size=4, unique=True))
def test_cost_never_rises_when_the_slo_is_loosened(problem: Problem, factors: list[float]) -> None:
    slos_s = [problem.target_s * factor for factor in factors]
    points = cost_curve(slos_s, lambda slo_s, known: plan_for(problem, slo_s, "default", tuple(known)))
    assert [point.slo_s for point in points] == sorted(slos_s)
    costs = [point.plan.cost_per_hour for point in points if point.plan is not None]
    assume(len(costs) > 1)
    assert costs == sorted(costs, reverse=True)
    assert [point.plan is None for point in points] == sorted((p.plan is None for p in points), reverse=True)
    assert all(p99_s(problem, tuple(p.plan.allocations.values())) <= p.slo_s for p in points if p.plan is not None)


positive = st.floats(1e-9, 1e9)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)


def allocations(hold_s: float) -> st.SearchStrategy[Allocation]:
    return st.builds(Allocation, names, st.integers(1, 4096), st.integers(1, 4096), st.just(hold_s))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    stages = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    windows = sorted(draw(st.sets(st.floats(1e-9, LONGEST_WINDOW_S), max_size=4)))
    return Plan(
        pipeline=draw(names),
        slo_s=draw(positive),
        allocations={
            s: tuple(draw(st.lists(allocations(draw(st.floats(0, 9))), min_size=1, max_size=3))) for s in stages
        },
        cost_per_hour=draw(positive),
        predicted_p99_s=draw(positive),
        arrival_rate=draw(st.floats(0, 1e9)),
        envelope=tuple((window, draw(st.integers(0, 10**10))) for window in windows),
        visit_ratios={s: draw(st.floats(0, 10)) for s in stages},
        utilization={s: draw(st.floats(0, 10)) for s in stages},
        algorithm=draw(names),
        lower_bound_per_hour=draw(st.floats(0, 1e9)),
    )


@given(plans())
def test_a_plan_read_back_from_its_json_is_the_same_to_the_last_bit(plan: Plan) -> None:
    written = plan_to_bytes(plan)
    read = plan_from_bytes(written)
    assert read == plan
    assert list(read.allocations) == list(plan.allocations)
    assert plan_to_bytes(read) == written
