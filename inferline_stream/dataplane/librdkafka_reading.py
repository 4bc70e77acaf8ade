"""Reading on confluent-kafka: librdkafka fetches and decodes record batches in threads of its own.

One thread of ours polls the consumer and executes everything that is asked of it between two polls, so that whatever
it hands over is known to belong to the assignment of that moment. Blocking requests, of a second, idle consumer, run in
another thread.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from inferline_stream.dataplane.client import Fetched, KafkaFailed
from inferline_stream.dataplane.headers import Header
from inferline_stream.dataplane.librdkafka import REQUEST_S, TransactionOffsets, common, may_pass, topics_known
from inferline_stream.errors import Unreachable

logger = logging.getLogger(__name__)

POLL_S = 0.005
"""Longest wait for a record before commands are looked at: it bounds how late a grant or a release begins."""

PREFETCH_KBYTES = 8192
"""Records that librdkafka keeps ahead of us at most; as much again may wait to be taken."""

_RECORDS = 1000
_LOST = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET)

T = TypeVar("T")


class Record(NamedTuple):
    """A record as the data plane reads it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[Header]


class _Polled(NamedTuple):
    """What one poll brought; records by partition, each with the number of the hold that it belongs to."""

    records: dict[int, tuple[int, list[Record]]]
    control: list[Record]
    positions: dict[int, tuple[int, int]]
    lost: dict[int, tuple[int, int]]


