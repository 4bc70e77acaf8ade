"""The paper's Planner: Algorithms 1 and 2, step by step against literal readings."""

import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.plan import Allocation, cost_per_hour
from inferline_stream.pipeline.shape import Arrow
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.paper_greedy import (
    Search,
    downgrade,
    fastest_start,
    initialise,
    minimise_cost,
    next_cheaper,
    with_batch_doubled,
    with_replica_added,
    with_replica_removed,
)
from inferline_stream.planner.problem import arrival_rates, cost_of, fastest_path_s, in_stock, replaced
from inferline_stream.planner.provision import SearchSettings, search
from tests.unit.planner.problems import meets, p99_s, plain_problem, prices, random_problem

SEEDS = range(8)


def _search(problem, log=None):
    evaluator = Evaluator(problem)

    def report(phase, candidate):
        if candidate is not None:
            evaluator.accept(candidate)
            if log is not None:
                log.append((phase, candidate))

    return Search(problem, evaluator.bounds, evaluator.feasible, evaluator.most_busy, report)


def _literal_initialise(problem):
    """Algorithm 1 as printed (its comparison turned round), every candidate simulated from scratch."""
    stages = problem.shape.stages
    kinds = {
        s: min(problem.measured.hardware_of(s), key=lambda k: problem.measured.profiles[s, k].service_time_s(1))
        for s in stages
    }
    candidate = tuple((Allocation(kinds[s], 1, 1),) for s in stages)
    rates = arrival_rates(problem)
    while not meets(problem, candidate):
        room = [
            o[0].replicas * problem.measured.profiles[s, o[0].hardware].throughput(1) / r
            for s, o, r in zip(stages, candidate, rates, strict=True)
        ]
        candidate = with_replica_added(problem, candidate, room.index(min(room)))
    return candidate


def _literal_minimise(problem, candidate):
    """Algorithm 2 as a double loop over stages and actions, every candidate simulated from scratch."""
    stages = range(len(candidate))
    while True:
        best = None
        for stage, action in itertools.product(stages, (with_replica_removed, _literal_downgrade)):
            changed = action(problem, candidate, stage)
            if (
                changed is not None
                and cost_of(problem, changed) < cost_of(problem, best or candidate) - 1e-12
                and meets(problem, changed)
            ):
                best = changed
        if best is None:
            doubled = (with_batch_doubled(problem, candidate, s) for s in stages)
            best = next((d for d in doubled if d is not None and meets(problem, d)), None)
        if best is None:
            return candidate
        candidate = best


def _literal_downgrade(problem, candidate, stage):
    kind = next_cheaper(problem, candidate, stage)
    if kind is None:
        return None
    local = replaced(candidate, stage, (Allocation(kind, 1, 1),))
    while not meets(problem, local):
        local = with_replica_added(problem, local, stage)
        if local is None or local[stage][0].replicas > 60:
            return None
    while True:
        removed = with_replica_removed(problem, local, stage)
        if removed is not None and meets(problem, removed):
            local = removed
            continue
        doubled = with_batch_doubled(problem, local, stage)
        if doubled is None or not meets(problem, doubled):
            return local
        local = doubled


def test_events_that_all_come_at_once_get_replicas_of_every_stage():
    """They have no rate by which a stage would be the bottleneck."""
    problem = random_problem(0, stages=2, slack=3.0)
    problem = replace(problem, traces=(Trace(np.zeros(40)),))
    looks = itertools.count()

    def feasible(candidate):
        assert next(looks) < 1000, f"still adding: {candidate}"
        return meets(problem, candidate)

    found = initialise(replace(_search(problem), feasible=feasible))
    assert found is not None
    assert meets(problem, found)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("partitions", [0, 12])
def test_the_first_phase_adds_replicas_to_the_bottleneck_only_and_stops_at_the_first_feasible(seed, partitions):
    problem = random_problem(seed, partitions=partitions, slack=4.0)
    found = initialise(_search(problem))
    assert found is not None
    assert found == _literal_initialise(problem)


@pytest.mark.parametrize(("seed", "partitions"), [*((seed, 0) for seed in SEEDS), (0, 12), (4, 12), (5, 12)])
def test_the_plan_is_what_a_literal_reading_ends_with_and_not_another_of_its_cost(seed, partitions):
    problem = random_problem(seed, partitions=partitions, slack=4.0)
    found = search(problem, SearchSettings(algorithm="inferline")).candidate
    assert found == _literal_minimise(problem, _literal_initialise(problem))


@pytest.mark.parametrize("seed", SEEDS)
def test_accepted_costs_never_rise_and_a_batch_doubles_only_at_equal_cost(seed):
    problem, log = random_problem(seed, slack=4.0), []
    asked = _search(problem, log)
    minimise_cost(asked, initialise(asked))
    for (_, before), (_, after) in itertools.pairwise(log):
        assert cost_of(problem, after) <= cost_of(problem, before) + 1e-12
        if abs(cost_of(problem, after) - cost_of(problem, before)) < 1e-12 and after != before:
            (stage,) = (s for s in range(len(before)) if before[s] != after[s])
            assert after[stage][0].max_batch_size > before[stage][0].max_batch_size
            assert after[stage][0].replicas == before[stage][0].replicas
            for other in range(len(before)):
                removed = with_replica_removed(problem, before, other)
                assert removed is None or not meets(problem, removed)


