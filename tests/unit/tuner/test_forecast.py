"""A rate is expected as far as it is sure, and a line is believed for as long as it may have been seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import Leaps, demands, traffic_of
from inferline_stream.tuner.forecast import CLIMB_SURE, SPANS, climbing_rate, index_of_dispersion, rising_rate, surged
from inferline_stream.tuner.observation import Supply
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import seen, state

RISING = [100 + second // 2 for second in range(30)]
"""Half an event per second more each second. Poisson counts of 107/s know a slope over 30 s to .218: 2.3 standard
errors."""


SLOW, SUDDEN = Leaps(0.2, followed=True, sudden=False), Leaps(1.0, followed=False, sudden=True)


def expected(lead_s: float) -> float:
    return rising_rate(RISING, lead_s, confidence=1.0, limit=1.5)


def test_a_line_counts_for_what_it_reaches_within_the_lead():
    level = sum(RISING) / 30
    assert expected(5.0) > level + 0.25 * (15 + 5)
    assert expected(25.0) > expected(5.0)


def test_a_line_of_two_standard_errors_is_not_drawn_on_for_three_times_as_long_as_it_was_seen():
    assert expected(90.0) < RISING[-1]


def test_what_was_seen_for_less_than_a_third_of_the_lead_is_not_believed_to_last():
    def level(seconds: int, lead_s: float) -> float:
        return rising_rate([200] * seconds, lead_s, confidence=1.0, limit=1.5, believed=3.0)

    assert level(30, 90.0) > 195
    assert level(30, 90.1) == 0.0
    assert level(20, 60.0) > 190
    assert level(20, 60.1) == 0.0


def test_a_rise_is_believed_for_as_long_as_replicas_take_to_start_where_traffic_drifts_and_not_where_it_leaps():
    slow = {"x": Supply(2, start_up_s=90.0)}
    rising = seen(60.0, (100, 300, 3000), recent=tuple(100 + 10 * second for second in range(30)), watched_s=60.0)
    rising = replace(rising, stages={**rising.stages, "b": replace(rising.stages["b"], supply=slow)})
    assert traffic_of(state().basis, rising).reason is Reason.RATE_RISING
    assert traffic_of(state().basis, rising, SLOW).reason is Reason.ENVELOPE_EXCEEDED
    rising = replace(rising, time_s=3000.0, watched_s=20.0)
    for leapt_s, believed in ((1200.0, True), (1200.1, False)):
        _, needed = demands(replace(state(), outgrown_s=0.0, leapt_s=leapt_s), rising)
        assert (needed["a"].reason is Reason.RATE_RISING) is believed


def test_where_traffic_leaps_a_forecast_may_be_twice_the_rate_seen():
    """From 100 to 1,000/s within 30 s: the line is sure, and reaches 1,075/s before a replica of 2 s is ready."""
    steep = seen(60.0, (100, 300, 3000), recent=tuple(100 + 30 * second for second in range(30)), watched_s=60.0)
    of_drift, of_leap = (traffic_of(state().basis, steep, leaps).multiple * 100 for leaps in (None, SLOW))
    assert 1050 < of_drift == pytest.approx(of_leap), "nothing is limited that is so near"
    slower = {"x": Supply(2, start_up_s=20.0)}
    slow = replace(steep, stages={**steep.stages, "b": replace(steep.stages["b"], supply=slower)})
    of_drift, of_leap = (traffic_of(state().basis, slow, leaps).multiple * 100 for leaps in (None, SLOW))
    assert 1.4 * 985 < of_drift < 1.5 * 985, "985/s is where the line ends"
    assert 1.5 * 985 < of_leap < 985 + 21 * 30
    assert 0.9 * 985 < traffic_of(state().basis, slow, SUDDEN).multiple * 100 < 985
    outgrown = [replace(slow, envelope=(count, 600, 6000)) for count in (331, 329)]
    further, no_further = (traffic_of(state().basis, now, SUDDEN).multiple * 100 for now in outgrown)
    assert (further, no_further < 985) == (of_leap, True), "331 of 300 are more than a tenth beyond the plan"


def by_regression(counts: list[int], lead_s: float, confidence: float, limit: float, believed: float) -> float:
    """The largest lower bound of means and lines, by numpy's least squares."""
    dispersion = max(1.0, float(np.mean(np.diff(counts) ** 2)) / 2 / float(np.mean(counts)))
    found = [0.0]
    for span in SPANS:
        last = np.array(counts[-span:], dtype=float)
        if span > len(counts) or last.sum() < 100 or believed * span < lead_s:
            continue
        chances = 2 * math.log(30 / span)
        variance = max(last.mean(), 1.0) * dispersion
        found.append(last.mean() - math.sqrt(confidence**2 + chances) * math.sqrt(variance / span))
        if span < 3:
            continue
        middles = np.arange(span) - span + 0.5
        slope, now = np.polyfit(middles, last, 1)
        if slope <= 0:
            continue
        further = confidence * max(lead_s / 30, 1.0)
        ahead = lead_s + span / 2
        error = math.sqrt(variance * (1 / span + ahead**2 / float(np.sum((middles - middles.mean()) ** 2))))
        reached = min(now + slope * lead_s, limit * now)
        found.append(reached - math.sqrt(further**2 + chances) * error)
    return max(found)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_largest_of_what_means_and_lines_surely_reach(seed):
    rng = np.random.default_rng([seed, 3])
    slope, level = rng.choice([-2.0, 0.0, 3.0, 40.0]), rng.choice([8.0, 60.0, 700.0])
    seconds = int(rng.integers(2, 31))
    rates = np.maximum(level + slope * np.maximum(np.arange(seconds) - seconds + rng.integers(1, 31), 0), 1.0)
    counts = rng.poisson(rates).tolist()
    lead_s, confidence = float(rng.choice([1.0, 6.0, 45.0])), float(rng.choice([0.5, 1.0, 2.0]))
    believed = float(rng.choice([3.0, math.inf]))
    found = rising_rate(counts, lead_s, confidence=confidence, limit=1.5, believed=believed)
    if sum(counts) < 100:
        assert found == 0.0
    else:
        assert found == pytest.approx(by_regression(counts, lead_s, confidence, 1.5, believed))


