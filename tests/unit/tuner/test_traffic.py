"""Arrivals as the policy sees them: rates, peaks, seconds, and windows that look back half a minute or a whole one."""

from __future__ import annotations

import numpy as np

from inferline_stream.tuner.traffic import Traffic

WINDOWS_S = (1.0, 30.0, 40.0)


def traffic(*times_s: float) -> Traffic:
    made = Traffic(WINDOWS_S)
    made.add(np.array(times_s))
    return made


def test_the_rate_is_of_the_last_five_seconds():
    made = traffic(1.0, 2.0, 6.5, 7.0, 8.0, 10.0)
    assert made.arrival_rate(10.0) == 4 / 5
    assert made.arrival_rate(14.0) == 1 / 5


def test_the_peak_is_the_largest_rate_of_five_seconds_in_the_last_half_minute():
    made = traffic(0.0, 1.0, 2.0, 3.0, 20.0)
    assert made.peak_rate(20.0) == 4 / 5
    assert made.peak_rate(40.0) == 1 / 5


def test_seconds_are_counted_backwards_from_now():
    recent = traffic(0.5, 1.5, 1.7, 29.5).recent(30.0)
    assert recent == (1, 2, *([0] * 27), 1)


def test_windows_of_up_to_half_a_minute_look_back_half_a_minute_and_longer_ones_a_whole():
    made = traffic(*np.linspace(0.0, 0.9, 10))
    assert made.envelope(1.0) == (10, 10, 10)
    made.add(np.array([35.0]))
    assert made.envelope(36.0) == (1, 1, 11)
    assert made.envelope(80.0) == (0, 0, 1)
