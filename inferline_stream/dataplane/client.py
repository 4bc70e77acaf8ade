"""The seam to the Kafka client: what a replica asks of one, here on aiokafka.

Assignments are manual: every partition of the stage's topic is assigned once and paused, holding one is a seek and a
resume. The assignments topic is read by the same consumer, so that a grant ends the fetch that waits on its broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    CorruptRecordException,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    OffsetOutOfRangeError,
    ProducerFenced,
)

from inferline_stream.dataplane.connecting import client_options, refused, unreachable
from inferline_stream.dataplane.headers import Header
from inferline_stream.errors import InferlineError, Unreachable, UsageError

logger = logging.getLogger(__name__)

PRODUCE_BATCH_BYTES = 512 * 1024
"""Bytes per partition and produce request; a topic's `max.message.bytes` is 1 MiB by default."""

TRANSACTION_TIMEOUT_MS = 15_000
"""A transaction holds sends only, never the stage's work. What a dead replica left open hides what comes after it
from readers for at most this long, if nobody fences it before."""

STOP_TIMEOUT_S = 2.0
"""Longest wait for connections to close."""

ONE_BROKER_WAIT_S = 0.5
"""Longest fetch wait where every partition lives on the broker of the assignments topic: a grant ends it anyway."""

HURRY_S = 0.005
"""Longest fetch wait while a partition is about to be let go by its owner: a fetch under way cannot be joined."""


class Fenced(InferlineError):
    """Another producer has initialised this transactional id: whatever this one does from now on is void."""


class KafkaFailed(InferlineError):
    """Kafka refuses something for good, so that trying again is no use."""


class Message(NamedTuple):
    """One record to send."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp_ms: int | None = None


Outgoing = Mapping[tuple[str, int], Sequence[Message]]
"""Records by topic and partition."""


class Fetched(NamedTuple):
    """What one fetch brought.

    Args:
        records: by partition.
        control: records of the assignments topic.
        positions: next offset of each held partition; beyond its last record where transaction markers follow it.
        lost: partitions out of range, and the offset that Kafka no longer has.
    """

    records: Mapping[int, Sequence[Any]]
    control: Sequence[Any]
    positions: Mapping[int, int]
    lost: Mapping[int, int]


class Reader(Protocol):
    """What reads held partitions of one topic, and the assignments topic, and commits to the stage's group."""

    partitions: int

    async def start(self, timeout_s: float) -> None:
        """Connect and look at the topic; `Unreachable` without an answer in time, or without the topic."""

    async def stop(self) -> None:
        """Close the connections."""

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        """Wait for records, except of partitions that are full."""

    def suspend(self) -> None:
        """Fetch nothing until `hold`, so that it need not wait for a fetch under way."""

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions too, from these offsets; ends `suspend`."""

    def hurry(self, soon: bool) -> None:
        """Whether a partition is to be taken up soon: no fetch then waits for long."""

    def release(self, partitions: Iterable[int]) -> None:
        """Read these partitions no more: none of their records is returned from here on."""

    async def committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Offset and metadata that the group has committed, none of them of a pending transaction."""

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Commit to the group; tries again while the error may pass; `KafkaFailed` where it cannot."""

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Lowest offset that Kafka still has."""

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """End offset now."""

    def offsets_for_transaction(self, offsets: Mapping[int, tuple[int, str]]) -> Any:
        """The same offsets as the `Sender` of the same client wants them; false where there are none."""


class Sender(Protocol):
    """What sends results with acks=all and idempotence; within transactions where it has a transactional id."""

    transactional: bool

    async def start(self, timeout_s: float) -> None:
        """Connect; a transactional id fences whoever had it before."""

    async def stop(self) -> None:
        """Close the connections, what was sent first."""

    async def partitions_of(self, topic: str) -> int:
        """Partitions of a topic, which must exist."""

    async def send(self, outgoing: Outgoing) -> None:
        """Send records and wait for every acknowledgement; `Fenced`, or `KafkaFailed` where one is refused."""

    async def begin(self) -> None:
        """Begin a transaction."""

    async def commit(self, offsets: Any, group: str) -> None:
        """Make a group's offsets part of the transaction, and commit it; `Fenced` or `KafkaFailed`."""


