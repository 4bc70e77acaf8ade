"""Offsets of a consumer group that has no members: read, and set from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from aiokafka import AIOKafkaConsumer, TopicPartition

from inferline_stream.kafka.connection import client_options, closed, in_time
from inferline_stream.kafka.offset_metadata import Committed, decode_metadata, encode_metadata
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, topic_states

Entry = tuple[int, str]
"""Offset and metadata, as committed."""


class GroupOffsets:
    """Offsets of one group on one topic. Must be entered.

    Args:
        bootstrap_servers: of the cluster.
        group: without members: Kafka takes a commit from anybody then.
        topic: which it reads.
        timeout_s: longest wait for Kafka.

    Raises:
        Unreachable: Kafka does not answer in time.
    """

    def __init__(self, bootstrap_servers: str, group: str, topic: str, timeout_s: float) -> None:
        self._where = bootstrap_servers
        self._consumer = AIOKafkaConsumer(
            **client_options(bootstrap_servers), group_id=group, enable_auto_commit=False, auto_offset_reset="none"
        )
        self._topic = topic
        self._timeout_s = timeout_s
        self._partitions: list[TopicPartition] = []
        self._state = UNKNOWN_TOPIC

    async def __aenter__(self) -> GroupOffsets:
        await in_time(self._where, self._consumer.start(), self._timeout_s, self._consumer)
        metadata = self._consumer._client._wait_on_metadata(self._topic)
        found = await in_time(self._where, metadata, self._timeout_s, self._consumer)
        self._partitions = [TopicPartition(self._topic, partition) for partition in sorted(found)]
        states = topic_states(self._consumer._client, [self._topic])
        found_states = await in_time(self._where, states, self._timeout_s, self._consumer)
        self._state = found_states.get(self._topic, UNKNOWN_TOPIC)
        self._consumer.assign(self._partitions)
        for partition in self._partitions:
            self._consumer.seek(partition, 0)
        self._consumer.pause(*self._partitions)
        return self

    async def __aexit__(self, *error: object) -> None:
        await closed(self._consumer)

    @property
    def partitions(self) -> tuple[int, ...]:
        """Partitions of the topic, by number."""
        return tuple(tp.partition for tp in self._partitions)

    async def committed(self, partitions: Iterable[int]) -> Mapping[int, Entry]:
        """Return what the group has committed, of those partitions that have a committed offset."""
        wanted = [TopicPartition(self._topic, partition) for partition in partitions]
        found = await self._consumer._coordinator.fetch_committed_offsets(wanted)
        return {tp.partition: (entry.offset, entry.metadata) for tp, entry in found.items()}

    async def begins(self) -> dict[int, int]:
        """Return the first offset of each partition."""
        return _by_partition(await self._consumer.beginning_offsets(self._partitions))

    async def ends(self) -> dict[int, int]:
        """Return the end offset of each partition."""
        return _by_partition(await self._consumer.end_offsets(self._partitions))

    async def at(self, time_ms: int) -> dict[int, int]:
        """Return the first offset at or after a time, in ms since the epoch; partitions without one are left out."""
        found = await self._consumer.offsets_for_times(dict.fromkeys(self._partitions, time_ms))
        return {tp.partition: entry.offset for tp, entry in found.items() if entry is not None}

    def is_of_another_topic(self, entry: Entry) -> bool:
        """Whether an offset was committed before the topic was deleted and created again."""
        return self._state.replaces(decode_metadata(*entry).topic_id)

    async def commit(self, wanted: Mapping[int, Committed]) -> None:
        """Commit these offsets, with the topic's identity and number of partitions."""
        if wanted:
            count, of = len(self._partitions), self._state.id
            now = {p: replace(each, topic_id=of, partitions=count) for p, each in wanted.items()}
            entries = {p: (each.offset, encode_metadata(each)) for p, each in now.items()}
            await self._consumer.commit({TopicPartition(self._topic, p): entry for p, entry in entries.items()})


def _by_partition(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: offset for tp, offset in offsets.items()}
