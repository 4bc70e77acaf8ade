"""The time between two stages as it was measured: a distribution, drawn by event and stage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import hop_extra_s, prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import HOP_PROBABILITIES, PipelineProfile
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import Problem
from tests.unit.estimator.small import CHAIN, allocated, measured
from tests.unit.planner.problems import random_problem

SPREAD_S = (-0.002, -0.001, -0.001, 0.0, 0.0, 0.001, 0.004, 0.006, 0.011, 0.02)
PROFILE = replace(measured(CHAIN, {"a": {1: 0.01}, "b": {1: 0.02}}, hop_s=0.005), hop_spread_s=SPREAD_S)
CALM = Trace(np.arange(20_000.0))


def test_where_nothing_waits_latencies_are_service_times_and_three_hops_drawn_apart() -> None:
    rng = np.random.default_rng(1)
    hops_s = np.interp(rng.random((200_000, 3)), HOP_PROBABILITIES, 0.005 + np.array(SPREAD_S))
    expected_s = 0.03 + hops_s.sum(axis=1)
    found_s = simulate(CHAIN, {"a": allocated(9), "b": allocated(9)}, PROFILE, CALM).latency_s
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert quantile_s(found_s, share) == pytest.approx(quantile_s(expected_s, share), rel=0.02)
    assert found_s.min() >= 0.03 + 3 * 0.003


def test_every_plan_meets_the_same_hops_and_another_seed_others() -> None:
    many, more = (simulate(CHAIN, {"a": allocated(n), "b": allocated(n)}, PROFILE, CALM).latency_s for n in (9, 12))
    other = simulate(CHAIN, {"a": allocated(9), "b": allocated(9)}, PROFILE, CALM, seed=1).latency_s
    assert np.array_equal(many, more)
    assert not np.array_equal(many, other)


def test_waiting_and_service_do_not_contain_the_hops() -> None:
    found = simulate(CHAIN, {"a": allocated(9), "b": allocated(9)}, PROFILE, CALM).stages
    assert [found[name].service_time_s for name in ("a", "b")] == pytest.approx([0.01, 0.02])
    assert [found[name].wait_s for name in ("a", "b")] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_shortest_time_is_never_below_nothing_and_a_spread_must_ascend() -> None:
    short = replace(PROFILE, hop_overhead_s=0.001)
    assert short.least_hop_s == 0.0
    assert hop_extra_s(short).min() == 0.0
    assert not hop_extra_s(replace(PROFILE, hop_spread_s=())).size
    for spread in (SPREAD_S[::-1], SPREAD_S[1:], (*SPREAD_S[1:], float("inf"))):
        with pytest.raises(ValueError, match="spread"):
            replace(PROFILE, hop_spread_s=spread)


@pytest.mark.parametrize("seed", range(6))
def test_no_plan_is_ruled_out_that_meets_its_target_because_its_hops_are_short(seed: int) -> None:
    problem: Problem = random_problem(seed)
    spread_s = tuple(np.linspace(-0.02, 0.1, len(HOP_PROBABILITIES)).tolist())
    profile: PipelineProfile = replace(problem.measured, hop_overhead_s=0.02, hop_spread_s=spread_s)
    problem = replace(problem, measured=profile, target_s=100.0)
    candidate = tuple((Allocation("fast", 1, 3),) for _ in problem.shape.stages)
    attained_s = Evaluator(problem).quantile_s(candidate)
    just_met = Evaluator(replace(problem, target_s=attained_s * (1 + 1e-12), objective=problem.objective))
    assert just_met.bounds.possible(candidate)
    assert just_met.feasible(candidate)
    assert attained_s > Evaluator(replace(problem, measured=replace(profile, hop_spread_s=()))).quantile_s(candidate)


def test_departures_are_in_the_order_in_which_they_count_as_sent() -> None:
    workload = prepare(CHAIN, PROFILE, Trace(np.arange(5_000) * 1e-3))
    stations = [station(PROFILE, name, allocated(40)) for name in CHAIN.stages]
    gone = evaluate(workload, stations, keep=(0, 1), slice_events=100).departures
    for stage in (0, 1):
        assert np.all(np.diff(gone[stage].times_s) >= 0)
        assert not np.all(np.diff(gone[stage].events) >= 0)
        assert np.array_equal(np.sort(gone[stage].events), np.arange(5_000))
