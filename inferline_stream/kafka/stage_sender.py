"""Sending on aiokafka: results and reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError, MessageSizeTooLargeError, ProducerFenced
from aiokafka.producer.message_accumulator import BatchBuilder

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import client_options, closed, cut_off, started
from inferline_stream.kafka.hanging_transactions import TransactionalProducer
from inferline_stream.kafka.record_size import record_bytes
from inferline_stream.kafka.records import (
    PRODUCE_BATCH_BYTES,
    TRANSACTION_TIMEOUT_MS,
    Fenced,
    KafkaFailed,
    Message,
    Outgoing,
)

logger = logging.getLogger(__name__)

_PLAIN, _ZSTD = 0, 4

_FEW = 8
"""Fewer records are not compressed: that would cost more time than it saves space."""


class StageSender:
    """Sends results with acks=all and idempotence; within transactions where it has a transactional id.

    Args:
        bootstrap_servers: of the cluster.
        client_id: names the producer in Kafka's logs.
        transactional_id: for exactly-once; used by one process only, and never again.
        packed: topics that are compressed: those of records that say much the same of each event.
    """

    limits: Mapping[str, int]
    """`max.message.bytes` by topic, where it is known: it limits batches, even where each record would fit alone."""

    def __init__(
        self,
        bootstrap_servers: str,
        client_id: str,
        transactional_id: str | None = None,
        *,
        packed: Collection[str] = (),
    ) -> None:
        self.limits = {}
        self._where = bootstrap_servers
        self._packed = packed
        self._options = {
            **client_options(bootstrap_servers),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            "max_batch_size": PRODUCE_BATCH_BYTES,
            "transactional_id": transactional_id,
            "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
            "retry_backoff_ms": 20,
        }
        self.transactional = transactional_id is not None
        self._producer = self._new_producer()

    def _new_producer(self) -> AIOKafkaProducer:
        return (TransactionalProducer if self.transactional else AIOKafkaProducer)(**self._options)

    async def start(self, timeout_s: float) -> None:
        """Connect; a transactional id fences its last producer."""
        await started(self._producer, self._where, timeout_s)

    async def start_again(self, timeout_s: float, partitions: Mapping[str, int], group: str) -> None:
        """Connect as a new producer: what the one before had under way is void. Reads no file, so a seal allows it.

        Args:
            timeout_s: longest wait for the connection, and again for the end of what was left undecided.
            partitions: of each topic that transactions write.
            group: whose offsets they hold.

        Raises:
            Unreachable: no answer in time.
            Fenced: a successor has taken this producer's id.
        """
        await self.stop()
        self._producer = self._new_producer()
        await self.start(timeout_s)
        every = [TopicPartition(topic, number) for topic, count in partitions.items() for number in range(count)]
        try:
            with _translated("a transaction"):
                async with asyncio.timeout(timeout_s):
                    await self._producer.end_hanging(every, group)
        except TimeoutError:
            raise Unreachable(
                f"no transaction over {', '.join(sorted(partitions))} could be ended within {timeout_s:g} s; see that "
                "these topics are there and have leaders"
            ) from None

    def void(self) -> None:
        """Send nothing any more until `start_again`, in transactions: they are void."""
        if self.transactional:
            cut_off(self._producer)

    async def stop(self) -> None:
        """Close the connections, what was sent first."""
        await closed(self._producer)

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
                codec = _ZSTD if topic in self._packed and len(messages) >= _FEW else _PLAIN
                for batch in self._batches(messages, self.limits.get(topic, PRODUCE_BATCH_BYTES), codec):
                    acknowledged.append(await self._producer.send_batch(batch, topic, partition=partition))
            for acknowledgement in acknowledged:
                await acknowledgement

    def _batches(self, messages: Sequence[Message], limit_bytes: int, codec: int) -> Iterator[BatchBuilder]:
        batch = self._new_batch(codec)
        small = limit_bytes < PRODUCE_BATCH_BYTES
        for key, value, headers, timestamp_ms in messages:
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
    """Sends reports; a repeated one does no harm, so this is not idempotent."""

    def __init__(self, bootstrap_servers: str, key: str, timeout_s: float) -> None:
        self._where = bootstrap_servers
        self._producer = AIOKafkaProducer(
            **client_options(bootstrap_servers),
            client_id=f"inferline-report-{key}",
            acks="all",
            request_timeout_ms=round(timeout_s * 1000),
        )
        self._key = key.encode()

    async def start(self, timeout_s: float) -> None:
        """Connect."""
        await started(self._producer, self._where, timeout_s)

    async def stop(self) -> None:
        """Close the connection."""
        await closed(self._producer)

    async def partitions_of(self, topic: str) -> int:
        """Partitions of a topic, which must exist."""
        return len(await self._producer.partitions_for(topic))

    async def send(self, topic: str, report: bytes) -> bool:
        """Send one record, and return whether Kafka acknowledged it."""
        try:
            await self._producer.send_and_wait(topic, report, key=self._key, partition=0)
        except KafkaError as error:
            logger.warning("a record of %s was not acknowledged: %s", topic, error)
            return False
        return True


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """aiokafka's errors as ours."""
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
