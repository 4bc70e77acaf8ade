"""Why a stage has what it has, in numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention, Overheads, Profile, ServiceTime
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.reasons import Reasons
from tests.unit.planner.problems import plain_problem

TIMES = (ServiceTime(1, 0.25), ServiceTime(2, 0.3125), ServiceTime(4, 0.375))
"""4, 6.4 and 10.67 events a second."""


AT_ONCE = np.zeros(2)


def reasons(*held, arrivals_s=AT_ONCE, overheads=None, kinds="xy"):
    """Of a stage that has two kinds, of which one was measured in batches and with several at once."""
    catalogue = {kind: Hardware(kind, {"x": 1.0, "y": 4.0}[kind]) for kind in kinds}
    problem = plain_problem({"a": {"x": 0.25, "y": 0.125}}, arrivals_s, 2.0, catalogue)
    slowed = (Contention(2, (1.25, 1.25, 1.25)), Contention(4, (1.5, 1.5, 1.5)))
    profiles = {**problem.measured.profiles, ("a", "x"): Profile("a", "x", TIMES, contention=slowed)}
    problem = replace(problem, measured=replace(problem.measured, profiles=profiles, overheads=overheads))
    return list(Reasons(Evaluator(problem), (held,), 0).of_stage(0))


LEAST_MONEY = f"${1 / 3600 / (16 / (0.375 * 1.5)) * 1e6:.3g} per million"
"""Four batches of four at once, for 1 $/h."""

MORE_MONEY = f"${4 / 3600 / 8 * 1e6:.3g}"


def test_every_reason_of_a_stage_with_two_kinds_is_given_once():
    assert reasons(Allocation("x", 1, 1), Allocation("y", 1, 1)) == [
        f"x serves events for the least money, {LEAST_MONEY} in full batches",
        "a full batch of 1 takes 250ms; with batches up to 2 P99 would be 250ms",
        f"y serves a batch of 1 in 125ms, x in 250ms, though for less money: {LEAST_MONEY} events in full batches "
        f"against {MORE_MONEY}",
        "a full batch of 1 takes 125ms; larger ones serve no more, were not profiled, or are not allowed",
        "the free replica that would finish first takes the next batch; without its x P99 would be 250ms, without its "
        "y P99 would be 500ms",
        "2 replicas are busy 75% of the time; with one y less P99 would be 500ms",
    ]


def test_the_only_kind_is_called_so_and_nothing_is_said_of_what_a_stage_has_not():
    assert reasons(Allocation("x", 4, 1), kinds="x") == [
        "x is the only hardware in stock that it was profiled on",
        "a full batch of 4 takes 375ms and 2.7 × as many events are served per second as in batches of 1; larger ones "
        "serve no more, were not profiled, or are not allowed",
        "1 replica is busy 100% of the time",
    ]


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([Allocation("x", 1, 1)], "1 replica is busy 100% of the time"),
        ([Allocation("x", 1, 2)], "2 replicas are busy 100% of the time; with one x less P99 would be 500ms"),
    ],
)
def test_the_number_of_replicas_is_given_with_what_one_less_would_do(held, words):
    assert reasons(*held)[-1] == words


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (1, "a full batch of 1 takes 250ms; with batches up to 2 P99 would be 312ms"),
        (
            2,
            "a full batch of 2 takes 312ms and 1.6 × as many events are served per second as in batches of 1; "
            "with batches up to 4 P99 would be 312ms",
        ),
    ],
)
def test_the_batch_limit_is_given_with_what_it_gains_and_what_the_next_one_would_do(limit, words):
    assert reasons(Allocation("x", limit, 1))[1] == words


@pytest.mark.parametrize(
    ("at_once", "words"),
    [
        (2, "with 2 batches at once each takes 1.2 × as long as alone, and 1.6 × as many events are served per second"),
        (
            4,
            "with 4 batches at once each takes 1.5 × as long as alone, and 2.7 × as many events are served per second; "
            "more at once serve no more, were not profiled, or are not allowed",
        ),
    ],
)
def test_batches_at_once_are_given_with_how_long_they_take_and_what_they_gain(at_once, words):
    assert reasons(Allocation("x", 4, 1, concurrency=at_once))[2] == words


@pytest.mark.parametrize(("slot_rate", "dispatchers"), [(1e9, 0), (15.0, 1)])
def test_dispatchers_are_given_where_there_are_several(slot_rate, dispatchers):
    """Some twenty events come a second."""
    found = reasons(Allocation("x", 4, 2), arrivals_s=np.arange(40.0) / 20, overheads=Overheads(slot_rate))
    assert sum("dispatcher" in reason for reason in found) == dispatchers
    assert sum(r.startswith("2 dispatchers, since one is planned for 15 records") for r in found) == dispatchers
