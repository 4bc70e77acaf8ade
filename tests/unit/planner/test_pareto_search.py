"""Where refinement starts, on problems small enough to try everything."""

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Profile, ServiceTime
from inferline_stream.planner import pareto_search
from inferline_stream.planner.evaluator import Evaluator, Spread
from inferline_stream.planner.pareto_search import ParetoSearch, plentiful
from inferline_stream.planner.problem import cost_of, in_stock
from tests.unit.planner.problems import least_cost, meets, plain_problem


def test_candidates_take_the_whole_stock_of_a_cheap_kind_and_no_more():
    catalogue = {"cheap": Hardware("cheap", 1.0, stock=2), "dear": Hardware("dear", 4.0)}
    times_s = {stage: {"cheap": 0.01, "dear": 0.009} for stage in ("a", "b")}
    problem = plain_problem(times_s, np.repeat(np.arange(20.0), 2), 0.0205, catalogue)
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert all(in_stock(problem, candidate) and meets(problem, candidate) for candidate in found)
    assert cost_of(problem, found[0]) == pytest.approx(least_cost(problem, most=3)) == 10.0


def test_of_candidates_in_time_the_eight_cheapest_are_given():
    """Of forty events at once the last leaves a single replica after 5 s; each replica more is earlier."""
    problem = plain_problem({"a": {"x": 0.125}}, np.zeros(40), 5.0, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert [part.replicas for ((part,),) in found] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_after_three_counts_that_are_no_earlier_no_more_replicas_are_looked_at():
    """For nine events far apart one replica is as good as any: four counts are simulated, the two kept once more."""
    problem = plain_problem({"a": {"x": 0.125}}, np.arange(9.0), 5.0, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert [part.replicas for ((part,),) in found] == [1, 2]
    assert evaluator.simulated_events == 9 * (4 + 2)


@pytest.mark.parametrize(("events", "target_s", "held_s"), [(8, 0.5, set()), (9, 0.6, {0.12, 0.25})])
def test_holds_are_tried_where_the_stage_alone_takes_more_than_its_share_of_the_slo(
    monkeypatch, events, target_s, held_s
):
    """Eight events at once take 0.5 s in two batches, all of the SLO; a ninth takes 125 ms more.

    A batch of four may be held for 350 ms, of which four and eight tenths are tried, rounded down.
    """
    times = (ServiceTime(1, 0.125), ServiceTime(4, 0.25))
    arrivals_s = np.append(np.zeros(events), 100.0)
    problem = plain_problem({"a": {"x": 0.125}}, arrivals_s, target_s, {"x": Hardware("x", 1.0, stock=1)})
    measured = replace(problem.measured, profiles={("a", "x"): Profile("a", "x", times)})
    evaluator = Evaluator(replace(problem, measured=measured))
    tried = []
    station = evaluator.station
    monkeypatch.setattr(evaluator, "station", lambda stage, option: tried.append(option) or station(stage, option))
    ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert {(part.max_batch_size, part.hold_s) for (part,) in tried if part.hold_s} == {(4, s) for s in held_s}


def test_of_many_parts_the_cheapest_of_each_stretch_of_lateness_is_kept(monkeypatch):
    """Four are kept: the earliest is late by 1 s, the target is 2.6 s, and a stretch a third of what is between."""
    monkeypatch.setattr(pareto_search, "WIDTH", 8)
    monkeypatch.setattr(pareto_search, "LEAST_WIDTH", 4)
    problem = plain_problem({s: {"x": 0.125} for s in "ab"}, np.zeros(1), 2.6, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    search = ParetoSearch(evaluator, evaluator.bounds)
    parts = [
        pareto_search._Part((), float(price), {}, np.zeros(1), late_s)
        for price, late_s in enumerate((2.6, 2.44, 2.12, 1.96, 1.72, 1.48, 1.16, 1.0))
    ]
    assert [part.late_s for part in search._front(parts)] == [2.6, 2.12, 1.72, 1.16]
    assert search._front(parts[:4]) == parts[:4]


@pytest.mark.parametrize("allowed", [0, 1, 5])
def test_a_part_is_as_late_as_the_latency_that_as_many_events_as_are_allowed_exceed(allowed):
    objective = 1 - allowed / 20
    problem = plain_problem({"a": {"x": 0.125}}, np.arange(20.0), 2.0, {"x": Hardware("x", 1.0)}, objective=objective)
    evaluator = Evaluator(problem)
    least_s = np.random.default_rng(1).permutation(20) / 10
    late_s = ParetoSearch(evaluator, evaluator.bounds)._late_s(least_s)
    assert np.count_nonzero(least_s > late_s) == allowed
    assert late_s in least_s


def three_stages():
    """Events that never wait; each stage may take 1 or 2 $/h, and half as long on the dearer."""
    times_s = {stage: {"x": 0.125, "y": 0.25} for stage in "abc"}
    return plain_problem(times_s, np.arange(4.0), 1.0, {"x": Hardware("x", 2.0), "y": Hardware("y", 1.0)})


def test_neither_what_is_found_nor_the_work_depends_on_how_many_are_simulated_at_once():
    found = []
    for width in (1, 8):
        evaluator = Evaluator(three_stages(), spread=Spread(width=width))
        candidates = ParetoSearch(evaluator, evaluator.bounds).candidates()
        found.append((candidates, evaluator.simulated_events))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("fast_s", "stock", "kind", "count"),
    [
        (0.05, {}, "fast", 10),
        (0.05, {"fast": 1}, "fast", 1),
        (0.08, {"fast": 1}, "slow", 12),
        (0.08, {"fast": 1, "slow": 1}, "fast", 1),
        (0.125, {"fast": 2, "slow": 1}, "fast", 2),
    ],
)
def test_plenty_is_of_the_fastest_kind_that_serves_half_as_much_again_else_of_what_serves_most(
    fast_s, stock, kind, count
):
    """Ten events have to be served within a second; plenty is for forty of them, and eight replicas more."""
    catalogue = {name: Hardware(name, 1.0, stock=stock.get(name)) for name in ("slow", "fast")}
    problem = plain_problem({"a": {"slow": 0.1, "fast": fast_s}}, np.zeros(10), 1.0, catalogue)
    assert plentiful(Evaluator(problem), 0) == (Allocation(kind, 1, count),)


@pytest.mark.parametrize(("price", "looked_at"), [(6.0, True), (12.0, False)])
def test_after_two_doublings_of_the_price_without_a_gain_nothing_dearer_is_looked_at(price, looked_at):
    """Up to 2 $/h is where a kind of 1 $/h is, up to 4 and 8 $/h nothing, or a faster kind."""
    catalogue = {"x": Hardware("x", 1.0), "fast": Hardware("fast", price)}
    problem = plain_problem({"a": {"x": 0.125, "fast": 0.0625}}, np.zeros(1), 5.0, catalogue)
    evaluator = Evaluator(problem)
    found = ParetoSearch(evaluator, evaluator.bounds).candidates()
    assert (((Allocation("fast", 1, 1),),) in found) == looked_at
