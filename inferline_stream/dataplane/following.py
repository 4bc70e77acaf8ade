"""Follow a topic from its beginning, or from where this follower's group last committed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from inferline_stream.dataplane.connecting import client_options, closed, closed_on_failure, unreachable
from inferline_stream.dataplane.fetched_batches import RECORDS_AT_ONCE
from inferline_stream.errors import Unreachable

logger = logging.getLogger(__name__)

_COMMIT_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = field(default_factory=dict)


class RecordFollower:
    """Reads every partition of one topic; only records of committed transactions.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: the topic; it must exist.
        group: consumer group that holds how far it has come. The follower takes all partitions itself:
            never run two of one group at once. None for a follower that commits nothing.
        from_end: without a committed offset, begin with what comes from now on.
        connect_timeout_s: longest wait for Kafka's first answer.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        group: str | None,
        *,
        connect_timeout_s: float = 10.0,
        from_end: bool = False,
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._group = group
        self._connect_timeout_s = connect_timeout_s
        self._from_end = from_end
        self._consumer: AIOKafkaConsumer | None = None
        self._next: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            **client_options(self._bootstrap_servers),
            client_id="inferline-follower",
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="latest" if self._from_end else "earliest",
            isolation_level="read_committed",
        )
        async with closed_on_failure(self._consumer):
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await self._consumer.start()
                    partitions = await self._partitions()
                    self._consumer.assign([TopicPartition(self._topic, p) for p in partitions])
                    for p in partitions:
                        self._next[p] = await self._consumer.position(TopicPartition(self._topic, p))
            except (KafkaError, OSError):
                raise await unreachable(self._bootstrap_servers) from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await closed(self._client)

    @property
    def _client(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "used outside its `async with`"
        return self._consumer

    async def _partitions(self) -> list[int]:
        # The consumer itself learns of a topic's partitions only once it holds one of them.
        admin = AIOKafkaAdminClient(**client_options(self._bootstrap_servers))
        try:
            await admin.start()
            (described,) = await admin.describe_topics([self._topic])
        finally:
            await closed(admin)
        if described["error_code"]:
            raise Unreachable(f"topic {self._topic!r}: Kafka has no such topic; create it first")
        return sorted(partition["partition"] for partition in described["partitions"])

    async def batch(self, wait_s: float) -> list[Record]:
        """Records that are there now, at most a fetch's worth; waits up to ``wait_s`` for the first.

        Raises:
            Unreachable: Kafka reports an error that does not pass.
        """
        try:
            fetched = await self._client.getmany(timeout_ms=round(wait_s * 1e3), max_records=RECORDS_AT_ONCE)
        except KafkaError as error:
            raise Unreachable(f"topic {self._topic!r}: cannot be read ({error})") from error
        records = []
        for partition, messages in fetched.items():
            self._next[partition.partition] = messages[-1].offset + 1
            records += [
                Record(m.partition, m.offset, m.timestamp, m.key, m.value, {k: v or b"" for k, v in m.headers})
                for m in messages
            ]
        return records

    async def commit(self) -> None:
        """Commit everything that `batch` has returned so far; while Kafka is away, wait for it.

        Raises:
            Unreachable: Kafka refuses the commit.
        """
        offsets = {TopicPartition(self._topic, p): o for p, o in self._next.items()}
        while True:
            try:
                await self._client.commit(offsets)
            except KafkaError as error:
                if not error.retriable:
                    raise Unreachable(f"group {self._group!r}: cannot commit ({error})") from error
                logger.warning("group %r: cannot commit yet (%s)", self._group, error)
            else:
                return
            await asyncio.sleep(_COMMIT_AGAIN_S)

    async def positions(self) -> dict[int, int]:
        """By partition, offset of the next record to read.

        It passes over control records of transactions, which have offsets and are never returned.
        """
        return {p: await self._client.position(TopicPartition(self._topic, p)) for p in self._next}

    async def ends(self) -> dict[int, int]:
        """End offset of each partition: one more than its last record of a finished transaction."""
        try:
            found = await self._client.end_offsets([TopicPartition(self._topic, p) for p in self._next])
        except KafkaError as error:
            raise Unreachable(f"topic {self._topic!r}: cannot be read ({error})") from error
        return {partition.partition: offset for partition, offset in found.items()}
