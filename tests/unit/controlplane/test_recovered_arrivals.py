"""What a controller takes for recent traffic that another one has written down, by another clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from inferline_stream.controlplane.observe.collector import Collector
from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.controlplane.observe.recovery import recover_arrivals
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.records.control_records import ArrivalTicks, encode
from inferline_stream.controlplane.records.record_writers import ArrivalLog
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.names import Names
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

    run(story())


def test_a_partition_that_is_added_while_kafka_is_away_has_its_arrivals_counted() -> None:
    kafka: Any = MemoryKafka("posts", 1, arrived=lambda: len(kafka.topics["posts"]), done=lambda: 0)
    view = House().view
    view.context = PipelineContext(one_stage(), kafka, Settings())
    view.partitions = {"a": 1}
    ticks = ArrivalLog(NAMES, "posts")
    collector = Collector(view, kafka, ticks, lambda report: None)

    async def story() -> None:
        await collector.begin()
        kafka.append("posts", b"first")
        await collector.sample()
        kafka._partitions = 2
        await collector.lags()  # looks at the topics
        await asyncio.sleep(5.0)
        second = Record(None, b"second", (), int(time.time() * 1e3), "posts", 1, 0)
        kafka.topics["posts"].append(second)
        await collector.sample()
        assert (view.growth.ends, view.growth.newest_s) == ((1, 1), collector.answered_s)
        assert sum(times.size for times in view._blocks) == 1

    run(story())
