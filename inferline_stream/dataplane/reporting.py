"""What a replica tells about itself, and the lease that telling it renews."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from inferline_stream.dataplane.protocol import BatchStats, ReplicaPhase, ReplicaReport, encode

GATHER_S = 0.05
"""What changes within so short a time is told in one report: a move that each step of four replicas tells of on its own
takes cores from the events under way."""


def boot_clock_s() -> float:
    """Seconds on a clock that counts while the machine or the process is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The right to work: a report that Kafka has acknowledged extends it from the moment the report was sent.

    The controller gives a silent replica's partitions away only after a longer time, so whoever checks the lease
    before each batch never works beside the next owner; one that was suspended finds it expired when it wakes.

    Args:
        lasts_s: from the sending of a report.
        clock_s: counts suspended time.
    """

    def __init__(self, lasts_s: float, clock_s: Callable[[], float] = boot_clock_s) -> None:
        self._lasts_s = lasts_s
        self._clock_s = clock_s
        self._until_s = -1.0

    def now_s(self) -> float:
        """The lease's own clock."""
        return self._clock_s()

    def renew(self, sent_s: float) -> None:
        """A report sent at that time was acknowledged."""
        self._until_s = max(self._until_s, sent_s + self._lasts_s)

    @property
    def left_s(self) -> float:
        """How long it still lasts; 0 or less once it has expired."""
        return self._until_s - self._clock_s()

    def valid(self) -> bool:
        """Whether work may begin."""
        return self.left_s > 0


class Reporting:
    """Sends the replica's report soon after it is touched, else each heartbeat.

    Args:
        report: counters and phase, updated in place by those who count.
        send: sends one encoded report; whether it was acknowledged.
        lease: renewed by every acknowledged report.
        heartbeat_s: longest time between reports.
    """

    def __init__(
        self, report: ReplicaReport, send: Callable[[bytes], Awaitable[bool]], lease: Lease, heartbeat_s: float
    ) -> None:
        self._report = report
        self._send = send
        self._lease = lease
        self._heartbeat_s = heartbeat_s
        self._touched = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def touch(self) -> None:
        """Something changed that the controller is to hear of before the next heartbeat."""
        self._touched.set()

    async def now(self, held: dict[int, int], phase: ReplicaPhase | None = None, reason: str = "") -> bool:
        """Report; whether it was acknowledged."""
        async with self._one_at_a_time:
            report = self._report
            report.phase = phase or report.phase
            report.reason = reason or report.reason
            report.report += 1
            report.held = held
            sent_s = self._lease.now_s()
            acknowledged = await self._send(encode(report))
            if acknowledged:
                self._lease.renew(sent_s)
            return acknowledged

    async def run(self, held: Callable[[], dict[int, int]]) -> None:
        """Report for ever.

        Args:
            held: partitions held and the next offset to commit of each.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._touched.wait()
                    await asyncio.sleep(GATHER_S)
            self._touched.clear()
            await self.now(held())


def count_batch(report: ReplicaReport, batch_size: int, service_s: float) -> None:
    """Add one call of the stage."""
    stats = report.batch_stats.get(batch_size)
    if stats is None:
        stats = report.batch_stats[batch_size] = BatchStats()
    stats.batches += 1
    stats.service_s += service_s


def count_latency(report: ReplicaReport, bounds_s: Sequence[float], latency_s: float) -> None:
    """Add one event that reached the sink."""
    report.latency_buckets[bisect.bisect_left(bounds_s, latency_s)] += 1
    report.latency_sum_s += latency_s
    report.latency_max_s = max(report.latency_max_s, latency_s)


def new_report(replica: str, stage: str, hardware: str, buckets: int) -> ReplicaReport:
    """A report of a replica that starts."""
    report = ReplicaReport(replica=replica, stage=stage, hardware=hardware, phase="starting", report=0)
    report.latency_buckets = [0] * buckets
    return msgspec.structs.replace(report, batch_stats={}, arrows_taken={}, held={})
