"""The level of supply that is cheapest by odds and price, from a record of what came after moments like this one.

One moment of the record is a pair: what was expected then, and what came once a replica asked for then could work. Both
are multiples of one rate, the highest that comes for all but the share of the sample's seconds that may be late.
`docs/explanation/reserve.md` derives the decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.estimator.kernels import Floats
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.forecast import expected_multiple, index_of_dispersion
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.traffic import PEAK_SPAN_S, RATE_WINDOW_S, Traffic, burst_rate

FUTURES = 10
"""Lead times that the moments looked at span at least: moments within one lead share what comes of them, so that fewer
would show no odds at all."""

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
        rate: events per second that count as 1.
        expected: (moments,), ascending.
        came: (moments,): the rate one lead later.
        since_s: (moments,): when that was; −∞ in the sample.
        dispersion: of the sample's counts of a second, variance over mean.
        leap_sure: standard errors by which what came exceeds what was expected in a leap.
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

    def leapt(self, expected: float, came: float) -> bool:
        """Whether so much more came than was expected one lead before that it is no chance: no replica was in time."""
        events = self.rate * RATE_WINDOW_S
        noise = self.leap_sure * math.sqrt(came * events * self.dispersion)
        return came > expected * (1 + ALIKE) and (came - expected) * events > noise

    def alike(self, expected: float, lead_s: float) -> Floats:
        """What came after the moments most like this one, in the size of this one.

        Those within `ALIKE`, and at least so many as `FUTURES` lead times have. A moment beyond all of them counts as
        the largest, in proportion: only what exceeds what the same forecast has said before is news.
        """
        first, end = np.searchsorted(self.expected, (expected * (1 - ALIKE), expected * (1 + ALIKE))).tolist()
        moments = self.expected.size
        least = min(math.ceil(FUTURES * lead_s / self.every_s), moments)
        if end - first < least:
            middle = int(np.searchsorted(self.expected, expected))
            first = max(0, min(middle - least // 2, moments - least))
            end = first + least
        lowest, highest = float(self.expected[first]), float(self.expected[end - 1])
        known = min(max(expected, lowest), highest)
        return self.came[first:end] if known in (expected, 0.0) else self.came[first:end] * (expected / known)

    def with_pair(self, expected: float, came: float, now_s: float) -> TrafficRecord:
        """The record with what came now, without what came too long ago."""
        recent = (self.since_s == -math.inf) | (self.since_s > now_s - LONGEST_S)
        kept: slice | NDArray[np.bool_] = slice(None) if recent.all() else recent
        at = int(np.searchsorted(self.expected[kept], expected, side="right"))
        said, follows = np.insert(self.expected[kept], at, expected), np.insert(self.came[kept], at, came)
        return replace(self, expected=said, came=follows, since_s=np.insert(self.since_s[kept], at, now_s))

    def moved(self, step_s: float) -> TrafficRecord:
        """The record on a clock that has jumped by so much."""
        return replace(self, since_s=self.since_s + step_s)


def record_of(
    sample: Trace, envelope: Sequence[tuple[float, int]], slo_s: float, lead_s: float, objective: float
) -> TrafficRecord | None:
    """What the forecaster would have said of the plan's own sample, second by second, and what came of it.

    Args:
        sample: what was planned for.
        envelope: of it (`pipeline.plan.Plan`).
        slo_s: latency target.
        lead_s: from asking for a replica to its working.
        objective: share of events that must meet the SLO.

    Returns:
        The record; None of a sample that has fewer seconds than a lead and the window of a rate.
    """
    length, window = int(sample.arrivals_s[-1]) if len(sample) else 0, int(RATE_WINDOW_S)
    lead, slack_s = math.ceil(lead_s), PolicySettings().burst_slack_share * slo_s
    if length < lead + 2 * window:
        return None
    seconds = np.bincount(sample.arrivals_s.astype(np.int64), minlength=length)[:length]
    rates = np.convolve(seconds, np.full(window, 1 / window), mode="valid")  # of the last 5 s, from second 5 on
    if not (highest := float(np.quantile(rates, objective, method="higher"))):
        # Events come in fewer of the seconds than that leaves out, as one an hour does: the plan is for these seconds.
        highest = float(np.quantile(rates[rates > 0], objective, method="higher")) if rates.any() else 1 / window
    rate = max(highest, sample.arrival_rate)
    windows_s = [w for w, _ in envelope]
    busiest = burst_rate(windows_s, [count for _, count in envelope], slack_s)[0]
    traffic = Traffic(windows_s, compiled_kernel())
    ends = np.searchsorted(sample.arrivals_s, np.arange(length + 1))
    expected = np.empty(length)
    for second in range(1, length + 1):
        traffic.add(sample.arrivals_s[ends[second - 1] : ends[second]])
        burst = burst_rate(windows_s, traffic.envelope(second), slack_s)[0] / max(busiest, 1e-9)
        recent = seconds[max(0, second - int(PEAK_SPAN_S)) : second].tolist()
        expected[second - 1] = expected_multiple(burst, recent, lead_s, rate).multiple
    pairs = np.stack([expected[window - 1 : length - lead], rates[lead:] / rate])
    settled = pairs[:, int(PEAK_SPAN_S) - window + 1 :].T.tolist()  # before, little is seen, and less is expected
    every_s = max(1, math.floor(lead_s / PAIRS))
    pairs = pairs[:, ::every_s]
    said, came = pairs[:, np.argsort(pairs[0], kind="stable")]
    dispersion = index_of_dispersion(seconds.tolist())
    # A leap is remembered for so long, and noise shall look like one in no more than the objective's share of the time.
    memory_s = PolicySettings().leap_memory_s(lead_s, 1 - objective)
    sure = NormalDist().inv_cdf(1 - (1 - objective) * RATE_WINDOW_S / memory_s)
    known = TrafficRecord(rate, said, came, np.full(said.size, -math.inf), dispersion, sure, every_s=every_s)
    return replace(known, leaps=any(known.leapt(before, after) for before, after in settled))


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Numbers of replicas, each with what it carries and costs.

    Args:
        multiples: ascending, of the planned traffic.
        cost_per_hour: dollars of each.
        event_cost: dollars that the plan costs for each event of the planned traffic.
        rate: planned λ, events per second.
    """

    multiples: Floats
    cost_per_hour: Floats
    event_cost: float
    rate: float