class ConfluentReader:
    """Reads held partitions of one topic, and assignments and handovers; see `client.Reader`.

    A fetch under way cannot be joined, so every fetch waits for no longer than ``fetch_wait_s``.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        group: str,
        assignments: str,
        handovers: str,
        *,
        fetch_wait_s: float,
        partition_bytes: int = 512 * 1024,
    ) -> None:
        self._where = bootstrap_servers
        self._topic, self._group, self._assignments, self._handovers = topic, group, assignments, handovers
        settings = {
            **common(bootstrap_servers),
            "group.id": group,
            "client.id": f"inferline-{group}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
        }
        reading = {
            "enable.partition.eof": True,
            "fetch.wait.max.ms": round(fetch_wait_s * 1000),
            "fetch.message.max.bytes": partition_bytes,
            "fetch.error.backoff.ms": 20,
            "queued.max.messages.kbytes": PREFETCH_KBYTES,
            # While records wait to be taken, the next are asked for a moment later and come together: a request for
            # each costs the broker and us more than all else.
            "queued.min.messages": 1,
            "fetch.queue.backoff.ms": 2,
        }
        self._consumer = Consumer({**settings, **reading}, logger=logger)
        self._offsets = Consumer(settings, logger=logger)
        self._requests = ThreadPoolExecutor(1, thread_name_prefix="kafka-offsets")
        self._commands: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._poll_for_ever, name="kafka-poll", daemon=True)
        self._polled: _Polled | None = None
        self._taken, self._stopping = threading.Event(), False
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holds: dict[int, int] = {}
        self._number = 0
        self._paused: set[int] = set()
        self._failure: KafkaFailed | None = None
        # Of the polling thread alone:
        self._held: dict[int, int] = {}
        self._at: dict[int, int] = {}
        self.partitions = 0

    async def start(self, timeout_s: float) -> None:
        """Connect and look at the topic; see `client.Reader.start`."""
        self._loop = asyncio.get_running_loop()
        topics = await topics_known(self._offsets, self._where, timeout_s, self._run)
        missing = [topic for topic in (self._topic, self._assignments, self._handovers) if topic not in topics]
        if missing:
            await self.stop()
            raise Unreachable(f"topics {' and '.join(missing)} cannot be read; create them first")
        self.partitions = topics[self._topic]
        try:
            first, _ = (await self._watermarks(self._assignments, [0], timeout_s))[0]
            _, next_handover = (await self._watermarks(self._handovers, [0], timeout_s))[0]
        except KafkaFailed as error:
            raise Unreachable(str(error)) from error
        control = [TopicPartition(self._assignments, 0, first), TopicPartition(self._handovers, 0, next_handover)]
        self._commands.put(lambda: self._consumer.assign(control))
        self._thread.start()

    async def stop(self) -> None:
        """Close the connections."""
        self._stopping = True
        self._taken.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, REQUEST_S)
        await self._run(self._close)
        self._requests.shutdown(wait=False)

    def _close(self) -> None:
        self._consumer.close()
        self._offsets.close()

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        """Wait for records, except of partitions that are full."""
        self._pause(full)
        if self._polled is None:
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            except TimeoutError:
                return Fetched({}, (), {}, {})
        if self._failure is not None:
            raise self._failure
        polled, self._polled = self._polled, None
        self._taken.set()
        if polled is None:
            return Fetched({}, (), {}, {})
        holds = self._holds
        return Fetched(
            {p: found for p, (hold, found) in polled.records.items() if holds.get(p) == hold},
            polled.control,
            {p: position for p, (hold, position) in polled.positions.items() if holds.get(p) == hold},
            {p: offset for p, (hold, offset) in polled.lost.items() if holds.get(p) == hold},
        )

    def suspend(self) -> None:
        """Nothing to do: what is fetched of partitions that are let go in the meantime is never returned."""

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions too, from these offsets."""
        for partition, offset in positions.items():
            self._number += 1
            self._holds[partition] = self._number
            self._commands.put(lambda p=partition, o=offset, n=self._number: self._begin(p, o, n))  # type: ignore[misc]

    def release(self, partitions: Iterable[int]) -> None:
        """Read these partitions no more."""
        for partition in partitions:
            if self._holds.pop(partition, None) is not None:
                self._paused.discard(partition)
                self._commands.put(lambda p=partition: self._end(p))  # type: ignore[misc]

    async def committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Offset and metadata that the group has committed; partitions without are missing."""
        wanted = [TopicPartition(self._topic, partition) for partition in partitions]
        while True:
            try:
                found = await self._run(self._offsets.committed, wanted, REQUEST_S)
            except KafkaException as error:
                await self._again(error, "to tell its offsets")
                continue
            return {tp.partition: (tp.offset, tp.metadata or "") for tp in found if tp.offset >= 0}

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Commit to the group; tries again for as long as the error is one that may pass; see `client.Reader`."""
        entries = self._entries(offsets)
        while True:
            try:
                done = await self._run(lambda: self._offsets.commit(offsets=entries, asynchronous=False))
            except KafkaException as error:
                await self._again(error, "a commit")
                continue
            refusals = [tp.error for tp in done if tp.error is not None]
            if not refusals:
                return
            await self._again(KafkaException(refusals[0]), "a commit")

    async def _again(self, error: KafkaException, what: str) -> None:
        """Wait a moment before the next try, if there is to be one."""
        reason = error.args[0]
        if reason.code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION):
            raise KafkaFailed(
                f"group {self._group} has members that subscribe to it; they and replicas must not share a group"
            ) from error
        if not may_pass(reason):
            raise KafkaFailed(f"group {self._group} refuses {what}: {reason}") from error
        await asyncio.sleep(0.05)

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Lowest offset that Kafka still has."""
        return {p: low for p, (low, _) in (await self._watermarks(self._topic, partitions)).items()}

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """End offset now."""
        return {p: high for p, (_, high) in (await self._watermarks(self._topic, partitions)).items()}

    async def _watermarks(
        self, topic: str, partitions: Iterable[int], timeout_s: float = REQUEST_S
    ) -> dict[int, tuple[int, int]]:
        """Lowest and next offset; a topic that has just been created has no leader for a moment."""

        wanted = tuple(partitions)
        deadline_s = time.monotonic() + timeout_s

        def ask() -> dict[int, tuple[int, int]]:
            left_s = max(0.1, min(REQUEST_S, deadline_s - time.monotonic()))
            return {p: self._offsets.get_watermark_offsets(TopicPartition(topic, p), left_s) for p in wanted}

        while True:
            try:
                return await self._run(ask)
            except KafkaException as error:
                if not may_pass(error.args[0]) or time.monotonic() >= deadline_s:
                    raise KafkaFailed(f"offsets of topic {topic} cannot be read: {error.args[0]}") from error
                await asyncio.sleep(0.05)

    def offsets_for_transaction(self, offsets: Mapping[int, tuple[int, str]]) -> TransactionOffsets | None:
        """The same offsets as a transaction wants them; None where there are none."""
        if not offsets:
            return None
        return TransactionOffsets(self._entries(offsets), self._offsets.consumer_group_metadata())

    def _entries(self, offsets: Mapping[int, tuple[int, str]]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, p, offset, metadata) for p, (offset, metadata) in offsets.items()]

    def _pause(self, full: Collection[int]) -> None:
        wanted = self._holds.keys() & set(full)
        for change, partitions in (("pause", wanted - self._paused), ("resume", self._paused - wanted)):
            if partitions:
                tps = [TopicPartition(self._topic, p) for p in partitions]
                self._commands.put(lambda c=change, t=tps: getattr(self._consumer, c)(t))  # type: ignore[misc]
        self._paused = set(wanted)

    async def _run(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._requests, work, *given)

    # In the polling thread

    def _poll_for_ever(self) -> None:
        while not self._stopping:
            try:
                self._execute()
                first = self._consumer.poll(POLL_S)
                if first is None:
                    continue
                polled = self._sorted([first, *self._consumer.consume(_RECORDS, 0)])
            except (KafkaException, RuntimeError) as error:
                self._failure = KafkaFailed(f"Kafka refuses to be read: {error}")
                self._tell()
                return
            if not any(polled):  # the end of a partition, again: not worth waking the event loop
                continue
            self._taken.clear()
            self._polled = polled
            self._tell()
            while not self._taken.wait(POLL_S) and not self._stopping:
                self._execute()  # a release must not wait until records are taken

    def _tell(self) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._arrived.set)
        except RuntimeError:  # the loop is closed: we are leaving
            self._stopping = True

    def _execute(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _begin(self, partition: int, offset: int, hold: int) -> None:
        self._held[partition], self._at[partition] = hold, offset
        self._consumer.incremental_assign([TopicPartition(self._topic, partition, offset)])

    def _end(self, partition: int) -> None:
        self._held.pop(partition, None)
        self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def _sorted(self, messages: list[Any]) -> _Polled:
        polled = _Polled({}, [], {}, {})
        found: dict[int, list[Record]] = defaultdict(list)
        for message in messages:
            error, partition = message.error(), message.partition()
            if error is None:
                record = Record(
                    message.topic(),
                    partition,
                    message.offset(),
                    message.timestamp()[1],
                    message.key(),
                    message.value(),
                    message.headers() or [],
                )
                if record.topic == self._topic:
                    found[partition].append(record)
                else:
                    polled.control.append(record)
            elif message.topic() != self._topic or partition not in self._held:
                logger.debug("%s", error)
            elif error.code() == KafkaError._PARTITION_EOF:
                if message.offset() > self._at[partition]:
                    self._at[partition] = message.offset()
                    polled.positions[partition] = (self._held[partition], message.offset())
            elif error.code() in _LOST:
                polled.lost[partition] = (self._held[partition], message.offset())
            else:
                logger.warning("%s/%d: %s", self._topic, partition, error)
        for partition, records in found.items():
            if partition in self._held:
                polled.records[partition] = (self._held[partition], records)
                self._at[partition] = max(self._at[partition], records[-1].offset + 1)
                polled.positions[partition] = (self._held[partition], self._at[partition])
        return polled
