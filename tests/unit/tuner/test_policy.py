"""What the default policy promises, whatever it sees: what is asked for, given back, and said, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.demand import demands
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.plan_basis import Kind, StageBasis
from inferline_stream.tuner.policy import POLICIES, _changed, initial_state, step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.tuner_state import TunerState
from tests.unit.tuner.plans import CATALOGUE, measured, plan, seen, state

PLAIN = PolicySettings(insurance=(), beginning_s=0.0)
"""Nothing beyond the plan, and the plan's own replicas are given back like any others."""

LOW = (60, 120, 1200)
TWICE = (600, 1200, 12000)


def totals(decision) -> dict[str, int]:
    return {stage: sum(kinds.values()) for stage, kinds in decision.replicas.items()}


def decisions(tuner: TunerState, *observations: Observation) -> tuple[TunerState, list[Decision]]:
    """The state after these, and every decision."""
    found = []
    for observation in observations:
        tuner, decision = step(tuner, observation)
        if decision is not None:
            found.append(decision)
    return tuner, found


def after(tuner, observations):
    """The state after these, and every decision that changed replicas."""
    tuner, found = decisions(tuner, *observations)
    return tuner, [decision for decision in found if decision.action is not Action.HOLD]


def calm(start_s: float, end_s: float, rate: float = 20.0):
    low = (int(rate * 3), int(rate * 6), int(rate * 60))
    ticks = range(round(start_s * 10), round(end_s * 10))
    return [seen(t / 10, low, peak_rate=rate, recent=(int(rate),) * 30) for t in ticks]


def test_within_the_plan_nothing_changes():
    assert after(state(PLAIN), [seen(t / 10) for t in range(50)])[1] == []


def test_traffic_beyond_the_plan_scales_up_in_the_same_step_and_only_once():
    tuner, first = after(state(PLAIN), [seen(0.0, TWICE)])
    assert [d.action for d in first] == [Action.SCALE_UP]
    assert totals(first[0])["a"] > 2
    assert totals(first[0])["b"] > 3
    waiting = [seen(t / 10, TWICE, pending=(2, 3)) for t in range(1, 20)]
    assert after(tuner, waiting)[1] == []


def test_a_stage_that_is_hardly_used_does_not_grow_because_its_speed_wobbles():
    slower = seen(0.0, (30, 60, 600), peak_rate=10.0)
    stages = {
        name: structs.replace(there, supply={"x": structs.replace(there.supply["x"], throughput=0.8 * mu)})
        for (name, there), mu in zip(slower.stages.items(), (100.0, 50.0), strict=True)
    }
    assert after(state(PLAIN), [structs.replace(slower, stages=stages)])[1] == []


def test_replicas_are_given_back_after_the_load_has_fitted_fewer_for_long_enough_and_not_before():
    tuner, _ = after(state(PLAIN), [seen(0.0, TWICE)])
    tuner, early = after(tuner, calm(0.1, 29.9))
    assert early == []
    _, late = after(tuner, calm(29.9, 32.0))
    assert [d.action for d in late] == [Action.SCALE_DOWN]
    assert min(totals(late[0]).values()) >= 1


def test_what_remains_after_scaling_down_carries_the_load():
    tuner, _ = after(state(PLAIN), [seen(0.0, TWICE)])
    _, found = after(tuner, calm(0.1, 35.0, rate=60.0))
    assert [decision.action for decision in found] == [Action.SCALE_DOWN]
    last = totals(found[-1])
    assert last["a"] * 100 > 60
    assert last["b"] * 50 > 60 * 0.5


@pytest.mark.parametrize("stale", [{"arrivals_age_s": None}, {"arrivals_age_s": 5.0}])
def test_missing_arrivals_hold_everything_and_are_reported_once(stale):
    tuner, _ = after(state(PLAIN), [seen(0.0, TWICE)])
    _, held = decisions(tuner, *[structs.replace(observation, **stale) for observation in calm(0.1, 60.0)])
    assert [(d.action, d.reason) for d in held] == [(Action.HOLD, Reason.INPUT_STALE)]


def test_time_that_was_not_seen_does_not_count_towards_giving_back_and_takes_nothing_of_what_was():
    tuner, _ = after(state(PLAIN), [seen(0.0, TWICE)])
    seen_s = 0.0
    for observation in calm(0.1, 60.0):
        stale = observation.time_s % 10 > 8
        seen_s += 0.0 if stale else 0.1
        tuner, decision = step(tuner, structs.replace(observation, arrivals_age_s=5.0) if stale else observation)
        if decision is not None and decision.action is Action.SCALE_DOWN:
            break
    assert 29.9 <= seen_s <= 31.0


