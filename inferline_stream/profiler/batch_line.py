"""A line through the sizes and times of batches: what a batch takes, each event in it, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.pipeline.group_profile import Learned

_ROUNDS = 8
"""Of weighting by the line found before: it moves no more then."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """Mean time ``fixed_s + per_event_s · b`` of a batch of b.

    Args:
        fixed_s: of a batch, however small.
        per_event_s: of each event in it.
        spread: standard deviation of a batch's time over its mean.
        throughput: events per second at the size that was asked for.
    """

    fixed_s: float
    per_event_s: float
    spread: float
    throughput: Learned

    def time_s(self, size: float) -> float:
        """Mean time of a batch of this size."""
        return self.fixed_s + self.per_event_s * size


def batch_line(sizes: NDArray[np.float64], times_s: NDArray[np.float64], at: int) -> BatchLine:
    """Return the line through batches, by least squares of relative errors.

    A batch's deviation grows with its time, so each is weighted by the inverse square of the line's own value. A line
    that falls, or would take no time at size 0, is replaced by the constant, or by the line through the origin. Where
    all batches have one size, the whole time counts as fixed: a smaller batch is then not believed to be faster.

    Args:
        sizes: events in each batch; at least two batches.
        times_s: what each took.
        at: size that the throughput is wanted at.
    """
    line, covariance = _fitted(sizes, times_s, (0, 1)) if np.ptp(sizes) > 0 else (np.array([0.0, -1.0]), np.eye(2))
    if line[1] < 0:
        line, covariance = _fitted(sizes, times_s, (0,))
    elif line[0] < 0:
        line, covariance = _fitted(sizes, times_s, (1,))
    point = np.array([1.0, at])
    time_s = float(point @ line)
    mean_s = line[0] + line[1] * sizes
    spread = math.sqrt(float(np.mean((times_s / mean_s - 1) ** 2)))
    error = spread * math.sqrt(float(point @ covariance @ point)) / time_s
    return BatchLine(float(line[0]), float(line[1]), spread, Learned(at / time_s, error, sizes.size))


def _fitted(
    sizes: NDArray[np.float64], times_s: NDArray[np.float64], used: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return intercept and slope, and their covariance in units of the relative variance; those not used are 0."""
    rows = np.stack([np.ones_like(sizes), sizes], axis=1)[:, used]
    mean_s = np.full_like(times_s, times_s.mean())
    for _ in range(_ROUNDS):
        weighted = rows / mean_s[:, None]
        inverse = np.linalg.inv(weighted.T @ weighted)
        found = inverse @ (weighted.T @ (times_s / mean_s))
        mean_s = np.maximum(rows @ found, 1e-3 * times_s.mean())
    line, covariance = np.zeros(2), np.zeros((2, 2))
    line[list(used)] = found
    covariance[np.ix_(used, used)] = inverse
    return line, covariance
