"""Sending on confluent-kafka: records go out in threads of librdkafka's own, requests that block in one of ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from confluent_kafka import KafkaException, Producer

from inferline_stream.dataplane.client import PRODUCE_BATCH_BYTES, TRANSACTION_TIMEOUT_MS, Outgoing
from inferline_stream.dataplane.librdkafka import REQUEST_S, TransactionOffsets, common, topics_known, translated

logger = logging.getLogger(__name__)

_LARGEST_BYTES = 100_000_000  # what a record may have is the topics' business, not the client's

T = TypeVar("T")


class ConfluentSender:
    """Sends results with acks=all and idempotence, within transactions where it has a transactional id."""

    def __init__(self, bootstrap_servers: str, client_id: str, transactional_id: str | None = None) -> None:
        self._where = bootstrap_servers
        settings = {
            **common(bootstrap_servers),
            "client.id": client_id,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 1,  # `flush` does not wait for it; what is handed over together is sent together
            "batch.size": PRODUCE_BATCH_BYTES,
            "message.max.bytes": _LARGEST_BYTES,
            "delivery.report.only.error": True,
            "message.timeout.ms": 60_000,
            "retry.backoff.ms": 20,
        }
        if transactional_id is not None:
            settings["transactional.id"] = transactional_id
            settings["transaction.timeout.ms"] = settings["message.timeout.ms"] = TRANSACTION_TIMEOUT_MS
        self._producer = Producer(settings, logger=logger)
        self._requests = ThreadPoolExecutor(1, thread_name_prefix="kafka-send")
        self._failed: list[Any] = []
        self.transactional = transactional_id is not None

    async def start(self, timeout_s: float) -> None:
        """Connect; a transactional id fences whoever had it before."""
        await topics_known(self._producer, self._where, timeout_s, self._run)
        if self.transactional:
            await self._transact(self._producer.init_transactions, timeout_s)

    async def stop(self) -> None:
        """Close the connections, what was sent first."""
        await self._run(self._producer.flush, 2.0)
        self._requests.shutdown(wait=False)

    async def partitions_of(self, topic: str) -> int:
        """Partitions of a topic, which must exist."""
        found = await self._run(self._producer.list_topics, topic, REQUEST_S)
        return len(found.topics[topic].partitions)

    async def send(self, outgoing: Outgoing) -> None:
        """Send records and wait until Kafka has acknowledged every one; see `client.Sender`."""
        failed = self._report
        produce: Callable[..., None] = self._producer.produce  # declared with headers of a wider, invariant type
        for (topic, partition), messages in outgoing.items():
            for key, value, headers, timestamp_ms in messages:
                while True:
                    try:
                        produce(topic, value, key, partition, failed, None, timestamp_ms or 0, headers)
                        break
                    except BufferError:  # more than librdkafka keeps: let it send some first
                        await self._flush()
                    except KafkaException as error:
                        raise translated(error, "a record") from error
        while await self._flush():
            continue

    def _report(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed.append(error)

    async def _flush(self) -> int:
        """Wait for acknowledgements; returns how many records still wait for theirs."""
        try:
            left = await self._run(self._producer.flush, REQUEST_S)
        except KafkaException as error:
            raise translated(error, "a record") from error
        except SystemError as error:  # a fatal error met the report of a record, and one of them is the cause
            cause = KafkaException(self._failed[0]) if self._failed else error.__cause__
            if isinstance(cause, KafkaException):
                raise translated(cause, "a record") from error
            raise
        if self._failed:
            raise translated(KafkaException(self._failed[0]), "a record")
        return left

    async def begin(self) -> None:
        """Begin a transaction."""
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise translated(error, "a transaction") from error

    async def commit(self, offsets: TransactionOffsets | None, group: str) -> None:
        """Make a group's offsets part of the transaction, and commit it; see `client.Sender`."""
        if offsets:
            await self._transact(self._producer.send_offsets_to_transaction, *offsets, REQUEST_S)
        await self._transact(self._producer.commit_transaction, REQUEST_S)

    async def _transact(self, step: Callable[..., Any], *given: Any) -> None:
        while True:
            try:
                await self._run(step, *given)
            except KafkaException as error:
                if error.args[0].retriable():
                    continue  # the same call goes on where it was
                raise translated(error, "a transaction") from error
            return

    async def _run(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._requests, work, *given)
