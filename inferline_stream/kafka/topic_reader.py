"""Reads held partitions of a topic, and finds out which of them are lost, added, damaged or another topic's by now.

Partitions are assigned by hand: all are assigned and paused at the start, holding one is a seek and a resume. A group
has no members; it only keeps offsets. A dispatcher's grants are read by the same consumer as its records, so that one
ends a fetch that waits on its broker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    CorruptRecordException,
    GroupAuthorizationFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.commit import OffsetCommitRequest

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import client_options, closed, closed_on_failure, in_time, started
from inferline_stream.kafka.fetched_batches import (
    CORRUPT_FETCHES,
    OUR_RECORDS,
    RECORDS_AT_ONCE,
    CorruptBatch,
    corrupt_wait_s,
)
from inferline_stream.kafka.offset_metadata import Entry
from inferline_stream.kafka.offsets import UndecidedOffsets, group_offsets
from inferline_stream.kafka.records import TRANSACTION_TIMEOUT_MS, KafkaFailed, Record, RecordsGone
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, created_topic, recreated, topic_states

logger = logging.getLogger(__name__)

ONE_BROKER_WAIT_S = 0.5
"""Longest fetch wait where every partition lives on the broker of the assignments topic: a grant ends it anyway."""

UNDECIDED_S = TRANSACTION_TIMEOUT_MS / 1000 + 15.0
"""Longest that a transaction may leave offsets undecided: Kafka looks every ten seconds for those past their time."""

_NEAR = 1000
"""The next record to read again is sought where it is further away: what lies between would be fetched for nothing."""

_WAIT_S, _START_S = 0.5, 10.0
_PARTITION_BYTES = 512 * 1024
"""Most that a fetch asks of one partition."""


class Fetched(NamedTuple):
    """What one fetch brought.

    Args:
        records: by partition.
        control: records of the assignments topic.
        positions: next offset of each held partition; beyond its last record where transaction markers follow it.
        lost: partitions that cannot be read on, and why.
    """

    records: Mapping[int, Sequence[Record]]
    control: Sequence[Record]
    positions: Mapping[int, int]
    lost: Mapping[int, str]


_NOTHING = Fetched({}, (), {}, {})


class TopicReader:
    """Reads held partitions of one topic, and beside it an assignments topic; commits offsets of a group.

    A partition whose offset Kafka no longer has is halted: going on anywhere would lose records or repeat them without
    a word. So is one that stays damaged.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: full name; it must exist.
        group: consumer group that keeps offsets of it.
        assignments: topic of one partition, read from its beginning.
        gapless: halt where records are gone; else go on with those that are left.
        committed_only: skip records of open and aborted transactions.
        request_timeout_s: longest wait for an answer.
        fetch_wait_s: longest wait of a fetch on brokers without the assignments topic.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        group: str | None = None,
        assignments: str = "",
        *,
        gapless: bool = True,
        committed_only: bool = True,
        request_timeout_s: float = 40.0,
        fetch_wait_s: float = 0.5,
    ) -> None:
        self._where, self._topic, self.group = bootstrap_servers, topic, group or ""
        self._beside = TopicPartition(assignments, 0) if assignments else None
        self._beside_at, self._beside_end = 0, 0
        self._fetch_wait_s = fetch_wait_s
        self._corrupt: dict[TopicPartition, tuple[int, float]] = {}
        """By partition whose last fetch brought damage, how often in a row it did, and when it is fetched again."""
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap_servers),
            group_id=group,
            client_id=f"inferline-{group or 'follower'}",
            enable_auto_commit=False,
            auto_offset_reset="none" if gapless else "earliest",
            isolation_level="read_committed" if committed_only else "read_uncommitted",
            fetch_max_wait_ms=round(fetch_wait_s * 1000),
            max_partition_fetch_bytes=_PARTITION_BYTES,
            request_timeout_ms=round(request_timeout_s * 1000),
            metadata_max_age_ms=60_000,
            retry_backoff_ms=50,
            key_deserializer=OUR_RECORDS,
        )
        self._second: TopicReader | None = None
        """Reads records again."""
        self.topic = UNKNOWN_TOPIC
        """The topic as it was when the connection was made, with the partitions that it was given since."""
        self.positions: dict[int, int] = {}
        """Next offset of each partition that is held."""
        self.halted: dict[int, str] = {}
        """Partitions that are not read any more, and why."""

    async def start(self, timeout_s: float, *, patient: bool = True) -> None:
        """Connect, look at the topic, and hold nothing yet.

        Args:
            timeout_s: longest wait for Kafka's first answer, and again for what it says of the topic.
            patient: try again meanwhile where nobody listens: a broker may be restarting.

        Raises:
            Unreachable: no answer in time, or a topic does not exist, or nobody coordinates the group.
            KafkaFailed: Kafka gives no offsets of the group.
        """
        if patient:
            await started(self._consumer, self._where, timeout_s)
        else:
            await in_time(self._where, self._consumer.start(), timeout_s, self._consumer)
        topics = [self._topic, *([self._beside.topic] if self._beside else [])]
        async with closed_on_failure(self._consumer):
            try:
                async with asyncio.timeout(timeout_s):
                    found = await created_topic(self._consumer._client, self._topic, timeout_s)
                    if found is None:
                        raise Unreachable(f"topic {self._topic!r}: Kafka has no such topic; create it first")
                    self.topic = found
                    for topic in topics:
                        await self._consumer._client._wait_on_metadata(topic)
                    if self._beside is not None:
                        self._beside_at = (await self._consumer.beginning_offsets([self._beside]))[self._beside]
                        await self.look_for_grants()
            except (TimeoutError, KafkaError) as error:
                raise Unreachable(
                    f"{' and '.join(topics)} at {self._where} cannot be read: {error!r}; do these topics exist?"
                ) from error
            # Without a position aiokafka would look for one by itself, which takes 0.1 s: nothing is awaited before.
            self._assign()
            self._adapt_wait()
            # Before the first partition is held, and aiokafka fails where they are assigned again meanwhile. Offsets
            # are not asked for: what the dispatcher before left open is ended after it.
            if self.group:
                try:
                    async with asyncio.timeout(timeout_s):
                        await self._consumer._coordinator.ensure_coordinator_known()
                except TimeoutError as error:
                    raise Unreachable(f"Kafka at {self._where} has no coordinator of group {self.group}") from error
                except KafkaError as error:
                    raise self._refused(error) from error

    async def stop(self) -> None:
        """Close the connections."""
        await closed(self._consumer, *([self._second._consumer] if self._second is not None else []))

    # Holding

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)

    def _assign(self) -> None:
        """Assign every partition and pause those that are not held; what was fetched and not taken is fetched again."""
        every = [self._tp(p) for p in range(self.topic.partitions)]
        self._consumer.assign([*every, *([self._beside] if self._beside else [])])
        for tp in every:
            self._consumer.seek(tp, self.positions.get(tp.partition, 0))
        if self._beside is not None:
            self._consumer.seek(self._beside, self._beside_at)
        self._consumer.pause(*(tp for tp in every if tp.partition not in self.positions))

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions too, from these offsets."""
        for partition, offset in positions.items():
            self._consumer.seek(self._tp(partition), offset)
            self._corrupt.pop(self._tp(partition), None)
            self.halted.pop(partition, None)
        self.positions.update(positions)
        self._adapt_wait()
        self._consumer.resume(*map(self._tp, positions))

    def release(self, partitions: Iterable[int]) -> None:
        """Read these partitions no more: none of their records is returned from here on."""
        for partition in partitions:
            if self.positions.pop(partition, None) is not None:
                self._consumer.pause(self._tp(partition))
        self._adapt_wait()

    def halt(self, partitions: Iterable[int], why: str) -> None:
        """Read these partitions no more until they are held again."""
        for partition in list(partitions):
            self.halted[partition] = why
            self.release([partition])

    def _adapt_wait(self) -> None:
        """Where the assignments topic's broker has everything, a grant ends the wait: let idle fetches wait longer.

        Not while nothing is held: what is held next is not fetched before the fetch of grants that is under way ends.
        """
        if self._beside is None:
            return
        cluster = self._consumer._client.cluster
        read = [self._tp(partition) for partition in self.positions]
        one_broker = {cluster.leader_for_partition(tp) for tp in read} <= {cluster.leader_for_partition(self._beside)}
        wait_s = max(self._fetch_wait_s, ONE_BROKER_WAIT_S) if read and one_broker else self._fetch_wait_s
        self._consumer._fetcher._fetch_max_wait_ms = round(wait_s * 1000)

    async def look_for_grants(self) -> None:
        """Find out where the assignments topic ends now; `caught_up` is about that end."""
        self._beside_end = (await self._consumer.end_offsets([self._beside]))[self._beside]

    def caught_up(self) -> bool:
        """Whether every grant up to the last `look_for_grants` has been fetched."""
        return self._position(self._beside, -1) >= self._beside_end

    def _position(self, place: TopicPartition | None, unknown: int) -> int:
        state = self._consumer._subscription.subscription.assignment.state_value(place)
        if not state.has_valid_position:  # one that Kafka no longer had; where to go on is being asked for
            return unknown
        position: int = state.position
        return position

    async def look_at_topic(self) -> tuple[str, range]:
        """Find out whether the topic is another one by now, or has more partitions, which can be held from then on.

        Returns:
            Why none of its partitions may be read on, empty where they may; and those that it was given.
        """
        before = self.topic
        try:
            now = (await topic_states(self._consumer._client, [self._topic])).get(self._topic)
        except KafkaError as error:
            logger.warning("topic %s: its state is not known now: %r", self._topic, error)
            return "", range(0)
        if now is None or now.replaces(before.id):
            return "the topic was deleted" if now is None else recreated(before.id, now.id), range(0)
        added = range(before.partitions, now.partitions)
        if added:
            logger.info("topic %s has %d partitions now", self._topic, now.partitions)
            await self._consumer._client.force_metadata_update()
            self.topic = now
            self._assign()
        return "", added

    # Reading

    async def fetch(self, full: Collection[int] = (), wait_s: float = 0.0, most: int = RECORDS_AT_ONCE) -> Fetched:
        """Wait for records, except of partitions that are full.

        Raises:
            KafkaError: Kafka reports an error that does not pass.
            KafkaFailed: the assignments topic cannot be read on.
        """
        wanted: list[TopicPartition] = []
        self._resume_damaged()
        if self._beside is not None and not self.caught_up():  # a session may wait for them, and records go first
            wanted = [self._beside]
        elif full:
            wanted = [self._tp(partition) for partition in self.positions if partition not in full]
            wanted += [self._beside] if self._beside else []
            if not wanted:
                await asyncio.sleep(wait_s)
                return _NOTHING
        try:
            found = await self._consumer.getmany(*wanted, timeout_ms=round(wait_s * 1000), max_records=most)
        except OffsetOutOfRangeError as error:
            if self._beside is not None and self._beside in error.args[0]:
                raise KafkaFailed(f"topic {self._beside.topic} was cut off or made again") from error
            return self._lose({tp.partition: _gone(at) for tp, at in error.args[0].items()})
        except CorruptRecordException as error:
            self._rewind()
            return self._after_damage(error)
        except ConsumerStoppedError:
            raise asyncio.CancelledError from None
        for tp in found:
            self._corrupt.pop(tp, None)
        control = ()
        if self._beside is not None:
            control, self._beside_at = found.pop(self._beside, ()), self._position(self._beside, self._beside_at)
        self.positions = {p: self._position(self._tp(p), at) for p, at in self.positions.items()}
        return Fetched({tp.partition: records for tp, records in found.items()}, control, self.positions, {})

    def _lose(self, why: Mapping[int, str]) -> Fetched:
        for partition, reason in why.items():
            self.halt([partition], reason)
        return Fetched({}, (), {}, why)

    def _after_damage(self, error: CorruptRecordException) -> Fetched:
        """Leave a damaged partition alone for a while, longer each time; give it up after many fetches.

        Raises:
            KafkaFailed: what is damaged is the assignments topic.
        """
        if not isinstance(error, CorruptBatch):  # of a format that no broker of today writes
            raise KafkaFailed(f"records cannot be read: {error}") from error
        place = TopicPartition(error.topic, error.partition)
        times = self._corrupt.get(place, (0, 0.0))[0] + 1
        if times >= CORRUPT_FETCHES:
            if place == self._beside:
                raise KafkaFailed(f"topic {place.topic} stays corrupt: {error}") from error
            del self._corrupt[place]
            return self._lose({place.partition: f"what Kafka has at offset {error.offset} is corrupt on every fetch"})
        wait_s = corrupt_wait_s(times)
        self._corrupt[place] = times, time.monotonic() + wait_s
        logger.warning("%s: fetched again in %.1f s: %s", error.topic, wait_s, error)
        self._consumer.pause(place)
        return _NOTHING

    def _resume_damaged(self) -> None:
        for place, (_, again_s) in self._corrupt.items():
            if time.monotonic() >= again_s and (place == self._beside or place.partition in self.positions):
                self._consumer.resume(place)

    def _rewind(self) -> None:
        """Go back to where the last fetch ended: aiokafka drops what it took of other partitions with a corrupt one."""
        for partition, position in self.positions.items():
            self._consumer.seek(self._tp(partition), position)
        if self._beside is not None:
            self._consumer.seek(self._beside, self._beside_at)

    async def read_again(self, partition: int, offsets: Collection[int]) -> dict[int, Record]:
        """Return the records at these offsets, on a connection of its own, waiting for Kafka as long as it takes.

        Raises:
            RecordsGone: Kafka does not have one of them, or has only damage in its place.
        """
        reader = self._second = self._second or await self._another()
        left, found = sorted(offsets, reverse=True), dict[int, Record]()
        reader.release(list(reader.positions))
        if reader.topic != self.topic:  # it has been given partitions since
            reader.topic = self.topic
            reader._assign()
        reader.hold({partition: left[-1]})
        while left:
            fetched = await reader.fetch((), _WAIT_S)
            for record in fetched.records.get(partition, ()):
                if left and record.offset == left[-1]:
                    found[left.pop()] = record
            position = reader.positions.get(partition, -1)
            if left and (why := fetched.lost.get(partition) or (position > left[-1] and _gone(left[-1]))):
                raise RecordsGone(f"{why}, which a join waits with")
            if left and left[-1] - position > _NEAR:
                reader.hold({partition: left[-1]})
        return found

    async def _another(self) -> TopicReader:
        while True:
            reader = TopicReader(self._where, self._topic)
            try:
                await reader.start(_START_S)
            except Unreachable as error:
                logger.warning("parts of a join cannot be read again yet: %s", error)
                await asyncio.sleep(_WAIT_S)
            else:
                return reader

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the lowest offsets that Kafka still has."""
        found = await self._consumer.beginning_offsets([self._tp(p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the end offsets: one more than that of the last record of a finished transaction."""
        found = await self._consumer.end_offsets([self._tp(p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    async def at(self, time_s: float, partitions: Iterable[int]) -> dict[int, int]:
        """Return the first offsets at or after a time, in seconds since the epoch; where there is none, the end."""
        ends = await self.ends(partitions)
        found = await self._consumer.offsets_for_times({self._tp(p): int(time_s * 1e3) for p in ends})
        return ends | {tp.partition: at.offset for tp, at in found.items() if at is not None}

    # Offsets of the group

    async def committed(self, partitions: Iterable[int], *, stable: bool = True) -> dict[int, Entry]:
        """Return offset and metadata that the group has committed; partitions without are missing.

        Args:
            partitions: by number.
            stable: wait for a transaction that may still change them.

        Raises:
            KafkaFailed: Kafka refuses to say, or a transaction leaves them undecided for longer than any may take.
        """
        coordinator, within_s = self._consumer._coordinator, UNDECIDED_S if stable else None
        try:
            return await group_offsets(coordinator, self._topic, list(partitions), within_s)
        except UndecidedOffsets:
            raise KafkaFailed(
                f"a transaction has left offsets of group {self.group} on {self._topic} undecided for "
                f"{UNDECIDED_S:g} s: Kafka may have lost its end. `kafka-transactions.sh find-hanging` names it, and "
                "`abort` ends it"
            ) from None
        except KafkaError as error:
            raise self._refused(error) from error

    def _refused(self, error: KafkaError) -> KafkaFailed:
        rights = isinstance(error, (GroupAuthorizationFailedError, TopicAuthorizationFailedError))
        remedy = "; the group needs the rights Describe and Read, the topic Read" if rights else ""
        return KafkaFailed(f"the offsets of group {self.group} on {self._topic} cannot be read: {error!r}{remedy}")

    async def commit(self, offsets: Mapping[int, Entry]) -> None:
        """Commit to the group; tries again for as long as the error is one that may pass.

        Raises:
            KafkaFailed: the group has live members of another kind, or refuses us.
        """
        try:
            await self._consumer.commit(self.offsets_for_transaction(offsets))
        except CommitFailedError as error:
            raise KafkaFailed(
                f"group {self.group} has members that subscribe to it; they and dispatchers must not share a group"
            ) from error
        except KafkaError as error:
            raise KafkaFailed(f"group {self.group} refuses a commit: {error!r}") from error

    def keep_offsets(self, kept_ms: int) -> None:
        """Have each commit say how long Kafka keeps it: aiokafka has no option for that."""
        coordinator = self._consumer._coordinator
        send = coordinator._send_req

        async def kept(request: Any) -> Any:
            if isinstance(request, OffsetCommitRequest):
                request._retention_time = kept_ms
            return await send(request)

        coordinator._send_req = kept

    def offsets_for_transaction(self, offsets: Mapping[int, Entry]) -> dict[TopicPartition, Entry]:
        """Return the same offsets as a transaction wants them."""
        return {self._tp(partition): entry for partition, entry in offsets.items()}


def _gone(offset: int) -> str:
    return f"Kafka no longer has offset {offset}"
