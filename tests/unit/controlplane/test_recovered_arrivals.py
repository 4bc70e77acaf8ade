"""What a controller takes for recent traffic that another one has written down, by another clock."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from inferline_stream.controlplane.decide.replan import recorded
from inferline_stream.controlplane.observe.collector import Collector, SourceTimestamps
from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.controlplane.observe.recovery import arrivals_between, recover_arrivals
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import ArrivalTicks, encode
from inferline_stream.controlplane.records.record_writers import ArrivalLog
from inferline_stream.dataplane.headers import REPLAY
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID, VERSION, Names
from inferline_stream.pipeline.topology import Pipeline, Topic
from inferline_stream.settings import Settings
from tests.support.emulated_runs import one_stage
from tests.support.virtual_time import run
from tests.unit.controlplane.memory_kafka import MemoryKafka
from tests.unit.controlplane.test_slot_keeper import House

NAMES = Names("p")


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0])
def test_no_arrival_is_of_the_future_and_none_is_counted_twice(ahead_s: float) -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: 100, done=lambda: 0)
    context = PipelineContext(one_stage(), kafka, Settings())
    growth = LogGrowth()

    async def story() -> None:
        await asyncio.sleep(100.0)
        now_s = time.time()
        theirs_ms = [(now_s + ahead_s - second) * 1e3 for second in (10, 5, 1)]
        ticks = ArrivalTicks(theirs_ms[1:], [[50], [100]], [0], theirs_ms[0])
        kafka.append(NAMES.arrivals, encode(ticks), b"posts")
        times = await recover_arrivals(context, kafka, {context.source: 1}, growth)
        loop_s = asyncio.get_running_loop().time()
        assert times.size == 100
        assert times.max() <= loop_s
        assert times.max() - times.min() == pytest.approx(9.0, abs=0.5)
        assert growth.newest_s == loop_s
        assert growth.total == 0, "they came in an earlier term, which has counted them"

    run(story())


ABSURD = [
    ([0.0], [[2**53 - 1]], [2**53 - 2], 0.0),
    ([0.0], [[50]], [50], -(2.0**40)),
    ([2.0**50], [[100]], [100], 0.0),
    ([0.0], [[2**52]], [0], 0.0),
    ([0.0], [[100] * 5000], [0] * 5000, 0.0),
]
"""Times by now, end offsets, those before, the time before."""


@pytest.mark.parametrize("absurd", ABSURD)
def test_a_record_with_absurd_numbers_is_no_part_of_recent_traffic(absurd: Any) -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: 100, done=lambda: 0)
    context = PipelineContext(one_stage(), kafka, Settings())

    async def story() -> None:
        await asyncio.sleep(100.0)
        now_ms = time.time() * 1e3
        times_ms, ends, previous, before_ms = absurd
        ticks = ArrivalTicks([now_ms - 5e3, now_ms - 1e3], [[50], [100]], [0], now_ms - 10e3)
        no_ticks = ArrivalTicks([now_ms + at for at in times_ms], ends, previous, max(0.0, now_ms + before_ms))
        for record in (no_ticks, ticks):
            kafka.append(NAMES.arrivals, encode(record), b"posts")
        times = await recover_arrivals(context, kafka, {context.source: 1}, LogGrowth())
        assert times.size == 100
        assert times.max() - times.min() == pytest.approx(9.0, abs=0.5)

    run(story())


def test_a_partition_that_is_added_while_kafka_is_away_has_its_arrivals_counted() -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: len(kafka.topics["posts"]), done=lambda: 0)
    view = House().view
    view.context = PipelineContext(one_stage(), kafka, Settings())
    view.partitions = {"a": 1}
    ticks = ArrivalLog(NAMES, "posts")
    collector = Collector(view, kafka, ticks, lambda report: None)

    async def story() -> None:
        await collector.begin(AsyncExitStack())
        kafka.append("posts", b"first")
        await collector.sample()
        kafka._partitions = 2
        await collector.lags()  # looks at the topics
        await asyncio.sleep(5.0)
        second = Record(None, b"second", (), int(time.time() * 1e3), "posts", 1, 0)
        kafka.topics["posts"].append(second)
        await collector.sample()
        assert (view.growth.ends, view.growth.newest_s) == ((1, 1), collector.answered_s)
        assert sum(times.size for times in view._blocks) == view.growth.total == 1

    run(story())


def test_what_waits_while_the_first_replica_starts_has_not_stood_still() -> None:
    kafka: Any = MemoryKafka("posts", 8, arrived=lambda: 100, done=lambda: done)
    view, done = House().view, 0
    view.context = PipelineContext(one_stage(), kafka, Settings())
    collector = Collector(view, kafka, ArrivalLog(NAMES, "posts"), lambda report: None)

    async def idle_s() -> tuple[float, ...]:
        await collector.sample()
        await collector.lags()
        now_s = asyncio.get_running_loop().time()
        return view.observation(now_s, {}, {}, {"a": {"cpu": 1}}).stages["a"].partition_idle_s

    async def story() -> None:
        nonlocal done
        await collector.begin(AsyncExitStack())
        await idle_s()
        await asyncio.sleep(60.0)
        assert await idle_s() == (0.0,) * 8
        works = PoolReport("a-0", 1, "a", 0, "serving", 1, replicas=[ReplicaStatus("a-cpu-1", "cpu", "ready")])
        view.reports.add(works, asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)
        done = 1
        assert await idle_s() == (0.0, *(1.0,) * 7)

    run(story())


def test_timestamps_that_are_read_late_make_no_burst_of_the_arrivals_that_are_written_down() -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: len(kafka.topics["posts"]), done=lambda: 0)
    view = House().view
    view.context = PipelineContext(one_stage(arrivals="timestamps"), kafka, Settings())
    view.partitions = {"a": 1}
    ticks = ArrivalLog(NAMES, "posts")
    collector = Collector(view, kafka, ticks, lambda report: None)

    async def looks() -> None:
        for step in (collector.sample, collector.stamped, collector.sample):
            await step()
            await asyncio.sleep(0.02)

    async def story() -> None:
        await asyncio.sleep(100.0)
        await collector.begin(AsyncExitStack())
        await looks()
        began_s = time.time()
        await asyncio.sleep(2.0)  # nobody looks
        for number in range(100):
            kafka.append("posts", b"1", time_s=began_s + number / 50)
        await looks()
        kafka.append("posts", b"1")
        await looks()
        record = ticks.take()
        assert record is not None
        times_s = recorded([record], [1]).arrivals_s
        assert times_s.size == 101
        assert times_s[-1] - times_s[0] == pytest.approx(2.0, abs=0.2)

    run(story())


@pytest.mark.parametrize(("own_times", "counted_s"), [(None, [2, 1, 0]), ("made_at", [4, 2, 1, 0, 0])])
async def test_what_waited_for_long_before_it_was_moved_to_its_class_is_no_burst(
    own_times: str | None, counted_s: list[int]
) -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: 0, done=lambda: 0)
    pipeline = Pipeline(
        "p",
        slo="500ms",
        source=[Topic("posts", timestamp_header=own_times), Topic("premium", slo="200ms", header=("tier", "premium"))],
        sink=Topic("out"),
        stages=one_stage().stages,
    )
    context, version = PipelineContext(pipeline, kafka, Settings()), routes_of(pipeline, "a").version
    async with SourceTimestamps(context, {context.source: 1, "premium": 1}) as stamps:
        now_s = time.time()

        def came(age_s: float, entered_s: float, *own: tuple[str, bytes]) -> None:
            headers = [("tier", b"premium"), (EVENT_ID, b"1"), (ENTRY_TIME, b"%d" % (1e6 * (now_s - entered_s))), *own]
            kafka.topics["premium"].append(
                Record(None, b"1", headers, int(1e3 * (now_s - age_s)), "premium", 0, len(kafka.topics["premium"]))
            )

        moved = (VERSION, version)
        came(300, 300, moved)
        came(4, 50_000, moved)  # by a time at which retention lets it be read
        came(1, 1, moved)
        came(2, 300, (VERSION, b"4.another"))  # a result of another pipeline
        came(300, 300, (REPLAY, b"1"))  # a dead letter that people send again
        arrivals = await stamps.read(0.0)
    assert [round(now_s - time_s) for time_s, _ in arrivals] == counted_s
    assert stamps.counts == [0, len(counted_s)]


async def test_what_came_out_counts_on_where_the_sinks_topic_is_created_again() -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: 0, done=lambda: 0)
    view = House().view
    view.context = PipelineContext(one_stage(), kafka, Settings())
    collector = Collector(view, kafka, ArrivalLog(NAMES, "posts"), lambda report: None)
    await collector.begin(AsyncExitStack())
    counted = []
    for records in (7, 10, 0, 2):
        kafka.topics["out"] = [None] * records
        collector._samples = 0  # of all topics
        await collector.sample()
        counted.append(view.events_out)
    assert counted == [0, 3, 3, 5]


class LargeRecords(MemoryKafka):
    """A source topic with a hundred records of 1 MB, made as they are read."""

    def follow(self, topic: str, start: Any = "earliest", *, committed_only: bool = True) -> Any:
        found = super().follow(topic, start)
        if topic == self.source:
            found.until = self._made
        return found

    async def _made(self, end: Mapping[int, int]) -> AsyncIterator[Record]:
        for offset in range(100):
            yield Record(None, bytes(1_000_000), (), int(time.time() * 1e3), self.source, 0, offset)


async def between(context: PipelineContext) -> None:
    now_s = time.time()
    assert len(await arrivals_between(context, [0], [100], now_s - 9.0, now_s, partitions={context.source: 1})) == 100


async def from_timestamps(context: PipelineContext) -> None:
    async with SourceTimestamps(context, {context.source: 1}) as stamps:
        assert len(await stamps.read(0.0)) == 100


@pytest.mark.parametrize("read", [between, from_timestamps])
async def test_memory_for_arrivals_does_not_grow_with_the_records_size(
    read: Callable[[PipelineContext], Awaitable[None]],
) -> None:
    kafka: Any = LargeRecords("posts", 1, arrived=lambda: 100, done=lambda: 0)
    tracemalloc.start()
    try:
        await read(PipelineContext(one_stage(), kafka, Settings()))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