def test_up_to_the_rate_that_is_carried_the_inner_confidence_counts():
    for recent, believed in ((RISING, math.inf), ([107] * 30, 3.0)):
        loose, strict = (rising_rate(recent, 5.0, confidence=c, limit=1.5, believed=believed) for c in (1.0, 2.0))
        for carried, found in ((loose - 0.1, loose), (loose, strict)):
            rate = rising_rate(
                recent, 5.0, confidence=1.0, limit=1.5, believed=believed, carried=carried, inner_confidence=2.0
            )
            assert rate == found < 120


CLIMBING = [1000] * 27 + [1100, 1300, 1500]
"""Since three seconds 200 events per second more each second."""


def climb(sure: float) -> float:
    """Its growth, lowered by so many standard errors: 1,300/s now and 1,000/s before, over Σ t² = .5² + 1.5² + 2.5²."""
    return 200 - sure * math.sqrt(1300 / 8.75 + 100 * (4.5 / 8.75) ** 2)


def test_a_climb_from_a_level_is_seen_sooner_than_a_line_through_the_same_seconds():
    assert climbing_rate(CLIMBING, 6.0, limit=4.0) == pytest.approx(1000 + climb(CLIMB_SURE) * (3 + 6))
    steep = [400] * 27 + [505, 715, 925]
    line, climbing = rising_rate(steep, 6.0, confidence=1.0, limit=4.0), climbing_rate(steep, 6.0, limit=4.0)
    assert line < 0.85 * climbing < 0.85 * (400 + 210 * (3 + 6))
    assert climbing_rate(CLIMBING, 6.0, limit=1.2) == pytest.approx(1.2 * (1000 + climb(CLIMB_SURE) * 3))
    assert climbing_rate(CLIMBING, 6.0, limit=4.0, above=5000.0) == 5000.0
    surer = climbing_rate(CLIMBING, 45.0, limit=9.0)
    assert surer == pytest.approx(1000 + climb(1.5 * CLIMB_SURE) * (3 + 45)), "as for lines"