def stage_reader(kafka_client: str, bootstrap_servers: str, *given: Any, **named: Any) -> Reader:
    """A reader on aiokafka or confluent-kafka; the rest as `StageReader` takes it.

    Raises:
        UsageError: confluent-kafka is not installed.
    """
    if kafka_client == "aiokafka":
        return StageReader(bootstrap_servers, *given, **named)
    reader: Reader = _librdkafka().ConfluentReader(bootstrap_servers, *given, **named)
    return reader


def stage_sender(
    kafka_client: str, bootstrap_servers: str, client_id: str, transactional_id: str | None = None
) -> Sender:
    """A sender on aiokafka or confluent-kafka.

    Raises:
        UsageError: confluent-kafka is not installed.
    """
    if kafka_client == "aiokafka":
        return StageSender(bootstrap_servers, client_id, transactional_id)
    sender: Sender = _librdkafka().ConfluentSender(bootstrap_servers, client_id, transactional_id)
    return sender


def check_installed(kafka_client: str) -> None:
    """See early that a client is there.

    Raises:
        UsageError: confluent-kafka is not installed.
    """
    if kafka_client != "aiokafka":
        _librdkafka()


def _librdkafka() -> ModuleType:
    try:
        from inferline_stream.dataplane import librdkafka
    except ImportError:
        raise UsageError(
            "the client confluent needs confluent-kafka: pip install 'inferline-stream[confluent]'"
        ) from None
    return librdkafka


