"""What a run says of its feed and of a Kafka that is away at its end, without a Kafka and without a pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import rich.console

from inferline_stream.cli.run_steps import judge
from inferline_stream.cli.screen import Screen
from inferline_stream.connectors.sources.trace_replay import ReplayReport
from inferline_stream.controlplane.observe.end_offsets import LedgerBegin
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.run_inputs import RunDisplay
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.settings import Settings
from tests.support.emulated_runs import one_stage
from tests.unit.observability.states import a_state

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


@pytest.mark.parametrize(("wanted", "resting", "ready"), [(0, {"a"}, True), (1, set(), False)])
async def test_replicas_of_a_stage_that_rests_are_not_waited_for(
    wanted: int, resting: set[str], *, ready: bool
) -> None:
    kind = SimpleNamespace(hardware="cpu", wanted=wanted, ready=0)
    controller = SimpleNamespace(
        state=SimpleNamespace(stages=[SimpleNamespace(name="a", replicas=[kind])]),
        fleet=SimpleNamespace(pending=Counter()),
        decider=SimpleNamespace(resting=resting),
    )
    given: dict[str, Any] = {"run": None, "context": None, "controller": controller, "offsets": None, "since": None}
    assert LiveRun(control=cast("Any", None), **given)._all_ready() is ready


class Away:
    """Offsets of one partition, with nothing left, that are not known the first so many times."""

    def __init__(self, times: float) -> None:
        self.times = times

    def _answer(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise Unreachable("Kafka at kafka:9092 does not answer")

    async def ends(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        self._answer()
        return dict.fromkeys(partitions, (7,))

    async def committed(self, group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
        self._answer()
        return (Committed(7),)


class Controller:
    """Of one stage, "a", with its last state."""

    def __init__(self) -> None:
        slots = SimpleNamespace(leave_background=lambda: None, stuck=lambda: "")
        self.state = replace(a_state(), events_in=9, events_out=7, completed_without_output=1)
        self.view = SimpleNamespace(partitions={"a": 1}, live={}, others={})
        self.decider, self.slots, self.exits, self.collector = SimpleNamespace(held=False), slots, (), None
        self.retired: list[frozenset[str]] = []

    def look(self) -> None:
        pass

    async def retire(self, stages: Collection[str], deadline_s: float) -> None:
        self.retired.append(frozenset(stages))


def draining(offsets: Away) -> LiveRun:
    settings = replace(Settings(), drain_timeout_s=0.3)
    pipeline, kafka = one_stage(), cast("Any", None)
    run: Any = SimpleNamespace(
        settings=settings, display=Display(), feed=object(), kinds={}, plan=SimpleNamespace(allocations={}),
        advisory=False, run_folder=None,
    )  # fmt: skip
    control = asyncio.get_running_loop().create_future()
    since = LedgerBegin((0,), {"a": (0,)}, (0,), (0,))
    given: dict[str, Any] = {"controller": Controller(), "offsets": offsets, "control": control}
    return LiveRun(run=run, context=PipelineContext(pipeline, kafka, settings), since=since, **given)


async def test_a_run_drains_on_once_kafka_answers_again() -> None:
    under_way = draining(Away(2))
    async with asyncio.timeout(DEADLINE_S):
        assert set((await under_way.drain() or {}).values()) == {0}
    assert cast("Any", under_way.controller).retired == [{"a"}]


async def test_a_run_whose_kafka_stays_away_reports_what_was_counted_and_says_what_is_not_known() -> None:
    under_way = draining(Away(math.inf))
    async with asyncio.timeout(DEADLINE_S):
        report = await under_way.report(await under_way.drain())
    assert report.not_read == "Kafka at kafka:9092 does not answer"
    assert (report.events_in, report.events_out, sum(report.completed.values()), report.verified) == (9, 7, 1, 0)
    assert (report.unaccounted, report.lag, report.classes, report.backgrounds) == (0, {}, {}, {})
    with pytest.raises(Unreachable, match=r"does not answer\. No event was accounted for"):
        judge(report, 0.99, Path("logs"))
    shown = io.StringIO()
    with contextlib.closing(Screen(rich.console.Console(file=shown, width=120))) as screen:
        screen.report(report)
    assert "not known: Kafka did not answer" in shown.getvalue()
