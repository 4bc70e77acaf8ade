"""When a dispatcher reports, and how long that lets it work."""

import asyncio
import contextlib

from inferline_stream.dataplane.dispatcher.lease import Lease, Reporter
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.reports import decode_report


async def _reported(changes, *, count, heartbeat_s):
    """The first `count` reports of a dispatcher to which so many changes happen one right after another."""
    sent = asyncio.Queue()

    async def send(report):
        sent.put_nowait(decode_report(report))
        return True

    report = new_report("d", 1, "s", 0, 3)
    reporter = Reporter(report, send, Lease(1.0), heartbeat_s, lambda report: None)
    running = asyncio.create_task(reporter.run())
    for _ in range(changes):
        await asyncio.sleep(0)
        report.counts.events += 1
        reporter.touch()
    async with asyncio.timeout(30):
        reports = [await sent.get() for _ in range(count)]
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert sent.empty()
    return reports


async def test_changes_right_after_one_another_are_reported_together_and_not_kept_until_the_next_heartbeat():
    (report,) = await _reported(3, count=1, heartbeat_s=60.0)
    assert report.counts.events == 3


async def test_without_a_change_it_reports_at_each_heartbeat():
    reports = await _reported(0, count=3, heartbeat_s=0.05)
    assert [report.report for report in reports] == [1, 2, 3]


def test_a_lease_counts_from_when_the_report_was_sent_and_ends_by_a_clock_that_counts_suspended_time():
    now_s = 100.0
    lease = Lease(2.0, lambda: now_s)
    assert not lease.valid()
    lease.renew(99.5)
    lease.renew(98.0)
    assert lease.left_s == 1.5
    now_s = 101.5
    assert not lease.valid()
