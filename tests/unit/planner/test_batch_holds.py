"""Holding batches back: where it pays the default search finds it, where it does not nothing is held."""

import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.batch_holds import STEPS, holds, rounded_down
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import Problem, cost_of
from inferline_stream.planner.provision import SearchSettings, candidate_of, plan_of, search
from tests.unit.planner.problems import ONE_S, SIZES, chain, meets, p99_s


def fewest(problem, held_s):
    """By brute force, the fewest replicas of a single stage that meet the SLO, at any batch limit and these holds."""
    pairs = [(size, hold_s) for size in SIZES for hold_s in held_s]
    counts = (n for n in range(1, 64) if any(meets(problem, ((Allocation("x", b, n, h),),)) for b, h in pairs))
    return next(counts)


@pytest.mark.parametrize(("gain", "cv", "ratio"), [(0.8, 1.0, 1.4), (0.9, 1.0, 1.6), (0.9, 4.0, 1.4)])
def test_where_batching_gains_much_and_the_slo_is_tight_held_batches_need_fewer_replicas(gain, cv, ratio):
    problem = chain(gain, cv=cv)
    ((found,),) = search(problem, SearchSettings(margin=0.0)).candidate
    eager = fewest(problem, [0.0])
    assert found.hold_s > 0
    assert meets(problem, ((found,),))
    assert found.replicas <= fewest(problem, [0.0, *np.arange(0.004, 0.03, 0.004)])
    assert eager >= ratio * found.replicas


def test_several_stages_hold_batches_and_the_plan_costs_less():
    problem = chain(0.9, stages=3, rate=600.0, slo=2.5)
    found = search(problem, SearchSettings(margin=0.0)).candidate
    assert any(option[0].hold_s for option in found)
    assert meets(problem, found)
    eager = tuple((Allocation("x", o[0].max_batch_size, o[0].replicas),) for o in found)
    assert p99_s(problem, eager) > problem.target_s


def test_a_hold_counts_from_when_a_record_was_sent_so_that_a_hop_comes_on_top():
    """Hops that the SLO leaves room for change neither the replicas nor how long an event is really held."""
    near = chain(0.9)
    measured = replace(near.measured, hop_overhead_s=0.011)
    far = Problem(near.shape, measured, near.traces, near.target_s + 0.022, near.catalogue)
    ((there,),), ((here,),) = (search(problem, SearchSettings(margin=0.0)).candidate for problem in (far, near))
    assert (there.max_batch_size, there.replicas) == (here.max_batch_size, here.replicas)
    assert there.hold_s == pytest.approx(0.011 + here.hold_s)


def test_where_batching_gains_nothing_no_batch_is_held():
    found = search(chain(0.0, rate=200.0), SearchSettings(margin=0.0)).candidate
    assert [a.hold_s for option in found for a in option] == [0.0]


def test_a_plan_for_ordinary_consumer_groups_holds_nothing():
    bound = chain(0.9, rate=200.0, slo=4.0)
    bound = Problem(bound.shape, bound.measured, bound.traces, bound.target_s, bound.catalogue, partitions={"s0": 24})
    assert not holds(bound, 0, "x", rate=200.0, within_s=0.1)
    assert [a.hold_s for option in search(bound, SearchSettings(margin=0.0)).candidate for a in option] == [0.0]


def test_a_full_batch_leaves_in_time_with_every_hold_that_is_tried():
    problem = chain(0.8)
    tried = holds(problem, 0, "x", rate=1000.0, within_s=0.05)
    profile = problem.measured.profiles["s0", "x"]
    assert {limit for limit, _ in tried} == {2, 4}, "a batch of 8 takes 72 ms"
    assert all(0 < hold_s <= 0.05 - profile.service_time_s(limit) for limit, hold_s in tried)
    assert holds(problem, 0, "x", rate=1000.0, within_s=ONE_S) == []


@pytest.mark.parametrize("seconds", [1e-6, 0.0099999, 0.01, 0.0123, 0.999, 1.0, 7.9, 80.0])
def test_holds_have_one_or_two_digits(seconds):
    rounded = rounded_down(seconds)
    assert seconds / 1.4 < rounded <= seconds * (1 + 1e-9)
    assert any(math.isclose(rounded / 10.0 ** math.floor(math.log10(rounded) + 1e-9), step) for step in STEPS)


def test_candidates_that_differ_in_a_hold_alone_get_verdicts_of_their_own():
    """A batch limit that is never reached changes nothing; a hold does, also where the limit is the same."""
    problem = chain(0.9, rate=100.0)
    evaluator = Evaluator(problem)
    for limit in (8, 4):
        for hold_s in (0.0, 0.02, 0.029):
            candidate = ((Allocation("x", limit, 9, hold_s),),)
            late = evaluator.late(candidate)
            assert (late is not None) == meets(problem, candidate), (limit, hold_s)


def test_a_plan_with_holds_is_a_candidate_again():
    problem = chain(0.9)
    outcome = search(problem, SearchSettings(margin=0.0))
    plan = plan_of(problem, outcome, pipeline="p")
    assert candidate_of(problem, plan) == outcome.candidate
    again = search(problem, SearchSettings(margin=0.0, stop=lambda: False), known=[outcome.candidate])
    assert cost_of(problem, again.candidate) <= cost_of(problem, outcome.candidate)


def test_a_lone_event_waits_for_the_whole_hold():
    problem = chain(0.9, slo=3.0)
    alone = Problem(problem.shape, problem.measured, (Trace(np.array([0.0, 9.0])),), 0.09, problem.catalogue)
    assert p99_s(alone, ((Allocation("x", 8, 1, 0.02),),)) == pytest.approx(0.02 + ONE_S)


@pytest.mark.parametrize(
    ("seconds", "rounded_s"),
    [(0.0234, 0.02), (0.0299, 0.025), (0.0119, 0.01), (0.012, 0.012), (9.0, 8.0), (1.0, 1.0), (0.00055, 0.0005)],
)
def test_a_hold_is_rounded_down_to_few_first_digits(seconds, rounded_s):
    assert rounded_down(seconds) == pytest.approx(rounded_s)


def test_no_batch_is_held_for_more_than_twice_the_time_in_which_it_fills():
    """At 100 events a second one, three and seven more come in 10, 30 and 70 ms."""
    tried = holds(chain(0.8), 0, "x", rate=100.0, within_s=10.0, shares=(1.0,))
    assert tried == [(2, 0.02), (4, 0.06), (8, 0.12)]