@pytest.mark.parametrize("began", [1, 2, 3, 5, 8, 12])
def test_a_climb_goes_on_from_when_it_began(began):
    climbing = [10**12] * (30 - began) + [10**12 + 10**10 * second + 5 * 10**9 for second in range(began)]
    assert climbing_rate(climbing, 6.0, limit=4.0) == pytest.approx(1e12 + 1e10 * (began + 6), rel=1e-4)


def test_noise_before_a_climb_makes_it_less_sure_and_its_own_steps_do_not():
    noisy = [900, 1100] * 13 + [1000, 1100, 1300, 1500]
    assert climbing_rate(noisy, 6.0, limit=4.0) < 0.8 * climbing_rate(CLIMBING, 6.0, limit=4.0)
    assert index_of_dispersion(CLIMBING[-3:]) > 10


def test_a_climb_is_believed_as_far_as_rates_have_risen_before():
    """200/s each second, surely 156/s each second."""

    def growth(*known: float, lead_s: float = 2.0) -> float:
        return (climbing_rate(CLIMBING, lead_s, limit=9.0, known=known) - 1000) / (3 + lead_s)

    assert growth() == growth(0.0, 0.0, 0.0) == pytest.approx(climb(CLIMB_SURE))
    assert growth(*[100.0 * second for second in range(9)]) == growth()
    assert growth(*[180.0 * second for second in range(9)]) == pytest.approx(180.0)
    assert growth(*[300.0 * second for second in range(9)]) == pytest.approx(200.0)
    assert growth(0.0, 0.0, 0.0, 0.0, 0.0, 900.0, 9000.0) == pytest.approx(180.0), "within five seconds"
    assert growth(0.0, 0.0, 540.0) == pytest.approx(200.0), "more is not known"
    assert growth(0.0, 0.0, 0.0, 540.0, lead_s=9.0) == pytest.approx(180.0)
    within_noise = [1000] * 27 + [1015, 1045, 1075]
    assert climbing_rate(within_noise, 6.0, limit=4.0, known=(0.0, 900.0)) == 0.0, "that it climbs has to be sure"


def test_what_was_rising_before_or_is_a_handful_or_within_the_noise_is_no_climb():
    assert climbing_rate([1000 + 50 * second for second in range(30)], 6.0, limit=4.0) == 0.0
    assert climbing_rate([9] * 27 + [50, 90, 130], 6.0, limit=4.0) == 0.0
    assert climbing_rate([10] * 27 + [50, 90, 130], 6.0, limit=4.0) > 100.0
    assert climbing_rate(CLIMBING[-10:], 6.0, limit=4.0) == 0.0, "nothing is known of the level"
    assert climbing_rate([1000] * 27 + [1015, 1045, 1075], 6.0, limit=4.0) == 0.0, "30/s each second, and chance is 38"
    assert climbing_rate([1000] * 30, 6.0, limit=4.0) == climbing_rate([], 6.0, limit=4.0) == 0.0


def test_climbs_count_where_leaps_are_followed():
    basis = state(replace(PolicySettings(), forecast_confidence=math.inf)).basis
    climbing = seen(60.0, recent=tuple(CLIMBING), watched_s=60.0)
    lead_s = 1.0 + max(kind.start_up_s for stage in basis.stages for kind in stage.kinds)
    found = traffic_of(basis, climbing, SLOW)
    assert found.multiple * 100 == pytest.approx(climbing_rate(CLIMBING, lead_s, limit=4.0))
    assert found.reason is Reason.RATE_RISING
    for leaps in (None, SUDDEN, replace(SLOW, followed=False)):
        assert traffic_of(basis, climbing, leaps).reason is Reason.ENVELOPE_EXCEEDED
    higher = traffic_of(basis, climbing, replace(SLOW, rises=(0.0, 190.0)))
    assert higher.multiple * 100 == pytest.approx(climbing_rate(CLIMBING, lead_s, limit=4.0, known=(0.0, 190.0)))
    assert higher.multiple > found.multiple


