"""How sure a predicted P99 is: block bootstrap over the trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 60
"""Default number of blocks: each must outlast a burst, whose latencies belong together, and many are needed."""

LEVELS = 1024
"""Resolution: the quantile is looked up among this many of the trace's own highest latencies."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A quantile's confidence interval, in seconds.

    Args:
        low_s: lower end.
        high_s: upper end.
        confidence: share of intervals made this way that hold the true value.
    """

    low_s: float
    high_s: float
    confidence: float


def p99_confidence(
    latency_s: NDArray[np.float64],
    arrivals_s: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    p: float = 0.99,
    confidence: float = 0.95,
    resamples: int = 1000,
    blocks: int = BLOCKS,
) -> Interval:
    """Percentile interval of the latency's P99 (or another quantile) under resampling of blocks of time.

    Consecutive stretches of the trace are drawn with replacement (Künsch 1989, non-overlapping), so that events
    which waited in one queue stay together; resampling single events would promise far too much.

    Args:
        latency_s: latency of every event; NaN where it has none.
        arrivals_s: entry times of the same events, ascending.
        rng: source of randomness.
        p: which quantile.
        confidence: of the interval.
        resamples: traces drawn.
        blocks: stretches of equal length that the trace is cut into.

    Raises:
        ValueError: no event with a latency, or arrays that differ in shape.
    """
    if latency_s.shape != arrivals_s.shape:
        raise ValueError(f"{latency_s.shape} latencies for {arrivals_s.shape} arrivals")
    known = ~np.isnan(latency_s)
    latency, arrivals = latency_s[known], arrivals_s[known]
    if not latency.size:
        raise ValueError("no event has a latency")
    levels = _levels(latency, p)
    block = _blocks(arrivals, blocks)
    sizes = np.bincount(block, minlength=blocks).astype(np.float64)
    above = np.zeros((blocks, levels.size))
    tail = latency > levels[0]
    # Column j counts a block's events above levels[j]: those whose place among the levels lies beyond j.
    place = np.searchsorted(levels, latency[tail], side="left")
    np.add.at(above, (block[tail], place - 1), 1.0)
    above = above[:, ::-1].cumsum(axis=1)[:, ::-1]
    drawn = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples).astype(np.float64)
    # Stretches without arrivals count as drawn stretches that add nothing.
    late, events = drawn @ above, drawn @ sizes
    within = late <= (1 - p) * events[:, None] + 1e-9
    quantiles = levels[within.argmax(axis=1)]  # the first that few enough exceed: none exceeds the last
    low, high = np.quantile(quantiles, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def _levels(latency: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """Ascending distinct latencies from well below the quantile to the largest."""
    low = max(0.0, 1 - 8 * (1 - p)) if p < 1 else 1.0
    ordered = np.sort(latency)[int(low * (latency.size - 1)) :]
    picked = ordered[np.unique(np.linspace(0, ordered.size - 1, LEVELS).astype(np.intp))]
    return np.unique(picked)


def _blocks(arrivals: NDArray[np.float64], blocks: int) -> NDArray[np.intp]:
    """The stretch each arrival falls into."""
    span = float(arrivals[-1] - arrivals[0])
    share = np.arange(arrivals.size) / arrivals.size if span <= 0 else (arrivals - arrivals[0]) / span
    return np.minimum((share * blocks).astype(np.intp), blocks - 1)
