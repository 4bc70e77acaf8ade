"""Arrivals of a pipeline turned into what an observation says about traffic. One class for live use and replay."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, TrafficEnvelope
from inferline_stream.calculus.envelope_state import EnvelopeKernel, Times

RATE_WINDOW_S = 5.0
"""Window of the rates (InferLine §5)."""

PEAK_SPAN_S = 30.0
"""How far back the busiest of the shorter windows is looked for, and the largest of the rates (InferLine §5)."""


def burst_rate(windows_s: Sequence[float], counts: Sequence[int], slack_s: float) -> tuple[float, int]:
    """The largest rate of any window, bursts that waiting absorbs left out; and which window has it.

    An event may wait for the slack D that the SLO leaves it. A window w with q arrivals therefore needs no
    more than the rate q/(w + D): the horizontal distance of network calculus turned around. The paper compares q/w and
    answers to the largest of them all, which a short burst makes far too large. Windows longer than `PEAK_SPAN_S`, in
    which the others are looked for, show only what is over.
    """
    best, where = 0.0, 0
    for i, (window_s, count) in enumerate(zip(windows_s, counts, strict=True)):
        if window_s > PEAK_SPAN_S:
            break
        if (rate := count / (window_s + slack_s)) > best:
            best, where = rate, i
    return best, where


class Traffic:
    """Envelope of what came lately, rate of the last 5 s, and the largest such rate of the last 30 s.

    A window up to 30 s long is looked for within the last 30 s. Were it looked for within a minute, replicas would be
    held twice as long after each burst, for no fewer misses. A longer one, which only the paper's Tuner compares, is
    looked for within the last minute.

    Args:
        windows_s: windows of the envelope, ascending, those of `TunerState.windows_s`.
        kernel: see `TrafficEnvelope`.
    """

    def __init__(self, windows_s: Sequence[float], kernel: EnvelopeKernel | None = None) -> None:
        spans_s = [PEAK_SPAN_S if window_s <= PEAK_SPAN_S else LONGEST_WINDOW_S for window_s in windows_s]
        self._came = TrafficEnvelope((RATE_WINDOW_S, *windows_s), (PEAK_SPAN_S, *spans_s), kernel)
        self._counted_s, self._counted = math.nan, [0]

    def use(self, kernel: EnvelopeKernel) -> None:
        """Go on with another kernel; nothing is lost."""
        self._came.use(kernel)

    def add(self, times_s: Times) -> None:
        """Take in arrivals, ascending within the call, on the clock of the observation; late ones count."""
        self._counted_s = math.nan
        self._came.add(times_s)

    def envelope(self, now_s: float) -> tuple[int, ...]:
        """Most arrivals in any window, by window."""
        return tuple(self._counts(now_s)[1:])

    def arrival_rate(self, now_s: float) -> float:
        """Arrivals per second over the last 5 s."""
        return self._came.count_since(now_s - RATE_WINDOW_S) / RATE_WINDOW_S

    def peak_rate(self, now_s: float) -> float:
        """Largest rate of any window of 5 s within the last 30 s."""
        return self._counts(now_s)[0] / RATE_WINDOW_S

    def recent(self, now_s: float) -> tuple[int, ...]:
        """Arrivals in each of the last 30 seconds up to now, oldest first."""
        ranks = self._came.ranks(now_s + _SECONDS_BACK).tolist()
        return tuple(map(operator.sub, ranks[1:], ranks))

    def _counts(self, now_s: float) -> list[int]:
        """Of the window of the rates, then of the others."""
        if now_s != self._counted_s:
            self._counted_s, self._counted = now_s, self._came.counts(now_s).tolist()
        return self._counted


_SECONDS_BACK = np.arange(-PEAK_SPAN_S, 1.0)
