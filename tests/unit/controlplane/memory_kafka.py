"""A `KafkaCluster` in memory: topics as lists, a source that counts, and answers that a test takes away."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from inferline_stream.controlplane.records.control_records import Override, decode_stored, encode
from inferline_stream.errors import Unreachable
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.kafka.records import Record

_POLL_S = 0.01


class MemoryKafka:
    """What a controller sees of Kafka.

    Args:
        source: full name of the source topic.
        partitions: of the source topic; every other topic has one.
        arrived: events in the source topic by now.
        done: events that the stage's group has committed by now.
    """

    bootstrap_servers = "memory:9092"

    def __init__(self, source: str, partitions: int, arrived: Callable[[], int], done: Callable[[], int]) -> None:
        self.source, self._partitions, self._arrived, self._done = source, partitions, arrived, done
        self.topics: defaultdict[str, list[Record]] = defaultdict(list)
        self.away = False
        """Whether it gives no answer."""

    def answer(self) -> None:
        """Raise unless it answers."""
        if self.away:
            raise Unreachable(f"Kafka at {self.bootstrap_servers} does not answer")

    def append(self, topic: str, value: bytes | None, key: bytes | None = None, *, time_s: float | None = None) -> None:
        """Write a record, now by default."""
        log = self.topics[topic]
        log.append(Record(key, value, (), int((time_s or time.time()) * 1e3), topic, 0, len(log)))

    def say(self, topic: str, override: Override, *, time_s: float | None = None) -> None:
        """Write down what people have said, now by default."""
        self.append(topic, encode(override), override.key.encode(), time_s=time_s)

    def values(self, topic: str) -> list[bytes]:
        """What a topic holds."""
        return [record.value for record in self.topics[topic] if record.value]

    def decisions(self, topic: str) -> list[tuple[str, str]]:
        """Action and reason of each decision that a topic holds."""
        found = []
        for record in self.topics[topic]:
            if record.key is not None and record.key.startswith(b"decision-") and record.value:
                stored: Any = decode_stored(record.key.decode(), record.value)
                found.append((stored.action, stored.reason))
        return found

    # -- as a `KafkaCluster` ------------------------------------------------------------------------------

    def follow(self, topic: str, start: Any = "earliest", *, committed_only: bool = True) -> Any:
        return _Follower(self, topic, len(self.topics[topic]) if start == "latest" else 0)

    def offsets(self) -> Any:
        return self

    def producer(self) -> Any:
        return self

    async def retentions(self, topics: Iterable[str]) -> dict[str, float]:
        self.answer()
        return dict.fromkeys(topics, 7 * 24 * 3600.0)

    async def fence(self, transactional_id: str) -> None:
        self.answer()

    # -- as its `Offsets` and its `RecordProducer` ----------------------------------------------

    async def __aenter__(self) -> Self:
        self.answer()
        return self

    async def __aexit__(self, *of: object) -> None:
        return None

    async def partitions(self, topic: str) -> int:
        self.answer()
        return self._partitions if topic == self.source else 1

    async def existing(self, topics: Sequence[str]) -> dict[str, int]:
        return {topic: await self.partitions(topic) for topic in topics}

    async def ends(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        self.answer()
        return {
            topic: self._spread(self._arrived()) if topic == self.source else (len(self.topics[topic]),)
            for topic in partitions
        }

    async def begins(self, partitions: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        self.answer()
        return {topic: (0,) * count for topic, count in partitions.items()}

    async def oldest_s(self, partitions: Mapping[str, int]) -> dict[str, float]:
        self.answer()
        return {topic: self.topics[topic][0].time_ms / 1e3 for topic in partitions if self.topics[topic]}

    async def committed(self, group: str, topic: str, partitions: int) -> tuple[Committed, ...]:
        self.answer()
        return tuple(map(Committed, self._spread(self._done())))

    def _spread(self, events: int) -> tuple[int, ...]:
        return tuple((events + self._partitions - 1 - p) // self._partitions for p in range(self._partitions))

    async def send(self, topic: str, value: bytes, key: bytes | None = None) -> None:
        self.answer()
        self.append(topic, value, key)

    async def write(self, records: Sequence[Record]) -> None:
        """A transaction."""
        self.answer()
        for record in records:
            self.append(record.topic, record.value, record.key)


class _Follower:
    """A `TopicFollower` of one."""

    def __init__(self, kafka: MemoryKafka, topic: str, at: int) -> None:
        self._kafka, self._topic, self._at = kafka, topic, at

    async def __aenter__(self) -> Self:
        self._kafka.answer()
        return self

    async def __aexit__(self, *of: object) -> None:
        return None

    async def read(self, timeout_s: float = 1.0, most: int | None = None) -> list[Record]:
        until_s = asyncio.get_running_loop().time() + timeout_s
        while len(self._kafka.topics[self._topic]) <= self._at or self._kafka.away:
            if asyncio.get_running_loop().time() >= until_s:
                self._kafka.answer()
                return []
            await asyncio.sleep(_POLL_S)
        found = self._kafka.topics[self._topic][self._at :]
        self._at += len(found)
        return found

    async def end(self) -> dict[int, int]:
        self._kafka.answer()
        return {0: len(self._kafka.topics[self._topic])}

    @property
    def positions(self) -> dict[int, int]:
        return {0: self._at}

    async def until(self, end: Mapping[int, int], stalled_s: float = 10.0) -> AsyncIterator[Record]:
        for record in self._kafka.topics[self._topic][self._at : end[0]]:
            self._at += 1
            yield record

    async def read_to(self, end: Mapping[int, int]) -> list[Record]:
        return [record async for record in self.until(end)]
