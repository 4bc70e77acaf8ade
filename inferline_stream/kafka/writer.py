"""Writes records on aiokafka: one by one, in batches, or in transactions of one id."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Self

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.transaction_manager import TransactionState

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import (
    STOP_TIMEOUT_S,
    client_options,
    closed,
    cut_off,
    in_time,
    started,
    unreachable,
)
from inferline_stream.kafka.hanging_transactions import TransactionalProducer
from inferline_stream.kafka.records import (
    LIMIT_BYTES,
    PRODUCE_BATCH_BYTES,
    TRANSACTION_TIMEOUT_MS,
    Fenced,
    KafkaFailed,
    Outgoing,
    Record,
    record_bytes,
)

logger = logging.getLogger(__name__)

ANY_PARTITION = -1
"""Of a record that goes where its key says; without one, anywhere."""

_START_S = 10.0
_PLAIN, _ZSTD = 0, 4

_FEW = 8
"""Fewer records are not compressed: that would cost more time than it saves space."""

_TRANSACTION_S = 10.0
"""Longest time that `write` takes; half of it to abort what it could not commit."""

_OUT_OF_STEP = (OutOfOrderSequenceNumber, InvalidTxnState, InvalidProducerIdMapping, UnknownProducerId)
"""Kafka and the producer disagree on what was written: it would refuse whatever this producer writes from now on."""

_ABORTABLE = (TransactionState.IN_TRANSACTION, TransactionState.ABORTABLE_ERROR)
"""States of a producer in which its transaction can be aborted; one that is being committed cannot."""


class Unsettled(Unreachable):
    """The producer is of no more use: whether a transaction was written is not known, or no other would be."""


class Writer:
    """A producer with acks=all: idempotent, or with an id in transactions, where starting it fences the last one.

    `send` takes batches by topic and partition; in transactions, `begin` and `commit` go around it. `write` is a whole
    transaction by itself. `add` and `note` take single records.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        client_id: names the producer in Kafka's logs.
        transactional_id: of one process at a time.
        once: False where a repeated record does no harm.
        packed: topics that `send` compresses: those of records that say much the same of each event.
        limit_bytes: largest batch that the topics of `add` take.
        request_timeout_s: longest wait for Kafka to take a record.

    Raises:
        Unreachable: on entering, Kafka does not answer.
    """

    limits: Mapping[str, int]
    """`max.message.bytes` by topic, where it is known: it limits batches, even where each record would fit alone."""

    def __init__(
        self,
        bootstrap_servers: str,
        client_id: str,
        transactional_id: str | None = None,
        *,
        once: bool = True,
        packed: Collection[str] = (),
        limit_bytes: int = LIMIT_BYTES,
        request_timeout_s: float = 40.0,
    ) -> None:
        self.limits = {}
        self.transactional = transactional_id is not None
        self._where, self._packed = bootstrap_servers, packed
        self._options = {
            **client_options(bootstrap_servers),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": once,
            "max_batch_size": min(PRODUCE_BATCH_BYTES, limit_bytes),
            "max_request_size": max(LIMIT_BYTES, limit_bytes),
            "transactional_id": transactional_id,
            "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
            "request_timeout_ms": round(request_timeout_s * 1000),
            "retry_backoff_ms": 20,
        }
        self._client = self._new_client()
        self._one_at_a_time = asyncio.Lock()

    def _new_client(self) -> AIOKafkaProducer:
        return (TransactionalProducer if self.transactional else AIOKafkaProducer)(**self._options)

    async def __aenter__(self) -> Self:
        await self.start(_START_S, patient=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, timeout_s: float, *, patient: bool = True) -> None:
        """Connect; where it is patient, try again meanwhile: a broker may be restarting."""
        if patient:
            await started(self._client, self._where, timeout_s)
        else:
            await in_time(self._where, self._client.start(), timeout_s, self._client)

    async def stop(self, within_s: float = STOP_TIMEOUT_S) -> None:
        """Close the connections, what was sent first."""
        await closed(self._client, within_s=within_s)

    @property
    def has_ended(self) -> bool:
        """Whether what sends its records has ended on an error of its own."""
        sender = self._client._sender.sender_task
        return sender is not None and sender.done()

    async def partitions_of(self, topic: str) -> int:
        """Partitions of a topic.

        Raises:
            Unreachable: Kafka knows no such topic, or does not say in time.
        """
        try:
            async with asyncio.timeout(_START_S):
                return len(await self._client.partitions_for(topic))
        except (TimeoutError, UnknownTopicOrPartitionError):
            raise Unreachable(f"topic {topic!r}: Kafka has no such topic; create it first") from None

    # Records by themselves

    async def add(self, record: Record) -> asyncio.Future[object]:
        """Hand over a record, and return what is done once Kafka has acknowledged it.

        Waits only while the buffer for its partition (512 KiB) is full.

        Raises:
            KafkaError: it is not taken; so does what is returned.
        """
        key, value, headers, timestamp_ms, topic, partition, _ = record
        if key is None and value is None:  # Kafka takes it, and aiokafka only as a batch
            return await self.add_alone(record)
        sent: asyncio.Future[object] = await self._client.send(
            topic,
            value,
            key=key,
            partition=None if partition == ANY_PARTITION else partition,
            timestamp_ms=timestamp_ms,
            headers=list(headers),
        )
        return sent

    async def add_alone(self, record: Record) -> asyncio.Future[object]:
        """As `add`, in a batch of its own: Kafka refuses a batch as a whole."""
        key, value, headers, timestamp_ms, topic, partition, _ = record
        batch = self._new_batch(_PLAIN)
        batch.append(timestamp=timestamp_ms, key=key, value=value, headers=list(headers))
        batch.close()
        await self._client.partitions_for(topic)
        if partition == ANY_PARTITION:
            partition = self._client._partition(topic, None, key, value, key, value)
        sent: asyncio.Future[object] = await self._client.send_batch(batch, topic, partition=partition)
        return sent

    async def flush(self) -> None:
        """Wait until every record that was handed over has been acknowledged or has failed."""
        await self._client.flush()

    async def note(self, topic: str, key: bytes, value: bytes) -> bool:
        """Write a record into a topic of one partition, and return whether Kafka acknowledged it."""
        try:
            await (await self.add(Record(key, value, topic=topic)))
        except KafkaError as error:
            logger.warning("a record of %s was not acknowledged: %s", topic, error)
            return False
        return True

    # Batches

    async def send(self, outgoing: Outgoing) -> None:
        """Send records and wait until Kafka has acknowledged every one.

        Raises:
            Fenced: a successor has taken this producer's id.
            KafkaFailed: Kafka refuses a record.
        """
        acknowledged = []
        with _translated("a record"):
            for (topic, partition), records in outgoing.items():
                codec = _ZSTD if topic in self._packed and len(records) >= _FEW else _PLAIN
                for batch in self._batches(records, self.limits.get(topic, PRODUCE_BATCH_BYTES), codec):
                    acknowledged.append(await self._client.send_batch(batch, topic, partition=partition))
            for acknowledgement in acknowledged:
                await acknowledgement

    def _batches(self, records: Sequence[Record], limit_bytes: int, codec: int) -> Iterator[BatchBuilder]:
        batch = self._new_batch(codec)
        small = limit_bytes < PRODUCE_BATCH_BYTES
        for key, value, headers, timestamp_ms, _, _, _ in records:
            full = small and batch.record_count() and batch.size() + record_bytes(key, value, headers) > limit_bytes
            if full or batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                batch.close()
                yield batch
                batch = self._new_batch(codec)
                batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers)
        batch.close()
        yield batch

    def _new_batch(self, codec: int) -> BatchBuilder:
        """Return an empty batch; aiokafka's own way knows one codec for all topics."""
        return BatchBuilder(PRODUCE_BATCH_BYTES, codec, is_transactional=self.transactional)

    # Transactions

    async def start_again(self, timeout_s: float, partitions: Mapping[str, int], groups: Collection[str]) -> None:
        """Connect as a new producer: what the one before had under way is void.

        Args:
            timeout_s: longest wait for the connection, and again for the end of what was left undecided.
            partitions: of each topic that transactions write.
            groups: whose offsets they hold.

        Raises:
            Unreachable: no answer in time.
            Fenced: a successor has taken this producer's id.
        """
        await self.stop()
        self._client = self._new_client()
        await self.start(timeout_s)
        every = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]
        try:
            with _translated("a transaction"):
                async with asyncio.timeout(timeout_s):
                    await self._client.end_hanging(every, groups)
        except TimeoutError:
            raise Unreachable(
                f"no transaction over {', '.join(sorted(partitions))} could be ended within {timeout_s:g} s; see that "
                "these topics are there and have leaders"
            ) from None

    def void(self) -> None:
        """Send nothing any more until `start_again`, in transactions: they are void."""
        if self.transactional:
            cut_off(self._client)

    async def begin(self) -> None:
        """Begin a transaction."""
        with _translated("a transaction"):
            await self._client.begin_transaction()

    async def commit(self, offsets: Mapping[str, Mapping[TopicPartition, tuple[int, str]]]) -> None:
        """Make offsets part of the transaction, by group, and commit it.

        Raises:
            Fenced: a successor has taken this producer's id.
        """
        with _translated("a transaction"):
            await self._client.add_offsets(offsets)
            await self._client.commit_transaction()

    async def write(self, records: Iterable[Record]) -> None:
        """Write records in one transaction: all become visible to read_committed readers at once, or none does.

        Raises:
            Fenced: a successor has taken this producer's id.
            Unsettled: the transaction could not be ended, or no other can be; this producer is of no more use.
            Unreachable: Kafka did not answer in time; nothing was written and it may be tried again.
        """
        async with self._one_at_a_time:
            await self._abort("a write before was cancelled")
            try:
                async with asyncio.timeout(_TRANSACTION_S):
                    await self._client.begin_transaction()
                    sent = [await self.add(record) for record in records]
                    for outcome in await asyncio.gather(*sent, return_exceptions=True):
                        if isinstance(outcome, BaseException):
                            raise outcome
                    await self._client.commit_transaction()
            except (ProducerFenced, InvalidProducerEpoch) as error:
                self._forget_transaction()
                raise Fenced(f"fenced: a successor has taken over ({type(error).__name__})") from None
            except (KafkaError, TimeoutError) as error:
                await self._abort(repr(error))
                failed = Unsettled if isinstance(error, _OUT_OF_STEP) else Unreachable
                raise failed(f"Kafka at {self._where} did not take a transaction: {error!r}") from None

    async def _abort(self, cause: str) -> None:
        """Abort the transaction that is open, if one is."""
        state = self._client._txn_manager.state
        if state is TransactionState.READY:
            return
        try:
            if state not in _ABORTABLE:
                raise InvalidTxnState(f"the producer is in state {state.name}")
            async with asyncio.timeout(_TRANSACTION_S / 2):
                await self._client.abort_transaction()
        except (KafkaError, TimeoutError) as error:
            self._forget_transaction()
            raise Unsettled(f"a transaction could not be ended ({cause}, then {error!r})") from None

    def _forget_transaction(self) -> None:
        """Look at the futures that aiokafka leaves failed, or asyncio complains that nobody did."""
        accumulator = self._client._message_accumulator
        left = [batch._drain_waiter for batches in accumulator._batches.values() for batch in batches]
        left.append(self._client._txn_manager.wait_for_transaction_end())
        for future in left:
            if future is not None and future.done() and not future.cancelled():
                future.exception()