@given(
    st.lists(
        st.tuples(
            st.integers(0, 900),
            st.sampled_from([0.0, 0.02, 2.0, None]),
            st.sampled_from([0.0, 1.0, 10.0, None]),
            st.floats(-5.0, 5.0),
        ),
        max_size=60,
    )
)
def test_nothing_is_ever_taken_from_a_pipeline_that_is_not_seen(history):
    tuner, _ = after(state(PLAIN), [seen(0.0, TWICE)])
    time_s = 0.0
    for burst, arrivals_age_s, report_age_s, step_s in history:
        time_s += step_s
        low = seen(time_s, (burst, burst, burst), peak_rate=0.0, arrivals_age_s=arrivals_age_s)
        stages = {name: structs.replace(there, age_s=report_age_s) for name, there in low.stages.items()}
        blind = arrivals_age_s is None or arrivals_age_s > 1 or report_age_s is None or report_age_s > 3
        tuner, decision = step(tuner, structs.replace(low, stages=stages))
        if blind and decision is not None:
            assert decision.action is not Action.SCALE_DOWN


def test_stock_bounds_what_is_asked_for_and_the_shortage_is_reported():
    short = state(PLAIN, {"x": Hardware("x", 1.0, stock=6)})
    tuner, found = after(short, [seen(0.0, (900, 1800, 18000))])
    assert sum(totals(found[0]).values()) == 6
    _, decision = step(tuner, seen(0.1, (900, 1800, 18000), pending=(1, 0)))
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.STOCK_EXHAUSTED)


def test_what_is_insured_is_a_number_of_replicas_however_slow_they_are_just_now():
    quiet = seen(0.0, (30, 60, 600), peak_rate=10.0)
    stages = {
        name: structs.replace(there, supply={"x": structs.replace(there.supply["x"], throughput=0.6 * mu)})
        for (name, there), mu in zip(quiet.stages.items(), (100.0, 50.0), strict=True)
    }
    slow = [structs.replace(quiet, stages=stages, time_s=t / 10) for t in range(20)]
    assert after(state(PolicySettings(insurance=())), slow)[1] == []


@pytest.mark.parametrize("policy", POLICIES)
def test_each_dispatcher_keeps_a_replica_however_little_traffic_there_is(policy):
    tuner = initial_state(replace(plan(), slots={"b": 3}), measured(), CATALOGUE, knobs=PLAIN)
    for observation in calm(0.0, 100.0, rate=1.0):
        tuner, _ = POLICIES[policy](tuner, observation)
    assert tuner.wanted == {"a": {"x": 1}, "b": {"x": 3}}


def test_dispatchers_get_their_replicas_back_once_people_allow_it():
    tuner = initial_state(replace(plan(), slots={"b": 3}), measured(), CATALOGUE, knobs=PLAIN)
    quiet = seen(0.0, (3, 6, 60), peak_rate=1.0)
    for limits, kept in ((Limits(0, 0), 0), (Limits(0), 3), (Limits(0, 1), 1), (Limits(1), 3)):
        tuner, _ = step(tuner, structs.replace(quiet, limits={"b": limits}))
        assert tuner.wanted["b"] == {"x": kept}
    tuner, _ = step(tuner, structs.replace(quiet, limits={"b": Limits(1, 1)}))
    tuner, decision = step(tuner, quiet)
    assert tuner.wanted["b"] == {"x": 3}
    assert decision.reason is Reason.DISPATCHERS_NEED_REPLICAS
    assert "each of its 3 dispatchers needs a replica" in decision.detail


# One step after another


def observed(time_s: float, envelope: tuple[int, int, int] = LOW, **more: Any) -> Observation:
    there = {key: more.pop(key) for key in ("age_s", "partition_lags", "partition_idle_s") if key in more}
    now = seen(time_s, envelope, peak_rate=20.0, **{"recent": (20,) * 30, **more})
    return structs.replace(now, stages={**now.stages, "b": structs.replace(now.stages["b"], **there)})


def raised(**settings: float) -> TunerState:
    """The state that has asked for twice the plan's traffic."""
    tuner, decision = step(state(replace(PLAIN, **settings)), observed(0.0, TWICE))
    assert decision is not None
    return tuner


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
    never = [structs.replace(observed(begins_s + tenth / 10), arrivals_age_s=None) for tenth in range(15)]
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


def test_as_many_replicas_of_another_kind_are_no_step_up():
    tuner, observation = structs.replace(state(PLAIN), time_s=0.0), seen(0.0)
    exchanged = {**tuner.wanted, "a": {"x": 1, "y": 1}}
    _, decision = _changed(tuner, observation, exchanged, demands(tuner, observation)[1], limited=(), why={})
    assert decision.action is Action.SCALE_DOWN


