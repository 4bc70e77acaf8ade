"""Candidates that a piece of a long trace speaks against are not simulated on the whole of it."""

import itertools
from dataclasses import replace

import pytest

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.planner import evaluator as evaluating
from inferline_stream.planner.evaluator import Evaluator
from tests.unit.planner.problems import random_problem

BASE = ((Allocation("middle", 4, 2),), (Allocation("slow", 8, 2),))


@pytest.fixture
def problem(monkeypatch):
    """The base just meets its target."""
    monkeypatch.setattr(evaluating, "GLANCED_EVENTS", 10_000)
    loose = replace(random_problem(1, stages=2, rate=100.0, duration_s=200.0, cv=4.0), order_slo_s=1.0)
    return replace(loose, target_s=Evaluator(loose).quantile_s(BASE) * (1 + 1e-9))


def _around(problem):
    counts = itertools.product(("slow", "middle", "fast"), (1, 4, 8), (1, 2, 3, 4, 8))
    options = [(Allocation(kind, limit, count),) for kind, limit, count in counts]
    return [candidate for o in options for candidate in ((o, BASE[1]), (BASE[0], o))]


def test_what_is_shown_to_be_feasible_is_and_what_is_not_shown_misses_the_target(problem):
    glancing, plain = Evaluator(problem), Evaluator(problem)
    assert glancing.feasible(BASE)
    glancing.accept(BASE)
    found = [(glancing.shown_feasible(c), plain.feasible(c)) for c in _around(problem)]
    assert found.count((True, True)) > 5
    assert found.count((False, False)) > 5
    assert all(shown == feasible for shown, feasible in found)
    assert glancing.evaluations < plain.evaluations
    assert glancing.simulated_events < plain.simulated_events


def test_without_a_base_and_on_short_traces_the_whole_decides_at_once(problem, monkeypatch):
    without = Evaluator(problem)
    monkeypatch.setattr(evaluating, "GLANCED_EVENTS", len(problem.traces[0]) + 1)
    short = Evaluator(problem)
    short.accept(BASE)
    for evaluator in (without, short):
        before = evaluator.evaluations
        possible = [c for c in _around(problem) if evaluator.bounds.possible(c) and c != BASE][:5]
        for candidate in possible:
            evaluator.shown_feasible(candidate)
        assert evaluator.evaluations == before + len(possible)


def test_a_glance_allows_what_goes_with_the_whole_whatever_the_piece_has(problem):
    evaluator = Evaluator(problem)
    evaluator.accept(BASE)
    piece, (allowed,) = evaluator._look()
    here, there = (int((Evaluator(p).latencies_s(BASE)[0] > problem.target_s).sum()) for p in (problem, piece.problem))
    wanted = evaluator.bounds.allowed[0] * there / here
    assert there > 5
    assert wanted < allowed < wanted + 5 * wanted**0.5 + 1


def test_a_base_with_hardly_any_late_event_says_nothing_of_others(problem):
    ample = replace(BASE[0][0], replicas=8)
    evaluator, plain = Evaluator(problem), Evaluator(problem)
    evaluator.accept(((ample,), (replace(ample, hardware="fast"),)))
    feasible = [c for c in _around(problem) if plain.feasible(c)]
    assert len(feasible) > 5
    assert all(map(evaluator.shown_feasible, feasible))
