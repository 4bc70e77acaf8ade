"""Reads records of a topic again, by their offsets: what a join keeps no copy of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, OffsetOutOfRangeError

from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.kafka.connection import client_options, closed, started
from inferline_stream.kafka.fetched_batches import CORRUPT_FETCHES, RECORDS_AT_ONCE, corrupt_wait_s
from inferline_stream.kafka.records import FetchedRecord

logger = logging.getLogger(__name__)

_NEAR = 1000
"""The next wanted offset is sought where it is further away: what lies between would be fetched for nothing."""

_WAIT_S = 0.5
_START_S = 10.0


class RecordsGone(InferlineError):
    """Kafka no longer has a record, or has only damage in its place."""


class RecordLookup:
    """Reads records of one topic by their offsets, on a connection of its own, which the first look-up makes.

    Args:
        bootstrap_servers: of the cluster.
        topic: the topic.
        partition_bytes: most bytes that a fetch asks for.
    """

    def __init__(self, bootstrap_servers: str, topic: str, partition_bytes: int) -> None:
        self._where = bootstrap_servers
        self._topic = topic
        self._partition_bytes = partition_bytes
        self._consumer: AIOKafkaConsumer | None = None

    async def stop(self) -> None:
        """Close the connection, if there is one."""
        if self._consumer is not None:
            await closed(self._consumer)

    async def read(self, partition: int, offsets: Collection[int]) -> dict[int, FetchedRecord]:
        """Return the records at these offsets, waiting for Kafka as long as it takes.

        Raises:
            RecordsGone: Kafka does not have one of them.
        """
        consumer = self._consumer = self._consumer or await self._connected()
        place, left = TopicPartition(self._topic, partition), sorted(offsets, reverse=True)
        found: dict[int, FetchedRecord] = {}
        corrupt = 0
        if consumer.assignment() != {place}:
            consumer.assign([place])
        consumer.seek(place, left[-1])
        while left:
            try:
                fetched = await consumer.getmany(timeout_ms=round(_WAIT_S * 1000), max_records=RECORDS_AT_ONCE)
            except OffsetOutOfRangeError:
                raise RecordsGone(f"Kafka no longer has offset {left[-1]}, which a join waits with") from None
            except CorruptRecordException as error:
                corrupt += 1
                if corrupt >= CORRUPT_FETCHES:
                    raise RecordsGone(f"what Kafka has at offset {left[-1]} is corrupt on every fetch") from error
                await asyncio.sleep(corrupt_wait_s(corrupt))
                consumer.seek(place, left[-1])
                continue
            for record in fetched.get(place, ()):
                if left and record.offset == left[-1]:
                    found[left.pop()] = record
            position = await consumer.position(place)
            if left and position > left[-1]:
                raise RecordsGone(f"Kafka no longer has offset {left[-1]}, which a join waits with")
            if left and left[-1] - position > _NEAR:
                consumer.seek(place, left[-1])
        return found

    async def _connected(self) -> AIOKafkaConsumer:
        while True:
            consumer = AIOKafkaConsumer(
                **client_options(self._where),
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                max_partition_fetch_bytes=self._partition_bytes,
            )
            try:
                await started(consumer, self._where, _START_S)
            except Unreachable as error:
                logger.warning("parts of a join cannot be read again yet: %s", error)
                await asyncio.sleep(_WAIT_S)
            else:
                return consumer
