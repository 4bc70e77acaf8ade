"""Sends hostile records between good ones, from a process of its own: its memory is not the pipeline's.

``python -m tests.benchmarks._hostile_producer`` with an `Attack` as one line of JSON on standard input. It sends the
first good events and answers ``warm``, waits for an empty line, sends everything else and answers with a `Sent`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import AsyncExitStack

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.structs import TopicPartition

from inferline_stream.pipeline.names import EVENT_ID
from tests.benchmarks._hostile_records import KEYS, HostileRecords

_BATCH = 10
_GOOD_BETWEEN = 4


class Attack(msgspec.Struct, frozen=True):
    """What to send.

    Args:
        bootstrap_servers: of a Kafka without TLS.
        topic: source topic of the pipeline `fuzzed`.
        control_topic: of the same pipeline.
        mark: in every good event.
        warm: good events before the first hostile record.
        hostile: number of hostile records, a multiple of 10, beside those of `bombs`.
        bombs: small batches that are large once they are decompressed, and as many batches with header names that
            are no UTF-8, among the others.
        empty: records of one batch of empty ones, the first of all.
        unserved: events on which the first stage always says that its server is away, after that batch.
        seed: of hostile records.
    """

    bootstrap_servers: str
    topic: str
    control_topic: str
    mark: str
    warm: int
    hostile: int
    bombs: int
    empty: int
    unserved: int
    seed: int


class Sent(msgspec.Struct):
    """What Kafka took. Good events are numbered from 0; Kafka took all of them."""

    good: int = 0
    hostile: int = 0
    refused: int = 0
    """Hostile records that Kafka itself refuses, for instance because their time is too far ahead."""


class HostileProducer:
    """Sends batches that were encoded by hand, and good events as any client does.

    Args:
        attack: what to send.
        client: connected.
        producer: connected.
    """

    def __init__(self, attack: Attack, client: AIOKafkaClient, producer: AIOKafkaProducer) -> None:
        self._attack, self._client, self._producer = attack, client, producer
        self._records = HostileRecords(attack.seed, attack.topic, attack.control_topic)
        self._batches = 0
        self.sent = Sent()

    async def good(self, count: int) -> None:
        """Send the next good events: half of them with an id of their own, some with a time of their own."""
        for _ in range(count):
            number = self.sent.good
            headers = [(EVENT_ID, b"%s-%d" % (self._attack.mark.encode(), number))] if number % 2 else []
            if number % 5 == 0:
                headers.append(("ts", b"%d" % (time.time() * 1e3)))
            event = {"number": number, "mark": self._attack.mark}
            key = b"key-%d" % (number % KEYS) if number % 3 else None
            await self._producer.send(self._attack.topic, msgspec.json.encode(event), key=key, headers=headers)
            self.sent.good += 1
        await self._producer.flush()

    async def everything(self) -> None:
        """Send the hostile records, and good events after each batch of them."""
        if self._attack.empty:
            batch = await asyncio.to_thread(self._records.empty, self._attack.empty)
            await self._hostile(batch, self._attack.empty)
        for _ in range(self._attack.unserved):
            await self._hostile(self._records.unserved(), 1)
        batches = self._attack.hostile // _BATCH
        bomb_every = max(1, batches // max(1, self._attack.bombs))
        for number in range(batches):
            await self._hostile(self._records.batch(_BATCH), _BATCH)
            if number % bomb_every == 0 and number // bomb_every < self._attack.bombs:
                await self._hostile(self._records.misnamed(_BATCH), _BATCH)
                await self._hostile(await asyncio.to_thread(self._records.bomb, number // bomb_every), 1)
            await self.good(_GOOD_BETWEEN)

    async def _hostile(self, batch: bytes, records: int) -> None:
        topic = self._attack.topic
        partitions = sorted(await self._client._wait_on_metadata(topic))
        partition = partitions[self._batches % len(partitions)]
        self._batches += 1
        leader = self._client.cluster.leader_for_partition(TopicPartition(topic, partition))
        answer = await self._client.send(leader, ProduceRequest(None, -1, 30_000, [(topic, [(partition, batch)])]))
        ((_, ((_, error, *_),)),) = answer.topics
        if error:
            self.sent.refused += records
        else:
            self.sent.hostile += records


async def main() -> None:
    """Obey the `Attack` on standard input."""
    attack = msgspec.json.decode(sys.stdin.readline(), type=Attack)
    async with AsyncExitStack() as stack:
        client = AIOKafkaClient(bootstrap_servers=attack.bootstrap_servers, request_timeout_ms=30_000)
        await client.bootstrap()
        stack.push_async_callback(client.close)
        producer = await stack.enter_async_context(
            AIOKafkaProducer(bootstrap_servers=attack.bootstrap_servers, acks="all")
        )
        sending = HostileProducer(attack, client, producer)
        await sending.good(attack.warm)
        _say(b"warm")
        await asyncio.to_thread(sys.stdin.readline)
        await sending.everything()
        _say(msgspec.json.encode(sending.sent))


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    asyncio.run(main())
