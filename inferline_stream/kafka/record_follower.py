"""Follow a topic from its beginning, or from where this follower's group last committed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError, OffsetOutOfRangeError
from aiokafka.protocol.commit import OffsetCommitRequest

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.committed_offsets import surely_committed
from inferline_stream.kafka.connection import client_options, closed, closed_on_failure, unreachable
from inferline_stream.kafka.fetched_batches import CORRUPT_FETCHES, RECORDS_AT_ONCE, CorruptBatch, corrupt_wait_s
from inferline_stream.kafka.offset_metadata import Committed, decode_metadata, encode_metadata, known_partitions
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, TopicState, recreated, topic_states
from inferline_stream.pipeline.names import event_id_prefix
from inferline_stream.settings import from_environment

logger = logging.getLogger(__name__)

_COMMIT_AGAIN_S = 0.5
_OFFSETS_KEPT_MS = 10 * 365 * 86_400_000
"""How long Kafka keeps what is committed. Unless a commit says so, it forgets the offsets of a group without members
after `offsets.retention.minutes`, a week by default, and a follower that had nothing to read began at the beginning."""

_CREATED_WITHIN_S = 2.0
"""How long a topic that has just been created may be unknown: brokers learn of it one after another."""

_UNSURE_S = 0.5
"""How long a group is asked for offsets that it may have; a new one has none."""

STARTS = ("committed", "earliest", "latest")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    ids_from: str = ""
    """What the ids of the topic's events begin with; see `event_id_prefix`."""