def test_a_downgrade_leaves_the_other_stages_alone_and_is_refused_unless_cheaper():
    seen = 0
    for seed in SEEDS:
        problem = random_problem(seed, stages=2, slack=6.0)
        search = _search(problem)
        start = initialise(search)
        for stage in range(2):
            changed = downgrade(search, start, stage)
            if changed is not None:
                seen += 1
                assert changed[1 - stage] == start[1 - stage]
                assert cost_of(problem, changed) < cost_of(problem, start)
                assert changed[stage][0].hardware == next_cheaper(problem, start, stage)
    assert seen > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_on_a_shared_queue_with_unlimited_stock_a_problem_is_infeasible_iff_the_longest_path_exceeds_the_slo(seed):
    problem = random_problem(seed, slack=1.02)
    assert initialise(_search(problem)) is not None
    tight = random_problem(seed, slack=0.98)
    assert fastest_path_s(tight) > tight.target_s
    assert initialise(_search(tight)) is None


def test_the_start_is_one_replica_batch_one_on_the_fastest_kind_in_stock():
    problem = random_problem(3, stages=2, catalogue=prices(fast=1))
    assert [o[0] for o in fastest_start(problem)] == [Allocation("fast", 1, 1), Allocation("middle", 1, 1)]


def test_stock_is_never_overdrawn():
    catalogue = prices(fast=2, middle=4)
    plenty, problem = (
        replace(random_problem(3, stages=3, slack=6.0, catalogue=kinds), order="entry")
        for kinds in (prices(), catalogue)
    )
    start = initialise(_search(problem))
    for wanted, held in (
        (initialise(_search(plenty)), start),
        (minimise_cost(_search(plenty), start), minimise_cost(_search(problem), start)),
    ):
        assert not in_stock(problem, wanted)
        assert in_stock(problem, held)


@pytest.mark.parametrize(("target_s", "clump"), [(0.025, 1), (0.1, 40)])
def test_where_scarce_hardware_makes_it_infeasible_no_other_stage_grows_for_ever(target_s, clump):
    times_s = {"a": {"fast": 0.01}, "b": {"fast": 0.01, "middle": 0.02}}
    problem = plain_problem(times_s, np.repeat(np.arange(5.0), clump), target_s, prices(fast=1))
    left = iter(range(clump + 10))
    search = dataclasses.replace(_search(problem), report=lambda *_: next(left))
    assert initialise(search) is None
    plenty = dataclasses.replace(problem, catalogue=prices(fast=99))
    assert initialise(_search(plenty)) is not None


def test_stages_that_share_a_scarce_kind_grow_beside_one_that_cannot():
    times_s = {
        "in": {"slow": 1e-4},
        "a": {"fast": 0.01},
        "b": {"fast": 0.01},
        "c": {"middle": 0.0105},
        "out": {"slow": 1e-4},
    }
    arrows = (Arrow(0, 1), Arrow(1, 2), Arrow(0, 3), Arrow(2, 4), Arrow(3, 4))
    scarce = prices(fast=10, middle=1)
    problem = plain_problem(times_s, np.repeat(np.arange(50.0), 2), 0.026, scarce, arrows=arrows)
    found = initialise(_search(problem))
    assert found is not None
    assert [option[0].replicas for option in found] == [1, 2, 2, 1, 1]


def test_after_sixteen_replicas_in_vain_it_is_asked_whether_any_number_would_do():
    problem = plain_problem({"a": {"fast": 0.1}}, np.arange(10.0), 1.0, prices())
    asked = []

    def feasible(candidate):
        asked.append(candidate[0][0].replicas)
        return False

    search = Search(problem, Evaluator(problem).bounds, feasible, lambda *_: 50, lambda *_: None)
    assert initialise(search) is None
    assert asked == [*range(1, 18), 50]


@pytest.mark.parametrize(("least", "most"), [(2, 2), (6, 6), (20, 50), (51, 60)])
def test_cheaper_hardware_is_tried_from_one_replica_up_and_given_up_once_none_will_do(least, most):
    problem = plain_problem({"a": {"fast": 0.1, "slow": 0.1}}, np.arange(10.0), 1.0, prices())
    asked = []

    def feasible(candidate):
        asked.append(candidate[0][0].replicas)
        return least <= candidate[0][0].replicas <= most

    search = Search(problem, Evaluator(problem).bounds, feasible, lambda *_: 50, lambda *_: None)
    found = downgrade(search, ((Allocation("fast", 1, 9),),), 0)
    if least <= 50:
        assert found == ((Allocation("slow", 1, least),),)
    else:
        assert found is None
        assert asked == [1, 2, 3, 4, 5, 6, 7, 8, 50]


def test_ten_gpu_and_three_cpu_replicas_cost_what_the_paper_says():
    held = {"resnet": (Allocation("k80", 8, 10),), "preprocess": (Allocation("cpu-1", 1, 3),)}
    assert cost_per_hour(held, catalogue()) == pytest.approx(7.2045)


def test_the_evaluator_s_verdict_is_that_of_a_simulation_from_scratch():
    compared = 0
    for seed in SEEDS:
        problem = random_problem(seed, slack=3.0, partitions=(0, 6)[seed % 2])
        evaluator = Evaluator(problem)
        for kind, limit, count in itertools.product(("slow", "middle", "fast"), (1, 8), (1, 2, 6)):
            candidate = tuple((Allocation(kind, limit, count),) for _ in problem.shape.stages)
            assert evaluator.feasible(candidate) == meets(problem, candidate)
            if evaluator.feasible(candidate):
                evaluator.accept(candidate)
                assert evaluator.quantile_s(candidate) == p99_s(problem, candidate)
                grown = with_replica_added(problem, candidate, len(candidate) - 1)
                if grown is not None:
                    compared += 1
                    assert evaluator.feasible(grown) == meets(problem, grown)
                    assert not math.isnan(evaluator.quantile_s(grown))
    assert compared > 5
