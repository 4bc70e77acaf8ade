"""Where the arrival rate will be once a replica asked for now is ready, and whether it has fallen."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

SPANS = (1, 2, 3, 5, 8, 12, 20, 30)
"""Seconds that a level or a line is fitted to: short ones see jumps at once, long ones slow ramps through noise."""

SHORTEST_TREND = 3
"""Seconds below which no line is fitted."""

LIKELY, SURE = 1.0, 3.0
"""Standard errors by which a rate or trend over the longest span is lowered: it is exceeded five times in six, or 740
in 741. What has outgrown its sample is likely to go on. In known traffic only a sure rise is more than usual."""

MOST_GROWTH = 1.5
"""Most that a line may exceed the rate at its end by: no ramp is believed to go on for ever."""

LEAST_EVENTS = 100
"""Arrivals within a span below which it shows no rate to within a tenth."""

ABSORBED_SHARE = 0.1
"""What the room that a plan leaves absorbs: a fall by less is none, and a plan that arrivals exceed by less has not
been outgrown."""

FALL_SPAN_S = 10
"""Two spans of this length, one after the other, are compared: about as long as a new replica takes to be of use."""

BUSIEST_SPAN_S = 5
"""Seconds that a peak and what is left of it are read off."""

FALL_SURE = 5.0
"""Standard errors by which a fall must exceed nothing. Of 40 stationary hours each at 45, 150 and 1000/s, none has
such a fall at CV 1, and 6, 5 and 3 at CV 4."""


class Expected(Struct, frozen=True):
    """What is expected of traffic within a lead.

    Args:
        usual: the mean rate lately, or what it is surely rising to, events per second.
        likely: the rate that it is likely to reach; 0 where nothing is known.
        fallen_to: share of its recent peak that it has surely fallen to; 1 where that is not sure.
    """

    usual: float
    likely: float
    fallen_to: float


def expected(recent: Sequence[int], lead_s: float) -> Expected:
    """What the seconds seen so far let expect.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
        lead_s: how far ahead.
    """
    share = fallen_to(recent)
    if share < 1:
        recent = recent[-FALL_SPAN_S:]
    mean = sum(recent) / len(recent) if recent else 0.0
    likely, sure = rising_rates(recent, lead_s)
    return Expected(max(mean, sure), likely, share)


def rising_rates(recent: Sequence[int], lead_s: float) -> tuple[float, float]:
    """Rates that arrivals will likely and surely reach within ``lead_s``, per second; 0 if nothing is known.

    For each span the mean rate and the line of least squares through the seconds' counts are each lowered by some
    standard errors of their prediction; the largest of them all counts. Short spans have more chances to be wrong
    within the same time: z² grows by 2 ln(longest / span), as the largest of so many normal draws does, and all spans
    err about as often. A line is believed for as long as it may have been seen: a lead beyond the longest span asks
    for as many times the standard errors. Counts spread as their mean times the index of dispersion, estimated from
    differences of neighbouring seconds, which a trend hardly touches.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
        lead_s: how far ahead.
    """
    if len(recent) < 2:
        return 0.0, 0.0
    newest_first = recent[::-1]
    totals = list(itertools.accumulate(newest_first))
    if totals[-1] < LEAST_EVENTS:
        return 0.0, 0.0
    moments = list(itertools.accumulate(map(operator.mul, newest_first, range(len(recent)))))
    dispersion = index_of_dispersion(recent)
    likely = sure = 0.0
    for span, level, line, squares, ahead_s in _span_fits(lead_s):
        if span > len(recent):
            break
        total = totals[span - 1]
        if total < LEAST_EVENTS:
            continue
        mean = total / span
        error = math.sqrt(mean * dispersion)
        if mean > sure:
            likely, sure = max(likely, mean - level[0] * error), max(sure, mean - level[1] * error)
        if span < SHORTEST_TREND:
            continue
        slope = (total * (span - 1) / 2 - moments[span - 1]) / squares
        if slope <= 0:
            continue
        reached = min(mean + slope * ahead_s, (mean + slope * span / 2) * MOST_GROWTH)
        if reached > sure:
            likely, sure = max(likely, reached - line[0] * error), max(sure, reached - line[1] * error)
    return likely, sure


class _SpanFit(NamedTuple):
    """What a span's mean rate and line have whatever came.

    Args:
        span: seconds.
        level: by how much the mean rate is lowered, for what is likely and for what is sure, in standard deviations of
            a second's count.
        line: likewise what the line predicts for the end of the lead.
        squares: Σ (t − mean t)² over the seconds.
        ahead_s: from their middle to the end of the lead.
    """

    span: int
    level: tuple[float, float]
    line: tuple[float, float]
    squares: float
    ahead_s: float


@functools.lru_cache
def _span_fits(lead_s: float) -> tuple[_SpanFit, ...]:
    """Of all `SPANS`, for this lead."""
    extent, found = max(lead_s / SPANS[-1], 1.0), []
    for span in SPANS:
        chances, squares, ahead_s = 2 * math.log(SPANS[-1] / span), span * (span * span - 1) / 12, span / 2 + lead_s
        spread = 1 / span + ahead_s * ahead_s / squares if squares else math.inf
        level, line = (
            (
                math.sqrt(((LIKELY * times) ** 2 + chances) * variance),
                math.sqrt(((SURE * times) ** 2 + chances) * variance),
            )
            for times, variance in ((1.0, 1 / span), (extent, spread))
        )
        found.append(_SpanFit(span, level, line, squares, ahead_s))
    return tuple(found)


def fallen_to(recent: Sequence[int]) -> float:
    """The share of its recent peak that the rate has surely fallen to; 1 where that is not sure.

    The last ten seconds are compared with the busiest ten before them. What the rate has fallen to is read off its
    busiest `BUSIEST_SPAN_S` seconds: traffic keeps its short bursts when its rate falls.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
    """
    if len(recent) < 2 * FALL_SPAN_S:
        return 1.0
    totals = [0, *itertools.accumulate(recent)]

    def most(span: int, since: int, until: int) -> int:
        largest: int = max(map(operator.sub, totals[since + span : until + 1], totals[since : until + 1 - span]))
        return largest

    end = len(recent)
    after, before = totals[end] - totals[end - FALL_SPAN_S], most(FALL_SPAN_S, 0, end - FALL_SPAN_S)
    if before < LEAST_EVENTS or not _surely_more(before, after, recent):
        return 1.0
    return most(BUSIEST_SPAN_S, end - FALL_SPAN_S, end) / most(BUSIEST_SPAN_S, 0, end)


def _surely_more(more: int, less: int, recent: Sequence[int]) -> bool:
    """Whether arrivals within a span exceed those within another by more than a plan's room, and by no chance."""
    if more - less < ABSORBED_SHARE * less:
        return False
    return more - less > FALL_SURE * math.sqrt((more + less) * index_of_dispersion(recent))


def index_of_dispersion(recent: Sequence[int]) -> float:
    """Variance over mean of the counts of a second, from differences of neighbours; at least 1, as Poisson."""
    total = sum(recent)
    if total == 0 or len(recent) < 2:
        return 1.0
    differences = list(map(operator.sub, recent[1:], recent))
    squares: int = sum(map(operator.mul, differences, differences))
    return max(1.0, squares / (2 * (len(recent) - 1)) / (total / len(recent)))
