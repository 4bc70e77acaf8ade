"""The proof on problems made so that one reason to give up a beginning, taken too far, loses the cheapest plan."""

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.shape import Arrow
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.branch_and_bound import prove
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import Problem, cost_of
from tests.unit.planner.problems import least_cost, plain_problem

ONE_KIND = {"k": Hardware("k", 1.0)}
BURSTS_S = np.repeat(np.arange(40.0), 8)


def _of_one_kind(**times_s):
    return {stage: {"k": time_s} for stage, time_s in times_s.items()}


def _is_cheapest(problem, cost, most):
    proof = prove(Evaluator(problem), None)
    assert proof.proven
    assert least_cost(problem, most) == pytest.approx(cost)
    assert (cost_of(problem, proof.best), proof.lower_bound) == pytest.approx((cost, cost))


def test_events_that_skip_a_stage_are_not_taken_to_come_as_late_as_those_that_visit_it():
    arrows, paths = (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)), {0b111: 0.2, 0b010: 0.8}
    times_s = _of_one_kind(a=0.001, b=0.05, c=0.01)
    problem = plain_problem(times_s, BURSTS_S, 0.1, ONE_KIND, arrows=arrows, paths=paths)
    _is_cheapest(problem, 6.0, most=4)


def test_events_that_skip_a_stage_have_its_time_left_where_they_wait():
    arrows, paths = (Arrow(0, 1), Arrow(1, 2, True), Arrow(1, 3), Arrow(2, 3)), {0b1111: 0.2, 0b0101: 0.8}
    times_s = _of_one_kind(a=0.001, b=0.01, c=0.04, d=0.001)
    problem = plain_problem(times_s, BURSTS_S, 0.1, ONE_KIND, arrows=arrows, paths=paths, objective=0.8)
    _is_cheapest(problem, 4.0, most=3)


def test_a_scarce_kind_is_left_to_the_stage_that_has_no_other():
    catalogue = {"scarce": Hardware("scarce", 1.0, stock=1), "dear": Hardware("dear", 2.0)}
    times_s = {"a": {"scarce": 0.01, "dear": 0.01}, "b": {"scarce": 0.01}}
    _is_cheapest(plain_problem(times_s, np.arange(20.0), 0.05, catalogue), 3.0, most=2)


def _cheap_and_fast():
    return {"cheap": Hardware("cheap", 1.0), "fast": Hardware("fast", 6.0)}


def test_options_that_only_one_of_several_traces_tells_apart_are_two():
    times_s = {"a": {"cheap": 0.04}, "b": {"cheap": 0.03, "fast": 0.01}}
    pairs_s = np.append(np.repeat(np.arange(5.0), 2), 5.0)
    problem = plain_problem(times_s, pairs_s, 0.105, _cheap_and_fast())
    calm = Trace(np.arange(5.0))
    both = Problem(problem.shape, problem.measured, (calm, *problem.traces), problem.target_s, problem.catalogue)
    assert prove(Evaluator(problem), None).lower_bound == pytest.approx(least_cost(problem, most=3))
    assert prove(Evaluator(both), None).lower_bound == pytest.approx(least_cost(problem, most=3))


def test_what_one_beginning_has_seen_of_a_stage_is_not_held_against_another():
    arrows = (Arrow(0, 1), Arrow(0, 2), Arrow(1, 3), Arrow(2, 3))
    times_s = {"a": {"cheap": 0.01}, "b": {"cheap": 0.08, "fast": 0.05}, "c": {"cheap": 0.04}, "d": {"cheap": 0.02}}
    times_s["d"]["fast"] = 0.001
    catalogue = _cheap_and_fast() | {"fast": Hardware("fast", 1.5)}
    problem = plain_problem(times_s, np.arange(5.0), 0.1, catalogue, arrows=arrows)
    _is_cheapest(problem, 4.5, most=1)
