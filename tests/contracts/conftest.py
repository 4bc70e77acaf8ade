"""Clients of the Kafka under test, with names of their own and closed in the end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request

from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, topic_states
from inferline_stream.testing.kafka import KafkaServer
from inferline_stream.testing.local_kafka import LocalKafka
from tests.kube.fixtures import make_api
from tests.support.deadlines import until

__all__ = ["make_api"]


class Clients:
    """Starts clients of one Kafka; names topics so that tests do not meet."""

    def __init__(self, bootstrap_servers: str, stack: AsyncExitStack) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._stack = stack
        self._admin: AIOKafkaAdminClient | None = None
        self._raw: AIOKafkaClient | None = None

    async def admin(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
            await self._admin.start()
            self._stack.push_async_callback(self._admin.close)
        return self._admin

    async def topic(self, partitions: int = 1, **settings: str) -> str:
        """A new topic; underscores in the names of settings stand for dots."""
        name = self.unique("topic")
        configs = {key.replace("_", "."): value for key, value in settings.items()}
        admin = await self.admin()
        answer = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
        assert [code for _, code, _ in answer.topic_errors] == [0], answer
        await self.until_partitions(name, partitions)
        return name

    async def until_partitions(self, topic: str, count: int) -> None:
        admin = await self.admin()

        async def all_led() -> bool:
            (described,) = await admin.describe_topics([topic])
            return len([part for part in described["partitions"] if part["leader"] >= 0]) == count

        await until(all_led, f"{topic} has {count} partitions")

    async def grow(self, topic: str, partitions: int) -> None:
        """Give a topic more partitions."""
        admin = await self.admin()
        await admin.create_partitions({topic: NewPartitions(partitions)})
        await self.until_partitions(topic, partitions)

    async def recreate(self, topic: str, partitions: int) -> None:
        """Delete a topic and create one of its name.

        Apache Kafka's broker follows its controller with a delay; what is sent meanwhile goes to the deleted topic.
        """
        admin = await self.admin()
        before = await self._topic_id(topic)
        await admin.delete_topics([topic])

        async def created() -> bool:
            answer = await admin.create_topics([NewTopic(topic, partitions, 1)])
            return [code for _, code, *_ in answer.topic_errors] == [0]

        async def seen() -> bool:
            return await self._topic_id(topic) not in {before, ""}

        await until(created, f"{topic} is created again")
        await until(seen, f"the broker knows the new {topic}")
        await self.until_partitions(topic, partitions)
        parts = [TopicPartition(topic, number) for number in range(partitions)]
        reader = await self.reader(topic, *range(partitions))

        async def empty() -> bool:
            return not any((await reader.end_offsets(parts)).values())

        await until(empty, f"the broker leads the new {topic}")

    async def _topic_id(self, topic: str) -> str:
        client = await self._raw_client()
        try:
            return (await topic_states(client, [topic])).get(topic, UNKNOWN_TOPIC).id
        except KafkaError:  # it has no leader yet
            return ""

    async def producer(self, **options: Any) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, **options)
        self._stack.push_async_callback(_stop, producer)
        async with asyncio.timeout(60):
            await producer.start()
        return producer

    async def consumer(self, *topics: str, **options: Any) -> AIOKafkaConsumer:
        """A consumer that begins with the earliest records and commits only when asked."""
        options = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "fetch_max_wait_ms": 100, **options}
        consumer = AIOKafkaConsumer(*topics, bootstrap_servers=self.bootstrap_servers, **options)
        self._stack.push_async_callback(_stop, consumer)
        async with asyncio.timeout(60):
            await consumer.start()
        return consumer

    async def reader(self, topic: str, *partitions: int, **options: Any) -> AIOKafkaConsumer:
        """A consumer that assigns itself partitions (0 if none is named)."""
        consumer = await self.consumer(**options)
        consumer.assign([TopicPartition(topic, number) for number in partitions or (0,)])
        return consumer

    async def send(self, request: Request[Any]) -> Any:
        """A request as it is, and the broker's answer."""
        client = await self._raw_client()
        return await client.send(client.get_random_node(), request)

    async def _raw_client(self) -> AIOKafkaClient:
        if self._raw is None:
            self._raw = AIOKafkaClient(bootstrap_servers=self.bootstrap_servers)
            await self._raw.bootstrap()
            self._stack.push_async_callback(self._raw.close)
        return self._raw

    @staticmethod
    def unique(kind: str) -> str:
        return f"{kind}-{uuid.uuid4().hex[:12]}"

    @staticmethod
    async def read(consumer: AIOKafkaConsumer, count: int, within_s: float = 60.0) -> list[ConsumerRecord]:
        """The next records; fails if they do not come in time."""
        records: list[ConsumerRecord] = []
        try:
            async with asyncio.timeout(within_s):
                while len(records) < count:
                    records.append(await consumer.getone())
        except TimeoutError:
            pytest.fail(f"{len(records)} records instead of {count} within {within_s} s")
        return records

    @staticmethod
    async def nothing_more(consumer: AIOKafkaConsumer, for_s: float = 0.25) -> None:
        """Fails if a record comes."""
        try:
            async with asyncio.timeout(for_s):
                pytest.fail(f"unexpected {await consumer.getone()}")
        except TimeoutError:
            pass


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    async with asyncio.timeout(60):
        await client.stop()


@pytest.fixture
async def clients(kafka: KafkaServer) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        yield Clients(kafka.bootstrap_servers, stack)


@pytest.fixture
async def apache_clients(apache_kafka: KafkaServer) -> AsyncIterator[Clients]:
    """Clients of Apache Kafka alone."""
    async with AsyncExitStack() as stack:
        yield Clients(apache_kafka.bootstrap_servers, stack)


@pytest.fixture
async def own_clients(own_apache_kafka: LocalKafka) -> AsyncIterator[Clients]:
    """Clients of an Apache Kafka that no other test uses."""
    async with AsyncExitStack() as stack:
        yield Clients(own_apache_kafka.bootstrap_servers, stack)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster (`ray.cluster_utils.Cluster`) that this process has joined; tests may add nodes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")  # tests of other processes would starve actors
        import ray
        from ray.cluster_utils import Cluster

        # Its log monitor would look through all logs of actors ten times a second, until the session ends.
        head = {"num_cpus": 16, "include_dashboard": False, "include_log_monitor": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.connect()
        yield made
        ray.shutdown()
        made.shutdown()
