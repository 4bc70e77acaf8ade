"""What the reader makes of aiokafka's errors; its consumer is a double."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from inferline_stream.errors import Unreachable
from inferline_stream.kafka import fetched_batches, topic_reader
from inferline_stream.kafka.fetched_batches import CorruptBatch
from inferline_stream.kafka.records import KafkaFailed, Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.topic_reader import TopicReader
from inferline_stream.kafka.topic_state import TopicState

CONTROL, ZERO, ONE = TopicPartition("assignments", 0), TopicPartition("in", 0), TopicPartition("in", 1)


class State:
    """What aiokafka keeps of a partition; to ask for a position that there is none of is a mistake, as it is there."""

    def __init__(self, position: int | None) -> None:
        self.known = position

    @property
    def has_valid_position(self) -> bool:
        return self.known is not None

    @property
    def position(self) -> int:
        assert self.known is not None
        return self.known

    @position.setter
    def position(self, position: int) -> None:
        self.known = position


class Consumer:
    """Takes the records of the other partitions, and drops them, when those of one raise; as aiokafka does."""

    def __init__(self) -> None:
        self.states = {tp: State(0) for tp in (CONTROL, ZERO, ONE)}
        self.records: dict[TopicPartition, list[Any]] = {}
        self.error: Exception | None = None
        self.paused: set[TopicPartition] = set()
        self._subscription = SimpleNamespace(
            subscription=SimpleNamespace(assignment=SimpleNamespace(state_value=self.states.__getitem__))
        )
        self._client = SimpleNamespace(cluster=SimpleNamespace(leader_for_partition=lambda tp: 1))
        self._fetcher = SimpleNamespace(_fetch_max_wait_ms=0)

    async def getmany(
        self, *wanted: TopicPartition, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, Sequence[Any]]:
        found = {}
        for tp, records in self.records.items():
            state = self.states[tp]
            found[tp], state.position = records[state.position :], len(records)
        if self.error is not None:
            raise self.error
        return found

    def assign(self, tps: Sequence[TopicPartition]) -> None:
        self.states.update({tp: State(None) for tp in tps})

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.states[tp].position = offset

    def pause(self, *tps: TopicPartition) -> None:
        self.paused.update(tps)

    def resume(self, *tps: TopicPartition) -> None:
        self.paused.difference_update(tps)


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    made = Consumer()
    monkeypatch.setattr(topic_reader, "AIOKafkaConsumer", lambda **_: made)
    return made


def reader_of(consumer: Any) -> TopicReader:
    reader = TopicReader("127.0.0.1:9", "in", "group", "assignments", fetch_wait_s=0.02)
    reader.hold({0: 0, 1: 0})
    return reader


async def test_records_that_came_with_corrupt_ones_are_fetched_again(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.records = {CONTROL: ["a grant"], ZERO: ["a", "b"]}
    consumer.error = CorruptBatch(ONE, 7)
    assert await reader.fetch((), 0.0) == ({}, (), {}, {})
    consumer.error = None
    fetched = await reader.fetch((), 0.0)
    assert (fetched.records, fetched.control) == ({0: ["a", "b"]}, ["a grant"])


async def test_a_partition_that_stays_corrupt_is_left_alone_longer_each_time_and_then_halted(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(topic_reader.time, "monotonic", lambda: now_s)
    reader = reader_of(consumer)
    waits = []
    for _ in range(fetched_batches.CORRUPT_FETCHES - 1):
        consumer.error = CorruptBatch(ONE, 7)
        assert (await reader.fetch((), 0.0)).lost == {}
        assert consumer.paused == {ONE}
        consumer.error, began_s = None, now_s
        while ONE in consumer.paused:
            now_s += 0.05
            await reader.fetch((), 0.0)
        waits.append(now_s - began_s)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0], abs=0.06)
    consumer.error = CorruptBatch(ONE, 7)
    fetched = await reader.fetch((), 0.0)
    assert fetched.lost == {1: "what Kafka has at offset 7 is corrupt on every fetch"}


async def test_damage_that_passes_is_forgotten(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(topic_reader.time, "monotonic", lambda: now_s)
    reader = reader_of(consumer)
    for _ in range(3 * fetched_batches.CORRUPT_FETCHES):
        consumer.error = CorruptBatch(ONE, 7)
        assert (await reader.fetch((), 0.0)).lost == {}
        consumer.error = None
        consumer.records.setdefault(ONE, []).append("a")
        now_s += fetched_batches.CORRUPT_AT_MOST_S
        assert (await reader.fetch((), 0.0)).records == {1: ["a"]}


async def test_an_assignments_topic_that_stays_corrupt_ends_the_dispatcher(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.error = CorruptBatch(CONTROL, 3)
    for _ in range(fetched_batches.CORRUPT_FETCHES - 1):
        await reader.fetch((), 0.0)
    with pytest.raises(KafkaFailed, match=r"assignments stays corrupt: .*offset 3"):
        await reader.fetch((), 0.0)


async def test_a_lost_offset_of_the_assignments_topic_halts_no_partition_of_the_input(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.error = OffsetOutOfRangeError({ONE: 5})
    assert (await reader.fetch((), 0.0)).lost == {1: "Kafka no longer has offset 5"}
    consumer.error = OffsetOutOfRangeError({CONTROL: 5})
    with pytest.raises(KafkaFailed, match="assignments"):
        await reader.fetch((), 0.0)


async def test_records_are_returned_while_kafka_is_asked_where_another_partition_goes_on(consumer: Consumer) -> None:
    reader = reader_of(consumer)
    consumer.records = {ZERO: ["a"]}
    consumer.states[ONE].known = None
    fetched = await reader.fetch((), 0.0)
    assert (fetched.records, fetched.positions) == ({0: ["a"]}, {0: 1, 1: 0})


async def test_records_of_a_partition_that_the_topic_was_given_are_read_again_on_the_connection_that_is_there(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Consumer()
    reader = reader_of(consumer)
    monkeypatch.setattr(topic_reader, "AIOKafkaConsumer", lambda **_: second)
    reader._second, reader.topic = TopicReader("127.0.0.1:9", "in"), TopicState("id", 3)
    second.records = {TopicPartition("in", 2): [Record(None, b"%d" % at, offset=at) for at in range(2)]}
    assert (await reader.read_again(2, [1]))[1].value == b"1"


@pytest.mark.parametrize("gapless", [True, False])
async def test_a_follower_halts_what_stays_corrupt_if_it_must_miss_nothing_and_else_tries_again(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch, *, gapless: bool
) -> None:
    now_s = 0.0
    monkeypatch.setattr(topic_reader.time, "monotonic", lambda: now_s)
    follower = TopicFollower("127.0.0.1:9", "in", gapless=gapless)
    follower._look_at_s = 1.0  # never
    follower._reader.hold({0: 0, 1: 4})
    consumer.error = CorruptBatch(ONE, 7)
    for _ in range(fetched_batches.CORRUPT_FETCHES - 1):
        assert await follower.read() == []
    with contextlib.nullcontext() if gapless else pytest.raises(Unreachable, match="offset 7 is corrupt"):
        assert await follower.read() == []
    assert list(follower.halted) == [1] * gapless
    assert dict(follower.positions) == ({0: 0} if gapless else {0: 0, 1: 4})
    assert (ONE in consumer.paused) is gapless
