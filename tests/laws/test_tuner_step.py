"""What the default policy's step never does, whatever it sees; and that it comes to rest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.replay.loop import replay
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.decision import Action, Reason
from inferline_stream.tuner.observation import Limits, Observation, Supply
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.replica_fit import supply
from inferline_stream.tuner.tuner_state import TunerState
from tests.support.hypothesis_profiles import examples
from tests.unit.tuner.plans import CATALOGUE, SHAPE, measured, plan, seen, state

THROUGHPUTS = {"a": 100.0, "b": 50.0}
VISITS = {"a": 1.0, "b": 0.5}

rates = st.floats(0.0, 2000.0)


def traffic(time_s: float, rate: float, **more: object) -> Observation:
    """Steady traffic of a rate, as its envelope shows it."""
    envelope = (math.ceil(rate), math.ceil(5 * rate), math.ceil(60 * rate))
    return seen(time_s, envelope, peak_rate=rate, recent=(int(rate),) * 30, **more)


def totals(held) -> dict[str, int]:
    return {stage: sum(kinds.values()) for stage, kinds in held.items()}


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(st.lists(rates, min_size=1, max_size=12), st.sampled_from([None, 12, 20]))
def test_no_stage_is_short_of_the_rate_while_stock_allows_it(history, stock):
    """After every step each stage carries the rate seen, or the stock is used up."""
    tuner = state(PolicySettings(), {"x": Hardware("x", 1.0, stock=stock)})
    for i, rate in enumerate(history):
        tuner, _ = step(tuner, traffic(4.0 * i, rate))
        held = totals(tuner.wanted)
        assert stock is None or sum(held.values()) <= stock
        for stage in ("a", "b"):
            assert held[stage] >= 1
            if supply(tuner.wanted[stage], {"x": THROUGHPUTS[stage]}) < rate * VISITS[stage]:
                assert sum(held.values()) == stock


@pytest.mark.parametrize("noise", [0.0, 0.09])
@pytest.mark.parametrize("rate", [0.0, 3.0, 60.0, 100.0, 140.0, 201.0, 777.0, 1999.0, 2500.0])
def test_at_a_steady_load_it_comes_to_rest(rate, noise):
    """Speeds wobble about one level by less than a tenth: after two minutes nothing changes any more."""
    rng = np.random.default_rng(int(rate))
    tuner = state(PolicySettings(beginning_s=0.0))
    changes = []
    for tick in range(600):
        observation = traffic(0.5 * tick, rate, watched_s=0.5 * tick)
        wobble = {name: mu * (1 + rng.uniform(-noise, noise)) for name, mu in THROUGHPUTS.items()}
        stages = {
            name: replace(there, supply={"x": Supply(totals(tuner.wanted)[name], throughput=wobble[name])})
            for name, there in observation.stages.items()
        }
        tuner, decision = step(tuner, replace(observation, stages=stages))
        if decision is not None and decision.action is not Action.HOLD:
            changes.append(0.5 * tick)
    assert all(time_s < 120.0 for time_s in changes)
    assert len(changes) <= 4


@pytest.mark.parametrize("cv", [0.0, 1.0])
def test_in_replay_replicas_hardly_come_and_go_at_the_planned_rate(cv):
    """Ten minutes: nothing moves where arrivals are even; where they are random, not once in two minutes."""
    trace = gamma_trace(100.0, cv, 600.0, np.random.default_rng(5))
    scaler = Tuner("default", step, state(), SHAPE, kernel=compiled_kernel())
    outcome = replay(SHAPE, plan().allocations, measured(), trace, scaler, catalogue=CATALOGUE, slo_s=0.5, slots={})
    moved = sum(s.action != "hold" for s in outcome.steps if s.time_s > 60.0)
    assert moved <= (0 if cv == 0.0 else 5)


blind = st.fixed_dictionaries(
    {},
    optional={
        "arrivals_age_s": st.sampled_from([None, 1.5, 60.0, math.inf]),
        "reports": st.sampled_from([None, 3.5, 100.0]),
        "missing": st.sampled_from(["a", "b"]),
        "envelope": st.just(()),
        "rate": st.just(math.nan),
    },
)


@settings(max_examples=examples(200), deadline=None, derandomize=True)
@given(st.lists(st.tuples(blind, st.floats(0.05, 4.0)), min_size=1, max_size=40))
def test_what_is_missing_or_old_never_takes_a_replica_away(history):
    tuner, _ = step(state(PolicySettings(insurance=(), beginning_s=0.0)), traffic(0.0, 300.0))
    time_s = 0.0
    for fault, later_s in history:
        time_s += later_s
        observation = traffic(time_s, 5.0)
        stages = dict(observation.stages)
        if "reports" in fault:
            stages = {name: replace(there, age_s=fault["reports"]) for name, there in stages.items()}
        if "missing" in fault:
            del stages[fault["missing"]]
        changes = {key: fault[key] for key in ("arrivals_age_s", "envelope") if key in fault}
        if "rate" in fault:
            changes["arrival_rate"] = fault["rate"]
        before = totals(tuner.wanted)
        tuner, decision = step(tuner, replace(observation, stages=stages, **changes))
        if fault:
            assert all(totals(tuner.wanted)[name] >= count for name, count in before.items())
            assert decision is None or decision.action is not Action.SCALE_DOWN


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([0.1, 0.1, 0.1, -3.0, 0.0, 7.0, 4000.0, -1e6]), min_size=5, max_size=60))
def test_after_the_clock_has_jumped_nothing_is_taken_away_for_a_minute(leaps):
    tuner, _ = step(state(PolicySettings(insurance=(), beginning_s=0.0)), traffic(0.0, 300.0))
    time_s, calm_s = 0.0, math.inf
    for leap_s in leaps:
        time_s += leap_s
        calm_s = 0.0 if not 0 <= leap_s <= 5.0 else calm_s + leap_s
        before = totals(tuner.wanted)
        tuner, decision = step(tuner, traffic(time_s, 5.0))
        if calm_s < 60.0:
            assert totals(tuner.wanted) == before
        if calm_s == 0.0:
            assert (Reason.CLOCK_JUMPED, "") in tuner.reported
            assert decision is None or decision.reason is Reason.CLOCK_JUMPED


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.lists(st.tuples(rates, st.integers(1, 4)), min_size=1, max_size=15))
def test_an_observation_that_is_seen_twice_changes_nothing_the_second_time(history):
    once = twice = state()
    for i, (rate, times) in enumerate(history):
        observation = traffic(0.4 * i, rate)
        once, decision = step(once, observation)
        for _ in range(times):
            twice, again = step(twice, observation)
            assert again is None or decision is not None
        assert twice.wanted == once.wanted


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.integers(1, 80), st.integers(1, 80), rates)
def test_limits_that_people_set_hold_at_once(low, high, rate):
    minimum, maximum = sorted((low, high))
    tuner, _ = step(state(), traffic(0.0, rate, limits={"a": Limits(minimum, maximum)}))
    assert minimum <= totals(tuner.wanted)["a"] <= maximum


def test_without_any_traffic_the_minimum_that_people_set_is_kept():
    tuner = state(PolicySettings(insurance=(), beginning_s=0.0))
    for tick in range(0, 2000):
        tuner, _ = step(tuner, traffic(0.1 * tick, 0.0, limits={"b": Limits(2, None)}))
    assert totals(tuner.wanted) == {"a": 1, "b": 2}


def wavering(tuner: TunerState, seconds: float) -> list[Reason]:
    """More is needed than the stock can give, every other step."""
    reported = []
    for tick in range(int(seconds * 10)):
        tuner, decision = step(tuner, traffic(0.1 * tick, 9000.0 if tick % 2 else 100.0))
        if decision is not None and decision.action is Action.HOLD:
            reported.append(decision.reason)
    return reported


def test_a_condition_that_comes_and_goes_is_reported_once():
    scarce = {"x": Hardware("x", 1.0, stock=20)}
    assert wavering(state(catalogue=scarce), 50.0) == [Reason.STOCK_EXHAUSTED] * 2  # once for each stage


def test_a_controller_that_has_just_begun_does_not_complain_of_arrivals_that_were_not_sampled_yet():
    tuner = state()
    for tick in range(9):
        tuner, decision = step(tuner, traffic(0.1 * tick, 0.0, arrivals_age_s=None))
        assert decision is None
    _, decision = step(tuner, traffic(1.5, 0.0, arrivals_age_s=None))
    assert decision is not None
    assert decision.reason is Reason.INPUT_STALE


@pytest.mark.parametrize(("slower", "grows"), [(0.8, False), (0.7, False), (0.5, True)])
def test_slow_replicas_count_where_they_limit(slower, grows):
    """The planned traffic: 50/s for three replicas of 50/s. At 35/s each they are half used; at 25/s two thirds."""
    usual = seen(0.0)
    stages = {
        name: replace(there, supply={"x": replace(there.supply["x"], throughput=factor * THROUGHPUTS[name])})
        for (name, there), factor in zip(usual.stages.items(), (1.0, slower), strict=True)
    }
    tuner, decision = step(state(PolicySettings(insurance=(), beginning_s=0.0)), replace(usual, stages=stages))
    assert (totals(tuner.wanted)["b"] > 3) is grows
    assert (decision is not None and decision.reason is Reason.THROUGHPUT_FELL) is grows
