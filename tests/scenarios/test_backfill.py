"""Classes: two of live events and an archive, each of whose events is worked off once and in topics of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.pipeline_watch import watch_pipeline
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.dead_letters import dead_letters, send_again
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.writer import ANY_PARTITION, Writer
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.testing.kafka import KafkaServer
from tests.support.emulated_runs import emulated_run

ARCHIVED = 300
PREMIUM = 40
FIRST = 1_000_000
"""Number of the first order of the archive; each hundredth, the thirteenth, fails."""


async def fill(run: Run) -> None:
    """Write the archive, a day old."""
    yesterday_ms = round(1e3 * (time.time() - 86_400))
    await create_topics(run.bootstrap_servers, topics_of(run.pipeline, run.records.prefix), replication=1)
    topic = run.records.prefix + "orders-archive"
    async with Writer(run.bootstrap_servers, "archive") as writer:
        for number in range(FIRST, FIRST + ARCHIVED):
            key, value = b"%d" % (number % 20), b'{"number": %d}' % number
            await writer.add(Record(key, value, timestamp_ms=yesterday_ms, topic=topic, partition=ANY_PARTITION))
        await writer.flush()


async def order_premium(run: Run) -> None:
    """Write premium orders while the run is under way."""
    topic = run.records.prefix + "orders-premium"
    async with Writer(run.bootstrap_servers, "premium") as writer:
        for number in range(PREMIUM):
            value = b'{"number": %d}' % (FIRST // 2 + number)
            await writer.add(
                Record(b"k", value, timestamp_ms=round(1e3 * time.time()), topic=topic, partition=ANY_PARTITION)
            )
            await writer.flush()
            await asyncio.sleep(0.02)


async def orders_in(run: Run, topic: str) -> list[int]:
    async with TopicFollower(run.bootstrap_servers, run.records.prefix + topic) as follower:
        records = [record async for record in follower.until(await follower.end())]
    return [json.loads(record.value or b"")["number"] for record in records]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_an_archive_is_worked_off_beside_live_events_of_two_classes(
    delivery: Delivery, embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    folder = Path(__file__).parent / "backfilled"
    chosen = {"levels": [(20, 60)], "probability": {("parse", "check"): 1 / 3}, "delivery": delivery}
    run = emulated_run(folder, embedded_broker.bootstrap_servers, tmp_path, **chosen)
    await fill(run)
    stop = asyncio.Event()
    async with asyncio.timeout(90), open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(stop))
        await order_premium(run)
        view = under_way.controller.view

        async def is_done() -> bool:
            offsets = view.others["orders-archive"].offsets.values()
            return all(history.ends and not any(history.lags()) for history in offsets) and view.events_out > 0

        assert await until(is_done, 60)
        stop.set()
        await feeding
        report = await under_way.report(await under_way.drain())
    of = report.backgrounds["orders-archive"]
    assert (of.events_in, of.events_out, of.completed, of.left) == (ARCHIVED, ARCHIVED - 3, {"dead_lettered": 3}, 0)
    assert report.events_in == report.events_out > PREMIUM
    premium = report.classes["orders-premium"]
    assert (premium.events_in, premium.events_out, premium.slo_s) == (PREMIUM, PREMIUM, 0.3)
    assert report.classes["orders"].events_in == report.events_in - PREMIUM
    state = under_way.controller.state
    assert state is not None
    assert {of.topic: of.events for of in state.classes} == {t: of.events_out for t, of in report.classes.items()}
    assert state.events_in >= report.events_in
    assert FIRST // 2 + PREMIUM - 1 in await orders_in(run, "decisions")
    assert report.lost == report.unknown == 0
    assert report.p99_s is not None
    assert report.p99_s < 5.0  # no event of the archive, which is a day old, is among the latencies
    found = Counter(number for number in await orders_in(run, "decisions") if number >= FIRST)
    assert found.keys() == {number for number in range(FIRST, FIRST + ARCHIVED) if number % 100 != 13}
    assert delivery == "at_least_once" or set(found.values()) == {1}
    letters = await dead_letters(run.bootstrap_servers, run.pipeline, run.records.prefix)
    assert {letter.input_topic for letter in letters} == {run.records.prefix + "orders-archive"}
    again = await send_again(run.bootstrap_servers, run.pipeline, run.records.prefix)
    assert len(again.sent) == 3
    assert len(await orders_in(run, "orders-archive")) == ARCHIVED + 3
    assert await orders_in(run, "backfilled.decide.orders-archive.dlq") == []


async def test_orders_have_the_class_of_their_header_and_count_once_as_traffic_where_they_are_live(
    embedded_broker: KafkaServer, tmp_path: Path
) -> None:
    run = emulated_run(Path(__file__).parent / "mixed", embedded_broker.bootstrap_servers, tmp_path, levels=[(20, 60)])
    stop = asyncio.Event()
    async with asyncio.timeout(90), open_run(run) as under_way:
        await under_way.ready()
        feeding = asyncio.create_task(under_way.fed(stop))
        async with Writer(run.bootstrap_servers, "batch") as writer:
            for number in range(FIRST, FIRST + ARCHIVED + PREMIUM):
                of_class = b"batch" if number < FIRST + ARCHIVED else b"urgent"
                value, headers = b'{"number": %d}' % number, [("priority", of_class)]
                record = Record(b"k", value, headers, topic=run.records.prefix + "orders", partition=ANY_PARTITION)
                await writer.add(record)
            await writer.flush()
        view = under_way.controller.view

        async def is_done() -> bool:
            found = {of: each.offsets["decide"] for of, each in view.others.items()}
            ends = {of: sum(history.ends) for of, history in found.items()}
            lags = [lag for history in found.values() for lag in history.lags()]
            return ends == {"orders-batch": ARCHIVED, "orders-urgent": PREMIUM} and not any(lags)

        async def is_counted() -> bool:  # arrivals are live ones alone, and each is one
            source, offsets = under_way.context.source, under_way.offsets
            ends = await offsets.ends({source: await offsets.partitions(source)})
            state = under_way.controller.state
            return state is not None and state.events_out == state.events_in == sum(ends[source]) - ARCHIVED

        assert await until(is_done, 60)
        stop.set()
        await feeding
        assert await until(is_counted, 30), under_way.controller.state
        async with watch_pipeline(run.pipeline, run.bootstrap_servers, run.records.prefix, run.settings) as observer:
            seen = await observer.look(0.5)
        assert seen.envelope[-1].live <= view.growth.total, "who only watches counts live events alone, too"
        report = await under_way.report(await under_way.drain())
    of = report.backgrounds["orders-batch"]
    assert (of.events_in, of.events_out, of.left) == (ARCHIVED, ARCHIVED, 0)
    assert report.lost == report.unknown == report.duplicated == 0
    urgent = report.classes["orders-urgent"]
    assert (urgent.events_in, urgent.events_out, urgent.slo_s) == (PREMIUM, PREMIUM, 0.3)
    assert report.completed == {"moved": ARCHIVED + PREMIUM}
    assert report.events_out == report.events_in - ARCHIVED - PREMIUM > PREMIUM
    found = Counter(await orders_in(run, "decisions"))
    assert {number: found[number] for number in found if number >= FIRST} == dict.fromkeys(
        range(FIRST, FIRST + ARCHIVED + PREMIUM), 1
    )
