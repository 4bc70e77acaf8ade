"""A dispatcher's report as it starts, and what is added to its counts."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.frames import Call
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.routes import Routes
from inferline_stream.observability.stage_counts import BatchStats, StageCounts

MAX_COUNTED_S = 30 * 86_400.0
"""Longest time that one event or batch may add to a report.

A producer whose clock says 1970 must not fill the sums, and nobody can read a report whose numbers are larger than
`PoolReport` allows.
"""


def count_batch(
    counts: StageCounts,
    hardware: str,
    calls: Sequence[Call],
    took_s: float,
    busy_s: float | None,
    *,
    remote: bool,
    in_hand: int = 1,
) -> None:
    """Add a batch that a replica has finished.

    Args:
        counts: is added to.
        hardware: kind of the replica.
        calls: of the stage.
        took_s: from handing it over to its results.
        busy_s: what the replica says; None where that cannot be.
        remote: whether the replica is on another host: what the network takes is counted by itself.
        in_hand: batches that the replica had in hand when it began.
    """
    if remote and busy_s is not None:
        counts.remote_batches += 1
        counts.network_s += max(0.0, took_s - busy_s)
    # As profiles have it: a replica that is stopped for its share of a core does not see what that adds to its batches.
    served_s = busy_s if remote else took_s
    if len(calls) == 1 and served_s is not None:
        calls = [Call(calls[0].batch_size, max(calls[0].service_s, served_s))]
    count_calls(counts, hardware, calls, in_hand)


def count_waits(counts: StageCounts, events: Iterable[Event], now_s: float) -> None:
    """Add how long events waited that a replica gets now, by the monotonic clock."""
    now_ms, waited_ms = now_s * 1e3, 0.0
    for event in events:
        if not event.replayed:
            waited_ms += min(max(0.0, now_ms - event.arrived_ms), 1e3 * MAX_COUNTED_S)
    counts.wait_s += waited_ms / 1e3


def count_calls(counts: StageCounts, hardware: str, calls: Sequence[Call], in_hand: int = 1) -> None:
    """Add calls of the stage on one hardware kind, begun with so many batches in hand."""
    sizes = counts.batch_stats.setdefault(hardware, {})
    for call in calls:
        stats = sizes.get(call.batch_size)
        if stats is None:
            stats = sizes[call.batch_size] = BatchStats()
        stats.batches += 1
        stats.service_s += call.service_s
        stats.squares += call.service_s**2
        stats.in_hand += in_hand


def count_latency(counts: StageCounts, bounds_s: Sequence[float], latency_s: float, results: int = 1) -> None:
    """Add an event of which so many results reached the sink."""
    latency_s = min(latency_s, MAX_COUNTED_S)
    counts.latency_buckets[bisect.bisect_left(bounds_s, latency_s)] += results
    counts.latency_sum_s += latency_s * results


def new_report(
    dispatcher: str, incarnation: int, stage: str, slot: int, buckets: int, *, routes: Routes | None = None
) -> PoolReport:
    """Return the report of a dispatcher that starts; by the classes of the routes, if there are several."""
    counts = StageCounts(latency_buckets=[0] * buckets)
    report = PoolReport(dispatcher, incarnation, stage, slot, "starting", 0, counts=counts)
    if routes is not None:
        report.background = {topic.name: StageCounts() for topic in routes.backgrounds.values()}
        report.latencies = {topic: [0] * buckets for topic in routes.live_topics}
    return report


def counts_of_classes(report: PoolReport, routes: Routes) -> tuple[StageCounts, ...]:
    """Return a report's counts by the number of the class; those of live ones are counted together."""
    return tuple(report.background.get(of.of_class, report.counts) for of in routes.classes)
