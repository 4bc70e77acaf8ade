"""One client process of `test_kafka_processes.py`: produces numbers, or copies them as a member of a group."""

import asyncio
import contextlib
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import CommitFailedError


async def produce(bootstrap_servers: str, topic: str, first: str, count: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, enable_idempotence=True) as producer:
        for number in range(int(first), int(first) + int(count)):
            await producer.send(topic, b"%d" % number, key=b"%d" % number)


async def copy(bootstrap_servers: str, source: str, sink: str, group: str) -> None:
    """Until killed: read, write, and commit what was written."""
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        heartbeat_interval_ms=100,
        session_timeout_ms=2000,
    )
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers) as producer, consumer:
        async for record in consumer:
            await producer.send_and_wait(sink, record.value, key=record.key)
            with contextlib.suppress(CommitFailedError):  # another's now, who copies the record again
                await consumer.commit()


if __name__ == "__main__":
    _, role, *arguments = sys.argv
    asyncio.run({"produce": produce, "copy": copy}[role](*arguments))
