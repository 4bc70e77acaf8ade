"""The same seam on confluent-kafka: librdkafka fetches, sends and decodes record batches in threads of its own.

One thread of ours polls the consumer and executes everything that is asked of it between two polls, so that whatever
it hands over is known to belong to the assignment of that moment. Blocking requests of the producer, and of a second,
idle consumer for offsets, run in another thread.
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

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from inferline_stream.dataplane.client import (
    PRODUCE_BATCH_BYTES,
    TRANSACTION_TIMEOUT_MS,
    Fenced,
    Fetched,
    KafkaFailed,
    Outgoing,
)
from inferline_stream.dataplane.connecting import hosts, refused, security_of, unreachable
from inferline_stream.dataplane.headers import Header
from inferline_stream.errors import Unreachable

logger = logging.getLogger(__name__)

POLL_S = 0.005
"""Longest wait for a record before commands are looked at: it bounds how late a grant or a release begins."""

PREFETCH_KBYTES = 8192
"""Records that librdkafka keeps ahead of us; as much again may wait to be taken."""

REQUEST_S = 10.0
"""Longest wait for one answer."""

_LARGEST_BYTES = 100_000_000  # what a record may have is the topics' business, not the client's
_RECORDS = 1000
_LOST = (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET)
_FENCED = (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED)

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


class TransactionOffsets(NamedTuple):
    """Offsets, and the group they are of, as a transaction wants them."""

    positions: list[TopicPartition]
    group: Any


class _Polled(NamedTuple):
    """What one poll brought; records by partition, each with the number of the hold that it belongs to."""

    records: dict[int, tuple[int, list[Record]]]
    control: list[Record]
    positions: dict[int, tuple[int, int]]
    lost: dict[int, tuple[int, int]]


class ConfluentReader:
    """Reads held partitions of one topic, and the assignments topic; see `client.Reader`.

    A fetch under way cannot be joined, so every fetch waits for no longer than ``fetch_wait_s``.
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
        self._topic, self._group, self._control = topic, group, assignments
        common = {
            **_common(bootstrap_servers),
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
        }
        self._consumer = Consumer({**common, **reading}, logger=logger)
        self._offsets = Consumer(common, logger=logger)
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
        topics = await _metadata(self._offsets, self._where, timeout_s, self._run)
        missing = [topic for topic in (self._topic, self._control) if topic not in topics]
        if missing:
            await self.stop()
            raise Unreachable(f"topics {' and '.join(missing)} cannot be read; create them first")
        self.partitions = topics[self._topic]
        first = await self._first_assignment(timeout_s)
        self._commands.put(lambda: self._consumer.assign([TopicPartition(self._control, 0, first)]))
        self._thread.start()

    async def _first_assignment(self, timeout_s: float) -> int:
        """Lowest offset of the assignments topic; a topic that has just been created has no leader for a moment."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                ask = self._offsets.get_watermark_offsets
                first, _ = await self._run(ask, TopicPartition(self._control, 0), REQUEST_S)
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() >= deadline_s:
                    raise Unreachable(f"topic {self._control} cannot be read: {error.args[0]}") from error
                await asyncio.sleep(0.05)
            else:
                return int(first)

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

    def hurry(self, soon: bool) -> None:
        """Nothing to do: fetches wait for the same short time always."""

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
        passing = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._WAIT_COORD)
        if not (reason.retriable() or reason.code() in (*passing, KafkaError.NOT_COORDINATOR)):
            raise KafkaFailed(f"group {self._group} refuses {what}: {reason}") from error
        await asyncio.sleep(0.05)

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Lowest offset that Kafka still has."""
        return {p: low for p, (low, _) in (await self._watermarks(partitions)).items()}

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """End offset now."""
        return {p: high for p, (_, high) in (await self._watermarks(partitions)).items()}

    async def _watermarks(self, partitions: Iterable[int]) -> dict[int, tuple[int, int]]:
        def ask(wanted: list[int]) -> dict[int, tuple[int, int]]:
            return {p: self._offsets.get_watermark_offsets(TopicPartition(self._topic, p), REQUEST_S) for p in wanted}

        try:
            return await self._run(ask, list(partitions))
        except KafkaException as error:
            raise KafkaFailed(f"offsets of topic {self._topic} cannot be read: {error.args[0]}") from error

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


class ConfluentSender:
    """Sends results with acks=all and idempotence, within transactions where it has a transactional id."""

    def __init__(self, bootstrap_servers: str, client_id: str, transactional_id: str | None = None) -> None:
        self._where = bootstrap_servers
        settings = {
            **_common(bootstrap_servers),
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
        await _metadata(self._producer, self._where, timeout_s, self._run)
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
                        raise _translated(error, "a record") from error
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
            raise _translated(error, "a record") from error
        except SystemError as error:  # a fatal error met the report of a record, and one of them is the cause
            cause = KafkaException(self._failed[0]) if self._failed else error.__cause__
            if isinstance(cause, KafkaException):
                raise _translated(cause, "a record") from error
            raise
        if self._failed:
            raise _translated(KafkaException(self._failed[0]), "a record")
        return left

    async def begin(self) -> None:
        """Begin a transaction."""
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            raise _translated(error, "a transaction") from error

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
                raise _translated(error, "a transaction") from error
            return

    async def _run(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._requests, work, *given)


def _common(bootstrap_servers: str) -> dict[str, Any]:
    """What both clients are given: where Kafka is, TLS and SASL by librdkafka's own names."""
    security = security_of(bootstrap_servers)
    settings: dict[str, Any] = {
        "bootstrap.servers": hosts(bootstrap_servers),
        "socket.nagle.disable": True,
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 500,
        "log_level": 3,
        "error_cb": _told,  # without one, confluent-kafka raises fatal errors out of whichever call comes next
        "security.protocol": security.security_protocol,
    }
    for name in security.__dataclass_fields__:
        if (value := getattr(security, name)) and name.startswith(("sasl_", "ssl_")):
            settings[name.replace("_", ".")] = value
    if not security.sasl:
        settings.pop("sasl.mechanism", None)
    elif security.sasl_mechanism == "OAUTHBEARER":
        settings["sasl.oauthbearer.method"] = "oidc"
    return settings


def _told(error: KafkaError) -> None:
    """What the client tells of itself; whatever it means for a call is that call's error."""
    logger.debug("%s", error)


def _translated(error: KafkaException, what: str) -> Fenced | KafkaFailed:
    """librdkafka's error as ours."""
    reason = error.args[0]
    if reason.code() in _FENCED:
        return Fenced("fenced: a successor has taken over")
    return KafkaFailed(f"Kafka refuses {what}: {reason}")


async def _metadata(client: Any, bootstrap_servers: str, timeout_s: float, run: Callable[..., Any]) -> dict[str, int]:
    """Partitions of every topic, once a broker answers; one that turns us away is not asked again.

    Raises:
        Unreachable: no answer in time, or refused.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            found = await run(client.list_topics, None, min(1.0, timeout_s))
        except KafkaException as error:
            if time.monotonic() >= deadline_s or await refused(bootstrap_servers):
                raise await unreachable(
                    bootstrap_servers,
                    f"Kafka does not answer within {timeout_s:g} s ({error.args[0]}); is it running?",
                ) from error
        else:
            return {name: len(topic.partitions) for name, topic in found.topics.items()}
