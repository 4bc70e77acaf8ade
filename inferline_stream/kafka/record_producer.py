"""Send records into a topic, each once, without making the caller wait for Kafka."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Self

from aiokafka.errors import KafkaError, KafkaTimeoutError, OutOfOrderSequenceNumber, ProducerClosed, UnknownProducerId

from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.kafka.pipeline_topics import record_rules
from inferline_stream.kafka.records import LIMIT_BYTES, Header, Record
from inferline_stream.kafka.writer import ANY_PARTITION, Writer
from inferline_stream.settings import from_environment

_CLIENTS = 10
"""So many may refuse a record for what came before it. Each such round ends with a record that is refused itself."""


class RecordRefused(InferlineError):
    """Kafka will not take this record, however often it is sent."""


class RecordProducer:
    """Idempotent writers, one after the other where Kafka takes no more of one, and what Kafka has acknowledged.

    Acknowledged means: written by every replica in sync, once, however often the client had to retry.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: that most records are for. Its `max.message.bytes` limits whole batches, and they are kept below it.
    """

    def __init__(self, bootstrap_servers: str, topic: str = "") -> None:
        self.acknowledged = 0
        """Records that are in Kafka."""
        self.failed = 0
        """Records that Kafka refused, or did not acknowledge in time."""
        self.last_error = ""
        """Why the last one failed, in words."""
        self._bootstrap_servers, self._topic = bootstrap_servers, topic
        self._connect_timeout_s = from_environment().connect_timeout_s
        self._writer: Writer | None = None
        self._limits: Mapping[str, int] = {}
        self._renewing, self._one_alone = asyncio.Lock(), asyncio.Lock()
        self._again: set[asyncio.Task[None]] = set()
        """Sending records again that a client refused for what came before them."""
        self._closed = False

    async def __aenter__(self) -> Self:
        if self._topic:
            rules = await record_rules(self._bootstrap_servers, [self._topic], self._connect_timeout_s)
            self._limits = rules.limits
        self._writer = await self._started()
        if self._topic:
            try:
                await self._writer.partitions_of(self._topic)
            except BaseException:
                await self._writer.stop()
                raise
        return self

    async def _started(self) -> Writer:
        writer = Writer(self._bootstrap_servers, "inferline-producer", limit_bytes=self.limit_bytes(self._topic))
        await writer.start(self._connect_timeout_s, patient=False)
        return writer

    async def __aexit__(self, *_: object) -> None:
        """Waits a while for what is still on its way; `flush` waits for all of it."""
        if self._again:
            await asyncio.wait(self._again, timeout=self._connect_timeout_s)
        self._closed = True
        for again in self._again:
            again.cancel()
        await asyncio.gather(*self._again, return_exceptions=True)
        await self._current.stop(self._connect_timeout_s)

    @property
    def _current(self) -> Writer:
        assert self._writer is not None, "used outside its `async with`"
        return self._writer

    def limit_bytes(self, topic: str) -> int:
        """Return the largest batch of one record that a topic takes, where it is known; Kafka's default elsewhere."""
        return self._limits.get(topic, LIMIT_BYTES)

    async def send(
        self, topic: str, value: bytes, *, key: bytes | None = None, timestamp_ms: int | None = None
    ) -> None:
        """Hand one record to the client; returns before Kafka has it. Records of a partition keep their order.

        Waits only while the client's buffer for that partition (512 KiB) is full. Without a key the
        partition is drawn at random. One that Kafka refuses is sent again, behind those that were sent meanwhile, and
        at last by itself: it may have been refused for what came before it, or for another one of its batch.
        """
        record = Record(key, value, (), timestamp_ms, topic, ANY_PARTITION)
        try:
            self._refuse_too_large(record)
            writer = await self._live()
            try:
                sent = await writer.add(record)
            except KafkaError as error:
                self._outcome(record, writer, error)
            else:
                sent.add_done_callback(lambda sent: self._outcome(record, writer, sent.exception()))
        except InferlineError as error:
            self._failed(error)

    async def deliver(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        """Send one record and wait until Kafka has it. Cancelled, the record may get there all the same.

        Raises:
            RecordRefused: it is too large, or may not be written.
            Unreachable: Kafka did not acknowledge it in time.
        """
        await self._deliver(Record(key, value, headers, timestamp_ms, topic, ANY_PARTITION))

    async def _deliver(self, record: Record) -> None:
        try:
            await self._delivered(record)
        except InferlineError as error:
            self._failed(error)
            raise
        self.acknowledged += 1

    async def _delivered(self, record: Record) -> None:
        self._refuse_too_large(record)
        try:
            await self._accepted(record)
        except RecordRefused:  # or another one of its batch is
            async with self._one_alone:
                await self._accepted(record, alone=True)

    async def _accepted(self, record: Record, *, alone: bool = False) -> None:
        error: KafkaError | None = None
        for _ in range(_CLIENTS):
            writer = await self._live()
            try:
                await asyncio.shield(await (writer.add_alone(record) if alone else writer.add(record)))
            except KafkaError as failure:
                error = failure
            else:
                return
            if not self._is_over(writer, error):
                raise _translated(record.topic, writer, error) from None
            await self._renew(writer)
        raise Unreachable(f"topic {record.topic!r}: not acknowledged by {_CLIENTS} clients in turn ({error})")

    def _refuse_too_large(self, record: Record) -> None:
        size, limit_bytes = len(record.key or b"") + len(record.value or b""), self._limits.get(record.topic, math.inf)
        if size > limit_bytes:
            raise RecordRefused(
                f"topic {record.topic!r}: the record has {size} bytes, max.message.bytes is {limit_bytes}; raise that"
            )

    def _is_over(self, writer: Writer, error: BaseException) -> bool:
        """Whether Kafka refuses a record for others: one before it was refused, and Kafka waits for its number."""
        if isinstance(error, ProducerClosed):
            return self._writer is not writer  # another call has seen to that
        return isinstance(error, (OutOfOrderSequenceNumber, UnknownProducerId))

    async def _live(self) -> Writer:
        """Return a writer that sends."""
        writer = self._current
        if writer.has_ended:
            await self._renew(writer)
        return self._current

    async def _renew(self, writer: Writer) -> None:
        """Go on with a writer that numbers its records from the start, unless another call has seen to that."""
        async with self._renewing:
            if self._closed:
                raise Unreachable("the producer is closed")
            if self._writer is writer:
                self._writer = await self._started()
                await writer.stop(self._connect_timeout_s)

    async def flush(self) -> None:
        """Wait until every record has been acknowledged or has failed."""
        while True:
            await self._current.flush()
            await asyncio.sleep(0)  # done callbacks run one turn after the flush's own
            if not self._again:
                return
            await asyncio.wait(self._again)

    def _outcome(self, record: Record, writer: Writer, error: BaseException | None) -> None:
        """Count a record that was sent without waiting, or send it again."""
        if error is None:
            self.acknowledged += 1
            return
        failure = _translated(record.topic, writer, error) if isinstance(error, KafkaError) else error
        if (self._is_over(writer, error) or isinstance(failure, RecordRefused)) and not self._closed:
            again = asyncio.create_task(self._deliver(record))
            self._again.add(again)
            again.add_done_callback(self._sent_again)
        else:
            self._failed(failure)

    def _sent_again(self, task: asyncio.Task[None]) -> None:
        self._again.discard(task)
        if task.cancelled():
            self._failed(Unreachable("the producer was closed before Kafka acknowledged the record"))
        else:
            task.exception()  # which is counted

    def _failed(self, error: BaseException) -> None:
        self.failed += 1
        self.last_error = f"{type(error).__name__}: {error}"


def _translated(topic: str, writer: Writer, error: KafkaError) -> InferlineError:
    if error.retriable or isinstance(error, (KafkaTimeoutError, ProducerClosed)) or writer.has_ended:
        return Unreachable(f"topic {topic!r}: not acknowledged ({error})")
    return RecordRefused(f"topic {topic!r}: Kafka refuses the record ({error})")
