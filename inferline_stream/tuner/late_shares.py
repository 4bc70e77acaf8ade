"""What share of the events is late with so many replicas, by the rate of the five seconds that they come in.

It is read off the simulation of the sample. Rates that the sample has are as late as they are there: between them is
what its bursts make. Rates beyond those are looked for in the sample at other speeds. For rates above the sample's,
speeds near its own count most: a sample that is on and off has windows that are both, and sped up enough these come at
any rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.simulation import Simulation
from inferline_stream.pipeline.fallback import UNMET_SHARE
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.traffic import RATE_WINDOW_S

SPEEDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6, 2.0, 3.0)
"""Multiples of what the replicas carry at which the sample is simulated: closest where late events begin."""

MOST_RATES = 50
"""Rates that the windows of one simulation are sorted into."""

NEAR = 0.03
"""Relative difference up to which shares at other speeds count for a rate; further from all of them it is between."""

RATES: Floats = np.geomspace(0.05, 41.0, 340)
"""Multiples of a rate that shares are looked up at: 2 % apart."""


@dataclass(frozen=True, slots=True, eq=False)
class LateShares:
    """Shares that are late, for one number of replicas.

    Args:
        rates: ascending, in multiples of the sample's mean rate.
        shares: that are late at each.
    """

    rates: Floats
    shares: Floats

    def at(self, rates: Floats) -> Floats:
        """The share that is late at each rate; below all known ones none is, above them as at the highest."""
        return np.interp(rates, self.rates, self.shares, left=0.0)


def without_waiting(carried: float) -> LateShares:
    """Late shares of replicas that serve a rate and not an event more; of any unit."""
    return LateShares(RATES, np.maximum(1 - carried / RATES, 0.0))


def late_shares(
    sample: Trace, carried: float, served: float, slo_s: float, simulated: Callable[[Trace], Simulation]
) -> LateShares:
    """Simulate the sample at several speeds.

    Args:
        sample: what was planned for.
        carried: multiple of its rate that the replicas carry.
        served: multiple that they serve at all: what comes beyond it for long is late, if not within the sample.
        slo_s: latency beyond which an event is late.
        simulated: latencies of a trace with the replicas.
    """
    windows = _Windows(sample)
    some = windows.events > 0
    if not some.any():
        return without_waiting(carried)

    def late_at(speed: float) -> Floats:
        late = windows.late(simulated(sample.sped_up(speed)), speed, slo_s)
        return np.maximum(late, 1 - served / speed)

    rates, shares, weights = [], [], []
    for speed in (round(carried * multiple, 6) for multiple in SPEEDS):
        reached = speed * windows.rates
        beyond = some & ((reached < windows.least) | (reached > windows.most))
        if beyond.any():
            rates.append(reached[beyond])
            shares.append(late_at(speed)[beyond])
            # Slower speeds weigh the same. Where they did not, a day's replicas changed direction more often.
            weights.append(windows.events[beyond] / max(math.log(speed), NEAR) ** 2)
    own = late_at(1.0)[some]
    within = np.array([windows.least, *windows.rates[some], windows.most]), np.array([own[0], *own, own[-1]])
    others = _near(np.concatenate(rates), np.concatenate(shares), np.concatenate(weights)) if rates else within
    beyond = (others[0] < windows.least) | (others[0] > windows.most)
    found = np.concatenate([within[0], others[0][beyond]]), np.concatenate([within[1], others[1][beyond]])
    order = np.argsort(found[0], kind="stable")
    return LateShares(found[0][order], found[1][order])


def _near(rates: Floats, shares: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Rates at even distances, and the mean share at rates near each."""
    known = np.log(rates)
    at = np.arange(known.min(), known.max() + NEAR, NEAR)
    near = np.maximum(1 - np.abs(at[:, None] - known) / NEAR, 0.0) * weights
    found = near.sum(axis=1)
    return np.exp(at[found > 0]), (near @ shares)[found > 0] / found[found > 0]


class _Windows:
    """Windows of five seconds of a sample, one a second, sorted by how much comes in them.

    Args:
        sample: with at least one event.
    """

    def __init__(self, sample: Trace) -> None:
        second = sample.arrivals_s.astype(np.int64)
        self._seconds = int(second[-1]) + 1
        self._whole = max(self._seconds - 1, 1)  # the last second is cut off
        self._length = min(int(RATE_WINDOW_S), self._whole)
        came = self._in_windows(second)
        self._order = np.argsort(came, kind="stable")
        groups = min(MOST_RATES, came.size)
        self._first = np.arange(groups) * came.size // groups
        self._sizes = np.diff(np.append(self._first, came.size)) * self._length
        self.events = self._by_rate(came)
        self.rates = self.events / self._sizes / sample.arrival_rate
        self.least, self.most = (
            came.min() / self._length / sample.arrival_rate,
            came.max() / self._length / sample.arrival_rate,
        )

    def late(self, found: Simulation, speed: float, slo_s: float) -> Floats:
        """Share of the events in the windows of each rate that are late, where the sample came at that speed."""
        judged_s = found.workload.judged_s(found.latency_s)
        known = ~np.isnan(judged_s)
        entered = found.workload.entry_s[found.workload.last][known] * speed
        second = np.minimum((entered + 1e-6).astype(np.int64), self._seconds - 1)
        # More than that of the fallback is demand that is not met, as the policy sees it.
        late = np.where(found.degraded > UNMET_SHARE, 1.0, judged_s[known] > slo_s)
        share: Floats = self._by_rate(self._in_windows(second, late)) / self._by_rate(self._in_windows(second)).clip(
            1.0
        )
        return share

    def _in_windows(self, second: NDArray[np.int64], weights: Floats | None = None) -> Floats:
        counts = np.bincount(second, weights=weights, minlength=self._seconds)[: self._whole]
        total = np.append(0.0, np.cumsum(counts))
        windows: Floats = total[self._length :] - total[: -self._length]
        return windows

    def _by_rate(self, windows: Floats) -> Floats:
        groups: Floats = np.add.reduceat(windows[self._order], self._first)
        return groups
