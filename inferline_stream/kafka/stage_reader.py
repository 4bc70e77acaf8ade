"""Reading on aiokafka: a slot's partitions of one topic, and the assignments topic, by one consumer.

Partitions are assigned by hand: all of a slot's are assigned and paused at the start, holding one is a seek and a
resume. Grants are read by the same consumer, so that one ends a fetch that waits on its broker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

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

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import client_options, closed, started
from inferline_stream.kafka.fetched_batches import CORRUPT_FETCHES, RECORDS_AT_ONCE, CorruptBatch, corrupt_wait_s
from inferline_stream.kafka.record_lookup import RecordLookup
from inferline_stream.kafka.records import TRANSACTION_TIMEOUT_MS, FetchedRecord, KafkaFailed
from inferline_stream.kafka.stable_offsets import UndecidedOffsets, stable_offsets
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, TopicState, topic_states

logger = logging.getLogger(__name__)

ONE_BROKER_WAIT_S = 0.5
"""Longest fetch wait where every partition lives on the broker of the assignments topic: a grant ends it anyway."""

UNDECIDED_S = TRANSACTION_TIMEOUT_MS / 1000 + 15.0
"""Longest that a transaction may leave offsets undecided: Kafka looks every ten seconds for those past their time."""

CONTROL = -1
"""Stands for the assignments topic's partition, among those of the input topic."""


class Fetched(NamedTuple):
    """What one fetch brought.

    Args:
        records: by partition.
        control: records of the assignments topic.
        positions: next offset of each held partition; beyond its last record where transaction markers follow it.
        lost: partitions that cannot be read on, and why.
    """

    records: Mapping[int, Sequence[FetchedRecord]]
    control: Sequence[FetchedRecord]
    positions: Mapping[int, int]
    lost: Mapping[int, str]


_NOTHING = Fetched({}, (), {}, {})


