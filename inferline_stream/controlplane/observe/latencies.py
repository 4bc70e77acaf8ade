"""End-to-end latencies, as the final stage reported: since the start, recent, and late by the SLO of their time."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass, field

from inferline_stream.controlplane.observe.pool_reports import RECENT_S, PoolReports
from inferline_stream.observability.buckets import latency_bounds_s
from inferline_stream.observability.pipeline_state import LatencyHistogram


@dataclass(slots=True)
class Latencies:
    """Latencies of a pipeline's events.

    Args:
        reports: of its dispatchers.
        final: the stage that reports them.
        declared_slo_s: dispatchers count latencies by the SLO that the topology declares.
        slo_s: in force.
    """

    reports: PoolReports
    final: str
    declared_slo_s: float
    slo_s: float
    _late_before: int = 0
    """Events that were late by the SLO of their time, before the SLO in force; and what is above its SLO of them."""
    _above_before: int = 0
    _looks: deque[tuple[float, tuple[int, ...]]] = field(default_factory=deque)

    def histogram(self) -> LatencyHistogram:
        """Since the start, with the SLO in force among the bounds."""
        bounds = latency_bounds_s(self.declared_slo_s)
        counts, sum_s = self.reports.latency_counts(self.final, len(bounds) + 1)
        return with_bound(LatencyHistogram(bounds, counts, sum_s), self.slo_s)

    def late(self) -> int:
        """Events since the start that were late by the SLO of their time."""
        return self._late_before + self._above() - self._above_before

    def judge_by(self, slo_s: float) -> None:
        """This SLO is in force from now on."""
        late, self.slo_s = self.late(), slo_s
        self._late_before, self._above_before = late, self._above()
        self._looks.clear()  # counted by other bounds

    def recent(self, now_s: float) -> LatencyHistogram:
        """Of about the last `RECENT_S`, given a look now and then; its sum is not known."""
        latency = self.histogram()
        self._looks.append((now_s, latency.counts))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - RECENT_S:
            self._looks.popleft()
        before = self._looks[0][1] if len(self._looks) > 1 else (0,) * len(latency.counts)
        return LatencyHistogram(
            latency.bounds_s, tuple(max(0, a - b) for a, b in zip(latency.counts, before, strict=True)), 0.0
        )

    def _above(self) -> int:
        """Events since the start whose latency is above the SLO in force now, whatever it was then."""
        latency = self.histogram()
        return sum(latency.counts[latency.bounds_s.index(self.slo_s) + 1 :])


def with_bound(histogram: LatencyHistogram, bound_s: float) -> LatencyHistogram:
    """The histogram with this bound among its own: its bucket is split in proportion, rounded down.

    Beyond the last bound nobody knows where latencies lie: all of them count as above a bound there.
    """
    bounds, counts = histogram.bounds_s, histogram.counts
    if bound_s in bounds:
        return histogram
    at = bisect.bisect_left(bounds, bound_s)
    lower = bounds[at - 1] if at else 0.0
    below = int(counts[at] * (bound_s - lower) / (bounds[at] - lower)) if at < len(bounds) else 0
    return LatencyHistogram(
        (*bounds[:at], bound_s, *bounds[at:]),
        (*counts[:at], below, counts[at] - below, *counts[at + 1 :]),
        histogram.sum_s,
    )
