"""Mixed pools: where a dear replica is only needed now and then, cheap ones of another kind take its place."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.branch_and_bound import prove
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.mixture_search import _cheapest, mixed_in
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.problem import Problem, cost_of, in_stock
from inferline_stream.planner.provision import SearchSettings, provision
from tests.unit.planner.problems import meets

SLOW = tuple(ServiceTime(b, 0.05 * (0.3 + 0.7 * b)) for b in (1, 2, 4))
FAST = tuple(ServiceTime(b, 0.01 * (0.85 + 0.15 * b)) for b in (1, 4, 16))


def coarse(slo_s, *, rate=600.0, cv=1.0, stock=None):
    """One stage; a fast replica serves 490 events a second for $1, a slow one 20 to 26 for ten cents."""
    profiles = {("s", "slow"): Profile("s", "slow", SLOW), ("s", "fast"): Profile("s", "fast", FAST)}
    kinds = {"slow": Hardware("slow", 0.1, stock=stock), "fast": Hardware("fast", 1.0)}
    trace = gamma_trace(rate, cv, 40, np.random.default_rng(0))
    return Problem(Shape(("s",), ()), PipelineProfile(profiles, Paths((0,), (1.0,))), (trace,), slo_s, kinds)


def least_mixed(problem):
    """The least cost over all mixtures of a few fast ones with less than ten slow ones."""
    stock = problem.catalogue["slow"].stock or 9
    found = []
    for fast, slow, *limits in itertools.product((1, 2), range(min(stock, 9) + 1), (4, 16), (1, 2, 4)):
        parts = (Allocation("slow", limits[1], slow), Allocation("fast", limits[0], fast))
        candidate = (tuple(part for part in parts if part.replicas),)
        if meets(problem, candidate):
            found.append(cost_of(problem, candidate))
    return min(found)


@pytest.mark.parametrize(("slo_s", "stock"), [(0.12, None), (0.2, None), (0.2, 7), (0.4, None)])
def test_the_plan_mixes_kinds_where_that_is_cheapest(slo_s, stock):
    problem = coarse(slo_s, stock=stock)
    plan = provision(problem, SearchSettings(margin=0.0))
    assert {a.hardware for a in plan.allocations["s"]} == {"slow", "fast"}
    assert plan.cost_per_hour == pytest.approx(least_mixed(problem))
    one_kind = prove(Evaluator(problem), None).best
    assert cost_of(problem, one_kind) > plan.cost_per_hour + 0.1


def test_a_mixed_stage_says_what_its_p99_would_be_without_each_kind():
    problem = coarse(0.2)
    plan = provision(problem)
    (stage,) = explain(plan, problem).stages
    (reason,) = [r for r in stage.reasons if "would finish first" in r]
    assert "without its slow P99 would be" in reason
    assert "without its fast P99 would be" in reason


@pytest.mark.parametrize("seed", range(4))
def test_each_mixture_found_is_cheaper_and_meets_the_target_within_the_stock(seed):
    problem = coarse(0.12 + 0.07 * seed, rate=500.0 + 40 * seed, cv=1.0 + seed, stock=6)
    evaluator = Evaluator(problem)
    start = ((Allocation("fast", 16, 3),),)
    assert evaluator.feasible(start)
    found = [start, *mixed_in(evaluator, start)]
    costs = [cost_of(problem, candidate) for candidate in found]
    assert len(found) > 1
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)
    assert all(meets(problem, candidate) and in_stock(problem, candidate) for candidate in found)


def test_replicas_that_hardly_cost_anything_are_left_as_they_are():
    problem = coarse(0.2)
    cheap = replace(problem, catalogue={"slow": Hardware("slow", 1e-5), "fast": Hardware("fast", 1e-4)})
    evaluator = Evaluator(replace(cheap, target_s=10.0))
    many = ((Allocation("fast", 16, 60),),)
    before = evaluator.evaluations
    assert not list(mixed_in(evaluator, many))
    assert evaluator.evaluations == before


@pytest.mark.parametrize("count", range(6))
def test_of_candidates_by_cost_the_first_that_meets_the_target_is_found_if_the_last_one_does(count):
    every = [((Allocation("slow", 1, n),),) for n in range(count)]
    for first in range(count + 1):
        meeting = every[first:]
        evaluator = SimpleNamespace(shown_feasible=lambda candidate, meeting=meeting: candidate in meeting)
        assert _cheapest(evaluator, every) == (meeting[0] if meeting else None)
