"""One step after another: what is asked for, given back, and said, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.plan_basis import Kind, StageBasis
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.tuner_state import TunerState
from tests.unit.tuner.plans import seen, state

PLAIN = PolicySettings(insurance=(), plan_memory_s=0.0)
LOW = (60, 120, 1200)
TWICE = (600, 1200, 12000)


def observed(time_s: float, envelope: tuple[int, int, int] = LOW, **more: Any) -> Observation:
    there = {key: more.pop(key) for key in ("age_s", "partition_lags", "partition_idle_s") if key in more}
    now = seen(time_s, envelope, peak_rate=20.0, recent=(20,) * 30, **more)
    return replace(now, stages={**now.stages, "b": replace(now.stages["b"], **there)})


def raised(time_s: float = 0.0) -> TunerState:
    """The state that has asked for twice the plan's traffic."""
    tuner, decision = step(state(PLAIN), observed(time_s, TWICE))
    assert decision is not None
    return tuner


def decisions(tuner: TunerState, *observations: Observation) -> tuple[TunerState, list[Decision]]:
    found = []
    for observation in observations:
        tuner, decision = step(tuner, observation)
        if decision is not None:
            found.append(decision)
    return tuner, found


def said(tuner: TunerState, *observations: Observation) -> list[tuple[float, Action, Reason]]:
    found = []
    for observation in observations:
        tuner, decision = step(tuner, observation)
        if decision is not None:
            found.append((observation.time_s, decision.action, decision.reason))
    return found


def test_a_stage_that_is_not_seen_keeps_no_other_from_growing():
    _, (decision,) = decisions(state(PLAIN), observed(0.0, TWICE, age_s=9.0))
    assert decision.action is Action.SCALE_UP
    assert decision.replicas["a"]["x"] > 2


def test_nothing_is_given_back_while_any_stage_is_not_seen():
    blind = [observed(float(s), age_s=9.0) for s in range(1, 60)]
    assert said(raised(), *blind) == [(1.0, Action.HOLD, Reason.INPUT_STALE)]


@pytest.mark.parametrize("begins_s", [0.0, 5000.0])
def test_arrivals_that_were_never_sampled_are_waited_for_a_second(begins_s):
    never = [replace(observed(begins_s + tenth / 10), arrivals_age_s=None) for tenth in range(15)]
    assert said(state(PLAIN), *never) == [(begins_s + 1.0, Action.HOLD, Reason.INPUT_STALE)]


def test_the_stage_that_needs_the_most_gives_the_reason():
    _, (decision,) = decisions(state(PLAIN), observed(0.0, TWICE))
    assert decision.detail.startswith("stage 'a': 600 arrivals within 1 s")
    assert set(decision.replicas) == {"a", "b"}


def test_people_s_limits_are_the_reason_only_where_they_alone_change_a_stage():
    limited = {"a": Limits(5, 9)}
    _, (alone,) = decisions(state(PLAIN), observed(0.0, (300, 600, 6000), limits=limited))
    assert (alone.action, alone.reason) == (Action.SCALE_UP, Reason.LIMIT_CHANGED)
    assert alone.detail == "stage 'a': 5 to 9 replicas are allowed"
    _, (beside,) = decisions(state(PLAIN), observed(0.0, (450, 900, 9000), limits=limited))
    assert beside.reason is Reason.ENVELOPE_EXCEEDED
    assert beside.detail.startswith("stage 'b'")
    assert beside.replicas["a"] == {"x": 5}


def test_one_stage_up_and_another_down_is_a_step_up():
    both = {"a": Limits(0, 1), "b": Limits(5, None)}
    _, (decision,) = decisions(state(PLAIN), observed(0.0, (300, 600, 6000), limits=both))
    assert (decision.action, decision.replicas) == (Action.SCALE_UP, {"a": {"x": 1}, "b": {"x": 5}})
    _, (lower,) = decisions(state(PLAIN), observed(0.0, (300, 600, 6000), limits={"a": Limits(0, 1)}))
    assert lower.action is Action.SCALE_DOWN


def two_kinds(**stock: int) -> TunerState:
    """Stage a on x, stage b on y, a replica of each planned."""
    tuner = state(PLAIN)
    a, b = tuner.basis.stages
    stages = (
        StageBasis("a", (Kind("x", 2, 4, 100.0, 0.04, 1.0, 2.0, 1),), a.visit_ratio),
        StageBasis("b", (Kind("y", 3, 1, 50.0, 0.02, 1.0, 2.0, 1),), b.visit_ratio),
    )
    basis = replace(tuner.basis, stages=stages, stock=stock)
    return replace(tuner, basis=basis, wanted={"a": {"x": 2}, "b": {"y": 3}})


def test_each_kind_s_stock_is_what_all_stages_leave_of_it():
    _, found = decisions(two_kinds(x=3, y=5), observed(0.0, (900, 1800, 18000)))
    assert found[0].replicas == {"a": {"x": 3}, "b": {"y": 5}}
    _, found = decisions(two_kinds(x=3, y=5), observed(0.0, (900, 1800, 18000), stock={"y": 4}))
    assert found[0].replicas == {"a": {"x": 3}, "b": {"y": 4}}


def limited_server(knobs: PolicySettings) -> TunerState:
    tuner = state(knobs)
    a, b = tuner.basis.stages
    return replace(tuner, basis=replace(tuner.basis, stages=(a, replace(b, most_replicas=3))))


