"""A dispatcher's right to send and commit, and the reports that renew it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from inferline_stream.dataplane.reports import DispatcherPhase, PoolReport, encode_report

GATHER_S = 0.05
"""Changes within so short a time go into one report."""


def boot_clock_s() -> float:
    """Seconds on a clock that counts while the machine or the process is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """Valid for a while after a report that Kafka has acknowledged, counted from when the report was sent.

    The controller gives the slot of a silent dispatcher away only after a longer time, so one that checks its lease
    before each send does not work beside its successor; one that was suspended finds the lease expired when it wakes.

    Args:
        lasts_s: from the sending of a report.
        clock_s: counts suspended time.
    """

    def __init__(self, lasts_s: float, clock_s: Callable[[], float] = boot_clock_s) -> None:
        self._lasts_s = lasts_s
        self._clock_s = clock_s
        self._until_s = -1.0

    def now_s(self) -> float:
        """Return the time of the lease's own clock."""
        return self._clock_s()

    def renew(self, sent_s: float) -> None:
        """A report sent at that time was acknowledged."""
        self._until_s = max(self._until_s, sent_s + self._lasts_s)

    @property
    def until_s(self) -> float:
        """When it expires, by its own clock."""
        return self._until_s

    @property
    def left_s(self) -> float:
        """How long it still lasts; 0 or less once it has expired."""
        return self._until_s - self._clock_s()

    def valid_at(self, now_s: float) -> bool:
        """Return whether work may begin at a time of the lease's own clock."""
        return now_s < self._until_s

    def valid(self) -> bool:
        """Return whether work may begin."""
        return self.valid_at(self._clock_s())


class LeaseExpired(Exception):
    """The dispatcher's reports were not acknowledged: its slot may have been another's. The session must be dropped."""


class Reporter:
    """Sends the report soon after it changed, else each heartbeat.

    Args:
        report: counters and phase, updated in place by those who count.
        send: sends one encoded report and returns whether it was acknowledged.
        lease: renewed by every acknowledged report.
        heartbeat_s: longest time between reports.
        complete: fills in what is only known when the report is sent.
    """

    def __init__(
        self,
        report: PoolReport,
        send: Callable[[bytes], Awaitable[bool]],
        lease: Lease,
        heartbeat_s: float,
        complete: Callable[[PoolReport], None],
    ) -> None:
        self._report = report
        self._send = send
        self._lease = lease
        self._heartbeat_s = heartbeat_s
        self._complete = complete
        self._changed = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def touch(self) -> None:
        """Something changed that the controller needs to know before the next heartbeat."""
        self._changed.set()

    async def now(self, phase: DispatcherPhase | None = None, reason: str = "") -> bool:
        """Report, and return whether it was acknowledged."""
        async with self._one_at_a_time:
            report = self._report
            report.phase = phase or report.phase
            report.reason = reason or report.reason
            report.report += 1
            self._complete(report)
            sent_s = self._lease.now_s()
            acknowledged = await self._send(encode_report(report))
            if acknowledged:
                self._lease.renew(sent_s)
            return acknowledged

    async def run(self) -> None:
        """Report for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._changed.wait()
                    await asyncio.sleep(GATHER_S)
            self._changed.clear()
            await self.now()
