"""What a controller needs of Kafka: write as the one leader, follow small topics, read offsets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.protocol.admin import DeleteGroupsRequest

from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.kafka.connection import client_options, closed, closed_on_failure, started, unreachable
from inferline_stream.kafka.fetched_batches import RECORDS_AT_ONCE
from inferline_stream.kafka.offset_metadata import Committed, decode_metadata
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, topic_states

_REQUEST_TIMEOUT_MS = 5_000
_TRANSACTION_TIMEOUT_MS = 10_000  # a dead leader's open transaction hides what follows it for at most this long


_OUT_OF_STEP = (OutOfOrderSequenceNumber, InvalidTxnState, InvalidProducerIdMapping, UnknownProducerId)
"""Kafka and the producer disagree on what was written: it would refuse whatever this producer writes from now on."""

_ABORTABLE = (TransactionState.IN_TRANSACTION, TransactionState.ABORTABLE_ERROR)
"""States of a producer in which its transaction can be aborted; one that is being committed cannot."""


class LeadershipLost(InferlineError):
    """Another controller has initialised this transactional id: stop leading."""


class Unsettled(Unreachable):
    """The producer is of no more use: whether a transaction was written is not known, or no other would be."""


@dataclass(frozen=True, slots=True)
class Written:
    """A record to write. No value deletes its key from a compacted topic."""

    topic: str
    key: str
    value: bytes | None
    partition: int = 0


@dataclass(frozen=True, slots=True)
class Followed:
    """A record that was read."""

    partition: int
    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    topic: str = ""


class LeaderProducer:
    """Writes in transactions of one id: starting it fences every older producer of that id.

    Args:
        bootstrap_servers: host:port, comma separated.
        transactional_id: of the pipeline's leading controller.

    Raises:
        Unreachable: on entering, Kafka gives no producer id in time.
    """

    def __init__(self, bootstrap_servers: str, transactional_id: str, start_timeout_s: float = 10.0) -> None:
        self._where = bootstrap_servers
        self._start_timeout_s = start_timeout_s
        self._one_at_a_time = asyncio.Lock()
        self._producer = AIOKafkaProducer(
            **client_options(bootstrap_servers),
            transactional_id=transactional_id,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            retry_backoff_ms=50,
        )

    async def __aenter__(self) -> Self:
        async with closed_on_failure(self._producer):
            try:
                async with asyncio.timeout(self._start_timeout_s):
                    await self._producer.start()
            except (KafkaError, TimeoutError) as error:
                raise await unreachable(
                    self._where, f"Kafka at {self._where} gives no transactional producer ({error or 'no answer'})"
                ) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await closed(self._producer)

    async def write(self, records: Iterable[Written]) -> None:
        """All of them become visible to read_committed readers at once, or none does.

        Raises:
            LeadershipLost: fenced.
            Unsettled: the transaction could not be ended, or no other can be; this producer is of no more use.
            Unreachable: Kafka did not answer in time; nothing was written and it may be tried again.
        """
        async with self._one_at_a_time:
            await self._abort("a write before was cancelled")
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_MS / 1e3 * 2):
                    await self._producer.begin_transaction()
                    sent = [
                        await self._producer.send(
                            record.topic, value=record.value, key=record.key.encode(), partition=record.partition
                        )
                        for record in records
                    ]
                    for outcome in await asyncio.gather(*sent, return_exceptions=True):
                        if isinstance(outcome, BaseException):
                            raise outcome
                    await self._producer.commit_transaction()
            except (ProducerFenced, InvalidProducerEpoch) as error:
                self._forget_transaction()
                raise LeadershipLost(f"another controller leads ({type(error).__name__}): this one stops") from None
            except (KafkaError, TimeoutError) as error:
                await self._abort(repr(error))
                failed = Unsettled if isinstance(error, _OUT_OF_STEP) else Unreachable
                raise failed(f"Kafka at {self._where} did not take a transaction: {error!r}") from None

    async def _abort(self, cause: str) -> None:
        """Abort the transaction that is open, if one is."""
        state = self._producer._txn_manager.state
        if state is TransactionState.READY:
            return
        try:
            if state not in _ABORTABLE:
                raise InvalidTxnState(f"the producer is in state {state.name}")
            async with asyncio.timeout(_REQUEST_TIMEOUT_MS / 1e3):
                await self._producer.abort_transaction()
        except (KafkaError, TimeoutError) as error:
            self._forget_transaction()
            raise Unsettled(f"a transaction could not be ended ({cause}, then {error!r})") from None

    def _forget_transaction(self) -> None:
        """Look at the futures that aiokafka leaves failed, or asyncio complains that nobody did."""
        accumulator = self._producer._message_accumulator
        left = [batch._drain_waiter for batches in accumulator._batches.values() for batch in batches]
        left.append(self._producer._txn_manager.wait_for_transaction_end())
        for future in left:
            if future is not None and future.done() and not future.cancelled():
                future.exception()


async def write_once(bootstrap_servers: str, record: Written, timeout_s: float = 10.0) -> None:
    """Write one record, outside any transaction.

    Raises:
        Unreachable: Kafka does not take it in time, or has no such topic.
    """
    producer = AIOKafkaProducer(**client_options(bootstrap_servers), acks="all", request_timeout_ms=_REQUEST_TIMEOUT_MS)
    try:
        async with asyncio.timeout(timeout_s):
            await producer.start()
            if record.partition not in await producer.partitions_for(record.topic):
                raise UnknownTopicOrPartitionError(f"{record.topic} has no partition {record.partition}")
            await producer.send_and_wait(
                record.topic, record.value, key=record.key.encode(), partition=record.partition
            )
    except (KafkaError, TimeoutError) as error:
        raise await unreachable(
            bootstrap_servers,
            f"Kafka at {bootstrap_servers} did not take a record for {record.topic} ({error or 'no answer'}): "
            "is the pipeline running there, and under this --prefix?",
        ) from None
    finally:
        await closed(producer)


async def delete_groups(bootstrap_servers: str, chosen: Callable[[str], bool]) -> None:
    """Delete the consumer groups whose names are chosen; those that still have members stay.

    Raises:
        Unreachable: Kafka does not answer.
    """
    admin = AIOKafkaAdminClient(**client_options(bootstrap_servers), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    try:
        with _translated(bootstrap_servers):
            await admin.start()
            groups = [name for name, *_ in await admin.list_consumer_groups()]
            for group in groups:
                if chosen(group):
                    await admin._send_request(DeleteGroupsRequest([group]), await admin.find_coordinator(group))
    finally:
        await closed(admin, within_s=1.0)


async def fence(bootstrap_servers: str, transactional_id: str) -> None:
    """End whatever a producer of this id was about to commit: it is aborted, and its producer writes no more.

    Returns once no transaction of the id is pending, so that offsets committed in one can be read.

    Raises:
        Unreachable: Kafka does not answer.
    """
    async with LeaderProducer(bootstrap_servers, transactional_id):
        return


class TopicFollower:
    """Reads every partition of a topic from a position of its own; no group, nothing committed.

    Args:
        bootstrap_servers: host:port, comma separated.
        topic: full name.
        start: offsets by partition; ``"beginning"``, ``"end"``; or seconds since the epoch.
        partitions: how many the topic has.
        committed_only: skip records of open and aborted transactions.

    Raises:
        Unreachable: on entering, Kafka does not answer or has no such topic.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        start: Mapping[int, int] | Literal["beginning", "end"] | float = "beginning",
        *,
        partitions: int = 1,
        committed_only: bool = True,
    ) -> None:
        self._where, self._topic, self._start = bootstrap_servers, topic, start
        self._tps = [TopicPartition(topic, p) for p in range(partitions)]
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap_servers),
            enable_auto_commit=False,
            isolation_level="read_committed" if committed_only else "read_uncommitted",
            auto_offset_reset="earliest",
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            retry_backoff_ms=50,
        )

    async def __aenter__(self) -> Self:
        async with closed_on_failure(self._consumer):
            try:
                async with asyncio.timeout(_REQUEST_TIMEOUT_MS / 1e3 * 2):
                    await self._consumer.start()
                    self._consumer.assign(self._tps)
                    for tp, offset in (await self._first_offsets()).items():
                        self._consumer.seek(tp, offset)
            except (KafkaError, TimeoutError) as error:
                raise await unreachable(
                    self._where, f"topic {self._topic} at {self._where} cannot be read: {error!r}"
                ) from None
        return self

    async def _first_offsets(self) -> Mapping[TopicPartition, int]:
        if isinstance(self._start, Mapping):
            return {tp: self._start.get(tp.partition, 0) for tp in self._tps}
        if self._start == "beginning":
            return dict(await self._consumer.beginning_offsets(self._tps))
        ends = dict(await self._consumer.end_offsets(self._tps))
        if self._start == "end":
            return ends
        found = await self._consumer.offsets_for_times(dict.fromkeys(self._tps, int(float(self._start) * 1e3)))
        return {tp: ends[tp] if at is None else at.offset for tp, at in found.items()}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await closed(self._consumer)

    async def read(self, timeout_s: float = 1.0, most: int | None = None) -> list[Followed]:
        """Records that came since the last call, waiting up to ``timeout_s`` for the first; maybe none."""
        try:
            batches = await self._consumer.getmany(timeout_ms=int(timeout_s * 1e3), max_records=most or RECORDS_AT_ONCE)
        except KafkaError as error:
            raise Unreachable(f"topic {self._topic} at {self._where} cannot be read: {error!r}") from None
        return [
            Followed(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers, r.topic)
            for batch in batches.values()
            for r in batch
        ]

    async def position(self) -> dict[int, int]:
        """Next offset to read, by partition."""
        return {tp.partition: await self._consumer.position(tp) for tp in self._tps}

    async def end(self) -> dict[int, int]:
        """End offset now, by partition."""
        with _translated(self._where):
            ends = await self._consumer.end_offsets(self._tps)
        return {tp.partition: offset for tp, offset in ends.items()}

    async def until(self, end: Mapping[int, int], stalled_s: float = 10.0) -> AsyncIterator[Followed]:
        """Every record before these offsets, and those that came along with the last of them.

        Raises:
            Unreachable: nothing came for ``stalled_s`` although there is more.
        """
        heard_s = time.monotonic()
        while any([(await self.position())[p] < offset for p, offset in end.items()]):
            records = await self.read(0.2)
            for record in records:
                yield record
            if records:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > stalled_s:
                raise Unreachable(f"topic {self._topic} at {self._where}: offsets {dict(end)} cannot be read")

    async def read_to(self, end: Mapping[int, int]) -> list[Followed]:
        """The records of `until`, as a list."""
        return [record async for record in self.until(end)]


