"""Predictions where they have to be exact: nothing waits below what is changed."""

import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Arrow
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.predicted_changes import BLOCK, Surrogate, late_by_pair, nearby
from inferline_stream.planner.problem import cost_of, price_of, replaced
from tests.unit.planner.problems import chain, latencies_s, plain_problem, random_problem

PLENTY = 99


def _late(problem, candidate):
    return int((latencies_s(problem, candidate, None, problem.target_s) > problem.target_s).sum())


def _singles(problem, surrogate, stage):
    """Proposals that change nothing but one stage, with the late events that they really have."""
    assert surrogate.late == _late(problem, surrogate.base)
    proposed = surrogate.proposals(np.inf, np.inf)
    alone = [p for p in proposed if p.candidate == replaced(surrogate.base, stage, p.candidate[stage])]
    return [(p.late, _late(problem, p.candidate)) for p in alone]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("sinks", [(), (0, 1), "no join"])
def test_above_plenty_the_late_events_of_every_change_are_predicted_exactly(stage, sinks):
    arrows, paths = (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 3), Arrow(2, 3)), {0b1111: 0.3, 0b1010: 0.7}
    if sinks == "no join":  # what goes by way of b ends elsewhere
        arrows, paths, sinks = (Arrow(0, 1, True), Arrow(0, 2), Arrow(2, 3)), {0b111: 0.3, 0b110: 0.7}, ()
    catalogue = {"slow": Hardware("slow", 1.0), "fast": Hardware("fast", 2.5)}
    times_s = {"a": {"slow": 0.02}, "b": {"slow": 0.04, "fast": 0.02}, "c": {"slow": 0.04, "fast": 0.01}}
    times_s["d"] = {"slow": 0.01}
    arrivals_s = gamma_trace(30, 2.0, 20, np.random.default_rng(5)).arrivals_s
    more = {"arrows": arrows, "paths": paths, "hop_s": 0.004, "objective": 0.8}
    problem = plain_problem(times_s, arrivals_s, 0.1, catalogue, **more)
    problem = replace(problem, shape=replace(problem.shape, beside=sinks))
    evaluator = Evaluator(problem)
    base = replaced(((Allocation("slow", 1, PLENTY),),) * 4, stage, (Allocation("slow", 1, (1, 1, 2)[stage]),))
    found = _singles(problem, Surrogate(evaluator, evaluator.bounds, base), stage)
    assert len({late for late, _ in found}) > 1
    assert all(predicted == late for predicted, late in found), found


@pytest.mark.parametrize("partitions", [0, 6])
def test_at_the_last_stage_the_late_events_of_every_change_are_predicted_exactly_wherever_the_base_moves(partitions):
    problem = replace(random_problem(0, stages=2, partitions=partitions, slack=3.0), order="entry")
    evaluator, last = Evaluator(problem), (Allocation("fast", 4, 2),)
    surrogate = Surrogate(evaluator, evaluator.bounds, (last, last))
    for first in (last, (Allocation("middle", 4, 3),)):
        surrogate.move((first, last))
        found = _singles(problem, surrogate, 1)
        assert len({late for late, _ in found}) > 2
        assert all(predicted == late for predicted, late in found), found


def test_what_is_proposed_costs_what_it_says_and_less_than_asked_cheapest_first_with_pairs_among_it():
    """A pair is cheaper by less of one stage, and dearer by more of another: here by tenths of a dollar."""
    problem = random_problem(4, stages=3, slack=6.0)
    evaluator = Evaluator(problem)
    base = ((Allocation("middle", 4, 3),),) * 3
    surrogate = Surrogate(evaluator, evaluator.bounds, base)
    below = cost_of(problem, base)
    found = list(surrogate.proposals(below, math.inf))
    assert [p.cost for p in found] == pytest.approx([cost_of(problem, p.candidate) for p in found])
    assert all(p.cost < below for p in found)
    assert [(p.cost, p.late) for p in found] == sorted((p.cost, p.late) for p in found)
    changed = [
        [price_of(problem, n) - price_of(problem, o) for n, o in zip(p.candidate, base, strict=True)] for p in found
    ]
    assert any(0.05 < max(change) < 0.5 for change in changed)
    for stage in range(3):
        offered = [choice.price for choice in surrogate.choices(stage, 3.0)]
        assert offered == sorted(offered)
        assert len(set(offered)) > 2


def test_nearby_are_up_to_two_replicas_less_or_more_that_serve_more_than_what_does_not_suffice():
    def bounds(service_s):
        problem = plain_problem({"a": {"x": service_s}}, np.zeros(1), 3.0, {"x": Hardware("x", 1.0)})
        return Evaluator(problem).bounds

    rate = bounds(0.5).required_rate[0]
    for service_s, counts in ((0.999 / rate, [1, 2, 3, 4]), (1 / rate, [2, 3, 4]), (1.999 / rate, [2, 3, 4])):
        found = nearby(bounds(service_s), 0, (Allocation("x", 1, 2),))
        assert [option[0].replicas for option in found] == counts


