"""An evaluator that remembers answers as one that knows nothing does."""

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner import evaluator as evaluating
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import replaced
from tests.unit.planner.problems import SIZES, plain_problem, random_problem


def _another(candidate, rng):
    """The candidate with one stage changed: mostly its limit alone."""
    stage = int(rng.integers(len(candidate)))
    held = candidate[stage][0]
    limit, count = int(rng.choice(SIZES)), held.replicas
    if rng.random() < 0.3:
        count = int(rng.choice([1, 2, 3, 6]))
    parts = [Allocation(held.hardware, limit, count)]
    if rng.random() < 0.15:
        parts.append(Allocation("slow", int(rng.choice(SIZES)), 2))
    return replaced(candidate, stage, tuple(parts))


@pytest.mark.parametrize("partitions", [0, 6])
def test_what_is_remembered_is_what_a_new_evaluator_finds(partitions):
    remembered, asked, verdicts = 0, 0, set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        problem = random_problem(seed, partitions=partitions, slack=4.0)
        problem = replace(problem, traces=(*problem.traces, *random_problem(seed + 99, slack=4.0).traces))
        evaluator = Evaluator(problem)
        candidate = tuple((Allocation("middle", 1, 3),) for _ in problem.shape.stages)
        for _ in range(25):
            candidate = _another(candidate, rng)
            found, expected = evaluator.late(candidate), Evaluator(problem).late(candidate)
            assert found == expected
            asked += 1
            verdicts.add(found is None)
            if found is not None and rng.random() < 0.4:
                evaluator.accept(candidate)
        remembered += asked - evaluator.evaluations
    assert verdicts == {True, False}
    assert remembered > asked // 20


def test_a_limit_that_no_batch_reached_may_grow_without_another_simulation():
    problem = random_problem(3, stages=1, rate=20.0, slack=6.0)
    evaluator, most = Evaluator(problem), 50
    assert evaluator.feasible(((Allocation("fast", 4, most),),))
    evaluator.accept(((Allocation("fast", 4, most),),))
    assert evaluator.evaluations == 1
    for limit in (2, 8):
        evaluator.accept(((Allocation("fast", limit, most),),))
        assert evaluator.feasible(((Allocation("fast", limit, most),),))
    assert evaluator.evaluations == 1
    assert evaluator.feasible(((Allocation("fast", 1, most),),))  # 1 is what every batch was: it is reached
    assert evaluator.evaluations == 2


def test_a_limit_that_a_batch_reached_says_nothing_of_a_larger_one():
    problem = random_problem(3, stages=1, rate=20.0, slack=6.0)
    evaluator = Evaluator(problem)
    for asked, limit in enumerate((1, 2), start=1):
        assert evaluator.feasible(((Allocation("fast", limit, 50),),))
        assert evaluator.evaluations == asked


@pytest.mark.parametrize(("room_bytes", "simulated"), [(2 * 20 * 12, 20), (2 * 20 * 12 - 1, 40)])
def test_what_left_the_first_stage_is_kept_where_the_departures_of_one_candidate_fit(
    monkeypatch, room_bytes, simulated
):
    """Twenty events at two stages, of twelve bytes each."""
    monkeypatch.setattr(evaluating, "KEPT_BYTES", room_bytes)
    times_s = {name: {"x": 0.5} for name in "ab"}
    evaluator = Evaluator(plain_problem(times_s, np.arange(20.0), 2.0, {"x": Hardware("x", 1.0)}))
    first, second = (((Allocation("x", 1, 1),), (Allocation("x", 1, count),)) for count in (1, 2))
    assert evaluator.feasible(first)
    evaluator.accept(first)
    before = evaluator.simulated_events
    assert evaluator.feasible(second)
    assert evaluator.simulated_events - before == simulated


def test_asking_for_latencies_is_an_evaluation():
    problem = plain_problem({"a": {"x": 0.5}}, np.arange(3.0), 1.0, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    assert evaluator.quantile_s(((Allocation("x", 1, 1),),)) == 0.5
    assert (evaluator.evaluations, evaluator.simulated_events) == (1, 3)


@pytest.mark.parametrize(("stage", "busy_s", "count"), [(0, 0.5, 1), (0, 2.5, 4), (1, 2.5, 4), (0, 1.5, 2)])
def test_beyond_the_first_power_of_two_at_which_nothing_waits_more_replicas_change_nothing(stage, busy_s, count):
    """An event comes every second on one trace, every ten on the other: ⌈2.5⌉ replicas are busy at once."""
    times_s = {name: {"x": busy_s if place == stage else 0.5} for place, name in enumerate("ab")}
    problem = plain_problem(times_s, np.arange(20.0), 10.0, {"x": Hardware("x", 1.0)})
    problem = replace(problem, traces=(Trace(np.arange(20.0) * 10), *problem.traces, Trace(np.arange(20.0) * 10)))
    assert Evaluator(problem).most_busy(((Allocation("x", 1, 9),),) * 2, stage, "x") == count


def test_a_kind_in_stock_is_as_busy_as_its_stock_allows():
    problem = plain_problem({"a": {"x": 2.5}}, np.arange(20.0), 10.0, {"x": Hardware("x", 1.0, stock=3)})
    assert Evaluator(problem).most_busy(((Allocation("x", 1, 3),),), 0, "x") == 3
