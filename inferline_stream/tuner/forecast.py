"""Where the arrival rate will be once a replica asked for now is ready, and whether it has leapt or fallen."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np

SPANS = (1, 2, 3, 5, 8, 12, 20, 30)
"""Seconds that a level or a line is fitted to: short ones see jumps at once, long ones slow ramps through noise."""

SHORTEST_TREND = 3
"""Seconds below which no line is fitted."""

_CHANCES = {span: 2 * math.log(SPANS[-1] / span) for span in SPANS}
"""What the square of the standard errors grows by at each span, see `rising_rate`."""

_SQUARES = {span: span * (span * span - 1) / 12 for span in SPANS}
"""Σ (t − mean t)² over the seconds of each span."""

_STEPS = {span: span * (4 * span * span - 1) / 12 for span in SPANS}
"""Σ t² over the middles of the seconds of each span, from its beginning."""

LEAST_EVENTS = 100
"""Arrivals within a span below which it shows no rate to within a tenth."""

LEVEL_SURE = 3.0
"""Standard errors by which the busiest stretch of a sample may exceed its rate by chance: ten minutes of steady traffic
have hundreds of stretches."""

SURGE_SPAN_S = 10
"""Two spans of this length, one after the other, are compared: about as long as a new replica takes to be of use."""

LONGEST_RISE_S = 120
"""A leap takes less: what rises for longer is followed."""

ABSORBED_SHARE = 0.1
"""What the room that a plan leaves absorbs: a rise by less is no surge, however sure it is, and a plan that is exceeded
by less has not been outgrown."""

RISE_SURE = 2.0
"""Standard errors of Poisson counts by which a rise from one second to a later one is lowered: else a slow leap seems
to come at once, because the noise between neighbouring seconds is nearly as large as all of it."""

CLIMB_SURE = 3.0
"""The same for how fast a climb grows: when it began is picked so that it explains most."""

BUSIEST_SPAN_S = 5
"""Seconds that a peak and what is left of it are read off."""

SURGE_SURE = 5.0
"""Standard errors by which a rise or a fall must exceed nothing. Of 40 stationary hours each at 45, 150 and 1000/s,
none has such a rise at CV 1, and 4, 7 and none at CV 4. With 3.5 it would be 8, 5 and none, and 40, 40 and 12. None has
such a fall at CV 1, and 6, 5 and 3 at CV 4."""


def rising_rate(
    recent: Sequence[int],
    lead_s: float,
    *,
    confidence: float,
    limit: float,
    above: float = 0.0,
    believed: float = math.inf,
    carried: float = 0.0,
    inner_confidence: float = math.inf,
) -> float:
    """A rate that arrivals will very likely reach within ``lead_s``, per second; ``above`` if none is larger.

    For each span the mean rate and the line of least squares through the seconds' counts are each lowered by some
    standard errors of their prediction; the largest of them all counts. Short spans have more chances to be wrong
    within the same time: z² grows by 2 ln(longest / span), as the largest of so many normal draws does, and all spans
    err about as often. A line is believed for as long as it may have been seen: a lead beyond the longest span asks
    for as many times the standard errors. Counts spread as their mean times the index of dispersion, estimated from
    differences of neighbouring seconds, which a trend hardly touches.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
        lead_s: how far ahead.
        confidence: standard errors to subtract at the longest span.
        limit: most that the prediction may exceed the rate of the last seconds of its span by.
        above: rates up to this one are of no interest.
        believed: a span is left out where the lead is more than so many times as long.
        carried: up to this rate, ``inner_confidence`` counts in place of ``confidence``.
        inner_confidence: not below it.
    """
    if len(recent) < 2 or not math.isfinite(confidence):
        return above
    newest_first = recent[::-1]
    totals = list(itertools.accumulate(newest_first))
    if totals[-1] < LEAST_EVENTS:
        return above
    moments = list(itertools.accumulate(map(operator.mul, newest_first, range(len(recent)))))
    dispersion = 0.0  # until a rate is of interest: mostly none is
    extent = max(lead_s / SPANS[-1], 1.0)
    best = above
    for span in SPANS:
        if span > len(recent):
            break
        if span * believed < lead_s:
            continue
        total = totals[span - 1]
        if total < LEAST_EVENTS:
            continue
        mean, chances = total / span, _CHANCES[span]
        if mean > best:
            dispersion = dispersion or index_of_dispersion(recent)
            error = math.sqrt(max(mean, 1.0) * dispersion / span)
            rate = mean - math.sqrt(confidence * confidence + chances) * error
            if rate <= carried:
                rate = mean - math.sqrt(inner_confidence * inner_confidence + chances) * error
            best = max(best, rate)
        if span < SHORTEST_TREND:
            continue
        squares = _SQUARES[span]
        slope = (mean * span * (span - 1) / 2 - moments[span - 1]) / squares
        if slope <= 0:
            continue
        ahead_s = span / 2 + lead_s
        reached = min(mean + slope * ahead_s, (mean + slope * span / 2) * limit)
        if reached > best:
            dispersion = dispersion or index_of_dispersion(recent)
            error = math.sqrt(max(mean, 1.0) * dispersion * (1 / span + ahead_s * ahead_s / squares))
            rate = reached - math.sqrt((confidence * extent) ** 2 + chances) * error
            if rate <= carried:
                rate = reached - math.sqrt((inner_confidence * extent) ** 2 + chances) * error
            best = max(best, rate)
    return best


def climbing_rate(
    recent: Sequence[int], lead_s: float, *, limit: float, above: float = 0.0, known: Sequence[float] = ()
) -> float:
    """A rate that a climb from a level will surely reach within ``lead_s``, per second; ``above`` if none is larger.

    A line through the last seconds has to find its own level. A climb begins at the one before it, the mean of ten
    seconds, and is seen sooner. When it began, the least squares say; what rises for longer than that may be is left to
    lines. Its growth is lowered by standard errors of counts that spread as those before: its own steps are no noise.
    Once it is sure that there is any, as much of it is believed as there has been before.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
        lead_s: how far ahead.
        limit: most that the prediction may exceed the rate now by.
        above: rates up to this one are of no interest.
        known: by how much the rate has risen before, see `rises`.
    """
    climbed = {span: max(_climbed(recent, span), 0.0) for span in SPANS if span + SURGE_SPAN_S <= len(recent)}
    began = max(climbed, key=lambda span: climbed[span] ** 2 / _STEPS[span], default=0)
    if not began or not climbed[began] or began == max(climbed):
        return above
    earlier, steps = recent[-began - SURGE_SPAN_S : -began], _STEPS[began]
    before = sum(earlier)
    if before < LEAST_EVENTS:
        return above
    level, times = before / SURGE_SPAN_S, began * began / 2  # Σ t, as steps are Σ t²
    spread = sum(recent[-began:]) / began / steps + level / SURGE_SPAN_S * (times / steps) ** 2
    sure = CLIMB_SURE * max(lead_s / SPANS[-1], 1.0)
    found = climbed[began] / steps
    growth = found - sure * math.sqrt(index_of_dispersion(earlier) * spread)
    if growth <= 0:
        return above
    if known:
        within_s = min(int(began + lead_s), len(known) - 1)
        growth = max(growth, min(found, known[within_s] / within_s))
    return max(above, min(level + growth * (began + lead_s), (level + growth * began) * limit))


def _climbed(recent: Sequence[int], span: int) -> float:
    """Σ t · (arrivals beyond the level before) over the seconds of a span, t seconds after it began."""
    level = sum(recent[-span - SURGE_SPAN_S : -span]) / SURGE_SPAN_S
    return sum([(second + 0.5) * (count - level) for second, count in enumerate(recent[-span:])])


def surged(recent: Sequence[int]) -> bool:
    """Whether the rate has just risen faster than replicas could follow.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
    """
    if len(recent) < 2 * SURGE_SPAN_S:
        return False
    after, before = sum(recent[-SURGE_SPAN_S:]), sum(recent[-2 * SURGE_SPAN_S : -SURGE_SPAN_S])
    return before >= LEAST_EVENTS and _surely_more(after, before, recent[-2 * SURGE_SPAN_S :])


def fallen_to(recent: Sequence[int]) -> float:
    """The share of its recent peak that the rate has surely fallen to; 1 where that is not sure.

    The last ten seconds are compared with the busiest ten before them. What the rate has fallen to is read off its
    busiest `BUSIEST_SPAN_S` seconds: traffic keeps its short bursts when its rate falls.

    Args:
        recent: arrivals in each of the last seconds, oldest first.
    """
    if len(recent) < 2 * SURGE_SPAN_S:
        return 1.0
    totals = [0, *itertools.accumulate(recent)]

    def most(span: int, since: int, until: int) -> int:
        largest: int = max(map(operator.sub, totals[since + span : until + 1], totals[since : until + 1 - span]))
        return largest

    end = len(recent)
    after, before = totals[end] - totals[end - SURGE_SPAN_S], most(SURGE_SPAN_S, 0, end - SURGE_SPAN_S)
    if before < LEAST_EVENTS or not _surely_more(before, after, recent):
        return 1.0
    return most(BUSIEST_SPAN_S, end - SURGE_SPAN_S, end) / most(BUSIEST_SPAN_S, 0, end)


def _surely_more(more: int, less: int, recent: Sequence[int]) -> bool:
    """Whether arrivals within a span exceed those within another by more than a plan's room, and by no chance."""
    if more - less < ABSORBED_SHARE * less:
        return False
    return more - less > SURGE_SURE * math.sqrt((more + less) * index_of_dispersion(recent))