def test_what_is_not_above_what_is_asked_about_is_of_no_interest():
    rate = expected(5.0)
    for above in (rate - 1, rate + 1):
        assert rising_rate(RISING, 5.0, confidence=1.0, limit=1.5, above=above) == max(rate, above)


def test_without_counts_or_with_infinite_confidence_nothing_is_expected():
    assert rising_rate([500], 5.0, confidence=1.0, limit=1.5) == 0.0
    assert rising_rate(RISING, 5.0, confidence=math.inf, limit=1.5, above=7.0) == 7.0


def test_dispersion_is_of_neighbours_and_at_least_that_of_a_poisson_stream():
    assert index_of_dispersion([0, 0, 0]) == 1.0
    assert index_of_dispersion([100, 101, 102]) == 1.0
    assert index_of_dispersion([100, 0, 100, 0]) == pytest.approx(3 * 100**2 / (2 * 3) / 50)
    assert index_of_dispersion([1, 0]) == index_of_dispersion([7]) == 1.0


def test_a_rise_from_one_ten_seconds_to_the_next_is_a_surge_from_five_standard_errors_and_a_tenth_on():
    """Of steady counts: 1,000 and then n differ by √(1000 + n) or so, five times which is 239 at 1,239."""
    assert not surged([100] * 10 + [120] * 10)
    assert surged([100] * 10 + [130] * 10)
    assert surged([100] * 30 + [130] * 10)
    assert not surged([100] * 9 + [130] * 10)
    assert not surged([130] * 10 + [100] * 10)
    assert surged([100_000] * 10 + [111_000] * 10)
    assert not surged([100_000] * 10 + [109_000] * 10)
    assert surged([10] * 10 + [30] * 10)
    assert not surged([9] * 10 + [30] * 10)


def test_the_lead_is_the_longest_start_up_time_as_measured_lately_and_the_time_to_react():
    rising = tuple(100 + 5 * second for second in range(30))
    observed = seen(60.0, (100, 300, 3000), recent=rising, watched_s=60.0)
    slower = {"x": Supply(2, start_up_s=9.0)}
    stages = {**observed.stages, "b": replace(observed.stages["b"], supply=slower)}
    for now, lead_s in ((observed, 3.0), (replace(observed, stages=stages), 10.0)):
        rate = rising_rate(rising, lead_s, confidence=1.0, limit=1.5)
        found = traffic_of(state().basis, now)
        assert found.detail == f"{rate:.1f}/s expected within {lead_s} s, the plan carries 100.0/s"
        assert found.multiple == pytest.approx(rate / 100.0)
        assert found.reason is Reason.RATE_RISING
        assert not found.outgrown


def test_seconds_before_arrivals_were_watched_are_no_zeros():
    """After 5 s of 100/s the 25 s before are not known: without them there is no rise."""
    counts = (0,) * 25 + (100,) * 5
    basis = state().basis

    def reason(watched_s: float) -> Reason:
        return traffic_of(basis, seen(60.0, (300, 600, 6000), recent=counts, watched_s=watched_s)).reason

    assert reason(30.0) is Reason.RATE_RISING
    assert reason(5.0) is Reason.ENVELOPE_EXCEEDED
    assert reason(0.5) is Reason.ENVELOPE_EXCEEDED
    assert traffic_of(basis, seen(60.0, (300, 600, 6000), recent=(120,) * 30, watched_s=2.0)).multiple > 1.0


def test_a_plan_for_no_traffic_at_all_expects_nothing():
    basis = replace(state().basis, arrival_rate=0.0)
    assert traffic_of(basis, seen(60.0, recent=(120,) * 30, watched_s=60.0)).reason is Reason.ENVELOPE_EXCEEDED
