"""Clients are closed to their last connection, however their own way of stopping ends."""

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from inferline_stream.errors import Unreachable
from inferline_stream.kafka import topic_state
from inferline_stream.kafka.connection import AGAIN_S, client_options, closed
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import WantedTopic, create_topics
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.testing.kafka import EmbeddedKafka, KafkaServer


async def ends_early() -> None:
    raise asyncio.CancelledError  # what aiokafka raises where a task of its own was cancelled


async def never_ends() -> None:
    await asyncio.Event().wait()


def network_of(client: AIOKafkaConsumer | AIOKafkaProducer):
    return client.client if isinstance(client, AIOKafkaProducer) else client._client


def connections(client: AIOKafkaConsumer | AIOKafkaProducer) -> Iterator[bool]:
    return (connection.connected() for connection in network_of(client)._conns.values())


@pytest.mark.parametrize("stop", [ends_early, never_ends])
@pytest.mark.parametrize("kind", [AIOKafkaConsumer, AIOKafkaProducer])
async def test_no_connection_is_left_open(kind, stop, embedded_broker: KafkaServer) -> None:
    client = kind(**client_options(embedded_broker.bootstrap_servers))
    await client.start()
    await network_of(client).ready(network_of(client).get_random_node())
    properly, client.stop = client.stop, stop
    assert any(connections(client))
    working = client._sender.sender_task if kind is AIOKafkaProducer else client._fetcher._fetch_task
    assert not working.done()
    await closed(client, within_s=0.1)
    await asyncio.wait([working], timeout=5.0)
    assert working.done(), "it would connect again"
    assert not any(connections(client))
    await properly()


@pytest.mark.parametrize("kind", [AIOKafkaConsumer, AIOKafkaProducer])
async def test_a_client_is_stopped_also_where_that_is_cancelled_before_it_begins(kind, embedded_broker) -> None:
    client = kind(**client_options(embedded_broker.bootstrap_servers))
    await client.start()
    closing = asyncio.create_task(closed(client))
    asyncio.get_running_loop().call_soon(closing.cancel)  # after its first step, before that of what it starts
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.sleep(0.01)
    assert client._closed, "aiokafka says that it was left open"
    assert not any(connections(client))


async def test_a_follower_with_a_group_does_not_wait_longer_for_its_offsets_than_it_may(embedded_broker) -> None:
    topic = secrets.token_hex(4)
    await create_topics(embedded_broker.bootstrap_servers, [WantedTopic(topic, 1, "a test's")])
    follower = TopicFollower(embedded_broker.bootstrap_servers, topic, group=topic)
    follower._connect_timeout_s, follower._first_offsets = 0.3, never_ends
    async with asyncio.timeout(20):
        with pytest.raises(Unreachable):
            await follower.__aenter__()
    assert not any(connections(follower._reader._consumer))


async def test_a_follower_whose_every_partition_is_halted_commits_nothing(embedded_broker) -> None:
    topic = secrets.token_hex(4)
    await create_topics(embedded_broker.bootstrap_servers, [WantedTopic(topic, 1, "a test's")])
    async with TopicFollower(embedded_broker.bootstrap_servers, topic, group=topic, gapless=True) as follower:
        follower._halt([0], "a test says so")
        await follower.commit()
        with pytest.raises(Unreachable, match="a test says so"):
            await follower.read()


async def test_a_topic_that_the_broker_has_not_heard_of_yet_is_asked_for_again(embedded_broker, monkeypatch) -> None:
    topic, ask, asked = secrets.token_hex(4), topic_state.topic_states, []

    async def states(client: AIOKafkaClient, topics: list[str]) -> dict[str, topic_state.TopicState]:
        asked.append(topics)
        return await ask(client, topics) if len(asked) > 2 else {}

    monkeypatch.setattr(topic_state, "topic_states", states)
    await create_topics(embedded_broker.bootstrap_servers, [WantedTopic(topic, 3, "a test's")])
    async with Offsets(embedded_broker.bootstrap_servers) as offsets:
        assert (await offsets.state(topic)).partitions == 3


async def test_a_reader_that_is_cancelled_while_it_is_entered_is_closed(embedded_broker: KafkaServer) -> None:
    topic = secrets.token_hex(4)
    await create_topics(embedded_broker.bootstrap_servers, [WantedTopic(topic, 1, "a test's")])
    follower = TopicFollower(embedded_broker.bootstrap_servers, topic)
    asked, properly = asyncio.Event(), follower._first_offsets

    async def first_offsets() -> None:
        await properly()
        asked.set()
        await never_ends()

    follower._first_offsets = first_offsets
    entering = asyncio.create_task(follower.__aenter__())
    async with asyncio.timeout(20):
        await asked.wait()
    assert any(connections(follower._reader._consumer))
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not any(connections(follower._reader._consumer))


async def test_a_request_on_a_connection_that_is_closed_already_is_lost_like_the_connection(
    embedded_broker: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(data: bytes) -> None:
        raise RuntimeError(
            "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
        )  # uvloop's

    async with AIOKafkaConsumer(**client_options(embedded_broker.bootstrap_servers)) as consumer:
        network = consumer._client
        node = network.get_random_node()
        await network.ready(node)
        for connection in network._conns.values():
            monkeypatch.setattr(connection._writer, "write", write)
        with pytest.raises(KafkaConnectionError):
            await network.send(node, MetadataRequest([]))
        assert await network.fetch_all_metadata(), "it connects again"


async def test_a_producer_without_a_leader_and_without_a_broker_asks_a_few_times_a_second(monkeypatch) -> None:
    with EmbeddedKafka() as server:
        await create_topics(server.bootstrap_servers, [topic := WantedTopic(secrets.token_hex(4), 1, "a test's")])
        producer = AIOKafkaProducer(**client_options(server.bootstrap_servers))
        await producer.start()
        await producer.partitions_for(topic.name)
    asked = 0
    update = AIOKafkaClient._metadata_update

    async def counted(*given: Any) -> bool:
        nonlocal asked
        asked += 1
        return await update(*given)

    monkeypatch.setattr(AIOKafkaClient, "_metadata_update", counted)
    for leaders in producer.client.cluster._partitions.values():
        for partition, known in leaders.items():
            leaders[partition] = known._replace(leader=-1)
    await producer.send(topic.name, b"x", partition=0)
    await asyncio.sleep(1.0)
    assert 2 <= asked <= 2 + 1.0 / AGAIN_S
    await closed(producer, within_s=0.1)


async def test_a_fetch_that_waits_for_its_next_try_does_not_keep_a_consumer_from_stopping(
    embedded_broker: KafkaServer,
) -> None:
    consumer = AIOKafkaConsumer(**client_options(embedded_broker.bootstrap_servers))
    await consumer.start()
    await asyncio.sleep(0)  # its task begins by clearing what is pending
    consumer._fetcher._pending_tasks.add(waiting := asyncio.create_task(asyncio.sleep(60)))
    await asyncio.sleep(0)
    await consumer.stop()
    assert waiting.cancelled()
    assert not any(connections(consumer))