def surges(seconds: Sequence[int]) -> bool:
    """Whether that has happened anywhere in a trace.

    Args:
        seconds: arrivals in each of its seconds.
    """
    return any(surged(seconds[end - 2 * SURGE_SPAN_S : end]) for end in range(2 * SURGE_SPAN_S, len(seconds) + 1))


def rises(seconds: Sequence[int]) -> tuple[float, ...]:
    """By how much a trace's rate surely rose within 0, 1, …, `LONGEST_RISE_S` seconds where it rose most, in events/s.

    Args:
        seconds: arrivals in each of its seconds.
    """
    counts = np.asarray(seconds, dtype=np.float64)
    largest = [0.0]
    for within_s in range(1, LONGEST_RISE_S + 1):
        before, after = counts[:-within_s], counts[within_s:]
        most = float(np.max(after - before - RISE_SURE * np.sqrt(before + after), initial=0.0))
        largest.append(max(most, largest[-1]))
    return tuple(largest)


def share_within(rises: Sequence[float], within_s: float) -> float:
    """Share of the largest rise that comes within that time; 1 where nothing is known of it.

    Args:
        rises: see `rises`.
        within_s: seconds.
    """
    whole = int(within_s)
    if whole >= len(rises) - 1 or not rises[-1]:
        return 1.0
    before, after = rises[whole : whole + 2]
    return (before + (within_s - whole) * (after - before)) / rises[-1]


