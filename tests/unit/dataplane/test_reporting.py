"""When a replica reports."""

import asyncio
import contextlib

from inferline_stream.dataplane.protocol import decode_report
from inferline_stream.dataplane.reporting import Lease, Reporting, new_report


async def _reported(changes, *, count, heartbeat_s):
    """The first so many reports of a replica to which so many things happen one right after another."""
    sent = asyncio.Queue()

    async def send(report):
        sent.put_nowait(decode_report(report))
        return True

    report = new_report("r", "s", "cpu", 3)
    reporting = Reporting(report, send, Lease(1.0), heartbeat_s)
    running = asyncio.create_task(reporting.run(lambda: {0: report.handovers}))
    for _ in range(changes):
        await asyncio.sleep(0)
        report.handovers += 1
        reporting.touch()
    async with asyncio.timeout(30):
        reports = [await sent.get() for _ in range(count)]
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert sent.empty()
    return reports


async def test_changes_right_after_one_another_are_told_together_and_not_kept_until_the_next_heartbeat():
    (report,) = await _reported(3, count=1, heartbeat_s=60.0)
    assert report.held == {0: 3}


async def test_without_a_change_it_reports_at_each_heartbeat():
    reports = await _reported(0, count=3, heartbeat_s=0.05)
    assert [report.report for report in reports] == [1, 2, 3]
