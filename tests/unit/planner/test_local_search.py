"""Going down in cost, and back up into the target, on problems small enough to try everything."""

import itertools
from dataclasses import replace

import pytest

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.local_search import descend, repair
from inferline_stream.planner.predicted_changes import Surrogate
from inferline_stream.planner.problem import COST_EPSILON, cost_of, in_stock
from tests.unit.planner.problems import candidates, least_cost, meets, prices, random_problem


def _problem(seed, partitions=0):
    catalogue = prices(slow=2, middle=2)
    made = random_problem(seed, 2, rate=50, duration_s=4, slack=3.0, partitions=partitions, catalogue=catalogue)
    return replace(made, objective=0.9)


def _plenty(partitions):
    return tuple((Allocation("fast", 1, partitions or 5),) for _ in range(2))


@pytest.mark.parametrize(("seed", "partitions"), [(0, 0), (0, 6), (1, 0)])
def test_a_descent_from_plenty_falls_step_by_step_to_the_least_cost_there_is_and_never_leaves_what_is_feasible(
    seed, partitions
):
    problem = _problem(seed, partitions)
    evaluator, start = Evaluator(problem), _plenty(partitions)
    surrogate = Surrogate(evaluator, evaluator.bounds, start)
    steps = list(descend(surrogate, evaluator, start, tries=200))
    costs = [cost_of(problem, step) for step in steps]
    assert steps[0] == start
    assert all(in_stock(problem, step) and meets(problem, step) for step in steps)
    assert all(after < before for before, after in itertools.pairwise(costs))
    assert costs[-1] == pytest.approx(least_cost(problem, most=4))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_repair_of_what_is_hardly_too_little_finds_the_least_cost_there_is(seed):
    problem = replace(_problem(seed), order="entry")
    evaluator, optimum = Evaluator(problem), least_cost(problem, most=4)
    little = [c for c in candidates(problem, most=4) if cost_of(problem, c) < optimum - COST_EPSILON][-1]
    surrogate = Surrogate(evaluator, evaluator.bounds, little)
    found = repair(surrogate, evaluator, little, tries=200)
    assert meets(problem, found)
    assert in_stock(problem, found)
    assert cost_of(problem, found) == pytest.approx(optimum)
