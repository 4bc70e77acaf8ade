"""How far a class of background events has come, when it will be done, and which stages should wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from inferline_stream.controlplane.observe.class_states import background_busy, background_words
from inferline_stream.controlplane.observe.end_offsets import EndOffsets, LedgerBegin
from inferline_stream.controlplane.observe.event_class import MOST_AHEAD, EventClass
from inferline_stream.controlplane.observe.event_ledger import EventLedger, read_ledger
from inferline_stream.controlplane.observe.pool_reports import PoolReports
from inferline_stream.controlplane.pipeline_context import drained
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.records import Record
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID, Names
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, shape_of
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from tests.unit.dataplane.dispatcher.doubles import same

ARCHIVE = Topic("archive", background=True)

SHAPE = Shape(("a", "b", "join"), (Arrow(0, 2), Arrow(1, 2)))
"""Two first stages, and a join of both."""


def seen(time_s: float, ends: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...], of: EventClass) -> None:
    for stage, committed in (("a", a), ("b", b)):
        of.offsets[stage].reached(time_s, ends)
        of.offsets[stage].committed(time_s, [Committed(offset) for offset in committed])
    of.look(time_s)


def test_it_is_done_when_the_slowest_first_stage_is_at_the_rate_of_the_last_minutes() -> None:
    of = EventClass(SHAPE, {"a": 2, "b": 2, "join": 1}, 1, ARCHIVE)
    assert (of.rate, of.done_in_s, of.left) == (None, 0.0, 0)
    seen(0.0, (1000, 500), (0, 0), (0, 0), of)
    assert (of.rate, of.done_in_s, of.left) == (None, None, 1500)
    seen(10.0, (1000, 500), (300, 200), (60, 40), of)
    assert (of.rate, of.left) == (pytest.approx(10.0), 1400)
    assert of.done_in_s == pytest.approx(140.0)
    seen(20.0, (1000, 900), (300, 200), (60, 40), of)  # the archive grows: that is no progress
    assert (of.rate, of.left) == (pytest.approx(5.0), 1800)
    seen(400.0, (1000, 900), (1000, 900), (1000, 900), of)
    assert (of.left, of.done_in_s) == (0, 0.0)


def test_what_was_finished_before_anyone_looked_is_no_progress() -> None:
    of = EventClass(SHAPE, {"a": 2, "b": 2, "join": 1}, 1, ARCHIVE)
    of.look(0.0)
    seen(1.0, (1000, 500), (900, -1), (900, 400), of)  # a partition that no dispatcher has begun with
    seen(2.0, (1000, 500), (900, 400), (900, 400), of)
    assert of.rate is None
    seen(4.5, (1000, 500), (910, 410), (910, 410), of)
    seen(5.0, (1000, 500), (915, 415), (915, 415), of)
    assert of.rate == pytest.approx(10.0)


def test_a_first_stage_waits_for_one_that_is_far_behind() -> None:
    of = EventClass(SHAPE, {"a": 1, "b": 1, "join": 1}, 1, ARCHIVE)
    seen(0.0, (100_000,), (MOST_AHEAD,), (0,), of)
    assert not of.is_ahead("a")
    seen(1.0, (100_000,), (MOST_AHEAD + 1,), (0,), of)
    assert [of.is_ahead(stage) for stage in SHAPE.stages] == [True, False, False]


def test_a_partition_that_one_first_stage_has_heard_of_first_stops_nothing() -> None:
    of = EventClass(SHAPE, {"a": 1, "b": 1, "join": 1}, 1, ARCHIVE)
    seen(0.0, (10,), (3,), (4,), of)
    of.grow("a", 2)
    of.look(1.0)
    assert of.finished() == [4, 0]


def test_topics_that_were_given_partitions_during_a_run_are_drained_and_looked_up_as_they_were() -> None:
    class Grown:
        """Two partitions of each topic now; the second is new, and nothing of it is finished."""

        async def partitions(self, topic: str) -> int:
            return 2

        async def topic_id(self, topic: str) -> str:
            return "id"

        async def committed(self, group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
            return (Committed(7), Committed(0))[:partitions]

        async def ends(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
            return {topic: (9, 9)[:n] for topic, n in partitions.items()}

    class Empty:
        def __init__(self, *_: object) -> None: ...

        async def __aenter__(self) -> Empty:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def until(self, _: object) -> AsyncIterator[Record]:
            for record in ():
                yield record

    stages = [Stage("work", same, hardware="cpu-1")]
    source = [Topic("posts"), Topic("archive", background=True)]
    pipeline = Pipeline("p", slo="1s", source=source, sink=Topic("out"), stages=stages)
    context: Any = SimpleNamespace(
        source="posts", sinks={"work": "out"}, names=Names("p"), others=("archive",), live={}, entries={"work"},
        entries_of=lambda of: {"work"}, sinks_of=lambda of: ["work"], levels_of=lambda of: 0,
        shape=shape_of(pipeline), topic=lambda stage, of="": of or "posts", kafka=SimpleNamespace(follow=Empty),
        pipeline=pipeline,
    )  # fmt: skip
    offsets: Any = Grown()
    since = LedgerBegin((5, 6), {"work": (0,)}, (0,), (5, 6), ((), ()), {"": 1, "archive": 1})
    ledger = asyncio.run(read_ledger(offsets, context, since, to_committed=True, begin=EndOffsets().begin))
    assert (ledger.ends, ledger.others["archive"].ends) == ((7,), (7,))
    assert asyncio.run(drained(offsets, context, {"work": 2}, (7,)))
    assert not asyncio.run(drained(offsets, context, {"work": 2}, (8,)))


@pytest.mark.parametrize(
    ("topic", "time_s", "rate"),
    [
        (ARCHIVE, 0.0, 0.0),
        (replace(ARCHIVE, rate=3.0), 0.0, 3.0),
        (replace(ARCHIVE, finish_by="1970-01-01T01:00:00Z"), 0.0, 1.1 * 900 / 3600),
        (replace(ARCHIVE, finish_by="1970-01-01T01:00:00Z"), 3000.0, 1.1 * 900 / 600),
        (replace(ARCHIVE, finish_by="1970-01-01T01:00:00Z", rate=3.0), 3000.0, 3.0),
        (replace(ARCHIVE, finish_by="1970-01-01T01:00:00Z"), 9000.0, 1.1 * 900 / 60),  # it should be done by now
    ],
)
def test_what_is_left_and_the_time_left_say_how_fast_a_class_has_to_be_served(
    topic: Topic, time_s: float, rate: float
) -> None:
    of = EventClass(Shape(("a",), ()), {"a": 1}, 1, topic)
    of.offsets["a"].reached(1.0, [1000])
    of.offsets["a"].committed(1.0, [Committed(100)])
    assert of.needed_rate(time_s) == pytest.approx(rate)
    of.offsets["a"].committed(2.0, [Committed(1000)])
    assert of.needed_rate(time_s) == 0.0  # nothing is left


def test_background_events_keep_as_many_replicas_busy_as_they_were_seen_to_take() -> None:
    of = EventClass(Shape(("a",), ()), {"a": 1}, 1, replace(ARCHIVE, rate=10.0))
    of.offsets["a"].reached(1.0, [1000])
    of.offsets["a"].committed(1.0, [Committed(100)])
    reports = PoolReports(Shape(("a",), ()), PipelineProfile({}, Paths((0,), (1.0,))))
    assert background_busy("a", {"archive": of}, reports, 0.05, 0.0) == pytest.approx(0.5)  # as live ones take
    sizes = {"cpu-1": {2: BatchStats(batches=100, service_s=16.0)}}
    served = StageCounts(events=200, busy_s=16.0, batch_stats=sizes)
    reports.add(PoolReport("d", 1, "a", 0, "serving", 1, background={"archive": served}), 1.0)
    assert background_busy("a", {"archive": of}, reports, 0.05, 0.0) == pytest.approx(10 * 16.0 / 200)
    assert "10.0/s for 900 records of archive left" in background_words({"archive": of}, 0.0)


def test_an_event_whose_id_a_producer_of_another_source_has_named_is_accounted_for_by_itself() -> None:
    orders, returns = EventLedger("orders@1", (0,), (1,), topic="orders"), EventLedger("returns@2", (0,), (2,))
    returns.topic = "returns"
    orders.others["returns"] = returns
    orders.entered(Record(None, b"", (), 1000, "orders", 0, 0))
    for offset, forged in enumerate((b"orders@1/0/0", b"order-1")):
        returns.entered(Record(None, b"", ((EVENT_ID, forged),), 1000, "returns", 0, offset))
    for name in (b"returns/orders@1/0/0", b"returns/order-1"):
        orders.of(name).out(Record(None, b"", ((EVENT_ID, name), (ENTRY_TIME, b"1000000")), 2000))
    assert (returns.events_out, returns.lost(), orders.unknown) == (2, (0, []), 0)
    assert orders.lost() == (1, ["orders@1/0/0"])


def test_an_event_is_counted_in_the_ledger_of_its_class() -> None:
    since = LedgerBegin((5, 7, 0), {"work": (0,)}, (0,), (9, 9, 0), partitions={"": 1, "archive": 2})
    assert since.of_class(since.source) == (5,)
    assert since.of_class(since.source, "archive") == (7, 0)
    live = EventLedger("posts@1", (5,), (7,))
    live.others["archive"] = archive = EventLedger("archive@2", (7, 0), (9, 1))
    for ledger, topic, partition, offset in (
        (live, "posts", 0, 5),
        (archive, "archive", 0, 7),
        (archive, "archive", 1, 0),
    ):
        ledger.entered(Record(None, b"", (), 1000, topic, partition, offset))
    archive.entered(Record(None, b"", ((EVENT_ID, b"order-1"),), 1000, "archive", 0, 8))
    for name in (b"posts@1/0/5", b"archive@2/0/7", b"order-1", b"elsewhere/0/1"):
        live.of(name).out(Record(None, b"", ((EVENT_ID, name), (ENTRY_TIME, b"1000000")), 2000))
    assert (live.events_out, live.unknown, len(live.latencies_s)) == (1, 1, 1)
    assert (archive.events_out, archive.unknown) == (2, 0)
    assert archive.lost() == (1, ["archive@2/1/0"])