class StageReader:
    """Reads held partitions of one topic, and the assignments topic; commits to the stage's consumer group.

    Args:
        bootstrap_servers: of the cluster.
        topic: the stage's input.
        group: the stage's consumer group.
        assignments: the assignments topic, read from its beginning.
        fetch_wait_s: longest wait of a fetch on brokers without the assignments topic.
        partition_bytes: most bytes that a fetch asks of one partition.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        group: str,
        assignments: str,
        *,
        fetch_wait_s: float,
        partition_bytes: int = 512 * 1024,
    ) -> None:
        self._where = bootstrap_servers
        self._topic = topic
        self._group = group
        self._control = TopicPartition(assignments, 0)
        self._fetch_wait_s = fetch_wait_s
        self._held: set[int] = set()
        self._hurried = False
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap_servers),
            group_id=group,
            client_id=f"inferline-{group}",
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=round(fetch_wait_s * 1000),
            max_partition_fetch_bytes=partition_bytes,
            metadata_max_age_ms=60_000,
        )
        self.partitions = 0

    async def start(self, timeout_s: float) -> None:
        """Connect and look at the topic.

        Raises:
            Unreachable: no answer in time, or the topic does not exist.
        """
        await _started(self._consumer, self._where, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._consumer._client._wait_on_metadata(self._control.topic)
                self.partitions = len(await self._consumer._client._wait_on_metadata(self._topic))
        except (TimeoutError, KafkaError) as error:
            await self.stop()
            raise Unreachable(
                f"topics {self._topic} and {self._control.topic} cannot be read ({error!r}); create them first"
            ) from error
        beginning = await self._consumer.beginning_offsets([self._control])
        # Without a position aiokafka would look for one by itself, which takes 0.1 s: nothing is awaited in between.
        every = [TopicPartition(self._topic, partition) for partition in range(self.partitions)]
        self._consumer.assign([self._control, *every])
        for partition in every:
            self._consumer.seek(partition, 0)
        self._consumer.pause(*every)
        self._consumer.seek(self._control, beginning[self._control])
        self._adapt_wait()
        await self.committed([0])  # finds the group's coordinator before the first grant

    async def stop(self) -> None:
        """Close the connections."""
        await _stopped(self._consumer.stop())

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        """Wait for records, except of partitions that are full.

        Nothing is asked of Kafka between the return of this call and the next await, so a caller that first calls
        `suspend` can change what is held without waiting for a fetch under way.
        """
        wanted: tuple[TopicPartition, ...] = ()
        if full:
            room = self._held.difference(full)
            wanted = (self._control, *(TopicPartition(self._topic, partition) for partition in room))
        try:
            found = await self._consumer.getmany(*wanted, timeout_ms=round(wait_s * 1000))
        except OffsetOutOfRangeError as error:
            return Fetched({}, (), {}, {tp.partition: offset for tp, offset in error.args[0].items()})
        except CorruptRecordException as error:
            logger.warning("records are fetched again: %s", error)
            return Fetched({}, (), {}, {})
        except ConsumerStoppedError:
            raise asyncio.CancelledError from None
        control = found.pop(self._control, ())
        states = self._consumer._subscription.subscription.assignment
        positions = {p: states.state_value(TopicPartition(self._topic, p)).position for p in self._held}
        return Fetched({tp.partition: records for tp, records in found.items()}, control, positions, {})

    def suspend(self) -> None:
        """Fetch nothing until `hold`."""
        self._consumer.pause(self._control, *(TopicPartition(self._topic, partition) for partition in self._held))

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions too, from these offsets; ends `suspend`."""
        for partition, offset in positions.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)
        self._held.update(positions)
        self._adapt_wait()
        self._consumer.resume(self._control, *(TopicPartition(self._topic, partition) for partition in self._held))

    def hurry(self, soon: bool) -> None:
        """Whether a partition is to be taken up soon: no fetch then waits for long."""
        if soon != self._hurried:
            self._hurried = soon
            self._adapt_wait()

    def release(self, partitions: Iterable[int]) -> None:
        """Read these partitions no more."""
        for partition in partitions:
            if partition in self._held:
                self._held.remove(partition)
                self._consumer.pause(TopicPartition(self._topic, partition))

    async def committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Offset and metadata that the group has committed; partitions without are missing."""
        wanted = [TopicPartition(self._topic, partition) for partition in partitions]
        # The public `committed` leaves the metadata out.
        found = await self._consumer._coordinator.fetch_committed_offsets(wanted)
        return {tp.partition: (entry.offset, entry.metadata) for tp, entry in found.items()}

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Commit to the group; tries again for as long as the error is one that may pass.

        Raises:
            KafkaFailed: the group has live members of another kind, or refuses us.
        """
        try:
            await self._consumer.commit({TopicPartition(self._topic, p): entry for p, entry in offsets.items()})
        except CommitFailedError as error:
            raise KafkaFailed(
                f"group {self._group} has members that subscribe to it; they and replicas must not share a group"
            ) from error
        except KafkaError as error:
            raise KafkaFailed(f"group {self._group} refuses a commit: {error!r}") from error

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Lowest offset that Kafka still has."""
        found = await self._consumer.beginning_offsets([TopicPartition(self._topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """End offset now."""
        found = await self._consumer.end_offsets([TopicPartition(self._topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    def offsets_for_transaction(self, offsets: Mapping[int, tuple[int, str]]) -> dict[TopicPartition, tuple[int, str]]:
        """The same offsets as a transaction wants them."""
        return {TopicPartition(self._topic, partition): entry for partition, entry in offsets.items()}

    def _adapt_wait(self) -> None:
        """Where the assignments topic's broker has everything, a grant ends the wait: let idle fetches wait longer."""
        cluster = self._consumer._client.cluster
        leaders = {cluster.leader_for_partition(TopicPartition(self._topic, p)) for p in self._held}
        one_broker = leaders <= {cluster.leader_for_partition(self._control)}
        wait_s = max(self._fetch_wait_s, ONE_BROKER_WAIT_S) if one_broker else self._fetch_wait_s
        wait_s = min(wait_s, HURRY_S) if self._hurried else wait_s
        self._consumer._fetcher._fetch_max_wait_ms = round(wait_s * 1000)