def highest_rate(seconds: Sequence[int], *, least_share: float) -> float:
    """The highest rate that a trace surely kept up for as long as a trend is fitted to, per second.

    For each span, the busiest stretch is lowered by some standard errors: even in steady traffic, some stretch is
    busier than the mean.

    Args:
        seconds: arrivals in each of its seconds.
        least_share: of the arrivals; a stretch with fewer does not count.

    Returns:
        The rate; 0 where no stretch counts.
    """
    spread = LEVEL_SURE * math.sqrt(index_of_dispersion(seconds))
    totals = np.cumsum([0, *seconds])
    highest = 0.0
    for span in SPANS:
        if SHORTEST_TREND <= span <= len(seconds):
            most = int(np.max(totals[span:] - totals[:-span]))
            if most >= least_share * totals[-1]:
                highest = max(highest, (most - spread * math.sqrt(most)) / span)
    return highest


def index_of_dispersion(recent: Sequence[int]) -> float:
    """Variance over mean of the counts of a second, from differences of neighbours; at least 1, as Poisson."""
    total = sum(recent)
    if total == 0 or len(recent) < 2:
        return 1.0
    differences = sum([(b - a) * (b - a) for a, b in itertools.pairwise(recent)])
    return max(1.0, differences / (2 * (len(recent) - 1)) / (total / len(recent)))
