"""A watched group whose coordinator's log cannot be read: as on the embedded broker, which has none."""

import asyncio
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.embedded_broker.server import EmbeddedBroker
from inferline_stream.kafka import group_watch
from inferline_stream.kafka.group_watch import GroupWatch
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.wire.coordinator_records import CommitRecord
from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.profiler.group_learner import GroupLearner


async def test_another_topic_is_one_until_what_was_committed_of_it_is_deleted():
    async with asyncio.timeout(30.0), EmbeddedBroker() as broker:
        await create_topics(broker.bootstrap_servers, [WantedTopic("posts", 2, "")], replication=1)
        group = ConsumerGroup("enrich", group="enrich-v2", topic="posts")
        async with GroupWatch(broker.bootstrap_servers, [group]) as watch:
            for offset, others in ((5, {"old"}), (None, set()), (6, {"old"})):
                watch._committed(watch._watched["enrich-v2"], CommitRecord("enrich-v2", "old", 0, offset, 1))
                assert watch.other_topics("enrich-v2") == others


async def test_commits_are_dated_by_the_clock_of_looks_also_after_this_host_s_is_set_back(monkeypatch):
    async with asyncio.timeout(30.0), EmbeddedBroker() as broker:
        await create_topics(broker.bootstrap_servers, [WantedTopic("posts", 2, "")], replication=1)
        brokers = time.time
        async with GroupWatch(broker.bootstrap_servers, [ConsumerGroup("enrich", group="g", topic="posts")]) as watch:
            watch._live, watched = True, watch._watched["g"]
            monkeypatch.setattr(group_watch.time, "time", lambda: brokers() - 3600.0)
            made_s = brokers()
            watch._committed(watched, CommitRecord("g", "posts", 0, 5, int(made_s * 1e3)))
            looks = watch.looks()
            look = (await anext(looks))["enrich"]
            await looks.aclose()
    (commit,) = look.commits
    assert commit.at_s == pytest.approx(made_s, abs=1e-2)
    assert look.at_s >= commit.at_s


async def test_commits_and_members_are_asked_for_where_the_log_cannot_be_read():
    async with asyncio.timeout(30.0), EmbeddedBroker() as broker:
        where = broker.bootstrap_servers
        await create_topics(where, [WantedTopic("posts", 2, "")], replication=1)
        group = ConsumerGroup("enrich", group="enrich-v2", topic="posts")
        consumer = AIOKafkaConsumer("posts", bootstrap_servers=where, group_id="enrich-v2", enable_auto_commit=False)
        async with RecordProducer(where) as producer, consumer, GroupWatch(where, [group]) as watch:
            owners, commits, ends = {}, {}, ()
            async for looks in watch.looks():
                look = looks["enrich"]
                owners = next((dict(each.owners) for each in look.assignments), owners)
                commits |= {each.partition: each.offset for each in look.commits}
                if not ends:
                    await producer.send("posts", b"event")
                    (record,) = [r for rs in (await consumer.getmany(timeout_ms=5000)).values() for r in rs]
                    await consumer.commit()
                ends = look.ends
                if commits.get(record.partition) == 1:
                    break

    assert (look.exact, watch.exact) == (False, False)
    assert list(owners.values()) == [frozenset({0, 1})]
    assert sum(ends) == 1


async def test_what_waited_before_it_is_watched_is_as_old_as_its_records_say():
    async with asyncio.timeout(30.0), EmbeddedBroker() as broker:
        where, learner = broker.bootstrap_servers, GroupLearner("enrich")
        await create_topics(where, [WantedTopic("posts", 1, "")], replication=1)
        group = ConsumerGroup("enrich", group="enrich-v2", topic="posts")
        consumer = AIOKafkaConsumer("posts", bootstrap_servers=where, group_id="enrich-v2", enable_auto_commit=False)
        async with AIOKafkaProducer(bootstrap_servers=where) as producer, consumer:
            for age_s in (100.0, 10.0, 10.0):
                await producer.send_and_wait("posts", b"event", timestamp_ms=int((time.time() - age_s) * 1e3))
            posts, taken = TopicPartition("posts", 0), 0
            while not consumer.assignment():
                await asyncio.sleep(0.01)
            await consumer.commit({posts: 0})
            async with GroupWatch(where, [group]) as watch:
                found: list[tuple[float, float]] = []
                async for looks in watch.looks():
                    learner.take(looks["enrich"])
                    found += learner.fresh_latencies_s()
                    if len(found) == taken < 3 and learner._committed.get(0) == taken:
                        taken += 1
                        await consumer.commit({posts: taken})
                    if len(found) == 3:
                        break
    assert [latency_s for latency_s, _ in found] == pytest.approx([100.0, 10.0, 10.0], rel=0.4)
    assert learner.appended == 0