def test_a_server_that_cannot_grow_is_reported_where_traffic_needs_it_and_not_for_insurance():
    found = said(limited_server(PLAIN), observed(0.0, TWICE), observed(0.1, TWICE))
    assert found == [(0.0, Action.SCALE_UP, Reason.ENVELOPE_EXCEEDED), (0.1, Action.HOLD, Reason.SERVER_LIMIT)]
    insured = PolicySettings(insurance=((9.0, 9.0),))
    reasons = {reason for _, _, reason in said(limited_server(insured), *[observed(t / 10) for t in range(9)])}
    assert Reason.SERVER_LIMIT not in reasons


def down_at(tuner: TunerState, *observations: Observation) -> list[float]:
    return [time_s for time_s, action, _ in said(tuner, *observations) if action is Action.SCALE_DOWN]


def seconds(first: int, last: int, **more: Any) -> list[Observation]:
    return [observed(float(s), **more) for s in range(first, last + 1)]


def test_replicas_are_given_back_once_the_load_has_fitted_fewer_for_half_a_minute_without_a_break():
    assert down_at(raised(), *seconds(1, 60)) == [31.0]
    interrupted = [*seconds(1, 20), observed(21.0, TWICE), *seconds(22, 70)]
    assert down_at(raised(), *interrupted) == [52.0]


def test_a_stage_that_grows_does_not_make_another_wait_again():
    """b needs more at 20 s, since more of its replicas fail to do what they did; a goes on fitting fewer."""
    slow = observed(20.0)
    stages = {
        **slow.stages,
        "b": replace(slow.stages["b"], partition_lags=(9000,), partition_idle_s=(0.0,)),
    }
    _, found = decisions(raised(), *seconds(1, 19), replace(slow, stages=stages), *seconds(21, 31))
    assert [d.action for d in found] == [Action.SCALE_UP, Action.SCALE_DOWN]
    assert found[1].detail == "stage 'a' needs 49.5/s" or found[1].detail.startswith("stage 'a' needs")
    assert "'b'" not in found[1].detail


def test_nothing_is_given_back_before_arrivals_were_watched_for_a_minute():
    assert down_at(raised(), *seconds(1, 60, watched_s=59.9)) == []
    assert down_at(raised(), *seconds(1, 60, watched_s=60.0)) == [31.0]


def test_after_a_leap_of_the_clock_nothing_is_given_back_for_a_minute():
    assert down_at(raised(), observed(100.0), *[observed(100.0 + s) for s in range(1, 61)]) == [160.0]


def test_a_stage_whose_replicas_are_not_all_ready_gives_none_back_and_begins_to_wait_when_they_are():
    starting = seconds(1, 20, pending=(1, 1))
    assert down_at(raised(), *starting, *seconds(21, 60)) == [51.0]


def test_a_margin_is_kept_when_replicas_are_given_back():
    def left(margin: float) -> int:
        knobs = replace(PLAIN, down_margin=margin)
        tuner, _ = step(state(knobs), observed(0.0, TWICE))
        envelope = (195, 300, 3000)
        tuner, _ = decisions(tuner, *seconds(1, 60, envelope=envelope))
        return tuner.wanted["a"]["x"]

    assert (left(0.0), left(0.5)) == (2, 3)


def stale(first: int, last: int) -> list[Observation]:
    return seconds(first, last, age_s=9.0)


def test_a_condition_is_reported_again_once_it_has_been_away_for_half_a_minute():
    """Records of a partition stand still."""
    stuck = {"partition_lags": (5, 5), "partition_idle_s": (9.0, 0.0)}
    envelope = (300, 600, 6000)

    def reported(away_s: int) -> list[float]:
        found = said(
            state(PLAIN),
            *seconds(0, 2, envelope=envelope, **stuck),
            *seconds(3, 2 + away_s, envelope=envelope),
            *seconds(3 + away_s, 9 + away_s, envelope=envelope, **stuck),
        )
        assert {reason for _, _, reason in found} == {Reason.PARTITION_STUCK}
        return [time_s for time_s, _, _ in found]

    assert reported(28) == [0.0]
    assert reported(29) == [0.0]
    assert reported(30) == [0.0, 33.0]


def test_fresh_input_is_reported_once_and_so_is_what_gets_stale_again():
    at_plan = {"envelope": (300, 600, 6000)}
    found = said(
        state(PLAIN),
        *seconds(0, 3, age_s=9.0, **at_plan),
        *seconds(4, 9, **at_plan),
        *seconds(10, 12, age_s=9.0, **at_plan),
        *seconds(13, 15, **at_plan),
    )
    assert found == [
        (0.0, Action.HOLD, Reason.INPUT_STALE),
        (4.0, Action.HOLD, Reason.INPUT_RESTORED),
        (10.0, Action.HOLD, Reason.INPUT_STALE),
        (13.0, Action.HOLD, Reason.INPUT_RESTORED),
    ]


def test_input_is_fresh_again_only_when_that_of_every_stage_is():
    at_plan = (300, 600, 6000)
    both = replace(observed(0.0, at_plan), stages={})
    one = replace(observed(1.0, at_plan), stages={"a": observed(1.0).stages["a"]})
    found = said(state(PLAIN), both, one, observed(2.0, at_plan))
    assert found == [
        (0.0, Action.HOLD, Reason.INPUT_STALE),
        (1.0, Action.HOLD, Reason.INPUT_STALE),
        (2.0, Action.HOLD, Reason.INPUT_RESTORED),
    ]
