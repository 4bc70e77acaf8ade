"""Latencies by bucket: one list of bounds for metrics, alert rules and dashboards, with a bucket exactly at the SLO."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)


def latency_bounds_s(slo_s: float) -> tuple[float, ...]:
    """Upper bounds in seconds, dense around the SLO, which is one of them exactly."""
    return tuple(slo_s if ratio == 1.0 else float(f"{slo_s * ratio:.6g}") for ratio in _RATIOS)


def bucket_label(bound_s: float) -> str:
    """A bound as the `le` label spells it: a rule that spells it otherwise never matches."""
    return "+Inf" if bound_s == float("inf") else repr(float(bound_s))


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """End-to-end latency of events that reached the sink.

    Args:
        bounds_s: upper bounds of the buckets, ascending; the SLO is one of them.
        counts: events per bucket, not cumulative; one more than bounds, the last unbounded.
        sum_s: sum of latencies.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float

    def quantile_s(self, probability: float) -> float | None:
        """Linear within the bucket, as Prometheus' histogram_quantile; None without events."""
        total = sum(self.counts)
        if not total:
            return None
        rank, seen, lower = probability * total, 0, 0.0
        for upper, count in zip(self.bounds_s, self.counts, strict=False):
            if count and seen + count >= rank:
                return lower + (upper - lower) * (rank - seen) / count
            seen, lower = seen + count, upper
        return self.bounds_s[-1]

    def with_bound(self, bound_s: float) -> LatencyHistogram:
        """Return it with this bound among its own: its bucket is split in proportion, rounded down.

        Beyond the last bound nobody knows where latencies lie: all of them count as above a bound there.
        """
        bounds, counts = self.bounds_s, self.counts
        if bound_s in bounds:
            return self
        at = bisect.bisect_left(bounds, bound_s)
        lower = bounds[at - 1] if at else 0.0
        below = int(counts[at] * (bound_s - lower) / (bounds[at] - lower)) if at < len(bounds) else 0
        return LatencyHistogram(
            (*bounds[:at], bound_s, *bounds[at:]),
            (*counts[:at], below, counts[at] - below, *counts[at + 1 :]),
            self.sum_s,
        )

    def above(self, bound_s: float) -> int:
        """Events whose latency is above one of its bounds."""
        return sum(self.counts[self.bounds_s.index(bound_s) + 1 :])
