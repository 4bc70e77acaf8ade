"""Traffic that leaps is distinguished from traffic that drifts, and only the former is insured against for long."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.tuner.decision import Action, Reason
from inferline_stream.tuner.demand import traffic_of
from inferline_stream.tuner.forecast import LONGEST_RISE_S, fallen_to, highest_rate, rises, share_within, surged, surges
from inferline_stream.tuner.policy import step
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from tests.unit.tuner.plans import seen, state

LAYERS = ((2.5, 0.25),)


def seconds(rates: np.ndarray, seed: int) -> list[int]:
    return np.random.default_rng(seed).poisson(rates).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_step_by_a_third_is_a_surge_and_the_same_within_ten_minutes_is_not(seed):
    at_once = np.repeat([150.0, 200.0], 60)
    slowly = np.linspace(150.0, 200.0, 600)
    assert surges(seconds(at_once, seed))
    assert not surges(seconds(slowly, seed))


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_bursts_about_one_rate_are_no_surge(cv):
    trace = gamma_trace(150.0, cv, 600.0, np.random.default_rng(1))
    assert not surges(np.bincount(trace.arrivals_s.astype(int)).tolist())


@pytest.mark.parametrize(("cv", "most"), [(1.0, 0), (4.0, 1)])
def test_stationary_hours_hardly_surge(cv, most):
    hours = [gamma_trace(100.0, cv, 3600.0, np.random.default_rng([seed, 7])) for seed in range(5)]
    assert sum(surges(np.bincount(hour.arrivals_s.astype(int)).tolist()) for hour in hours) <= most


def test_a_handful_of_events_or_of_seconds_shows_none():
    assert not surged([1] * 10 + [5] * 10)
    assert not surged([100] * 5 + [500] * 10)


def test_what_traffic_has_surely_fallen_to_is_read_off_its_busiest_five_seconds():
    peak, low = [100] * 20, [40] * 10
    assert fallen_to(peak + low) == 0.4
    assert fallen_to(peak + [70] * 5 + low) == 0.4, "what lies between counts for neither"
    assert fallen_to(peak + [40] * 5 + [60] * 5) == 0.6, "as busy as its last seconds"
    assert fallen_to([40] * 10 + peak[:10] + low) == 0.4, "a peak that rose before"
    assert fallen_to([100] * 5 + [40] * 25) == 0.4, "a peak in the first seconds that are known"
    assert fallen_to(low + peak) == fallen_to(peak + [100] * 10) == 1.0
    assert fallen_to(peak + [40] * 5) == 1.0, "of ten seconds five are busy: 200 of 1,700 fewer, and chance is 206"


def test_a_fall_by_chance_or_by_less_than_a_plan_leaves_as_room_is_none():
    assert fallen_to([100] * 20 + [85] * 10) == 1.0, "150 fewer, and chance makes 5 · √1850 = 215 of them"
    assert fallen_to([1000] * 20 + [950] * 10) == 1.0, "500 fewer, and chance makes 5 · √19500 = 698 of them"
    assert fallen_to([10_000] * 20 + [9_200] * 10) == 1.0
    assert fallen_to([10_000] * 20 + [9_000] * 10) == 0.9
    assert fallen_to([9] * 20 + [0] * 10) == 1.0, "a handful"
    assert fallen_to([100] * 5 + [0] * 10) == fallen_to([]) == 1.0


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_bursts_about_one_rate_never_fall_surely(cv):
    trace = gamma_trace(150.0, cv, 600.0, np.random.default_rng(2))
    counts = np.bincount(trace.arrivals_s.astype(int)).tolist()
    assert {fallen_to(counts[end - 30 : end]) for end in range(30, len(counts))} == {1.0}


def test_the_share_of_a_rise_within_a_time_lies_on_a_line_between_seconds():
    assert [share_within((0.0, 10.0, 30.0, 40.0), s) for s in (0.0, 0.5, 1.5, 2.9)] == [0.0, 0.125, 0.5, 0.975]
    assert share_within((0.0, 10.0, 30.0, 40.0), 3.0) == share_within((), 0.0) == share_within((0.0, 0.0), 0.0) == 1.0


def test_the_largest_rise_is_found_within_each_time():
    """Each is lowered by two standard errors: from 0 to 1,000 arrivals by 2 · √1,000 = 63, and so on."""
    ramp_and_step = [0] * 10 + list(range(0, 10_000, 1000)) + [10_000] * 10 + [0] * 10 + [3000] * 5
    found = rises(ramp_and_step)
    step, ramp = 3000 - 2 * math.sqrt(3000), [1000 * n - 2 * math.sqrt(1000 * n) for n in range(11)]
    assert found[:6] == pytest.approx((0, step, step, step, ramp[4], ramp[5]))
    assert found[10] == found[-1] == pytest.approx(ramp[10])
    assert len(found) == LONGEST_RISE_S + 1
    assert rises([7]) == rises([9, 8, 7, 1]) == rises([]) == (0.0,) * len(found)


def test_a_rise_that_may_be_chance_is_none():
    """Of 100 and 140 arrivals the difference spreads by √240: twice that is 31, of 100 and 130 30.3."""
    assert rises([100, 140])[1] == pytest.approx(40 - 2 * math.sqrt(240))
    assert rises([100, 130])[1] == 0
    assert rises([100, 130, 160])[:3] == pytest.approx((0, 0, 60 - 2 * math.sqrt(260)))


@pytest.mark.parametrize("seed", range(5))
def test_the_highest_rate_is_that_of_a_spike_that_lasts_and_not_that_of_chance(seed):
    spike = np.repeat([100.0, 400.0, 100.0], [120, 30, 120])
    assert 370 < highest_rate(seconds(spike, seed), least_share=0.01) < 400
    assert 95 < highest_rate(seconds(np.full(600, 100.0), seed), least_share=0.0) < 103
    bursty = gamma_trace(100.0, 4.0, 600.0, np.random.default_rng(seed))
    assert 95 < highest_rate(np.bincount(bursty.arrivals_s.astype(int)).tolist(), least_share=0.0) < 105


def test_a_stretch_with_fewer_events_than_may_be_late_is_not_carried():
    """Of 10,400 events, 5 s at 200/s are not quite a tenth: where so many may be late, 8 s about them set the rate."""
    spike = [100] * 50 + [200] * 5 + [100] * 44
    assert highest_rate(spike, least_share=0.09) == highest_rate(spike, least_share=0.0) > 160
    assert 100 < highest_rate(spike, least_share=0.1) < 160


def test_one_second_or_two_are_no_rate_that_was_kept_up():
    def highest(*counts: int) -> float:
        return highest_rate(counts, least_share=0.0)

    assert highest(*[100] * 50, 1000, *[100] * 50) < 105
    assert highest() == highest(900) == highest(900, 900) == 0.0
    assert highest(900, 900, 900) == pytest.approx((2700 - 3 * math.sqrt(2700)) / 3)


def totals(*, leaps: bool, minutes: float) -> tuple[int, list[Action]]:
    """Replicas after so many minutes at the planned rate, and what was done."""
    table = Staffing((1.0, 4.0), {"a": (200.0, 800.0), "b": (150.0, 600.0)}, 100.0, leaps)
    tuner = state(PolicySettings(insurance=LAYERS))
    tuner = replace(tuner, basis=replace(tuner.basis, staffing=table))
    done = []
    for tick in range(round(minutes * 120)):
        tuner, decision = step(tuner, seen(tick / 2, recent=(100,) * 30, watched_s=tick / 2))
        if decision is not None:
            done.append(decision.action)
    return sum(sum(kinds.values()) for kinds in tuner.wanted.values()), done


def test_what_is_insured_beyond_the_plan_is_held_while_traffic_leaps_and_given_back_half_an_hour_later():
    assert totals(leaps=True, minutes=29) == (6, [Action.SCALE_UP])
    assert totals(leaps=True, minutes=32) == (5, [Action.SCALE_UP, Action.SCALE_DOWN])


def test_traffic_that_does_not_leap_is_insured_for_a_beginning_of_a_minute():
    assert totals(leaps=False, minutes=0.9) == (6, [Action.SCALE_UP])
    assert totals(leaps=False, minutes=2) == (5, [Action.SCALE_UP, Action.SCALE_DOWN])


def insured_s(envelope: tuple[int, int, int], recent: tuple[int, ...]) -> float:
    """For how long more than the plan is held after traffic like this at the end of the calm beginning."""
    table = Staffing((1.0, 4.0), {"a": (200.0, 800.0), "b": (150.0, 600.0)}, 100.0, surges=False)
    tuner = state(PolicySettings(insurance=LAYERS))
    tuner = replace(tuner, basis=replace(tuner.basis, staffing=table))
    for tick in range(2 * round(tuner.basis.knobs.calm_memory_s)):
        tuner, _ = step(tuner, seen(tick / 2, recent=(100,) * 30, watched_s=tick / 2))
    now_s = tuner.basis.knobs.calm_memory_s
    tuner, decision = step(tuner, seen(now_s, envelope, recent=recent, watched_s=now_s))
    assert decision is not None
    assert decision.action is Action.SCALE_UP
    return max(tuner.outgrown_s + tuner.basis.knobs.calm_memory_s - now_s, 0.0)


def test_arrivals_beyond_the_plan_are_insured_after_and_a_forecast_is_not():
    rising = tuple(range(85, 115))
    assert insured_s((290, 590, 5900), rising) == 0.0
    assert insured_s((400, 800, 8000), (100,) * 30) == PolicySettings().calm_memory_s


def test_a_forecast_is_held_against_the_rate_that_the_plan_carries():
    """Not against the mean of a sample that came twice as fast for a while."""
    table = Staffing((1.0, 4.0), {"a": (200.0, 800.0), "b": (150.0, 600.0)}, 200.0, surges=False)
    basis = replace(state().basis, staffing=table)
    assert traffic_of(basis, seen(60.0, recent=(150,) * 30, watched_s=60.0)).multiple < 1
    assert traffic_of(state().basis, seen(60.0, recent=(150,) * 30, watched_s=60.0)).multiple > 1


def test_a_rise_within_the_plan_has_to_be_surer_than_one_beyond_it():
    """To 114/s, or 106/s if it has to be surer: more than a plan for 100/s; about the 110/s seen in one for 200/s."""
    rising = tuple(100 + max(0, second - 24) * 5 for second in range(30))
    busy = (100, 693, 6000)

    def reason(planned_rate: float) -> Reason:
        table = Staffing((1.0, 4.0), {"a": (200.0, 800.0), "b": (150.0, 600.0)}, planned_rate, surges=False)
        basis = replace(state().basis, staffing=table)
        return traffic_of(basis, seen(60.0, busy, recent=rising, watched_s=60.0)).reason

    assert reason(100.0) is Reason.RATE_RISING
    assert reason(200.0) is Reason.ENVELOPE_EXCEEDED
