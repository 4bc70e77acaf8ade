"""What a replica is measured against: consume, produce, await every acknowledgement, commit; nothing else.

Same client, event loop, acks, idempotence and committed offsets as a replica; no limit on what it takes at once.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


async def main(bootstrap_servers: str, source: str, sink: str, group: str) -> None:
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=bootstrap_servers,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True)
    async with consumer, producer:
        while True:
            found = await consumer.getmany(timeout_ms=500)
            sent = [
                await producer.send(sink, record.value, key=record.key, headers=list(record.headers))
                for records in found.values()
                for record in records
            ]
            if sent:
                await asyncio.gather(*sent)
                await consumer.commit()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:5]))
