"""Where the arrival rate will be once a replica that is asked for now is ready."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

SPANS = (1, 2, 3, 5, 8, 12, 20, 30)
"""Seconds that a level or a line is fitted to: short ones see jumps at once, long ones slow ramps through noise."""

LEAST_EVENTS = 100
"""Arrivals within a span below which it tells no rate to within a tenth."""


def rising_rate(recent: Sequence[int], lead_s: float, *, confidence: float, limit: float) -> float:
    """A rate that arrivals will very likely reach within ``lead_s``, per second; 0 if nothing rises for sure.

    For each span the mean rate and the line of least squares through the seconds' counts are each lowered by
    ``confidence`` standard errors of their prediction; the largest of them all counts. Counts spread as their mean
    times the index of dispersion, estimated from differences of neighbouring seconds, which a trend hardly touches.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
        lead_s: how far ahead.
        confidence: standard errors to subtract.
        limit: most that the prediction may exceed the rate of the last seconds of its span by.
    """
    if len(recent) < 2 or not math.isfinite(confidence):
        return 0.0
    newest_first = recent[::-1]
    totals = list(itertools.accumulate(newest_first))
    if totals[-1] < LEAST_EVENTS:
        return 0.0
    moments = list(itertools.accumulate(map(operator.mul, newest_first, range(len(recent)))))
    dispersion = index_of_dispersion(recent)
    best = 0.0
    for span in SPANS:
        if span > len(recent):
            break
        total = totals[span - 1]
        if total < LEAST_EVENTS:
            continue
        mean = total / span
        variance = max(mean, 1.0) * dispersion
        best = max(best, mean - confidence * math.sqrt(variance / span))
        if span < 3:
            continue
        squares = span * (span * span - 1) / 12
        slope = (mean * span * (span - 1) / 2 - moments[span - 1]) / squares
        if slope <= 0:
            continue
        ahead_s = span / 2 + lead_s
        rate = min(mean + slope * ahead_s, (mean + slope * span / 2) * limit)
        if rate > best:
            best = max(best, rate - confidence * math.sqrt(variance * (1 / span + ahead_s * ahead_s / squares)))
    return best


def index_of_dispersion(recent: Sequence[int]) -> float:
    """Variance over mean of the counts of a second, from differences of neighbours; at least 1, as Poisson."""
    total = sum(recent)
    if total == 0:
        return 1.0
    differences = sum([(b - a) * (b - a) for a, b in itertools.pairwise(recent)])
    return max(1.0, differences / (2 * (len(recent) - 1)) / (total / len(recent)))
