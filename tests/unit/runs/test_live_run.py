"""What a run says of its feed, without a Kafka and without a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inferline_stream.connectors.sources.trace_replay import ReplayReport
from inferline_stream.controlplane.run_inputs import RunDisplay
from inferline_stream.runs.live_run import LiveRun

DEADLINE_S = 10.0


class Feed:
    """One that has come to its end."""

    def __init__(self, report: ReplayReport) -> None:
        self.report = report

    async def ready(self) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    async def finished(self) -> ReplayReport:
        return self.report


class Display(RunDisplay):
    """Keeps what stays on the screen."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def report(acknowledged: int, last_error: str) -> ReplayReport:
    return ReplayReport(
        events=5, sent=5, acknowledged=acknowledged, failed=5 - acknowledged, duration_s=1.0, lateness_p50_s=0.001,
        lateness_p99_s=0.002, lateness_max_s=0.003, first_sent_s=1.0, last_sent_s=2.0, stopped=False,
        last_error=last_error,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("acknowledged", "error", "notes"),
    [
        (5, "", []),
        (3, "RecordRefused: raise it", ["2 of 5 events are not in Kafka: RecordRefused: raise it"]),
    ],
)
async def test_events_that_kafka_refused_are_reported_with_the_reason(
    acknowledged: int, error: str, notes: list[str]
) -> None:
    @asynccontextmanager
    async def feed(servers: str, topic: str) -> AsyncIterator[Feed]:
        yield Feed(report(acknowledged, error))

    control, display = asyncio.get_running_loop().create_future(), Display()
    given: dict[str, Any] = {
        "run": SimpleNamespace(feed=feed, bootstrap_servers="kafka:9092", duration_s=None, display=display),
        "context": SimpleNamespace(source="in"),
        "controller": SimpleNamespace(state=None, decider=SimpleNamespace(), view=SimpleNamespace(cost=0.01)),
        "control": control,
    }
    under_way = LiveRun(offsets=cast("Any", None), since=cast("Any", None), **given)
    async with asyncio.timeout(DEADLINE_S):
        await under_way.fed(asyncio.Event())
    assert display.notes == notes
    assert (under_way.lateness_p99_s, under_way.preparation_cost) == (0.002, 0.01)
