"""A rate is expected as far as it is sure, and a line is believed for as long as it may have been seen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import demands, traffic_of
from inferline_stream.tuner.forecast import LIKELY, SPANS, SURE, expected, index_of_dispersion, rising_rates
from inferline_stream.tuner.observation import Supply
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import seen, smooth, state

RISING = [100 + second // 2 for second in range(30)]
"""Half an event per second more each second. Poisson counts of 107/s know a slope over 30 s to .218: 2.3 standard
errors."""


def likely(lead_s: float) -> float:
    return rising_rates(RISING, lead_s)[0]


def test_a_line_counts_for_what_it_reaches_within_the_lead():
    level = sum(RISING) / 30
    assert likely(5.0) > level + 0.25 * (15 + 5)
    assert likely(25.0) > likely(5.0)


def test_a_line_of_two_standard_errors_is_not_drawn_on_for_three_times_as_long_as_it_was_seen():
    assert likely(90.0) < RISING[-1]


def test_what_is_usual_is_the_mean_until_a_rise_is_sure():
    """A slope of 2.3 standard errors is likely and not sure; one of ten times as many is."""
    found = expected(RISING, 5.0)
    assert found.usual == sum(RISING) / 30 < found.likely
    steep = [100 + 5 * second for second in range(30)]
    assert steep[-1] < expected(steep, 5.0).usual < expected(steep, 5.0).likely


def test_what_is_usual_is_of_the_last_ten_seconds_once_traffic_has_surely_fallen():
    assert expected([100] * 20 + [20] * 10, 5.0).usual == 20.0


@pytest.mark.parametrize("recent", [(), (7,), (0,) * 30, (1,) * 30])
def test_of_few_events_the_mean_is_what_is_expected(recent: tuple[int, ...]) -> None:
    found = expected(recent, 5.0)
    assert (found.usual, found.likely, found.fallen_to) == (max(recent, default=0), 0.0, 1.0)


def by_regression(counts: list[int], lead_s: float, sure: float) -> float:
    """The largest lower bound of means and lines, by numpy's least squares."""
    dispersion = max(1.0, float(np.mean(np.diff(counts) ** 2)) / 2 / float(np.mean(counts)))
    found = [0.0]
    for span in SPANS:
        last = np.array(counts[-span:], dtype=float)
        if span > len(counts) or last.sum() < 100:
            continue
        chances = 2 * math.log(30 / span)
        variance = last.mean() * dispersion
        found.append(last.mean() - math.sqrt(sure**2 + chances) * math.sqrt(variance / span))
        if span < 3:
            continue
        middles = np.arange(span) - span + 0.5
        slope, now = np.polyfit(middles, last, 1)
        if slope <= 0:
            continue
        further = max(lead_s / 30, 1.0)
        ahead = lead_s + span / 2
        error = math.sqrt(variance * (1 / span + ahead**2 / float(np.sum((middles - middles.mean()) ** 2))))
        reached = min(now + slope * lead_s, 1.5 * now)
        found.append(reached - math.sqrt((sure * further) ** 2 + chances) * error)
    return max(found)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_largest_of_what_means_and_lines_surely_reach(seed):
    rng = np.random.default_rng([seed, 3])
    slope, level = rng.choice([-2.0, 0.0, 3.0, 40.0]), rng.choice([8.0, 60.0, 700.0])
    seconds = int(rng.integers(2, 31))
    rates = np.maximum(level + slope * np.maximum(np.arange(seconds) - seconds + rng.integers(1, 31), 0), 1.0)
    counts = rng.poisson(rates).tolist()
    lead_s = float(rng.choice([1.0, 6.0, 45.0]))
    found = rising_rates(counts, lead_s)
    if sum(counts) < 100:
        assert found == (0.0, 0.0)
    else:
        assert found == pytest.approx([by_regression(counts, lead_s, sure) for sure in (LIKELY, SURE)])


def test_dispersion_is_of_neighbours_and_at_least_that_of_a_poisson_stream():
    assert index_of_dispersion([0, 0, 0]) == 1.0
    assert index_of_dispersion([100, 101, 102]) == 1.0
    assert index_of_dispersion([100, 0, 100, 0]) == pytest.approx(3 * 100**2 / (2 * 3) / 50)
    assert index_of_dispersion([1, 0]) == index_of_dispersion([7]) == 1.0


def test_the_lead_is_the_longest_start_up_time_as_measured_lately_and_the_time_to_react():
    rising = tuple(100 + 5 * second for second in range(30))
    observed = seen(60.0, (100, 300, 3000), recent=rising, watched_s=60.0)
    slower = {"x": Supply(2, start_up_s=9.0)}
    stages = {**observed.stages, "b": structs.replace(observed.stages["b"], supply=slower)}
    for now, lead_s in ((observed, 3.0), (structs.replace(observed, stages=stages), 10.0)):
        rate, _ = rising_rates(rising, lead_s)
        found = demands(smooth(PolicySettings(insurance=(), beginning_s=0.0)), now)[1]["a"]
        assert found.detail == f"{rate:.1f}/s expected within {lead_s} s, the plan carries 100.0/s"
        assert found.needed == pytest.approx(rate + 100 * (rate / 100.0) ** 0.5)
        assert found.reason is Reason.RATE_RISING


@pytest.mark.parametrize(("burst", "times"), [(240, 2.0), (300, 2 / 1.2), (600, 2 / 2.4)])
def test_a_rate_of_seconds_is_compared_with_half_of_the_busiest_ones_where_traffic_comes_in_bursts(
    burst: int, times: float
) -> None:
    """Each second of the sample has an SLO's half to wait in: 300 in it are 240/s, and 120/s are half of that."""
    basis = replace(smooth().basis, counts=(burst, 600, 6000))
    found = traffic_of(basis, seen(60.0, (50, 100, 1000), recent=(200,) * 30, watched_s=60.0), 3.0)
    assert found.multiple == pytest.approx(times, rel=0.05)


def test_seconds_before_arrivals_were_watched_are_no_zeros():
    """After 5 s of 100/s the 25 s before are not known: without them there is no rise."""
    counts = (0,) * 25 + (100,) * 5
    basis = smooth().basis

    def reason(watched_s: float) -> Reason:
        return traffic_of(basis, seen(60.0, (300, 600, 6000), recent=counts, watched_s=watched_s), 3.0).reason

    assert reason(30.0) is Reason.RATE_RISING
    assert reason(5.0) is Reason.ENVELOPE_EXCEEDED
    assert reason(0.5) is Reason.ENVELOPE_EXCEEDED
    assert traffic_of(basis, seen(60.0, (300, 600, 6000), recent=(120,) * 30, watched_s=2.0), 3.0).multiple > 1.0


def test_a_plan_for_no_traffic_at_all_expects_nothing():
    basis = replace(state().basis, arrival_rate=0.0, counts=(0, 0, 0))
    assert traffic_of(basis, seen(60.0, recent=(120,) * 30, watched_s=60.0), 3.0).reason is Reason.ENVELOPE_EXCEEDED
