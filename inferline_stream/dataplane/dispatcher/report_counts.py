"""A dispatcher's report as it starts, and what is added to its counts."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import msgspec

from inferline_stream.dataplane.frames import Call
from inferline_stream.dataplane.reports import BatchStats, PoolReport

MAX_COUNTED_S = 30 * 86_400.0
"""Longest time that one event or batch may add to a report.

A producer whose clock says 1970 must not fill the sums, and nobody can read a report whose numbers are larger than
`PoolReport` allows.
"""


def count_calls(report: PoolReport, hardware: str, calls: Sequence[Call], in_hand: int = 1) -> None:
    """Add calls of the stage on one hardware kind, begun with so many batches in hand."""
    sizes = report.batch_stats.setdefault(hardware, {})
    for call in calls:
        stats = sizes.get(call.batch_size)
        if stats is None:
            stats = sizes[call.batch_size] = BatchStats()
        stats.batches += 1
        stats.service_s += call.service_s
        stats.squares += call.service_s**2
        stats.in_hand += in_hand


def count_latency(report: PoolReport, bounds_s: Sequence[float], latency_s: float) -> None:
    """Add one event that reached the sink."""
    latency_s = min(latency_s, MAX_COUNTED_S)
    report.latency_buckets[bisect.bisect_left(bounds_s, latency_s)] += 1
    report.latency_sum_s += latency_s
    report.latency_max_s = max(report.latency_max_s, latency_s)


def new_report(dispatcher: str, incarnation: int, stage: str, slot: int, buckets: int) -> PoolReport:
    """Return the report of a dispatcher that starts."""
    report = PoolReport(dispatcher, incarnation, stage, slot, "starting", 0)
    return msgspec.structs.replace(
        report,
        latency_buckets=[0] * buckets,
        held={}, halted={}, replicas=[], batch_stats={}, edges_taken={},
    )  # fmt: skip
