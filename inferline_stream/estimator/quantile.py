"""Exact order statistics of many latencies without sorting or copying them all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_SAMPLE = 20_000
_SMALL = 100_000


def quantile_s(latency_s: NDArray[np.float64], share: float) -> float:
    """The smallest latency that at least this share of the events keeps: the ⌈share·n⌉-th of n; NaN are left out.

    A sample gives a bound below which the answer almost surely does not lie; only what lies above it is
    selected from. Should the bound be wrong, everything is.

    Args:
        latency_s: by event; NaN for an event without a latency.
        share: above 0, up to 1.

    Returns:
        NaN if there is no latency at all.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"quantile {share} must lie above 0 and at most at 1")
    if latency_s.size > _SMALL:
        sample = latency_s[:: latency_s.size // _SAMPLE]
        sample = np.sort(sample[~np.isnan(sample)])
        if sample.size:
            guess = share * sample.size - 6 * math.sqrt(share * (1 - share) * sample.size) - 6
            bound = sample[max(int(guess), 0)]
            above = latency_s[latency_s >= bound]
            n = latency_s.size - int(np.count_nonzero(np.isnan(latency_s)))
            from_top = n - _rank(share, n)
            if from_top < above.size:
                return float(np.partition(above, above.size - 1 - from_top)[above.size - 1 - from_top])
    known = latency_s[~np.isnan(latency_s)]
    if not known.size:
        return math.nan
    rank = _rank(share, known.size)
    return float(np.partition(known, rank - 1)[rank - 1])


def _rank(share: float, n: int) -> int:
    """⌈share·n⌉, at least 1; 0.99·100 is 99, whatever its floating-point product."""
    return max(1, math.ceil(share * n * (1 - 1e-12)))
