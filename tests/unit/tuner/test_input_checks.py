"""What is missing, old or out of time is doubted, and nothing else is."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.input_checks import doubts, on_this_clock
from inferline_stream.tuner.observation import StageObservation, Supply
from inferline_stream.tuner.tuner_state import TunerState, initial_state
from tests.unit.tuner.plans import CATALOGUE, measured, plan, seen, state


def doubted(**changed: object) -> list[tuple[Reason, str]]:
    return [(doubt.reason, doubt.where) for doubt in doubts(state(), replace(seen(), **changed))]  # type: ignore[arg-type]


def test_what_is_whole_and_fresh_is_not_doubted():
    assert doubted() == []
    assert doubted(arrivals_age_s=1.0) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"arrivals_age_s": 1.1},
        {"arrivals_age_s": None},
        {"arrivals_age_s": float("nan")},
        {"envelope": (1, 2)},
        {"arrival_rate": float("nan")},
    ],
)
def test_arrivals_that_are_old_or_incomplete_are(changed):
    assert doubted(**changed) == [(Reason.INPUT_STALE, "")]


@pytest.mark.parametrize(
    ("ready", "age_s", "stale"),
    [
        ((1,), 3.0, False),
        ((1,), 3.1, True),
        ((1,), None, True),
        ((0,), None, False),
        ((0, 1), 9.0, True),
        ((), 9.0, False),
    ],
)
def test_a_stage_is_if_any_of_its_replicas_is_ready_and_none_has_reported_lately(ready, age_s, stale):
    there = StageObservation({f"kind{i}": Supply(count) for i, count in enumerate(ready)}, age_s=age_s)
    found = doubted(stages={**seen().stages, "b": there})
    assert found == ([(Reason.INPUT_STALE, "b")] if stale else [])


def test_a_stage_of_which_nothing_is_known_is():
    assert doubted(stages={"b": seen().stages["b"]}) == [(Reason.INPUT_STALE, "a")]


def moved(step_s: float) -> TunerState:
    before = replace(
        state(),
        time_s=100.0,
        changed_s=90.0,
        outgrown_s=60.0,
        expected=((98.0, 1.0),),
        fits_since_s={"a": 95.0},
    )
    after, doubt = on_this_clock(before, seen(100.0 + step_s))
    assert (doubt is None) == (0 <= step_s <= 5.0)
    assert after.time_s == 100.0 + step_s
    return after


@pytest.mark.parametrize("step_s", [0.0, 0.1, 5.0])
def test_a_step_forward_of_up_to_five_seconds_keeps_what_was_seen_before(step_s):
    after = moved(step_s)
    assert (after.changed_s, after.outgrown_s, after.blind_until_s) == (90.0, 60.0, -float("inf"))
    assert (after.fits_since_s, after.expected) == ({"a": 95.0}, ((98.0, 1.0),))


@pytest.mark.parametrize("step_s", [-0.1, 5.1, -1e6, 4000.0])
def test_after_a_leap_times_begin_again_and_a_beginning_lasts_as_long_as_it_would_have(step_s):
    after = moved(step_s)
    assert after.changed_s == 100.0 + step_s
    assert after.outgrown_s == pytest.approx(60.0 + step_s)
    assert after.blind_until_s == pytest.approx(160.0 + step_s)
    assert after.fits_since_s == {}
    assert not after.expected, "what comes now is not what was to come then"


def test_the_first_step_begins_the_clock():
    after, doubt = on_this_clock(state(), seen(1e9))
    assert (after.time_s, after.changed_s, doubt) == (1e9, 1e9, None)


def test_replicas_held_at_a_restart_count_where_the_plan_has_their_kind():
    held = {"a": {"x": 7, "gone": 3}, "removed": {"x": 1}}
    assert initial_state(plan(), measured(), CATALOGUE, held=held).wanted == {"a": {"x": 7}, "b": {"x": 3}}


@pytest.mark.parametrize("jump_s", [-1e6, 1e6])
def test_a_clock_that_jumps_is_no_time_in_which_a_fallback_was_needed(jump_s: float) -> None:
    before = replace(state(), time_s=1.0, degraded_since_s={"a": 0.5})
    assert on_this_clock(before, seen(1.0 + jump_s))[0].degraded_since_s == {}
