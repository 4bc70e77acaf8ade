"""A stage's fallback: a faster version of it, by which a batch is on time that the stage itself would make late.

A replica has both versions, and the dispatcher chooses one for each batch, at the moment at which it is formed. With
the names of `pipeline.deadline_order`, whose step 2 asks `version_for` of the first hopeful event, and F(b) for the
mean service time of the fallback:

- the stage itself, where ``t - e + S(b) + R' <= T``, with R' >= R as below;
- else the fallback, where ``t - e + F(b) + R <= T`` and its share allows a batch of b, which here is as large as F, R
  and T leave time for: `batch_cap` of F in place of S;
- else the stage itself, where ``t - e + S(b) + R <= T``;
- else the event is hopeless. A batch of the fallback is not filled up with hopeless ones, and they never cause one.

R' is R or, where that is longer, what R usually is (`UsualRest`). At a stage that lacks replicas each event waits until
R is all that is left. The stages after it then have no time but for their fallbacks, by which R falls further: all of
them would degrade for what one of them lacks, until their shares are used up. With R' that one does, as long as its own
share lasts. Replayed at leaps to twice the rate (replicas start in 30 s, fallbacks twice as fast), .006 % are late and
5.0 % degraded, and with R in its place 1.1 and 5.4 %.

The share bounds what the fallback may do: of the events that a slot has served in the last hour it makes no more than
this share. They are counted in bins of `BIN_S`, in a *window*: a list or an array of `WINDOW_SIZE` whole numbers. A new
run begins as if it had served `BIN_S` of the planned traffic. Over the budget events are late rather than degraded.

The kernels of the Estimator are compiled from these functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAIN, FALLBACK, NEITHER = 0, 1, 2
"""The stage itself, its fallback, and neither of them in time."""

VERSION_NAMES = ("main", "fallback")

BIN_S = 300.0
"""Resolution of the last hour, and how much of the planned traffic counts as served before a run begins."""

BINS = 12
"""An hour."""

UNMET_SHARE = 0.02
"""Share of the events that the fallback makes from which on a stage lacks replicas: a fallback is for the time until
they have started, and nothing else would tell the policy of a stage that stays above its capacity."""

UNMET_S = 10.0
"""How long the share of ten seconds has to stay above that: a burst of a second is over by then."""

USUAL_S = 300.0
"""Time constant with which R is forgotten: longer than replicas take to start, after which R is its own again."""

FEWEST_DEGRADED = 5
"""Events of the fallback in ten seconds below which a share of them is noise."""

BIN, EVENTS, DEGRADED, TOTAL, COUNTS = range(5)
"""Places in a window: number of the newest bin, events of all bins, those of them that the fallback made, how many it
ever made; then, for each bin, its events and those that the fallback made."""

WINDOW_SIZE = COUNTS + 2 * BINS


Served = list[tuple[int, int]]
"""By bin of a window, the newest first: events, and those of them that the fallback made."""

Window: TypeAlias = "list[Any] | NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class UsualRest:
    """What R of each stage has been lately, in the mean of when any stage behind another served.

    Args:
        sums_s: by stage, Σ of R, each forgotten with `USUAL_S` since it was known.
        weight: Σ of their number, forgotten alike.
        last_s: when R was last known; −∞ if it never was.
    """

    sums_s: Mapping[str, float] = field(default_factory=dict)
    weight: float = 0.0
    last_s: float = -math.inf

    def then(self, rest_s: Mapping[str, float], now_s: float) -> UsualRest:
        """Return it with R of every stage, as it is known now, not before the last time."""
        kept = math.exp((self.last_s - now_s) / USUAL_S)
        sums_s = {stage: self.sums_s.get(stage, 0.0) * kept + own for stage, own in rest_s.items()}
        return UsualRest(sums_s, self.weight * kept + 1.0, now_s)

    def longer_s(self, rest_s: Mapping[str, float]) -> dict[str, float]:
        """Return R' - R of every stage."""
        weight = self.weight or 1.0
        return {stage: max(0.0, self.sums_s.get(stage, 0.0) / weight - own) for stage, own in rest_s.items()}


def version_for(age_s: float, service_s: float, fallback_s: float, rests_s: tuple[float, float], slo_s: float) -> int:
    """Return which version makes an event in time; all arguments in one unit, whichever.

    Args:
        age_s: since it entered the pipeline.
        service_s: S(b).
        fallback_s: F(b); ∞ where there is no fallback, and where its share does not allow the batch.
        rests_s: R, and R' - R.
        slo_s: T.
    """
    rest_s, longer_s = rests_s
    if age_s + service_s + rest_s + longer_s <= slo_s:
        return MAIN
    if age_s + fallback_s + rest_s <= slo_s:
        return FALLBACK
    if age_s + service_s + rest_s <= slo_s:
        return MAIN
    return NEITHER


def roll(window: Window, now_s: float) -> None:
    """Forget what was longer ago than an hour."""
    newest = int(now_s // BIN_S)
    steps = min(newest - window[BIN], BINS)
    if steps <= 0:
        return
    for step in range(steps):
        place = COUNTS + 2 * ((newest - step) % BINS)
        window[EVENTS] -= window[place]
        window[DEGRADED] -= window[place + 1]
        window[place] = 0
        window[place + 1] = 0
    window[BIN] = newest


def allows(window: Window, share: float, events: int | np.int64) -> bool:
    """Whether the share allows a batch of so many events to the fallback; after `roll`."""
    return bool(window[DEGRADED] + events <= share * (window[EVENTS] + events))


def count(window: Window, events: int | np.int64, degraded: int | np.int64) -> None:
    """Add a batch, and how many of its events the fallback makes; after `roll`."""
    place = COUNTS + 2 * (window[BIN] % BINS)
    window[EVENTS] += events
    window[DEGRADED] += degraded
    window[TOTAL] += degraded
    window[place] += events
    window[place + 1] += degraded


def window_of(counts: Iterable[tuple[int, int]], now_s: float) -> list[int]:
    """Return a window that has seen so much in its bins, the newest first: all events, and those of the fallback."""
    window = [0] * WINDOW_SIZE
    window[BIN] = int(now_s // BIN_S)
    for back, (events, degraded) in zip(range(BINS), counts, strict=False):
        place = COUNTS + 2 * ((window[BIN] - back) % BINS)
        window[place : place + 2] = events, degraded
        window[EVENTS] += events
        window[DEGRADED] += degraded
    return window


def counts_of(window: Window) -> Served:
    """Return what `window_of` takes."""
    places = (COUNTS + 2 * ((window[BIN] - back) % BINS) for back in range(BINS))
    return [(window[place], window[place + 1]) for place in places]


def padded(counts: Sequence[tuple[int, int]]) -> Served:
    """Return the counts of every bin of an hour."""
    return [*counts, *[(0, 0)] * BINS][:BINS]


def planned_counts(rate: float) -> Served:
    """Return what a window of a new run has seen, at so many planned events a second."""
    return [(math.floor(rate * BIN_S), 0)]