class StageSender:
    """Sends results with acks=all and idempotence; within transactions where it has a transactional id.

    Args:
        bootstrap_servers: of the cluster.
        client_id: names the producer in Kafka's logs.
        transactional_id: for exactly-once; used by one process only, and never again.
    """

    def __init__(self, bootstrap_servers: str, client_id: str, transactional_id: str | None = None) -> None:
        self._where = bootstrap_servers
        self._producer = AIOKafkaProducer(
            **client_options(bootstrap_servers),
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            max_batch_size=PRODUCE_BATCH_BYTES,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            retry_backoff_ms=20,
        )
        self.transactional = transactional_id is not None

    async def start(self, timeout_s: float) -> None:
        """Connect; a transactional id fences whoever had it before."""
        await _started(self._producer, self._where, timeout_s)

    async def stop(self) -> None:
        """Close the connections, what was sent first."""
        await _stopped(self._producer.stop())

    async def partitions_of(self, topic: str) -> int:
        """Partitions of a topic, which must exist."""
        return len(await self._producer.partitions_for(topic))

    async def send(self, outgoing: Outgoing) -> None:
        """Send records and wait until Kafka has acknowledged every one.

        Raises:
            Fenced: a successor has taken this producer's id.
            KafkaFailed: Kafka refuses a record.
        """
        acknowledged = []
        with _translated("a record"):
            for (topic, partition), messages in outgoing.items():
                batch = self._producer.create_batch()
                for key, value, headers, timestamp_ms in messages:
                    if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                        acknowledged.append(await self._producer.send_batch(batch, topic, partition=partition))
                        batch = self._producer.create_batch()
                        batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers)
                batch.close()
                acknowledged.append(await self._producer.send_batch(batch, topic, partition=partition))
            for acknowledgement in acknowledged:
                await acknowledgement

    async def begin(self) -> None:
        """Begin a transaction."""
        with _translated("a transaction"):
            await self._producer.begin_transaction()

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]], group: str) -> None:
        """Make a group's offsets part of the transaction, and commit it.

        Raises:
            Fenced: a successor has taken this producer's id.
        """
        with _translated("a transaction"):
            if offsets:
                await self._producer.send_offsets_to_transaction(offsets, group)
            await self._producer.commit_transaction()


class ReportSender:
    """Sends reports, one at a time; a repeated one does no harm, so it is not idempotent."""

    def __init__(self, bootstrap_servers: str, topic: str, key: str, timeout_s: float) -> None:
        self._where = bootstrap_servers
        self._producer = AIOKafkaProducer(
            **client_options(bootstrap_servers),
            client_id=f"inferline-report-{key}",
            acks="all",
            request_timeout_ms=round(timeout_s * 1000),
        )
        self._topic = topic
        self._key = key.encode()

    async def start(self, timeout_s: float) -> None:
        """Connect."""
        await _started(self._producer, self._where, timeout_s)

    async def stop(self) -> None:
        """Close the connection."""
        await _stopped(self._producer.stop())

    async def send(self, report: bytes) -> bool:
        """Send one report; whether Kafka acknowledged it."""
        try:
            await self._producer.send_and_wait(self._topic, report, key=self._key, partition=0)
        except KafkaError as error:
            logger.warning("report was not acknowledged: %s", error)
            return False
        return True


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """aiokafka's errors as ours."""
    try:
        yield
    except (ProducerFenced, InvalidProducerEpoch) as error:
        raise Fenced("fenced: a successor has taken over") from error
    except KafkaError as error:
        raise KafkaFailed(f"Kafka refuses {what}: {error!r}") from error


async def _stopped(stopping: Awaitable[None]) -> None:
    """Close a client whose broker may be gone."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await asyncio.gather(stopping, return_exceptions=True)  # aiokafka re-raises its own tasks' cancellation
    except TimeoutError as error:
        logger.warning("a connection could not be closed in order: %r", error)


async def _started(client: AIOKafkaConsumer | AIOKafkaProducer, bootstrap_servers: str, timeout_s: float) -> None:
    """Start a client, trying again until the time is up: a broker may be restarting. One that turns us away is not."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await client.start()
        except (KafkaConnectionError, TimeoutError) as error:
            if loop.time() + 0.2 >= deadline or await refused(bootstrap_servers):
                await client.stop()
                raise await unreachable(
                    bootstrap_servers, f"Kafka does not answer within {timeout_s:g} s ({error}); is it running?"
                ) from error
            await asyncio.sleep(0.2)
        else:
            return
