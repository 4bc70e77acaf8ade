"""What a replay gives: every latency, every step, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.quantile import quantile_s


@dataclass(frozen=True, slots=True)
class Step:
    """One decision that changed or reported something.

    Args:
        time_s: since the start of the trace.
        replicas: wanted from then on, stage → hardware kind → replicas.
        action: ``scale_up``, ``scale_down``, ``hold`` …
        reason: from the policy.
        detail: in words.
    """

    time_s: float
    replicas: Mapping[str, Mapping[str, int]]
    action: str
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A policy on a trace.

    Args:
        policy: its name.
        slo_s: beyond it an event is a miss.
        entry_s: float64 (events,) when each event entered.
        latency_s: float64 (events,); NaN for events that end without a sink record, ∞ for those that never ended.
        steps: in order of time.
        duration_s: from the start of the trace to its last arrival, over which cost is counted.
        replica_hours: held, pending and leaving ones included, by (stage, hardware kind).
        cost: dollars for them.
        peak_replicas: most held at once, over all stages.
        changes: how often a stage's replicas were changed.
        longer_s: how much longer the SLO of each event's class is than ``slo_s``.
        miss_rates_by_class: of each live class, where there are several, by its topic; empty for that of the
            pipeline's own SLO.
        degraded: uint8 (events,), whether a stage's fallback made something of the event, or of what it is a result of;
            None where nobody looked.
    """

    policy: str
    slo_s: float
    entry_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    steps: tuple[Step, ...]
    duration_s: float
    replica_hours: Mapping[tuple[str, str], float]
    cost: float
    peak_replicas: int
    changes: int
    longer_s: NDArray[np.float64] | float = 0.0
    miss_rates_by_class: Mapping[str, float] = field(default_factory=dict)
    degraded: NDArray[np.uint8] | None = None

    @property
    def cost_per_hour(self) -> float:
        """Mean dollars per hour."""
        return self.cost / self.duration_s * 3600 if self.duration_s > 0 else 0.0

    @property
    def p99_s(self) -> float:
        """P99 of the latency."""
        return quantile_s(self.latency_s, 0.99)

    @property
    def judged_s(self) -> NDArray[np.float64]:
        """Latencies less what the SLO of an event's class is longer: those above the SLO are late."""
        return self.latency_s - self.longer_s

    @property
    def known(self) -> int:
        """Events that have a latency: all but those that end without a sink record."""
        return int(np.count_nonzero(~np.isnan(self.latency_s)))

    @property
    def late(self) -> int:
        """Events that reach the sink late or never."""
        return int(np.count_nonzero(self.judged_s > self.slo_s))

    @property
    def miss_rate(self) -> float:
        """Share of the events that reach the sink late or never."""
        known = self.known
        return self.late / known if known else 0.0

    @property
    def degraded_share(self) -> float:
        """Share of the events of which a stage's fallback made something."""
        return float(self.degraded.mean()) if self.degraded is not None and self.degraded.size else 0.0

    def rank(self, allowed: float) -> tuple[bool, float, float]:
        """Smaller is better: the cheapest within the share of misses allowed, else the fewest misses."""
        kept = self.miss_rate <= allowed
        return (not kept, 0.0 if kept else self.miss_rate, self.cost)

    def miss_rates(self, bin_s: float = 15.0) -> NDArray[np.float64]:
        """Miss rate by bin of entry time; NaN for a bin without events."""
        known = ~np.isnan(self.latency_s)
        bins = np.floor_divide(self.entry_s, bin_s).astype(np.int64)
        count = math.ceil(self.duration_s / bin_s) or 1
        events = np.bincount(bins[known], minlength=count)
        late = np.bincount(bins[self.judged_s > self.slo_s], minlength=events.size)
        with np.errstate(invalid="ignore"):
            rates: NDArray[np.float64] = late / events
        return rates

    def worst_miss_rate(self, bin_s: float = 15.0) -> float:
        """The largest miss rate of any bin."""
        rates = self.miss_rates(bin_s)
        return float(np.nanmax(rates)) if np.isfinite(rates).any() else 0.0
