"""Whether a new version of a stage is as good as the one that runs, asked at any moment. Pure.

Somebody looks after every report, and a test that is made for one look would in the end find a difference between any
two versions. All bounds here therefore hold at every moment at once, with the stated chance of error:

* shares of events: the mixture of all Bernoulli likelihoods under Jeffreys' prior, over the one of a given share, is a
  martingale, which exceeds 1/α with probability α at most, ever (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon,
  "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49, 2021);
* the difference of two means: the mixture SPRT with a normal prior over the difference and the variance as it was
  measured (Johari, Koomen, Pekelis and Walsh, "Always valid inference", Operations Research 70, 2022). With a measured
  variance it holds from some tens of batches on (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Annals of Statistics
  52, 2024).

A version is worse where a bound lies beyond what is tolerated, and as good where every bound lies within it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from inferline_stream.observability.stage_counts import CanaryCounts, LogTimes

ALPHA = 0.01
"""Chance that a verdict of one step is wrong, over all its measures and all looks."""

FEWEST_BATCHES = 30
"""Service times of fewer, of either version, say nothing: their variance is not known yet."""

_EFFECT = 0.1
"""Standard deviation of the prior over the difference of log service times: what is looked for is about so large."""

_MEMORY_SLACK_BYTES = 64 << 20
"""Any process may have so much more than another one."""

_HALVINGS, _FEW_HALVINGS = 48, 12
"""Until a bound, and the chance of an error, is known well enough."""

Verdict = Literal["worse", "alike", "open"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse a version may be and still count as good.

    Args:
        failed: share of events on which it alone fails; each would be a dead letter.
        disagreed: share of events of which its result is another one.
        slower: relative growth of the service time.
        memory: relative growth of a replica's memory.
    """

    failed: float = 0.005
    disagreed: float = 0.01
    slower: float = 0.1
    memory: float = 0.25


@dataclass(frozen=True, slots=True)
class Measured:
    """One way in which a version may be worse.

    Args:
        name: of what is measured, in words.
        value: as it was measured; None before anything was.
        low: lower bound of what it truly is.
        high: upper bound.
        limit: what is tolerated.
        of: events, or batches of the version, that it is known from.
    """

    name: str
    value: float | None
    low: float
    high: float
    limit: float
    of: int

    @property
    def verdict(self) -> Verdict:
        """What its bounds say."""
        return "worse" if self.low > self.limit else "alike" if self.high <= self.limit else "open"

    @property
    def words(self) -> str:
        """It in words, with its bounds."""
        if self.value is None:
            return f"{self.name}: nothing measured yet"
        bounds = "" if self.low == self.high else f" ({self.low:.2%} to {self.high:.2%})"
        return f"{self.name} {self.value:.2%}{bounds} of {self.of}, {self.limit:.1%} are tolerated"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a version of a stage.

    Args:
        counts: of the step.
        mirrored: whether results are compared, which then have to agree.
        memory_bytes: most that a replica of it has taken; 0 where nothing tells.
        main_memory_bytes: the same of the version that runs.
    """

    counts: CanaryCounts
    mirrored: bool = False
    memory_bytes: int = 0
    main_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of a version of a stage.

    Args:
        verdict: worse, as good, or not known yet.
        measures: what it follows from.
        error: chance of such a verdict on a version that is none of it, over all looks: at most that.
    """

    verdict: Verdict
    measures: Sequence[Measured] = field(default=())
    error: float = 1.0

    @property
    def words(self) -> str:
        """The measures that decided, or all of them."""
        shown = [each for each in self.measures if each.verdict == self.verdict] or self.measures
        return "; ".join(each.words for each in shown)


def judge(evidence: Evidence, tolerance: Tolerance | None = None) -> Judgement:
    """Return what can be said of a version now; asked again at any moment, it is wrong with probability `ALPHA`."""
    tolerance = tolerance or Tolerance()
    measures = _measures(evidence, tolerance, ALPHA)
    verdict = _verdict(measures)
    if verdict == "open":
        return Judgement(verdict, measures)
    low, high = -700.0, math.log(ALPHA)  # the least α with the same verdict
    for _ in range(_FEW_HALVINGS):
        middle = (low + high) / 2
        if _verdict(_measures(evidence, tolerance, math.exp(middle))) == verdict:
            high = middle
        else:
            low = middle
    return Judgement(verdict, measures, math.exp(high))


def share_bounds(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return a confidence sequence of a share: between these bounds at all times, but with probability ``alpha``.

    Args:
        hits: events that count, 0 to ``trials``.
        trials: events seen.
        alpha: chance that the share is ever outside.
    """
    if not trials:
        return 0.0, 1.0
    a, b = hits + 0.5, trials - hits + 0.5
    mixture = math.lgamma(a) + math.lgamma(b) - math.lgamma(trials + 1) - math.log(math.pi)
    seen, most = hits / trials, -math.log(alpha)

    def excluded(share: float) -> bool:
        likelihood = (hits * math.log(share) if hits else 0.0) + (
            (trials - hits) * math.log1p(-share) if hits < trials else 0.0
        )
        return mixture - likelihood > most

    def bound(inside: float, outside: float) -> float:
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
        return outside

    return (bound(seen, 0.0) if hits else 0.0), (bound(seen, 1.0) if hits < trials else 1.0)


def difference_bounds(own: LogTimes, main: LogTimes, alpha: float) -> tuple[float, float]:
    """Return a confidence sequence of the difference of two means; everything, from too few of either."""
    if min(own.batches, main.batches) < FEWEST_BATCHES:
        return -math.inf, math.inf
    difference = own.mean - main.mean
    variance = own.variance / own.batches + main.variance / main.batches
    if variance <= 0:
        return difference, difference
    prior = _EFFECT**2
    half = math.sqrt(variance * (1 + variance / prior) * (math.log1p(prior / variance) - 2 * math.log(alpha)))
    return difference - half, difference + half


def _measures(evidence: Evidence, tolerance: Tolerance, alpha: float) -> list[Measured]:
    counts, each = evidence.counts, alpha / 3
    low, high = share_bounds(counts.failed, counts.answered, each)
    failed = counts.failed / counts.answered if counts.answered else None
    found = [Measured("events on which it alone fails", failed, low, high, tolerance.failed, counts.answered)]
    log_low, log_high = difference_bounds(counts.own, counts.main, each)
    known = math.isfinite(log_low)
    slower = math.expm1(counts.own.mean - counts.main.mean) if known else None
    bounds = (math.expm1(log_low), math.expm1(log_high)) if known else (-1.0, math.inf)
    found.append(Measured("more service time", slower, *bounds, tolerance.slower, counts.own.batches))
    if evidence.mirrored:
        low, high = share_bounds(counts.disagreed, counts.compared, each)
        share = counts.disagreed / counts.compared if counts.compared else None
        found.append(Measured("other results", share, low, high, tolerance.disagreed, counts.compared))
    if evidence.memory_bytes and evidence.main_memory_bytes:
        grown = evidence.memory_bytes / evidence.main_memory_bytes - 1
        most = tolerance.memory + _MEMORY_SLACK_BYTES / evidence.main_memory_bytes
        found.append(Measured("more memory", grown, grown, grown, most, 1))
    return found


def _verdict(measures: Sequence[Measured]) -> Verdict:
    verdicts = {measure.verdict for measure in measures}
    return "worse" if "worse" in verdicts else "open" if "open" in verdicts else "alike"
