"""A rate is expected as far as it is sure, and a line is believed for as long as it may have been seen."""

from __future__ import annotations

from inferline_stream.tuner.forecast import rising_rate

RISING = [100 + second // 2 for second in range(30)]
"""Half an event per second more each second. Poisson counts of 107/s know a slope over 30 s to .218: 2.3 standard
errors."""


def expected(lead_s: float) -> float:
    return rising_rate(RISING, lead_s, confidence=1.0, limit=1.5)


def test_a_line_counts_for_what_it_reaches_within_the_lead():
    level = sum(RISING) / 30
    assert expected(5.0) > level + 0.25 * (15 + 5)
    assert expected(25.0) > expected(5.0)


def test_a_line_of_two_standard_errors_is_not_drawn_on_for_three_times_as_long_as_it_was_seen():
    assert expected(90.0) < RISING[-1]