class StageReader:
    """Reads held partitions of one topic, and the assignments topic; commits to the stage's consumer group.

    Args:
        bootstrap_servers: of the cluster.
        topic: the stage's input.
        group: the stage's consumer group.
        assignments: the assignments topic, read from its beginning.
        fetch_wait_s: longest wait of a fetch on brokers without the assignments topic.
        partition_bytes: most bytes that a fetch asks of one partition.
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
        self._topic = topic
        self._group = group
        self._control = TopicPartition(assignments, 0)
        self._control_end = 0
        self._fetch_wait_s = fetch_wait_s
        self._held: set[int] = set()
        self._taken: dict[TopicPartition, int] = {}
        """Positions after the last fetch."""
        self._corrupt: dict[int, tuple[int, float]] = {}
        """By partition whose last fetch brought damage, how often in a row it did, and when it is fetched again."""
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap_servers),
            group_id=group,
            client_id=f"inferline-{group}",
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=round(fetch_wait_s * 1000),
            max_partition_fetch_bytes=partition_bytes,
            metadata_max_age_ms=60_000,
        )
        self._lookup = RecordLookup(bootstrap_servers, topic, partition_bytes)
        self.topic = UNKNOWN_TOPIC
        """The topic as it was when the connection was made, with the partitions that `grow` has added."""

    async def start(self, timeout_s: float) -> None:
        """Connect and look at the topic.

        Raises:
            Unreachable: no answer in time, or a topic does not exist.
        """
        await started(self._consumer, self._where, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._consumer._client._wait_on_metadata(self._control.topic)
                await self._consumer._client._wait_on_metadata(self._topic)
                self.topic = (await topic_states(self._consumer._client, [self._topic]))[self._topic]
        except (TimeoutError, KafkaError, KeyError) as error:
            await self.stop()
            raise Unreachable(
                f"topics {self._topic} and {self._control.topic} cannot be read ({error!r}); create them first"
            ) from error
        began = await self._consumer.beginning_offsets([self._control])
        await self.look_for_grants()
        # Without a position aiokafka would look for one by itself, which takes 0.1 s: nothing is awaited in between.
        self._taken = dict(began)
        self._assign()
        self._adapt_wait()
        # Before the first grant. Offsets are not asked for: what the dispatcher before left open is ended after it.
        try:
            await self._consumer._coordinator.ensure_coordinator_known()
        except KafkaError as error:
            await self.stop()
            raise self._refused(error) from error

    def _assign(self) -> None:
        """Assign every partition and pause those that are not held; what was fetched and not taken is fetched again."""
        every = [TopicPartition(self._topic, partition) for partition in range(self.topic.partitions)]
        self._consumer.assign([self._control, *every])
        for partition in every:
            self._consumer.seek(partition, self._taken.get(partition, 0))
        self._consumer.seek(self._control, self._taken[self._control])
        self._consumer.pause(*(partition for partition in every if partition.partition not in self._held))

    async def look_at_topic(self) -> TopicState | None:
        """Return the topic as it is now, or was when Kafka last answered; None where there is none."""
        try:
            return (await topic_states(self._consumer._client, [self._topic])).get(self._topic)
        except KafkaError as error:
            logger.warning("topic %s: its state is not known now: %r", self._topic, error)
            return self.topic

    async def grow(self, topic: TopicState) -> None:
        """Be ready to hold the partitions that were added to the topic."""
        await self._consumer._client.force_metadata_update()
        self.topic = topic
        self._assign()

    async def stop(self) -> None:
        """Close the connections."""
        await asyncio.gather(closed(self._consumer), self._lookup.stop())

    async def look_for_grants(self) -> None:
        """Find out where the assignments topic ends now; `caught_up` is about that end."""
        self._control_end = (await self._consumer.end_offsets([self._control]))[self._control]

    def caught_up(self) -> bool:
        """Whether every grant up to the last `look_for_grants` has been fetched."""
        position = self._consumer._subscription.subscription.assignment.state_value(self._control).position
        return position is not None and position >= self._control_end

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        """Wait for records, except of partitions that are full."""
        wanted: tuple[TopicPartition, ...] = ()
        self._resume_damaged()
        if full:
            room = self._held.difference(full)
            wanted = (self._control, *(TopicPartition(self._topic, partition) for partition in room))
        try:
            found = await self._consumer.getmany(*wanted, timeout_ms=round(wait_s * 1000), max_records=RECORDS_AT_ONCE)
        except OffsetOutOfRangeError as error:
            if self._control in error.args[0]:
                raise KafkaFailed(f"topic {self._control.topic} was cut off or made again") from error
            lost = {tp.partition: f"Kafka no longer has offset {offset}" for tp, offset in error.args[0].items()}
            return Fetched({}, (), {}, lost)
        except CorruptRecordException as error:
            self._rewind()
            return self._after_damage(error)
        except ConsumerStoppedError:
            raise asyncio.CancelledError from None
        for tp in found:
            self._corrupt.pop(tp.partition if tp != self._control else CONTROL, None)
        control = found.pop(self._control, ())
        states = self._consumer._subscription.subscription.assignment
        positions = {p: states.state_value(TopicPartition(self._topic, p)).position for p in self._held}
        self._taken = {TopicPartition(self._topic, p): position for p, position in positions.items()}
        self._taken[self._control] = states.state_value(self._control).position
        return Fetched({tp.partition: records for tp, records in found.items()}, control, positions, {})

    def _after_damage(self, error: CorruptRecordException) -> Fetched:
        """Leave a damaged partition alone for a while, longer each time; give it up after many fetches.

        Raises:
            KafkaFailed: what is damaged is the assignments topic.
        """
        if not isinstance(error, CorruptBatch):  # of a format that no broker of today writes
            raise KafkaFailed(f"records cannot be read: {error}") from error
        number = CONTROL if error.topic == self._control.topic else error.partition
        times = self._corrupt.get(number, (0, 0.0))[0] + 1
        if times >= CORRUPT_FETCHES:
            if number == CONTROL:
                raise KafkaFailed(f"topic {self._control.topic} stays corrupt: {error}") from error
            del self._corrupt[number]
            return Fetched({}, (), {}, {number: f"what Kafka has at offset {error.offset} is corrupt on every fetch"})
        wait_s = corrupt_wait_s(times)
        self._corrupt[number] = times, time.monotonic() + wait_s
        logger.warning("%s: fetched again in %.1f s: %s", error.topic, wait_s, error)
        self._consumer.pause(self._damaged(number))
        return _NOTHING

    def _resume_damaged(self) -> None:
        for number, (_, again_s) in self._corrupt.items():
            if time.monotonic() >= again_s and (number in self._held or number == CONTROL):
                self._consumer.resume(self._damaged(number))

    def _damaged(self, number: int) -> TopicPartition:
        return self._control if number == CONTROL else TopicPartition(self._topic, number)

    def _rewind(self) -> None:
        """Go back to where the last fetch ended: aiokafka drops what it took of other partitions with a corrupt one."""
        for tp, position in self._taken.items():
            self._consumer.seek(tp, position)

    async def read_again(self, partition: int, offsets: Collection[int]) -> Mapping[int, FetchedRecord]:
        """Return records that were read before.

        Raises:
            RecordsGone: Kafka no longer has one of them.
        """
        return await self._lookup.read(partition, offsets)

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions too, from these offsets."""
        for partition, offset in positions.items():
            self._consumer.seek(TopicPartition(self._topic, partition), offset)
            self._taken[TopicPartition(self._topic, partition)] = offset
            self._corrupt.pop(partition, None)
        self._held.update(positions)
        self._adapt_wait()
        self._consumer.resume(*(TopicPartition(self._topic, partition) for partition in positions))

    def release(self, partitions: Iterable[int]) -> None:
        """Read these partitions no more: none of their records is returned from here on."""
        for partition in partitions:
            if partition in self._held:
                self._held.remove(partition)
                self._consumer.pause(TopicPartition(self._topic, partition))
        self._adapt_wait()

    async def committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Return offset and metadata that the group has committed; partitions without are missing.

        Raises:
            KafkaFailed: Kafka refuses to say, or a transaction leaves them undecided for longer than any may take.
        """
        # The public `committed` leaves the metadata out, and does not wait for a transaction that ends.
        try:
            return await stable_offsets(self._consumer._coordinator, self._topic, list(partitions), UNDECIDED_S)
        except UndecidedOffsets:
            raise KafkaFailed(
                f"a transaction has left offsets of group {self._group} on {self._topic} undecided for "
                f"{UNDECIDED_S:g} s: Kafka may have lost its end. `kafka-transactions.sh find-hanging` names it, and "
                "`abort` ends it"
            ) from None
        except KafkaError as error:
            raise self._refused(error) from error

    def _refused(self, error: KafkaError) -> KafkaFailed:
        rights = isinstance(error, (GroupAuthorizationFailedError, TopicAuthorizationFailedError))
        remedy = "; the group needs the rights Describe and Read, the topic Read" if rights else ""
        return KafkaFailed(f"the offsets of group {self._group} on {self._topic} cannot be read: {error!r}{remedy}")

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Commit to the group; tries again for as long as the error is one that may pass.

        Raises:
            KafkaFailed: the group has live members of another kind, or refuses us.
        """
        try:
            await self._consumer.commit(self.offsets_for_transaction(offsets))
        except CommitFailedError as error:
            raise KafkaFailed(
                f"group {self._group} has members that subscribe to it; they and dispatchers must not share a group"
            ) from error
        except KafkaError as error:
            raise KafkaFailed(f"group {self._group} refuses a commit: {error!r}") from error

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the lowest offsets that Kafka still has."""
        found = await self._consumer.beginning_offsets([TopicPartition(self._topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in found.items()}

    def offsets_for_transaction(self, offsets: Mapping[int, tuple[int, str]]) -> dict[TopicPartition, tuple[int, str]]:
        """Return the same offsets as a transaction wants them."""
        return {TopicPartition(self._topic, partition): entry for partition, entry in offsets.items()}

    def _adapt_wait(self) -> None:
        """Where the assignments topic's broker has everything, a grant ends the wait: let idle fetches wait longer.

        Not while nothing is held: what is held next is not fetched before the fetch of grants that is under way ends.
        """
        cluster = self._consumer._client.cluster
        read = [TopicPartition(self._topic, partition) for partition in self._held]
        one_broker = {cluster.leader_for_partition(tp) for tp in read} <= {cluster.leader_for_partition(self._control)}
        wait_s = max(self._fetch_wait_s, ONE_BROKER_WAIT_S) if read and one_broker else self._fetch_wait_s
        self._consumer._fetcher._fetch_max_wait_ms = round(wait_s * 1000)