class RecordFollower:
    """Reads every partition of one topic; only records of committed transactions.

    A partition whose committed offset Kafka no longer has, or whose offset is one of a topic of the same name that was
    deleted, is halted: going on anywhere would lose records or repeat them without a word. `start` says where to go on.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: the topic; it must exist.
        group: consumer group that holds how far it has come. The follower takes all partitions itself:
            never run two of one group at once. None for a follower that commits nothing.
        from_end: without a committed offset, begin with what comes from now on.
        start: one of `STARTS`; ``earliest`` and ``latest`` put what was committed aside.
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
        start: str = "committed",
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._group = group
        self._connect_timeout_s = connect_timeout_s
        self._from_end = from_end
        self._start = start
        self._consumer: AIOKafkaConsumer | None = None
        self._state = UNKNOWN_TOPIC
        self._next: dict[int, int] = {}
        """By partition that is read, offset of the next record to return."""
        self._look_every_s, self._look_at_s = from_environment().topic_check_s, 0.0
        self._corrupt = 0
        """Fetches in a row that brought damage."""
        self.halted: dict[int, str] = {}
        """Partitions that are not read any more, and why."""

    async def __aenter__(self) -> Self:
        self._consumer = AIOKafkaConsumer(
            **client_options(self._bootstrap_servers),
            client_id="inferline-follower",
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
        )
        async with closed_on_failure(self._consumer):
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    await self._consumer.start()
                    await self._begin(await self._existing())
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

    async def _existing(self) -> TopicState:
        give_up_s = time.monotonic() + _CREATED_WITHIN_S
        while (state := await self._look()) is None:
            if time.monotonic() > give_up_s:
                raise Unreachable(f"topic {self._topic!r}: Kafka has no such topic; create it first")
            await asyncio.sleep(0.1)
        return state

    async def _look(self) -> TopicState | None:
        self._look_at_s = time.monotonic() + self._look_every_s
        return (await topic_states(self._client._client, [self._topic])).get(self._topic)

    async def _begin(self, state: TopicState) -> None:
        """Find out where to begin, and begin there."""
        self._state = state
        every = range(state.partitions)
        begins = await self._offsets(self._client.beginning_offsets, every)
        ends = await self._offsets(self._client.end_offsets, every)
        committed: dict[int, tuple[int, str]] = {}
        if self._group is not None and self._start == "committed":
            committed = dict(await surely_committed(self._committed, every, _UNSURE_S))
        known = known_partitions(committed.values())
        else_at = ends if self._from_end or self._start == "latest" else begins
        for p in every:
            offset, metadata = committed.get(p, (else_at[p], ""))
            before = decode_metadata(offset, metadata).topic_id
            if p not in committed and p < known:
                self._halt(p, "its group has committed no offset")
            elif state.replaces(before):
                self._halt(p, recreated(before, state.id))
            elif offset < begins[p]:
                self._halt(p, f"Kafka no longer has offset {offset}, but {begins[p]} and those after it")
            else:
                self._next[p] = offset
        if self._group is not None:
            _keep_offsets(self._client._coordinator)
            # aiokafka fails where partitions are assigned again while it looks the coordinator up.
            await self._client._coordinator.ensure_coordinator_known()
        self._assign()

    async def _committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        # The public `committed` leaves the metadata out.
        found = await self._client._coordinator.fetch_committed_offsets([self._tp(p) for p in partitions])
        return {tp.partition: (entry.offset, entry.metadata) for tp, entry in found.items()}

    def _assign(self) -> None:
        """Read the partitions that are not halted, from the next record of each."""
        every = [self._tp(p) for p in range(self._state.partitions)]
        self._client.assign(every)
        for tp in every:
            self._client.seek(tp, self._next.get(tp.partition, 0))
        self._client.pause(*(tp for tp in every if tp.partition not in self._next))

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    async def _offsets(self, ask: Any, partitions: Iterable[int]) -> dict[int, int]:
        found = await ask([self._tp(p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    def _halt(self, partition: int, why: str) -> None:
        """Stop reading a partition: reading on anywhere else would lose records silently."""
        self.halted[partition] = why
        self._next.pop(partition, None)
        if self._client.assignment():
            self._client.pause(self._tp(partition))
        logger.error(
            "%s/%d is halted: %s; start again with --start earliest or latest, or set an offset of group %s",
            self._topic, partition, why, self._group,
        )  # fmt: skip

    async def _look_now_and_then(self) -> None:
        """Find out that the topic was created again, or has more partitions."""
        if time.monotonic() < self._look_at_s:
            return
        try:
            state = await self._look()
        except KafkaError as error:
            logger.warning("topic %s: its state is not known now: %r", self._topic, error)
            return
        if state is None or state.replaces(self._state.id):
            why = "the topic was deleted" if state is None else recreated(self._state.id, state.id)
            for partition in list(self._next):
                self._halt(partition, why)
        elif state.partitions > self._state.partitions:
            added = range(self._state.partitions, state.partitions)
            logger.info("topic %s has %d partitions now", self._topic, state.partitions)
            await self._client._client.force_metadata_update()
            self._next |= await self._offsets(self._client.beginning_offsets, added)
            self._state = state
            self._assign()

    async def batch(self, wait_s: float) -> list[Record]:
        """Records that are there now, at most a fetch's worth; waits up to ``wait_s`` for the first.

        Raises:
            Unreachable: Kafka reports an error that does not pass, or every partition is halted.
        """
        try:
            await self._look_now_and_then()
            if not self._next:
                raise Unreachable(f"topic {self._topic!r}: {'; '.join(sorted(set(self.halted.values())))}")
            fetched = await self._client.getmany(timeout_ms=round(wait_s * 1e3), max_records=RECORDS_AT_ONCE)
        except OffsetOutOfRangeError as error:
            for tp, offset in error.args[0].items():
                self._halt(tp.partition, f"Kafka no longer has offset {offset}")
            return []
        except CorruptRecordException as error:
            await self._after_damage(error)
            return []
        except KafkaError as error:
            raise Unreachable(f"topic {self._topic!r}: cannot be read ({error})") from error
        self._corrupt = 0
        records = []
        ids_from = event_id_prefix(self._topic, self._state.id)
        for partition, messages in fetched.items():
            self._next[partition.partition] = messages[-1].offset + 1
            records += [
                Record(
                    m.partition, m.offset, m.timestamp, m.key, m.value, {k: v or b"" for k, v in m.headers}, ids_from
                )
                for m in messages
            ]
        return records

    async def _after_damage(self, error: CorruptRecordException) -> None:
        """Fetch again after a while, what was dropped with it, too; what stays damaged is halted.

        Raises:
            Unreachable: nothing says which partition is damaged.
        """
        if not isinstance(error, CorruptBatch):  # of a format that no broker of today writes
            raise Unreachable(f"topic {self._topic!r}: records cannot be read ({error})") from error
        self._corrupt += 1
        if self._corrupt >= CORRUPT_FETCHES:
            self._halt(error.partition, f"what Kafka has at offset {error.offset} is corrupt on every fetch")
            self._corrupt = 0
        else:
            logger.warning("topic %s: records are fetched again: %s", self._topic, error)
            await asyncio.sleep(corrupt_wait_s(self._corrupt))
        self._assign()

    async def commit(self) -> None:
        """Commit everything that `batch` has returned so far; while Kafka is away, wait for it.

        Raises:
            Unreachable: Kafka refuses the commit.
        """
        state = self._state
        offsets = {
            self._tp(p): (o, encode_metadata(Committed(o, topic_id=state.id, partitions=state.partitions)))
            for p, o in self._next.items()
        }
        while offsets:
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
        return {p: await self._client.position(self._tp(p)) for p in list(self._next)}

    async def ends(self) -> dict[int, int]:
        """End offset of each partition: one more than its last record of a finished transaction."""
        try:
            found = await self._client.end_offsets([self._tp(p) for p in self._next])
        except KafkaError as error:
            raise Unreachable(f"topic {self._topic!r}: cannot be read ({error})") from error
        return {partition.partition: offset for partition, offset in found.items()}


def _keep_offsets(coordinator: Any) -> None:
    """Let a consumer's commits say how long they are kept: aiokafka has no option for it."""
    send = coordinator._send_req

    async def kept(request: Any) -> Any:
        if isinstance(request, OffsetCommitRequest):
            request._retention_time = _OFFSETS_KEPT_MS
        return await send(request)

    coordinator._send_req = kept
