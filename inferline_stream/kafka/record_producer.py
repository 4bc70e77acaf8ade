"""Send records into a topic, each once, without making the caller wait for Kafka."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)

from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.kafka.connection import client_options, closed, closed_on_failure, unreachable
from inferline_stream.kafka.topics import record_limits

_BUFFER_BYTES = 1 << 19  # per partition; a send waits only once so much is not yet on its way


class RecordRefused(InferlineError):
    """Kafka will not take this record, however often it is sent."""


class RecordProducer:
    """An idempotent producer that counts what Kafka has acknowledged.

    Acknowledged means: written by every replica in sync, once, however often the client had to retry.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: that most records are for. Its `max.message.bytes` limits whole batches, and they are kept below it.
        connect_timeout_s: longest wait for Kafka's first answer.
    """

    def __init__(self, bootstrap_servers: str, topic: str = "", *, connect_timeout_s: float = 10.0) -> None:
        self.acknowledged = 0
        """Records that are in Kafka."""
        self.failed = 0
        """Records that Kafka refused, or did not acknowledge in time."""
        self.last_error = ""
        """Why the last one failed, in words."""
        self._bootstrap_servers, self._topic = bootstrap_servers, topic
        self._connect_timeout_s = connect_timeout_s
        self._producer: AIOKafkaProducer | None = None
        self._limits: Mapping[str, int] = {}
        self._renewing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        if self._topic:
            self._limits = await record_limits(self._bootstrap_servers, [self._topic], self._connect_timeout_s)
        self._producer = await self._started()
        return self

    async def _started(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            **client_options(self._bootstrap_servers),
            client_id="inferline-producer",
            enable_idempotence=True,
            max_batch_size=min(_BUFFER_BYTES, self._limits.get(self._topic, _BUFFER_BYTES)),
        )
        async with closed_on_failure(producer):
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await producer.start()
            except (KafkaError, OSError):
                raise await unreachable(self._bootstrap_servers) from None
        return producer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Waits a while for what is still on its way; `flush` waits for all of it."""
        await closed(self._client, within_s=self._connect_timeout_s)

    @property
    def _client(self) -> AIOKafkaProducer:
        assert self._producer is not None, "used outside its `async with`"
        return self._producer

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has.

        Raises:
            Unreachable: Kafka knows no such topic, or does not say in time.
        """
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return len(await self._client.partitions_for(topic))
        except (TimeoutError, UnknownTopicOrPartitionError):
            raise Unreachable(f"topic {topic!r}: Kafka has no such topic; create it first") from None

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None = None, timestamp_ms: int | None = None
    ) -> None:
        """Hand one record to the client; returns before Kafka has it. Records of a partition keep their order.

        Waits only while the client's buffer for that partition (512 KiB) is full. Without a key the
        partition is drawn at random.
        """
        try:
            sent = await self._client.send(topic, value, key=key, timestamp_ms=timestamp_ms)
        except KafkaError as error:
            self._failed(error)
        else:
            sent.add_done_callback(self._done)

    async def deliver(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Send one record and wait until Kafka has it. Cancelled, the record may get there all the same.

        Raises:
            RecordRefused: it is too large, or may not be written.
            Unreachable: Kafka did not acknowledge it in time.
        """
        size, limit_bytes = len(key or b"") + len(value or b""), self._limits.get(topic, math.inf)
        if size > limit_bytes:
            refused = RecordRefused(
                f"topic {topic!r}: the record has {size} bytes, max.message.bytes is {limit_bytes}; raise that"
            )
            self._failed(refused)
            raise refused
        client = self._client
        try:
            sent = await client.send(topic, value, key=key, timestamp_ms=timestamp_ms, headers=list(headers))
            await asyncio.shield(sent)
        except (OutOfOrderSequenceNumber, ProducerClosed) as error:
            # Kafka has refused a record before this one, and waits for its number; or another call has seen to that.
            if isinstance(error, ProducerClosed) and self._producer is client:
                raise Unreachable(f"topic {topic!r}: not acknowledged ({error})") from None
            await self._renew(client)
            await self.deliver(topic, value, key=key, timestamp_ms=timestamp_ms, headers=headers)
            return
        except KafkaError as error:
            self._failed(error)
            if error.retriable or isinstance(error, KafkaTimeoutError):
                raise Unreachable(f"topic {topic!r}: not acknowledged ({error})") from None
            raise RecordRefused(f"topic {topic!r}: Kafka refuses the record ({error})") from None
        self.acknowledged += 1

    async def _renew(self, client: AIOKafkaProducer) -> None:
        """Go on with a client that numbers its records from the start, unless another call has seen to that."""
        async with self._renewing:
            if self._producer is client:
                self._producer = await self._started()
                await closed(client, within_s=self._connect_timeout_s)

    async def flush(self) -> None:
        """Wait until every record has been acknowledged or has failed."""
        await self._client.flush()
        await asyncio.sleep(0)  # done callbacks run one turn after the flush's own

    def _done(self, sent: asyncio.Future[object]) -> None:
        error = sent.exception()
        if error is None:
            self.acknowledged += 1
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.failed += 1
        self.last_error = f"{type(error).__name__}: {error}"
