"""What the reader makes of aiokafka's errors; its consumer is a double."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException, OffsetOutOfRangeError

from inferline_stream.dataplane import reading
from inferline_stream.dataplane.client import KafkaFailed
from inferline_stream.dataplane.reading import StageReader

CONTROL, ZERO, ONE = TopicPartition("assignments", 0), TopicPartition("in", 0), TopicPartition("in", 1)


class Consumer:
    """Takes the records of the other partitions, and drops them, when those of one raise; as aiokafka does."""

    def __init__(self) -> None:
        self.states = {tp: SimpleNamespace(position=0) for tp in (CONTROL, ZERO, ONE)}
        self.records: dict[TopicPartition, list[str]] = {}
        self.error: Exception | None = None
        self._subscription = SimpleNamespace(
            subscription=SimpleNamespace(assignment=SimpleNamespace(state_value=self.states.__getitem__))
        )
        self._client = SimpleNamespace(cluster=SimpleNamespace(leader_for_partition=lambda tp: 1))
        self._fetcher = SimpleNamespace(_fetch_max_wait_ms=0)

    async def getmany(
        self, *wanted: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, Sequence[str]]:
        found = {}
        for tp, records in self.records.items():
            state = self.states[tp]
            found[tp], state.position = records[state.position :], len(records)
        if self.error is not None:
            raise self.error
        return found

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.states[tp].position = offset

    def resume(self, *tps: TopicPartition) -> None:
        pass


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    made = Consumer()
    monkeypatch.setattr(reading, "AIOKafkaConsumer", lambda **_: made)
    return made


def reader_of(consumer: Any) -> StageReader:
    reader = StageReader("127.0.0.1:9", "in", "group", "assignments", fetch_wait_s=0.02)
    reader._taken = {CONTROL: 0}
    reader.hold({0: 0, 1: 0})
    return reader


async def test_records_that_came_with_corrupt_ones_are_fetched_again(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.records = {CONTROL: ["a grant"], ZERO: ["a", "b"]}
    consumer.error = CorruptRecordException("in/1")
    assert await reader.fetch((), 0.0) == ({}, (), {}, {})
    consumer.error = None
    fetched = await reader.fetch((), 0.0)
    assert (fetched.records, fetched.control) == ({0: ["a", "b"]}, ["a grant"])


async def test_records_that_stay_corrupt_end_the_dispatcher(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.error = CorruptRecordException("in/1")
    for _ in range(reading.CORRUPT_FETCHES - 1):
        await reader.fetch((), 0.0)
    with pytest.raises(KafkaFailed, match="in/1"):
        await reader.fetch((), 0.0)


async def test_a_lost_offset_of_the_assignments_topic_halts_no_partition_of_the_input(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.error = OffsetOutOfRangeError({ONE: 5})
    assert (await reader.fetch((), 0.0)).lost == {1: 5}
    consumer.error = OffsetOutOfRangeError({CONTROL: 5})
    with pytest.raises(KafkaFailed, match="assignments"):
        await reader.fetch((), 0.0)