async def wait_for_kafka(bootstrap_servers: str, timeout_s: float) -> None:
    """Wait until Kafka answers: it may be starting.

    Raises:
        Unreachable: it does not within this time, or turns us away.
    """
    consumer = AIOKafkaConsumer(**client_options(bootstrap_servers), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    await started(consumer, bootstrap_servers, timeout_s)
    await closed(consumer, within_s=1.0)


class OffsetReader:
    """End offsets of topics and committed offsets of groups; on connections where nothing else waits.

    Raises:
        Unreachable: on entering, Kafka does not answer.
    """

    def __init__(self, bootstrap_servers: str, start_timeout_s: float = 10.0) -> None:
        self._where, self._start_timeout_s = bootstrap_servers, start_timeout_s
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap_servers),
            enable_auto_commit=False,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            retry_backoff_ms=50,
        )
        self._admin = AIOKafkaAdminClient(**client_options(bootstrap_servers), request_timeout_ms=_REQUEST_TIMEOUT_MS)
        self._coordinators: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        async with closed_on_failure(self._consumer, self._admin):
            try:
                async with asyncio.timeout(self._start_timeout_s):
                    await self._consumer.start()
                    await self._admin.start()
            except (KafkaError, TimeoutError) as error:
                raise await unreachable(
                    self._where, f"Kafka at {self._where} does not answer: {error or 'timed out'}"
                ) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(closed(self._consumer, within_s=1.0), closed(self._admin, within_s=1.0))

    async def partitions(self, topic: str) -> int:
        """Partitions that a topic has.

        Raises:
            Unreachable: there is no such topic, or no answer.
        """
        with _translated(self._where):
            (described,) = await self._admin.describe_topics([topic])
        if described["error_code"]:
            raise Unreachable(f"Kafka at {self._where} has no topic {topic}")
        return len(described["partitions"])

    async def topic_id(self, topic: str) -> str:
        """Return the id of this incarnation of a topic; empty where there is none.

        Raises:
            Unreachable: no answer.
        """
        with _translated(self._where):
            return (await topic_states(self._consumer._client, [topic])).get(topic, UNKNOWN_TOPIC).id

    async def existing(self, topics: Iterable[str]) -> dict[str, int]:
        """Partitions of those of the topics that exist."""
        wanted = list(topics)
        with _translated(self._where):
            known = set(await self._admin.list_topics())
            described = await self._admin.describe_topics([t for t in wanted if t in known]) if known else []
        return {found["topic"]: len(found["partitions"]) for found in described if found["topic"] in wanted}

    async def ends(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """End offset of each partition, by topic: one request for all of them.

        Args:
            partitions: topic → number of its partitions.

        Raises:
            Unreachable: no answer in time.
        """
        return await self._offsets(self._consumer.end_offsets, partitions)

    async def begins(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Lowest offset that Kafka still has of each partition, by topic.

        Raises:
            Unreachable: no answer in time.
        """
        return await self._offsets(self._consumer.beginning_offsets, partitions)

    async def oldest_s(self, partitions: Mapping[str, int]) -> dict[str, float]:
        """Timestamp of the first record that each topic still has, seconds since the epoch; empty topics are left out.

        Raises:
            Unreachable: no answer in time.
        """
        with _translated(self._where):
            found = await self._consumer.offsets_for_times(
                {TopicPartition(topic, p): 0 for topic, n in partitions.items() for p in range(n)}
            )
        times = [(tp.topic, at.timestamp / 1e3) for tp, at in found.items() if at is not None]
        return {topic: min(s for of, s in times if of == topic) for topic, _ in times}

    async def _offsets(
        self,
        ask: Callable[[list[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
        partitions: Mapping[str, int],
    ) -> dict[str, tuple[int, ...]]:
        wanted = [TopicPartition(topic, p) for topic, n in partitions.items() for p in range(n)]
        with _translated(self._where):
            found = await ask(wanted)
        return {topic: tuple(found[TopicPartition(topic, p)] for p in range(n)) for topic, n in partitions.items()}

    async def committed(self, group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
        """What the group has committed of each partition; offset -1 where it has nothing.

        Raises:
            Unreachable: no answer in time.
        """
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        give_up_s = time.monotonic() + _REQUEST_TIMEOUT_MS / 1e3
        with _translated(self._where):
            while True:
                try:
                    if group not in self._coordinators:
                        self._coordinators[group] = await self._admin.find_coordinator(group)
                    found = await self._admin.list_consumer_group_offsets(group, self._coordinators[group], tps)
                    break
                except KafkaError as error:  # a new cluster's first coordinator takes a moment; they also move
                    self._coordinators.pop(group, None)
                    if not error.retriable or time.monotonic() > give_up_s:
                        raise
                    await asyncio.sleep(0.1)
        known = {tp.partition: decode_metadata(at.offset, at.metadata or "") for tp, at in found.items()}
        return tuple(known.get(p, Committed(-1)) for p in range(partitions))


class _translated:
    """aiokafka's errors as ours."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KafkaError | TimeoutError | OSError):
            raise Unreachable(f"Kafka at {self._where} does not answer: {error!r}") from None