def test_holding_batches_is_tried_down_to_a_single_replica():
    """100 events a second: a replica serves 33 one by one, 157 in batches of 8."""
    problem = chain(0.9, rate=100.0, events=2000, slo=6.0)
    evaluator, base = Evaluator(problem), ((Allocation("x", 1, 2),),)
    offered = [choice.option[0] for choice in Surrogate(evaluator, evaluator.bounds, base).choices(0, 2.0)]
    assert any(part.replicas == 1 and part.hold_s for part in offered)


def test_holding_batches_is_tried_with_ever_fewer_replicas_of_many_by_a_tenth():
    problem = chain(0.9)
    evaluator, base = Evaluator(problem), ((Allocation("x", 1, 30),),)
    offered = [choice.option[0] for choice in Surrogate(evaluator, evaluator.bounds, base).choices(0, 30.0)]
    counts = sorted({part.replicas for part in offered if part.hold_s}, reverse=True)
    assert counts[:7] == [29, 27, 25, 23, 21, 19, 18]


def rare_bursts(bursts):
    """Bursts of three, of which two replicas make one late, and single events: of 150 in all one may be late."""
    arrivals_s = np.concatenate([np.repeat(np.arange(bursts) * 10.0, 3), 1000.0 + np.arange(150 - 3 * bursts) * 10.0])
    return plain_problem({"a": {"x": 1.0}}, arrivals_s, 1.9, {"x": Hardware("x", 1.0)})


@pytest.mark.parametrize(("bursts", "offered"), [(4, True), (5, False)])
def test_what_makes_more_than_three_times_the_allowance_and_one_late_is_not_proposed(bursts, offered):
    problem = rare_bursts(bursts)
    evaluator = Evaluator(problem)
    surrogate = Surrogate(evaluator, evaluator.bounds, ((Allocation("x", 1, 3),),))
    assert surrogate.allowed == 1
    found = {p.candidate[0][0].replicas: p.late for p in surrogate.proposals(math.inf, math.inf)}
    assert found.get(2) == (bursts if offered else None)


def test_dearer_options_are_proposed_up_to_six_times_the_least_price_of_a_stage():
    """A replica of each stage is enough; more of them are as good as one, and so proposed."""
    times_s = {stage: {"x": 0.125} for stage in "ab"}
    problem = plain_problem(times_s, np.arange(20.0), 1.0, {"x": Hardware("x", 2.0)})
    evaluator = Evaluator(problem)
    base = ((Allocation("x", 1, 1),),) * 2
    surrogate = Surrogate(evaluator, evaluator.bounds, base)
    found = {tuple(part.replicas for (part,) in p.candidate) for p in surrogate.proposals(math.inf, math.inf)}
    assert {counts for counts in found if 1 in counts} == {(1, n) for n in range(2, 7)} | {(n, 1) for n in range(2, 7)}


def test_pairs_are_proposed_as_far_as_what_the_one_saves_pays_for_the_other():
    """Seven replicas of 1 $/h, of which a needs one: what is proposed has less, five of b at most."""
    times_s = {stage: {"x": 0.125} for stage in "ab"}
    problem = plain_problem(times_s, np.arange(20.0), 1.0, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    base = ((Allocation("x", 1, 6),), (Allocation("x", 1, 1),))
    surrogate = Surrogate(evaluator, evaluator.bounds, base)
    found = {tuple(part.replicas for (part,) in p.candidate) for p in surrogate.proposals(7.0, math.inf)}
    assert found == {(a, b) for a in range(1, 6) for b in range(1, 6) if a + b < 7}


def test_what_an_option_alone_makes_of_the_latency_is_that_of_a_simulation_where_nothing_waits():
    times_s = {"a": {"slow": 0.25, "fast": 0.125}}
    problem = plain_problem(
        times_s, np.arange(20.0), 1.0, {"slow": Hardware("slow", 1.0), "fast": Hardware("fast", 2.0)}
    )
    evaluator = Evaluator(problem)
    surrogate = Surrogate(evaluator, evaluator.bounds, ((Allocation("fast", 1, 1),),))
    assert [surrogate._alone_s(0, (Allocation(kind, 1, 1),)) for kind in ("slow", "fast")] == [0.25, 0.125]


@pytest.mark.parametrize(("target_s", "late"), [(0.25, 0), (0.2499, 20)])
def test_an_event_that_takes_just_the_target_is_in_time(target_s, late):
    problem = plain_problem({"a": {"x": 0.25}}, np.arange(20.0), target_s, {"x": Hardware("x", 1.0)})
    evaluator = Evaluator(problem)
    assert Surrogate(evaluator, evaluator.bounds, ((Allocation("x", 1, 1),),)).late == late


@pytest.mark.parametrize("events", [1, BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("share", [-0.1, 0.0, 0.2, math.inf])
def test_pairs_have_as_many_late_events_as_their_effects_together_make_or_more_than_asked_for(events, share):
    rng = np.random.default_rng(events)
    effects_s, spare_s = rng.normal(size=(6, events)), rng.normal(size=events)
    weights = rng.integers(1, 5, events)
    pairs = np.indices((6, 6)).reshape(2, -1)
    most = share * float(weights.sum())
    found = late_by_pair(effects_s, spare_s, weights, tuple(pairs), most)
    expected = [int(weights[effects_s[one] + effects_s[other] > spare_s].sum()) for one, other in pairs.T]
    assert len(set(expected)) > 1
    for late, true in zip(found, expected, strict=True):
        assert late == true or true > late > most