@dataclass(frozen=True, slots=True)
class LevelChoice:
    """A level, and what was weighed.

    Args:
        multiple: what it carries, of the planned traffic.
        expected: what it was chosen for.
        odds: that more comes than it carries.
        late: share of the planned events that would be late by what comes beyond it.
        share: of the events to come that may be late.
        price: dollars of one late event.
        lead_s: from asking for a replica to its working.
        growth: how much more comes back at this time of the week.
    """

    multiple: float
    expected: float
    odds: float
    late: float
    share: float
    price: float
    lead_s: float
    growth: float
    words: str = field(init=False)

    def __post_init__(self) -> None:
        back = f", {self.growth:.2f} of them come back at this time of the week" if self.growth else ""
        words = (
            f"{self.expected:.2f} times the planned traffic expected within {self.lead_s:.1f} s{back}; of moments like "
            f"this one {self.odds:.1%} were followed by more than {self.multiple:.2f} times: one more replica costs "
            f"more than the {self.late:.2%} of events that are late by it, at ${self.price:.2g} each, as "
            f"{self.share:.2%} of those to come in the SLO's window may be late"
        )
        object.__setattr__(self, "words", words)


def cheapest(
    levels: Levels, record: TrafficRecord, expected: float, lead_s: float, share: float, *, growth: float = 0.0
) -> LevelChoice:
    """The level whose replicas, and late events at their odds and price, cost least together.

    Args:
        levels: to choose from.
        record: of what came after moments like this one.
        expected: now, in the record's unit.
        lead_s: from asking for a replica to its working.
        share: of the events to come that may be late: one that is costs what serving it costs, divided by that share.
        growth: how much more comes back at this time of the week (`tuner.calendar`), in the record's unit.
    """
    price = levels.event_cost / share
    came = record.alike(expected, lead_s)
    if growth:
        came = np.maximum(came, expected + growth)
    # From sums of the largest: a table of levels and moments has ten million places after three hours.
    ascending = np.sort(came)
    largest = np.append(np.cumsum(ascending[::-1])[::-1], 0.0)
    first = np.searchsorted(ascending, levels.multiples, side="right")
    more = came.size - first
    beyond = np.maximum(largest[first] - more * levels.multiples, 0.0) / came.size
    total = levels.cost_per_hour + 3600 * price * record.rate * beyond
    best = int(np.argmin(total))
    carried = float(levels.multiples[best])
    late = float(beyond[best]) * record.rate / levels.rate
    return LevelChoice(carried, expected + growth, int(more[best]) / came.size, late, share, price, lead_s, growth)
