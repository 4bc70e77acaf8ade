"""Plans do not depend on how many candidates are simulated at once, nor on which of them ends first."""

from concurrent.futures import ThreadPoolExecutor

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner import default_search as refinement
from inferline_stream.planner import evaluator as evaluating
from inferline_stream.planner.evaluator import ALONE, Evaluator, Spread
from inferline_stream.planner.provision import SearchSettings, search
from tests.unit.planner.problems import random_problem


def _last_first(function, values):
    return [*reversed([function(value) for value in reversed(list(values))])]


def test_an_outcome_is_the_same_to_the_last_count_whatever_is_simulated_at_once(monkeypatch):
    monkeypatch.setattr(refinement, "COARSE_EVENTS", 500)  # so that there are shorter pieces
    monkeypatch.setattr(evaluating, "GLANCED_EVENTS", 1000)
    problem = random_problem(8, stages=2, rate=200, duration_s=6.0, slack=4.0)
    one_by_one = search(problem)
    with ThreadPoolExecutor(3) as pool:
        for spread in (Spread(_last_first, 3), Spread(pool.map, 3)):
            assert search(problem, SearchSettings(spread=spread)) == one_by_one


def test_verdicts_in_advance_count_only_once_they_are_asked_for():
    problem = random_problem(1, stages=2, slack=4.0)
    candidates = [tuple((Allocation("fast", 8, n),) for _ in range(2)) for n in (6, 5, 4, 3)]
    eager, plain = (Evaluator(problem, spread=spread) for spread in (Spread(_last_first, 4), ALONE))
    given = iter(eager.ahead(candidates))
    assert next(given) == candidates[0]
    assert (eager.evaluations, eager.simulated_events) == (0, 0)
    assert eager.late(candidates[0]) == plain.late(candidates[0]) is not None
    assert (eager.evaluations, eager.simulated_events) == (plain.evaluations, plain.simulated_events)
    assert list(given) == candidates[1:]
