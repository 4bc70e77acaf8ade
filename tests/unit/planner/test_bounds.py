"""Bounds prune what cannot be, and nothing else: cases in which one is attained, or nearly."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Overheads, PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.bounds import missed, service_rate, slowest_rate
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import Problem
from tests.unit.planner.problems import candidates, meets, p99_s, plain_problem, prices, random_problem

SERVICE_S = 0.02


def _one_server(trace, objective=1.0, hop_s=0.5):
    """A single replica without batches, and the latency that it just attains: the fluid server is that replica."""
    shape = Shape(("s",), ())
    profile = Profile("s", "k", (ServiceTime(1, SERVICE_S),))
    measured = PipelineProfile({("s", "k"): profile}, Paths((0,), (1.0,)), hop_s)
    catalogue = {"k": Hardware("k", 1.0)}
    problem = Problem(shape, measured, (trace,), 1.0, catalogue, objective=objective, order="entry")
    candidate = ((Allocation("k", 1, 1),),)
    return replace(problem, target_s=p99_s(problem, candidate)), candidate


@pytest.mark.parametrize("seed", range(4))
def test_one_server_that_just_meets_the_target_is_not_ruled_out_and_a_slower_one_is(seed):
    problem, candidate = _one_server(gamma_trace(40, 4.0, 30, np.random.default_rng(seed)))
    evaluator = Evaluator(problem)
    assert evaluator.feasible(candidate)
    assert evaluator.bounds.fewest_replicas(0, "k") == 1
    assert evaluator.bounds.least_stage_price(0) == 1.0
    assert 1 / SERVICE_S / 1.02 < evaluator.bounds.required_rate[0] < 1 / SERVICE_S


def test_of_several_traces_the_one_that_asks_most_decides_what_is_required_and_what_is_met():
    rng = np.random.default_rng(0)
    calm, stormy = (gamma_trace(rate, 4.0, 30, rng) for rate in (10, 40))
    problem, candidate = _one_server(stormy)
    for traces in ((calm, stormy), (stormy, calm)):
        both = Evaluator(replace(problem, traces=traces))
        assert both.bounds.required_rate == Evaluator(problem).bounds.required_rate
        assert both.feasible(candidate)
        tighter = Evaluator(replace(problem, traces=traces, target_s=problem.target_s * (1 - 1e-6)))
        assert not tighter.feasible(candidate)


@pytest.mark.parametrize("seed", range(4))
def test_between_two_times_of_its_own_every_event_is_finished_by_a_server_that_needs_them_and_by_no_slower_one(seed):
    rng = np.random.default_rng(seed)
    opens_s = np.sort(rng.uniform(0, 10, 400))
    closes_s, free_s = np.empty(400), -math.inf
    for i, open_s in enumerate(opens_s):
        closes_s[i] = free_s = max(free_s, open_s) + SERVICE_S
    found = slowest_rate(opens_s, closes_s + 1e-12, 0, 0.0)
    assert 1 / SERVICE_S / 1.02 < found < 1 / SERVICE_S
    # One event that cannot be in time at all: no rate does without an allowance, with one the rest decides.
    closes_s[0] = opens_s[0] - 1
    assert slowest_rate(opens_s, closes_s + 1e-12, 0, 0.0) == math.inf
    assert slowest_rate(opens_s, closes_s + 1e-12, 1, 0.0) < 1 / SERVICE_S


@pytest.mark.parametrize("spare", [-1, 0, 1])
def test_events_whose_path_is_too_long_count_against_the_allowance_and_no_more(spare):
    shape = Shape(("a", "b", "c"), (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)))
    profiles = {(s, "k"): Profile(s, "k", (ServiceTime(1, t),)) for s, t in (("a", 0.01), ("b", 0.09), ("c", 0.01))}
    measured = PipelineProfile(profiles, Paths((0b111, 0b010), (0.1, 0.9)))
    problem = Problem(shape, measured, (Trace(np.arange(100.0)),), 0.1, {"k": Hardware("k", 1.0)})
    slow = int((Evaluator(problem).workloads[0].masks == 0).sum())
    assert 1 < slow < 50
    problem = replace(problem, objective=1 - (slow + spare) / 100)
    evaluator = Evaluator(problem)
    candidate = tuple((Allocation("k", 1, 1),) for _ in shape.stages)
    assert evaluator.bounds.allowed == (slow + spare,)
    assert evaluator.bounds.latency_possible(candidate) == (spare >= 0)
    assert evaluator.feasible(candidate) == (spare >= 0) == meets(problem, candidate)
    just_enough = Evaluator(replace(problem, target_s=0.11 + 1e-9, objective=1.0))
    assert just_enough.feasible(candidate)


@pytest.mark.parametrize("stock", [None, 2])
@pytest.mark.parametrize("rate", [30.0, 90.0, 170.0])
def test_the_least_price_of_a_stage_is_that_of_the_cheapest_mixture_faster_than_what_does_not_suffice(rate, stock):
    problem = random_problem(3, stages=1, catalogue=prices(slow=stock, middle=stock))
    bounds = Evaluator(problem).bounds
    kinds = [Allocation(kind, 8, 1) for kind in problem.catalogue]
    rates = [service_rate(problem, 0, (one,)) for one in kinds]
    costs = [problem.catalogue[one.hardware].price_per_hour for one in kinds]
    counts = [range((problem.catalogue[one.hardware].stock or 20) + 1) for one in kinds]
    enough = [held for held in itertools.product(*counts) if np.dot(held, rates) > rate]
    assert bounds.least_stage_price(0, rate) == pytest.approx(min(np.dot(held, costs) for held in enough))


def test_the_least_price_is_that_of_the_dearest_kind_where_it_serves_most_for_the_money():
    """A kind of 3 $/h does 64/s, where five replicas of 1 $/h would do no more than what does not suffice."""
    catalogue = {"small": Hardware("small", 1.0), "poor": Hardware("poor", 2.0), "large": Hardware("large", 3.0)}
    times_s = {"a": {"small": 0.1, "poor": 0.2, "large": 1 / 64}}
    problem = plain_problem(times_s, np.arange(20.0), 1.0, catalogue)
    assert Evaluator(problem).bounds.least_stage_price(0, 50.0) == 3.0


@pytest.mark.parametrize("window_s", [2.0, 2.5])
@pytest.mark.parametrize(("allowed", "late"), [(9, 3), (2, 3), (1, 2), (0, 1)])
def test_of_five_at_once_a_server_finishes_two_in_time_and_counts_what_it_misses_up_to_one_too_many(
    allowed, late, window_s
):
    assert missed(np.zeros(5), np.full(5, window_s), 1.0, allowed) == late


@pytest.mark.parametrize("at_once", [1, 2, 4, 8])
def test_the_rate_that_is_required_lies_in_the_hundred_and_twenty_eighth_of_a_doubling_below_what_suffices(at_once):
    """Seven halvings of the ratio of two: six would leave more than a hundredth."""
    problem = plain_problem({"a": {"x": 0.01}}, np.zeros(at_once), 1.0, {"x": Hardware("x", 1.0)})
    (found,) = Evaluator(problem).bounds.required_rate
    assert at_once * 2 ** (-1 / 127) < found < at_once


def test_a_stage_has_what_the_others_and_the_hops_leave_of_the_slo():
    times_s = {"a": {"x": 0.1}, "b": {"x": 0.2}, "c": {"x": 0.3}}
    problem = plain_problem(times_s, np.zeros(1), 1.0, {"x": Hardware("x", 1.0)}, hop_s=0.01)
    windows_s = (1 - 0.01 - 0.53, 1 - 0.12 - 0.32, 1 - 0.33 - 0.01)
    assert Evaluator(problem).bounds.required_rate == pytest.approx([1 / window_s for window_s in windows_s])


@pytest.mark.parametrize(("target_s", "possible"), [(0.0625, False), (0.125, True), (0.25, True), (1.0, True)])
def test_of_a_mixture_the_fastest_kind_says_what_latency_is_possible(target_s, possible):
    catalogue = {"slow": Hardware("slow", 1.0), "fast": Hardware("fast", 2.0)}
    problem = plain_problem({"a": {"slow": 0.5, "fast": 0.125}}, np.arange(5.0), target_s, catalogue)
    bounds = Evaluator(problem).bounds
    slow, fast = Allocation("slow", 1, 1), Allocation("fast", 1, 1)
    assert bounds.latency_possible(((slow, fast),)) == possible
    assert bounds.latency_possible(((slow, replace(fast, replicas=0)),)) == (target_s >= 0.5)


def test_every_stage_needs_a_replica_for_each_of_its_dispatchers():
    times_s = {"a": {"x": 0.001}, "b": {"x": 0.001}}
    problem = plain_problem(times_s, np.arange(1000) / 100, 1.0, {"x": Hardware("x", 1.0)})
    problem = replace(problem, measured=replace(problem.measured, overheads=Overheads(50.0)))
    bounds = Evaluator(problem).bounds
    held = {n: (Allocation("x", 1, n),) for n in (1, 3)}
    assert [bounds.possible((held[a], held[b])) for a, b in ((3, 3), (1, 3), (3, 1))] == [True, False, False]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beside", [(), (0,)])
def test_of_several_sinks_the_way_to_one_does_not_rule_out_what_is_in_time_at_all(seed, beside):
    problem = random_problem(seed, stages=3, duration_s=4.0, slack=3.0)
    shape = Shape(problem.shape.stages, (Arrow(0, 1, True), Arrow(0, 2, True)), beside=beside)
    paths = independent_paths(shape, {("s0", "s1"): 0.1, ("s0", "s2"): 0.6})
    problem = replace(problem, shape=shape, measured=replace(problem.measured, paths=paths))
    bounds, met = Evaluator(problem).bounds, [c for c in candidates(problem, 1) if meets(problem, c)]
    assert met
    assert all(bounds.possible(candidate) for candidate in met)
