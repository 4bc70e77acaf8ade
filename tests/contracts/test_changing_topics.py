"""Topics that grow, or are created again, under a pool; on Apache Kafka and on the embedded broker alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from inferline_stream.dataplane.start_offsets import commit_start_offsets
from inferline_stream.pipeline.version import structure_of
from tests.contracts.pooled import PASSING
from tests.support.director import Director, event_id

OFTEN = {"topic_check_s": 0.2}


def pool(kafka: Any, **options: Any) -> Director:
    return Director(kafka.bootstrap_servers, PASSING, settings=OFTEN, **options)


@pytest.mark.parametrize("slots", [1, 2])
async def test_partitions_that_a_topic_is_given_are_served_from_their_beginning(kafka, clients, slots):
    async with pool(kafka, partitions={"work": 2}) as director:
        source = director.names.topic(director.pipeline.source.name)
        ids = await director.put([b"x"] * 20)
        await director.start(replicas=slots, slots=slots)
        await clients.grow(source, 5)
        await director.producer.client.force_metadata_update()
        director.partitions["work"] = 5
        ids += await director.put([b"%d" % n for n in range(50)], [b"k%d" % n for n in range(50)])
        assert {known.split("/")[1] for known in ids} == {"0", "1", "2", "3", "4"}
        await director.caught_up()
        results = await director.results()
        halted = [report.halted for report in director.reports.values()]
    assert Counter(map(event_id, results)) == Counter(ids)
    assert not any(halted)


async def test_partitions_added_while_nothing_ran_begin_at_their_beginning(kafka, clients):
    async with pool(kafka, partitions={"work": 2}) as director:
        ids = await director.put([b"x"] * 20)
        await director.start()
        await director.caught_up()
        source, prefix = director.names.topic(director.pipeline.source.name), director.prefix
        await director.dispatch("work", 0)
    await clients.grow(source, 4)
    async with pool(kafka, partitions={"work": 4}, prefix=prefix, start=None) as director:
        ids += await director.put([b"%d" % n for n in range(50)], [b"k%d" % n for n in range(50)])
        await commit_start_offsets(
            kafka.bootstrap_servers, director.pipeline, prefix, before=structure_of(director.pipeline)
        )
        await director.start()
        await director.caught_up()
        results = await director.results()
    assert Counter(map(event_id, results)) == Counter(ids)


@pytest.mark.parametrize("running", [True, False])
async def test_a_topic_that_was_created_again_halts_until_someone_says_where_to_go_on(kafka, clients, running):
    async with pool(kafka, partitions={"work": 1}) as director:
        source, prefix = director.names.topic(director.pipeline.source.name), director.prefix
        old = await director.put([b"old"] * 5)
        await director.start()
        await director.caught_up()
        offset = (await committed(director))[0]
        if running:
            await clients.recreate(source, 1)
            await director.until(lambda: "created again" in director.report("work").reason, "the pool is halted")
            assert set(director.report("work").halted) == {0}
    if not running:
        await clients.recreate(source, 1)
    async with pool(kafka, partitions={"work": 1}, prefix=prefix, start=None) as director:
        if not await committed(
            director
        ):  # Apache Kafka forgets the offsets of a topic that is deleted; a mirror may not
            await commit(director, offset)
        new = await director.put([b"new"] * 9)
        assert not set(new) & set(old), "events of both have different ids"
        await director.start()
        await director.until(lambda: set(director.report("work").halted) == {0}, "the partition is halted")
        assert "created again" in director.report("work").reason
        before = len(await director.results())
    async with pool(kafka, partitions={"work": 1}, prefix=prefix, start="earliest") as director:
        await director.start()
        await director.caught_up()
        results = await director.results()
    assert before == 5, "nothing was read meanwhile"
    assert Counter(map(event_id, results)) == Counter([*old, *new])


async def test_a_partition_whose_log_has_become_shorter_than_what_was_committed_halts(kafka):
    """As after the election of a leader that lacked records: what is written there next was never processed."""
    async with pool(kafka, partitions={"work": 1}) as director:
        ids, prefix = await director.put([b"x"] * 5), director.prefix
        await director.start()
        await director.caught_up()
        (end, metadata) = (await committed(director))[0]
    async with pool(kafka, partitions={"work": 1}, prefix=prefix, start=None) as director:
        await commit(director, (end + 3, metadata))
        await director.start()
        await director.until(lambda: set(director.report("work").halted) == {0}, "the partition is halted")
        assert f"no longer has offset {end + 3}" in director.report("work").halted[0]
        ids += await director.put([b"y"] * 2)
    async with pool(kafka, partitions={"work": 1}, prefix=prefix, start=None) as director:
        await commit(director, (end, ""))  # as `--start` with a time does
        await director.start()
        await director.caught_up()
        results = await director.results()
    assert Counter(map(event_id, results)) == Counter(ids)


async def committed(director: Director) -> dict[int, tuple[int, str]]:
    async with reader(director) as consumer:
        found = await consumer._coordinator.fetch_committed_offsets(consumer.assignment())
        return {tp.partition: (entry.offset, entry.metadata) for tp, entry in found.items()}


async def commit(director: Director, entry: tuple[int, str]) -> None:
    async with reader(director) as consumer:
        await consumer.commit(dict.fromkeys(consumer.assignment(), entry))


def reader(director: Director) -> Any:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    routes = director.routes["work"]
    # By itself it would commit its position when it is closed, without the topic's id.
    consumer = AIOKafkaConsumer(
        bootstrap_servers=director.bootstrap_servers, group_id=routes.group, enable_auto_commit=False
    )
    consumer.assign([TopicPartition(routes.input_topic, 0)])
    return consumer
