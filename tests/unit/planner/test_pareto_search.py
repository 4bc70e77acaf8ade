"""Where refinement starts, on problems small enough to try everything."""

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.pareto_search import ParetoSearch
from inferline_stream.planner.problem import cost_of, in_stock
from inferline_stream.planner.spread import Spread
from tests.unit.planner.problems import least_cost, meets, plain_problem


def test_candidates_take_the_whole_stock_of_a_cheap_kind_and_no_more():
    catalogue = {"cheap": Hardware("cheap", 1.0, stock=2), "dear": Hardware("dear", 4.0)}
    times_s = {stage: {"cheap": 0.01, "dear": 0.009} for stage in ("a", "b")}
    problem = plain_problem(times_s, np.repeat(np.arange(20.0), 2), 0.0205, catalogue)
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds, mixed=False).candidates()
    assert all(in_stock(problem, candidate) and meets(problem, candidate) for candidate in found)
    assert cost_of(problem, found[0]) == pytest.approx(least_cost(problem, most=3)) == 10.0


def test_of_candidates_in_time_the_eight_cheapest_are_given():
    """Of forty events at once the last leaves a single replica after 5 s; each replica more is earlier."""
    problem = plain_problem({"a": {"x": 0.125}}, np.zeros(40), 5.0, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert [part.replicas for ((part,),) in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert ParetoSearch(evaluator, evaluator.bounds).candidates(below=3.0) == found[:2]


def test_after_three_counts_that_are_no_earlier_no_more_replicas_are_looked_at():
    """For a single event one replica is as good as any: four counts are simulated, and the two kept once more."""
    problem = plain_problem({"a": {"x": 0.125}}, np.zeros(1), 5.0, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert [part.replicas for ((part,),) in found] == [1, 2]
    assert evaluator.simulated_events == 4 + 2


def three_stages():
    """Events that never wait; each stage may take 1 or 2 $/h, and half as long on the dearer."""
    times_s = {stage: {"x": 0.125, "y": 0.25} for stage in "abc"}
    return plain_problem(times_s, np.arange(4.0), 1.0, {"x": Hardware("x", 2.0), "y": Hardware("y", 1.0)})


def test_what_leaves_too_little_for_the_stages_to_come_is_not_simulated():
    """Below 4 $/h each stage has to do with 1 $/h."""
    evaluator = Evaluator(three_stages())
    search = ParetoSearch(evaluator, evaluator.bounds)
    every, before = search.candidates(), evaluator.simulated_events
    assert search.candidates(below=4.0) == every[:1]
    assert evaluator.simulated_events - before == 3 * 4


def test_neither_what_is_found_nor_the_work_depends_on_how_many_are_simulated_at_once():
    found = []
    for width in (1, 8):
        evaluator = Evaluator(three_stages(), spread=Spread(width=width))
        candidates = ParetoSearch(evaluator, evaluator.bounds).candidates()
        found.append((candidates, evaluator.simulated_events))
    assert found[0] == found[1]
