"""The proof on problems made so that one reason to give up a beginning, taken too far, loses the cheapest plan."""

import math

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import arrivals_at
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Arrow
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.branch_and_bound import LEAST_COUNTED, _Tree, prove
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


@pytest.mark.parametrize(("kind", "windows_s"), [("slow", (1.26, 1.36)), ("fast", (1.56, 1.66))])
def test_a_stage_has_what_the_departures_above_it_and_the_fastest_rest_leave_of_the_slo(kind, windows_s):
    """Ten events come at once and all leave a together: of 2 s, hops of 10 ms and what is spent elsewhere are gone."""
    times_s = {"a": {"slow": 0.4, "fast": 0.1}, "b": {"fast": 0.2}, "c": {"fast": 0.3}}
    catalogue = {"slow": Hardware("slow", 1.0), "fast": Hardware("fast", 2.0)}
    problem = plain_problem(times_s, np.zeros(10), 2.0, catalogue, hop_s=0.01)
    evaluator = Evaluator(problem)
    tree = _Tree(evaluator, None, take=lambda _: None, effort=math.inf)
    entered = arrivals_at(evaluator.workloads[0], 0, {})
    (served,) = tree._served(0, (Allocation(kind, 1, 10),), [entered])
    assert tree._rates(1, ({0: served},)) == pytest.approx([10 / window_s for window_s in windows_s], rel=0.011)


@pytest.mark.parametrize("simulations", [1, 2, 3])
def test_once_more_than_its_effort_is_used_up_a_proof_begins_no_simulation(simulations):
    """Of each kind two replicas seem enough and are not: the last of five events waits for two others."""
    kinds = {name: Hardware(name, 1.0 + place / 10) for place, name in enumerate("wxyz")}
    problem = plain_problem({"a": dict.fromkeys(kinds, 1.0)}, np.zeros(5), 2.6, kinds)
    evaluator = Evaluator(problem)
    proof = prove(evaluator, None, effort=(simulations - 1) * LEAST_COUNTED)
    assert (proof.best, proof.proven, proof.stopped) == (None, False, False)
    assert evaluator.simulated_events == 5 * simulations


def test_below_an_option_whose_departures_were_seen_nothing_is_searched_again():
    """Two replicas of b seem enough and are not. Both are simulated once, for x; of y, as fast as x, a alone is."""
    catalogue = {"x": Hardware("x", 1.0), "y": Hardware("y", 1.5)}
    problem = plain_problem({"a": {"x": 0.001, "y": 0.001}, "b": {"x": 1.0}}, np.zeros(5), 2.625, catalogue)
    evaluator = Evaluator(problem)
    proof = prove(evaluator, None)
    assert proof.best == ((Allocation("x", 1, 1),), (Allocation("x", 1, 3),))
    by_stage, whole = 5 * (2 + 2), 5 * 2
    assert evaluator.simulated_events == by_stage + whole
