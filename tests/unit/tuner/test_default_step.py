"""What the default policy promises, whatever it sees."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.tuner.decision import Action, Reason
from inferline_stream.tuner.observation import Limits
from inferline_stream.tuner.policy import POLICIES, initial_state, step
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import CATALOGUE, measured, plan, seen, state

PLAIN = PolicySettings(insurance=(), plan_memory_s=0.0)
"""Nothing beyond the plan, and the plan's own replicas are given back like any others."""


def totals(decision) -> dict[str, int]:
    return {stage: sum(kinds.values()) for stage, kinds in decision.replicas.items()}


def after(tuner, observations):
    """The state after these, and every decision that changed replicas."""
    decisions = []
    for observation in observations:
        tuner, decision = step(tuner, observation)
        if decision is not None and decision.action is not Action.HOLD:
            decisions.append(decision)
    return tuner, decisions


def calm(start_s: float, end_s: float, rate: float = 20.0):
    low = (int(rate * 3), int(rate * 6), int(rate * 60))
    ticks = range(round(start_s * 10), round(end_s * 10))
    return [seen(t / 10, low, peak_rate=rate, recent=(int(rate),) * 30) for t in ticks]


def test_within_the_plan_nothing_changes():
    assert after(state(PLAIN), [seen(t / 10) for t in range(50)])[1] == []


def test_traffic_beyond_the_plan_scales_up_in_the_same_step_and_only_once():
    exceeding = (600, 1200, 12000)
    tuner, first = after(state(PLAIN), [seen(0.0, exceeding)])
    assert [d.action for d in first] == [Action.SCALE_UP]
    assert totals(first[0])["a"] > 2
    assert totals(first[0])["b"] > 3
    waiting = [seen(t / 10, exceeding, pending=(2, 3)) for t in range(1, 20)]
    assert after(tuner, waiting)[1] == []


def test_a_stage_that_is_hardly_used_does_not_grow_because_its_speed_wobbles():
    slower = seen(0.0, (30, 60, 600), peak_rate=10.0)
    stages = {
        name: replace(there, supply={"x": replace(there.supply["x"], throughput=0.8 * mu)})
        for (name, there), mu in zip(slower.stages.items(), (100.0, 50.0), strict=True)
    }
    assert after(state(PLAIN), [replace(slower, stages=stages)])[1] == []


def test_replicas_are_given_back_after_the_load_has_fitted_fewer_for_long_enough_and_not_before():
    tuner, _ = after(state(PLAIN), [seen(0.0, (600, 1200, 12000))])
    tuner, early = after(tuner, calm(0.1, 29.9))
    assert early == []
    _, late = after(tuner, calm(29.9, 32.0))
    assert [d.action for d in late] == [Action.SCALE_DOWN]
    assert min(totals(late[0]).values()) >= 1


def test_what_remains_after_scaling_down_carries_the_load():
    tuner, _ = after(state(PLAIN), [seen(0.0, (600, 1200, 12000))])
    _, decisions = after(tuner, calm(0.1, 35.0, rate=60.0))
    last = totals(decisions[-1]) if decisions else {"a": 4, "b": 6}
    assert last["a"] * 100 > 60
    assert last["b"] * 50 > 60 * 0.5


@pytest.mark.parametrize("stale", [{"arrivals_age_s": None}, {"arrivals_age_s": 5.0}])
def test_missing_arrivals_hold_everything_and_are_reported_once(stale):
    tuner, _ = after(state(PLAIN), [seen(0.0, (600, 1200, 12000))])
    held = []
    for observation in calm(0.1, 60.0):
        tuner, decision = step(tuner, replace(observation, **stale))
        if decision is not None:
            held.append(decision)
    assert [(d.action, d.reason) for d in held] == [(Action.HOLD, Reason.INPUT_STALE)]


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
    tuner, _ = after(state(PLAIN), [seen(0.0, (600, 1200, 12000))])
    time_s = 0.0
    for burst, arrivals_age_s, report_age_s, step_s in history:
        time_s += step_s
        low = seen(time_s, (burst, burst, burst), peak_rate=0.0, arrivals_age_s=arrivals_age_s)
        stages = {name: replace(there, age_s=report_age_s) for name, there in low.stages.items()}
        blind = arrivals_age_s is None or arrivals_age_s > 1 or report_age_s is None or report_age_s > 3
        tuner, decision = step(tuner, replace(low, stages=stages))
        if blind and decision is not None:
            assert decision.action is not Action.SCALE_DOWN


def test_stock_bounds_what_is_asked_for_and_the_shortage_is_reported():
    short = state(PLAIN, {"x": Hardware("x", 1.0, stock=6)})
    tuner, decisions = after(short, [seen(0.0, (900, 1800, 18000))])
    assert sum(totals(decisions[0]).values()) == 6
    _, decision = step(tuner, seen(0.1, (900, 1800, 18000), pending=(1, 0)))
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.STOCK_EXHAUSTED)


def test_what_is_insured_is_a_number_of_replicas_however_slow_they_are_just_now():
    quiet = seen(0.0, (30, 60, 600), peak_rate=10.0)
    stages = {
        name: replace(there, supply={"x": replace(there.supply["x"], throughput=0.6 * mu)})
        for (name, there), mu in zip(quiet.stages.items(), (100.0, 50.0), strict=True)
    }
    slow = [replace(quiet, stages=stages, time_s=t / 10) for t in range(20)]
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
        tuner, _ = step(tuner, replace(quiet, limits={"b": limits}))
        assert tuner.wanted["b"] == {"x": kept}
    tuner, _ = step(tuner, replace(quiet, limits={"b": Limits(1, 1)}))
    tuner, decision = step(tuner, quiet)
    assert tuner.wanted["b"] == {"x": 3}
    assert decision.reason is Reason.DISPATCHERS_NEED_REPLICAS
    assert "each of its 3 dispatchers needs a replica" in decision.detail
