"""What a problem allows of a stage and its options, by numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Overheads, PipelineProfile
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import (
    CONTROLLER_CORES,
    in_machine,
    is_scarce,
    price_of,
    replica_cap,
    replica_cores,
    slots,
)
from inferline_stream.planner.stage_options import OptionCache, in_place_of, mixtures, stage_options
from tests.unit.planner.problems import chain, plain_problem


def alone(kind, *, most=None, **more):
    """A problem of one stage on one kind, of whose replicas so many are of use."""
    problem = plain_problem({"a": {"x": 0.01}}, np.arange(10.0), 1.0, {"x": kind}, **more)
    profiles = {key: replace(profile, most_replicas=most) for key, profile in problem.measured.profiles.items()}
    return replace(problem, measured=replace(problem.measured, profiles=profiles))


@pytest.mark.parametrize(
    ("kind", "limits", "most"),
    [
        ({}, {}, math.inf),
        ({"stock": 3}, {}, 3),
        ({"cores": 2.0}, {"cores": 9.0}, 4),
        ({"cores": 2.0, "stock": 3}, {"cores": 9.0}, 3),
        ({"cores": 2.0, "stock": 5}, {"cores": 9.0}, 4),
        ({"cores": 0.1}, {"cores": 0.3}, 3),
        ({"cores": 0.0}, {"cores": 1.0}, math.inf),
        ({"gpus": 0.5, "gpu_stock": 2.0}, {}, 4),
        ({"gpus": 0.5, "gpu_stock": 2.0, "stock": 3}, {}, 3),
        ({"stock": 9}, {"partitions": {"a": 6}}, 6),
        ({"stock": 9}, {"partitions": {"a": 6}, "most": 4}, 4),
        ({"stock": 9}, {"partitions": {"a": 6}, "most": 7}, 6),
    ],
)
def test_the_least_of_stock_cores_gpus_partitions_and_the_server_s_limit_bounds_the_replicas(kind, limits, most):
    assert replica_cap(alone(Hardware("x", 1.0, **kind), **limits), "a", "x") == most


@pytest.mark.parametrize(
    ("kind", "limits", "scarce"),
    [
        ({}, {}, False),
        ({"stock": 3}, {}, True),
        ({"gpus": 1.0, "gpu_stock": 2.0}, {}, True),
        ({"cores": 1.0}, {"cores": 8.0}, True),
        ({"cores": 0.0}, {"cores": 8.0}, False),
    ],
)
def test_a_kind_is_scarce_where_one_stage_may_take_it_from_another(kind, limits, scarce):
    assert is_scarce(alone(Hardware("x", 1.0, **kind), **limits), "x") == scarce


@pytest.mark.parametrize(
    ("halves", "wholes", "others", "fits"),
    [(4, 0, 0, True), (5, 0, 0, False), (2, 1, 0, True), (3, 1, 0, False), (0, 2, 1, True), (0, 2, 2, False)],
)
def test_kinds_on_one_model_share_its_gpus_and_all_kinds_the_cores(halves, wholes, others, fits):
    """Two GPUs of one model, and 4 cores: a replica with a whole GPU takes 1.5 of them, one without any takes 1."""
    catalogue = {
        "half": Hardware("half", 1.0, cores=0.0, gpus=0.5, gpu_model="T4", gpu_stock=2.0),
        "whole": Hardware("whole", 1.0, cores=1.5, gpus=1.0, gpu_model="T4", gpu_stock=2.0),
        "other": Hardware("other", 1.0, cores=1.0),
    }
    problem = plain_problem({"a": dict.fromkeys(catalogue, 0.01)}, np.arange(10.0), 1.0, catalogue, cores=4.0)
    held = (("half", halves), ("whole", wholes), ("other", others))
    candidate = tuple((Allocation(kind, 1, count),) for kind, count in held if count)
    assert in_machine(problem, candidate) == fits


def test_an_option_costs_what_its_replicas_do():
    assert price_of(alone(Hardware("x", 0.25)), (Allocation("x", 1, 3),)) == 0.75


@pytest.mark.parametrize(
    ("slot_rate", "most", "limits", "dispatchers"),
    [
        (None, None, {}, 1),
        (150.0, None, {}, 3),
        (150.0, 2, {}, 2),
        (150.0, 9, {}, 3),
        (150.0, None, {"partitions": {"s0": 24}}, 1),
    ],
)
def test_400_events_a_second_take_three_dispatchers_for_150_each_but_no_more_than_replicas_are_of_use(
    slot_rate, most, limits, dispatchers
):
    problem = chain(0.3, rate=400.0, events=6000)
    profiles = {key: replace(profile, most_replicas=most) for key, profile in problem.measured.profiles.items()}
    overheads = None if slot_rate is None else Overheads(slot_rate)
    measured = replace(problem.measured, profiles=profiles, overheads=overheads)
    assert slots(replace(problem, measured=measured, **limits)) == (dispatchers,)


# What a machine has left for replicas

BRANCH_AND_JOIN = Shape(("a", "b", "c"), (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)))
"""A branch that a quarter of the events take, and a join."""


def test_dispatchers_broker_and_feed_take_what_was_measured_at_the_rate_of_their_records():
    overheads = Overheads(1e4, ((0.0, 0.02), (100.0, 0.12), (1000.0, 0.3)))
    measured = PipelineProfile({}, independent_paths(BRANCH_AND_JOIN, {("a", "b"): 0.25}), overheads=overheads)
    # 100/s at a, 25/s at b, and two records of each event at the join.
    around = 0.12 + 0.045 + (0.12 + 0.18 * 100 / 900)
    assert replica_cores(4.0, BRANCH_AND_JOIN, measured, 100.0) == pytest.approx(4.0 - CONTROLLER_CORES - around)
    assert replica_cores(4.0, BRANCH_AND_JOIN, measured, 1e5) == 0.0


def test_beyond_the_rates_measured_cores_grow_as_between_the_last_two():
    overheads = Overheads(1e4, ((0.0, 0.0), (100.0, 0.1), (1000.0, 0.3)))
    assert overheads.stage_cores(1900.0) == pytest.approx(0.5)
    assert Overheads(1e4).stage_cores(100.0) == 0.0


# What a stage may be given


def test_a_thinned_menu_steps_by_a_replica_up_to_twenty_and_then_by_a_tenth():
    problem = plain_problem({"a": {"x": 0.01}}, np.arange(30.0), 1.0, {"x": Hardware("x", 1.0)})
    bounds = Evaluator(problem).bounds
    counts = [option[0].replicas for option in stage_options(bounds, 0, 30.0, thinned=True)]
    assert counts == [*range(1, 20), 21, 23, 25, 27, 29]
    assert len(stage_options(bounds, 0, 30.0)) == 30


def test_no_more_replicas_are_looked_at_than_come_events_however_dear_the_other_kind_is():
    catalogue = {"cheap": Hardware("cheap", 1e-12), "dear": Hardware("dear", 1e6)}
    bounds = Evaluator(plain_problem({"a": {"cheap": 0.01, "dear": 0.01}}, np.arange(10.0), 1.0, catalogue)).bounds
    part = (Allocation("dear", 1, 1),)
    assert max(o[0].replicas for o in stage_options(bounds, 0, 1e6) if o[0].hardware == "cheap") == 10
    assert len(in_place_of(bounds, 0, part, part=part[0], fewer=1, one=Allocation("cheap", 1, 1))) == 10


def test_every_slot_may_have_a_replica_however_few_events_come():
    problem = plain_problem({"a": {"x": 0.01}}, np.array([0.0, 0.01]), 1.0, {"x": Hardware("x", 1.0)})
    problem = replace(problem, measured=replace(problem.measured, overheads=Overheads(40.0)))
    bounds = Evaluator(problem).bounds
    assert slots(problem) == (3,)
    assert [option[0].replicas for option in stage_options(bounds, 0, 9.0)] == [3]


def mixed_problem():
    """25 events a second; a replica of either kind serves 10."""
    catalogue = {"small": Hardware("small", 0.4, stock=4), "slow": Hardware("slow", 1.0)}
    times_s = {"a": {"small": 0.1, "slow": 0.1}}
    return plain_problem(times_s, np.arange(250) / 25, 1.0, catalogue)


def test_kinds_are_mixed_only_where_that_is_asked_for():
    bounds = Evaluator(mixed_problem()).bounds
    assert {len(option) for option in stage_options(bounds, 0, 6.0)} == {1}
    mixed = [option for option in stage_options(bounds, 0, 6.0, mixed=True) if len(option) > 1]
    assert mixed == [(Allocation("small", 1, 4), Allocation("slow", 1, count)) for count in (1, 2, 3, 4)]


@pytest.mark.parametrize(("fewer", "counts"), [(0, [1, 2]), (1, [1, 2]), (2, [2, 3, 4])])
def test_in_the_place_of_replicas_come_as_few_as_serve_the_rate_and_as_many_as_cost_less(fewer, counts):
    """Beside three of 1 $/h, each more of 0.4 $/h has to cost less than a fourth; in place of two, less than 2 $/h."""
    part, one = Allocation("slow", 1, 3), Allocation("small", 1, 1)
    bounds = Evaluator(mixed_problem()).bounds
    found = in_place_of(bounds, 0, (part,), part=part, fewer=fewer, one=one)
    assert [option[0] for option in found] == [replace(one, replicas=count) for count in counts]
    assert [option[1:] for option in found] == [(replace(part, replicas=3 - fewer),)] * len(counts)


def test_of_a_kind_that_costs_nothing_a_few_more_than_serve_the_rate_are_tried():
    """24.75 of 25 events a second have to be in time: beside two that serve 10 each, one more has to."""
    problem = mixed_problem()
    problem = replace(problem, catalogue={**problem.catalogue, "small": Hardware("small", 0.0)})
    part, one = Allocation("slow", 1, 3), Allocation("small", 1, 1)
    found = in_place_of(Evaluator(problem).bounds, 0, (part,), part=part, fewer=1, one=one)
    assert [option[0].replicas for option in found] == [1, 2, 3, 4, 5]


def test_mixtures_have_one_or_two_beside_all_or_up_to_four_counts_in_place_of_one_or_two():
    """In place of one of 1 $/h 1 to 15 of 1/16 $/h cost less, in place of two 2 to 31, of which fewer do not serve."""
    problem = mixed_problem()
    problem = replace(problem, catalogue={**problem.catalogue, "small": Hardware("small", 0.0625)})
    found = mixtures(Evaluator(problem).bounds, 0, (Allocation("slow", 1, 3),))
    counts = [(small.replicas, slow.replicas) for small, slow in found]
    beside, for_one, for_two = {(1, 3), (2, 3)}, {(n, 2) for n in (1, 5, 10, 15)}, {(n, 1) for n in (2, 11, 21, 31)}
    assert set(counts) == beside | for_one | for_two
    prices = [price_of(problem, option) for option in found]
    assert prices == sorted(prices)


# What became of its options

HELD = Allocation("x", 8, 2, 0.01, concurrency=1)


def test_a_result_holds_for_every_limit_above_the_largest_batch():
    cache: OptionCache[str] = OptionCache()
    cache.add((HELD,), "found", 3)
    for limit, known in ((2, False), (3, False), (4, True), (8, True), (16, True)):
        option = (replace(HELD, max_batch_size=limit),)
        assert (option in cache) == known
        if known:
            assert cache[option] == "found"


def test_a_limit_that_a_batch_reached_says_nothing_of_larger_ones():
    cache: OptionCache[str] = OptionCache()
    cache.add((HELD,), "found", 8)
    assert (HELD,) in cache
    assert (replace(HELD, max_batch_size=16),) not in cache


@pytest.mark.parametrize("other", [{"hardware": "y"}, {"replicas": 3}, {"hold_s": 0.0}, {"concurrency": 2}])
def test_it_says_nothing_of_options_that_differ_in_more_than_the_limit(other):
    cache: OptionCache[str] = OptionCache()
    cache.add((HELD,), "found", 3)
    assert (replace(HELD, max_batch_size=16, **other),) not in cache


def test_of_mixtures_only_the_same_one_is_known():
    cache: OptionCache[str] = OptionCache()
    both = (HELD, Allocation("y", 8, 1))
    cache.add(both, "found", 3)
    assert both in cache
    assert (replace(HELD, max_batch_size=16), both[1]) not in cache
    assert (replace(HELD, max_batch_size=16),) not in cache