def two_kinds(**stock: int) -> TunerState:
    """Stage a on x, stage b on y, a replica of each planned."""
    tuner = state(PLAIN)
    a, b = tuner.basis.stages
    stages = (
        StageBasis("a", (Kind("x", 2, 4, 100.0, 0.04, 1.0, 2.0, 1),), a.visit_ratio),
        StageBasis("b", (Kind("y", 3, 1, 50.0, 0.02, 1.0, 2.0, 1),), b.visit_ratio),
    )
    basis = replace(tuner.basis, stages=stages, stock=stock)
    return structs.replace(tuner, basis=basis, wanted={"a": {"x": 2}, "b": {"y": 3}})


def test_each_kind_s_stock_is_what_all_stages_leave_of_it():
    _, found = decisions(two_kinds(x=3, y=5), observed(0.0, (900, 1800, 18000)))
    assert found[0].replicas == {"a": {"x": 3}, "b": {"y": 5}}
    _, found = decisions(two_kinds(x=3, y=5), observed(0.0, (900, 1800, 18000), stock={"y": 4}))
    assert found[0].replicas == {"a": {"x": 3}, "b": {"y": 4}}


def test_a_minimum_that_people_set_asks_for_no_more_than_traffic_has_left_of_the_stock():
    limited = {"a": Limits(5, None)}
    _, found = decisions(two_kinds(x=3, y=5), observed(0.0, (900, 1800, 18000), limits=limited))
    assert found[0].replicas == {"a": {"x": 3}, "b": {"y": 5}}


def test_where_stock_keeps_a_stage_below_what_people_set_that_is_said():
    tuner, observation = two_kinds(x=3, y=3), observed(0.0, (300, 600, 6000), limits={"b": Limits(5, 5)})
    _, (decision,) = decisions(tuner, observation)
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.STOCK_EXHAUSTED)
    assert decision.detail == "stage 'b' is to have 5 replicas, and there is stock for 3"
    slots = initial_state(replace(plan(), slots={"b": 3}), measured(), CATALOGUE, knobs=PLAIN)
    _, found = decisions(
        slots, *[structs.replace(seen(t, (3, 6, 60), peak_rate=1.0), limits={"b": Limits(1, 1)}) for t in (0, 1)]
    )
    assert [decision.reason for decision in found] == [Reason.LIMIT_CHANGED], "fewer than its slots is what they want"


def limited_server(knobs: PolicySettings) -> TunerState:
    tuner = state(knobs)
    a, b = tuner.basis.stages
    return structs.replace(tuner, basis=replace(tuner.basis, stages=(a, replace(b, most_replicas=3))))


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


FALLEN = (200,) * 20 + (60,) * 10


def test_once_traffic_has_surely_fallen_replicas_are_given_back_after_ten_seconds():
    """Bursts of what it was are still in the envelope."""
    fallen = seconds(1, 60, envelope=TWICE, recent=FALLEN)
    assert down_at(raised(), *fallen) == [11.0]
    assert down_at(raised(), *seconds(1, 60, envelope=TWICE, recent=(200,) * 30)) == []


def test_a_stage_that_grows_does_not_make_another_wait_again():
    """b needs more at 20 s, since more of its replicas fail to do what they did; a goes on fitting fewer."""
    slow = observed(20.0)
    stages = {
        **slow.stages,
        "b": structs.replace(slow.stages["b"], partition_lags=(9000,), partition_idle_s=(0.0,)),
    }
    _, found = decisions(raised(), *seconds(1, 19), structs.replace(slow, stages=stages), *seconds(21, 31))
    assert [d.action for d in found] == [Action.SCALE_UP, Action.SCALE_DOWN]
    assert found[1].detail.startswith("stage 'a' keeps 1 replica, which serves up to 100.0/s in full batches; ")
    assert "'b'" not in found[1].detail


def test_nothing_is_given_back_before_arrivals_were_watched_for_a_minute():
    assert down_at(raised(), *seconds(1, 60, watched_s=59.9)) == []
    assert down_at(raised(), *seconds(1, 60, watched_s=60.0)) == [31.0]


def test_after_a_leap_of_the_clock_nothing_is_given_back_for_a_minute():
    assert down_at(raised(), observed(100.0), *[observed(100.0 + s) for s in range(1, 61)]) == [160.0]


def test_a_stage_whose_replicas_are_not_all_ready_gives_none_back_and_begins_to_wait_when_they_are():
    starting = seconds(1, 20, pending=(1, 1))
    assert down_at(raised(), *starting, *seconds(21, 60)) == [51.0]


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
    both = structs.replace(observed(0.0, at_plan), stages={})
    one = structs.replace(observed(1.0, at_plan), stages={"a": observed(1.0).stages["a"]})
    found = said(state(PLAIN), both, one, observed(2.0, at_plan))
    assert found == [
        (0.0, Action.HOLD, Reason.INPUT_STALE),
        (1.0, Action.HOLD, Reason.INPUT_STALE),
        (2.0, Action.HOLD, Reason.INPUT_RESTORED),
    ]
