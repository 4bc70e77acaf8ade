"""A stage's fallback: a faster version of it, by which a batch is on time that the stage itself would make late.

A replica has both versions, and the dispatcher chooses one for each batch, at the moment at which it is formed. With
the names of `pipeline.deadline_order`, whose step 2 asks `version_for` of the first hopeful event, and F(b) for the
mean service time of the fallback:

- the stage itself, where ``t - e + S(b) + R <= T``;
- else the fallback, where ``t - e + F(b) + R <= T`` and its share allows a batch of b, which here is as large as F, R
  and T leave time for: `batch_cap` of F in place of S;
- else the event is hopeless. A batch of the fallback is not filled up with hopeless ones, and they never cause one.

The share bounds what the fallback may do: of the events that a slot has served in the last hour it makes no more than
this share. They are counted in bins of `BIN_S`, in a *window*: a list or an array of `WINDOW_SIZE` whole numbers. A new
run begins as if it had served `BIN_S` of the planned traffic. Over the budget events are late rather than degraded.

The kernels of the Estimator are compiled from these functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

FEWEST_DEGRADED = 5
"""Events of the fallback in ten seconds below which a share of them is noise."""

BIN, EVENTS, DEGRADED, TOTAL, COUNTS = range(5)
"""Places in a window: number of the newest bin, events of all bins, those of them that the fallback made, how many it
ever made; then, for each bin, its events and those that the fallback made."""

WINDOW_SIZE = COUNTS + 2 * BINS


Served = list[tuple[int, int]]
"""By bin of a window, the newest first: events, and those of them that the fallback made."""

Window: TypeAlias = "list[Any] | NDArray[np.int64]"


def version_for(age_s: float, service_s: float, fallback_s: float, rest_s: float, slo_s: float) -> int:
    """Return which version makes an event in time; all arguments in one unit, whichever.

    Args:
        age_s: since it entered the pipeline.
        service_s: S(b).
        fallback_s: F(b); ∞ where there is no fallback, and where its share does not allow the batch.
        rest_s: R.
        slo_s: T.
    """
    if age_s + service_s + rest_s <= slo_s:
        return MAIN
    if age_s + fallback_s + rest_s <= slo_s:
        return FALLBACK
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
