"""Where refinement starts, on problems small enough to try everything."""

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.pareto_search import ParetoSearch
from inferline_stream.planner.problem import cost_of, in_stock
from tests.unit.planner.problems import least_cost, meets, plain_problem


def test_candidates_take_the_whole_stock_of_a_cheap_kind_and_no_more():
    catalogue = {"cheap": Hardware("cheap", 1.0, stock=2), "dear": Hardware("dear", 4.0)}
    times_s = {stage: {"cheap": 0.01, "dear": 0.009} for stage in ("a", "b")}
    problem = plain_problem(times_s, np.repeat(np.arange(20.0), 2), 0.0205, catalogue)
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds, mixed=False).candidates()
    assert all(in_stock(problem, candidate) and meets(problem, candidate) for candidate in found)
    assert cost_of(problem, found[0]) == pytest.approx(least_cost(problem, most=3)) == 10.0
