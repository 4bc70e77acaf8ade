"""A record of what came after moments like this one: the odds that replicas are held by.

One moment of the record is a pair: what was expected then, and what came once a replica asked for then could work. Both
are multiples of the sample's mean rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.kernels import Floats
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.forecast import expected, index_of_dispersion
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.traffic import PEAK_SPAN_S, RATE_WINDOW_S

FUTURES = 5
"""Independent moments that are looked at, at least: fewer would show no odds at all. Those within one lead share what
comes of them, and those within `PEAK_SPAN_S` what was expected."""

PAIRS = 30
"""Moments within one lead that the record keeps at most, as they share what comes of them: one a second where a lead
is below a minute, and one in twenty seconds where replicas take ten minutes to start."""

ALIKE = 0.1
"""Relative difference up to which two expectations are alike: what a plan's room absorbs."""

LONGEST_S = 3 * 3600.0
"""How far the record of live traffic goes back; the sample's stays."""


@dataclass(frozen=True, slots=True, eq=False)
class TrafficRecord:
    """What came of what was expected, one pair each `every_s`.

    Args:
        rate: events per second that count as 1: the mean of the stretch of the sample that is simulated.
        expected: (moments,), ascending.
        came: (moments,): the rate one lead later.
        since_s: (moments,): when that was; −∞ in the sample.
        dispersion: of the sample's counts of a second, variance over mean.
        leap_sure: standard errors by which what came exceeds in a leap what could be foreseen.
        leaps: whether the sample leaps.
        every_s: seconds from one moment to the next.
    """

    rate: float
    expected: Floats
    came: Floats
    since_s: Floats
    dispersion: float = 1.0
    leap_sure: float = 4.0
    leaps: bool = False
    every_s: int = 1

    def leapt(self, foreseen: float, came: float) -> bool:
        """Whether more came than could be foreseen one lead before, and by no chance: no replica was in time."""
        events = self.rate * RATE_WINDOW_S
        noise = self.leap_sure * math.sqrt(came * events * self.dispersion)
        return came > foreseen * (1 + ALIKE) and (came - foreseen) * events > noise

    def alike(self, expected: float, lead_s: float) -> Floats:
        """Return what came after the moments most like this one, (moments,), as multiples of the mean rate.

        The moments are those within `ALIKE`, and at least so many as `FUTURES` independent ones span. Beyond all of
        them the nearest counts, and the difference is added to what came of it: what exceeds the record is news, but
        it makes the record's leaps no larger. Ratios would: a leap to twice the traffic, seen from half of it, is no
        leap to ten times from five times.
        """
        first, end = self._within(expected)
        moments = self.expected.size
        least = min(self._enough(lead_s), moments)
        if end - first < least:
            middle = int(np.searchsorted(self.expected, expected))
            first = max(0, min(middle - least // 2, moments - least))
            end = first + least
        lowest, highest = float(self.expected[first]), float(self.expected[end - 1])
        known = min(max(expected, lowest), highest)
        came = self.came[first:end]
        return came if known == expected else np.maximum(came + (expected - known), 0.0)

    def knows(self, expected: float, lead_s: float) -> bool:
        """Whether so many moments were like this one that they show its odds, in the sample or live."""
        first, end = self._within(expected)
        return end - first >= self._enough(lead_s)

    def _within(self, expected: float) -> tuple[int, int]:
        """The first of the moments within `ALIKE`, and the one after the last."""
        first, end = np.searchsorted(self.expected, (expected * (1 - ALIKE), expected * (1 + ALIKE))).tolist()
        return first, end

    def _enough(self, lead_s: float) -> int:
        """Moments that `FUTURES` independent ones span."""
        return math.ceil(FUTURES * (lead_s + PEAK_SPAN_S) / self.every_s)

    def with_pair(self, expected: float, came: float, now_s: float) -> TrafficRecord:
        """The record with what came now, without what came too long ago."""
        recent = (self.since_s == -math.inf) | (self.since_s > now_s - LONGEST_S)
        kept: slice | NDArray[np.bool_] = slice(None) if recent.all() else recent
        at = int(np.searchsorted(self.expected[kept], expected, side="right"))

        def put(value: float, known: Floats) -> Floats:
            return np.concatenate((known[:at], (value,), known[at:]))

        said, follows = put(expected, self.expected[kept]), put(came, self.came[kept])
        return replace(self, expected=said, came=follows, since_s=put(now_s, self.since_s[kept]))

    def moved(self, step_s: float) -> TrafficRecord:
        """The record on a clock that has jumped by so much."""
        return replace(self, since_s=self.since_s + step_s)


def record_of(sample: Trace, rate: float, lead_s: float, objective: float) -> TrafficRecord | None:
    """What the forecaster would have said of the plan's own sample, second by second, and what came of it.

    Args:
        sample: what was planned for.
        rate: events per second that count as 1.
        lead_s: from asking for a replica to its working.
        objective: share of events that must meet the SLO.

    Returns:
        The record; None of a sample that has fewer seconds than a lead and the window of a rate, or no rate.
    """
    length, window = int(sample.arrivals_s[-1]) if len(sample) else 0, int(RATE_WINDOW_S)
    lead, span = math.ceil(lead_s), int(PEAK_SPAN_S)
    if length < lead + 2 * window or not rate:
        return None
    seconds = np.bincount(sample.arrivals_s.astype(np.int64), minlength=length)[:length]
    counts = seconds.tolist()
    said = [expected(counts[max(0, second - span) : second], lead_s) for second in range(window, length - lead + 1)]
    rates = np.convolve(seconds, np.full(window, 1 / window), mode="valid")  # of the last 5 s, from second 5 on
    usual, came = np.array([one.usual for one in said]) / rate, rates[lead:] / rate
    dispersion = index_of_dispersion(counts)
    # A leap is remembered for so long, and noise shall look like one in no more than the objective's share of the time.
    memory_s = PolicySettings().leap_memory_s(lead_s, 1 - objective)
    sure = NormalDist().inv_cdf(1 - (1 - objective) * RATE_WINDOW_S / memory_s)
    every_s = max(1, math.floor(lead_s / PAIRS))
    order = np.argsort(usual[::every_s], kind="stable")
    known = TrafficRecord(
        rate, usual[::every_s][order], came[::every_s][order], np.full(order.size, -math.inf), dispersion, sure,
        every_s=every_s,
    )  # fmt: skip
    settled = span - window + 1  # before, little is seen, and less is expected
    foreseen = [max(one.usual, one.likely) / rate for one in said[settled:]]
    return replace(known, leaps=any(map(known.leapt, foreseen, came[settled:].tolist())))