async def write_once(bootstrap_servers: str, record: Record) -> None:
    """Write one record, outside any transaction.

    Raises:
        Unreachable: Kafka does not take it in time, or has no such topic.
    """
    writer = Writer(bootstrap_servers, "inferline-writer", once=False, request_timeout_s=_TRANSACTION_S / 2)
    try:
        async with asyncio.timeout(_TRANSACTION_S), writer:
            if record.partition >= await writer.partitions_of(record.topic):
                raise Unreachable(f"it has no partition {record.partition}")
            await (await writer.add(record))
    except (KafkaError, Unreachable, TimeoutError) as error:
        raise await unreachable(
            bootstrap_servers,
            f"Kafka at {bootstrap_servers} did not take a record for {record.topic} ({error or 'no answer'}): "
            "is the pipeline running there, and under this --prefix?",
        ) from None


async def fence(bootstrap_servers: str, transactional_id: str) -> None:
    """End whatever a producer of this id was about to commit: it is aborted, and its producer writes no more.

    Returns once no transaction of the id is pending, so that offsets committed in one can be read.

    Raises:
        Unreachable: Kafka does not answer.
    """
    async with Writer(bootstrap_servers, "inferline-writer", transactional_id, request_timeout_s=_TRANSACTION_S / 2):
        return


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """aiokafka's errors as ours, where none of them is one to try again after."""
    try:
        yield
    except (ProducerFenced, InvalidProducerEpoch) as error:
        raise Fenced("fenced: a successor has taken over") from error
    except MessageSizeTooLargeError as error:
        raise KafkaFailed(
            f"Kafka refuses {what}: it is larger than its topic takes ({error}). Grant DescribeConfigs on the "
            "topics, so that max.message.bytes is known, or set max_bytes of source and sink"
        ) from error
    except KafkaError as error:
        raise KafkaFailed(f"Kafka refuses {what}: {error!r}") from error
