"""Offsets of several groups in a transaction: each group's coordinator is looked up once, and again once it is dead."""

from __future__ import annotations

from collections import Counter
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import CoordinationType

from inferline_stream.kafka.hanging_transactions import TransactionalProducer

OFFSETS = {"live": {TopicPartition("in", 0): (1, "")}, "archive": {TopicPartition("old", 0): (2, "")}}


class Producer(TransactionalProducer):
    """Asks a Kafka of one broker for each group; offsets go to the coordinator that aiokafka then knows."""

    def __init__(self) -> None:
        super().__init__(bootstrap_servers="127.0.0.1:1", transactional_id="t")
        self.lookups: Counter[str] = Counter()
        self.sent: list[tuple[str, int]] = []
        self.brokers = {"live": 1, "archive": 2}
        self.client.coordinator_lookup = self._lookup
        self.client.ready = self._ready
        self._closed = True  # nothing was opened

    async def _lookup(self, kind: int, group: str) -> int:
        self.lookups[group] += 1
        return self.brokers[group]

    async def _ready(self, *_: Any, **__: Any) -> bool:
        return True

    async def send_offsets_to_transaction(self, offsets: Any, group_id: str) -> None:
        broker = await self._sender._find_coordinator(CoordinationType.GROUP, group_id)
        if broker != self.brokers[group_id]:  # as aiokafka does on its answer
            self._sender._coordinator_dead(CoordinationType.GROUP)
            broker = await self._sender._find_coordinator(CoordinationType.GROUP, group_id)
        self.sent.append((group_id, broker))


async def test_each_groups_coordinator_is_looked_up_once_and_again_where_it_has_moved() -> None:
    producer = Producer()
    for _ in range(3):
        await producer.add_offsets(OFFSETS)
    assert producer.lookups == {"live": 1, "archive": 1}
    producer.brokers["archive"] = 3
    producer.sent.clear()
    for _ in range(2):
        await producer.add_offsets(OFFSETS)
    assert producer.sent == [("live", 1), ("archive", 3)] * 2
    assert producer.lookups == {"live": 1, "archive": 2}
