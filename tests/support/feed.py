"""Records sent to a topic at a rate that changes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer


@asynccontextmanager
async def fed(servers: str, topic: str, rate: list[float], partitions: int = 4) -> AsyncIterator[None]:
    """Send records at a rate, which may be changed, or 0."""

    async def feed() -> None:
        rng, due_s = random.Random(1), time.monotonic()
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            while True:
                due_s = due_s + rng.expovariate(rate[0]) if rate[0] else time.monotonic() + 0.1
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if rate[0]:
                    await producer.send(topic, b"e", partition=rng.randrange(partitions))

    feeding = asyncio.create_task(feed())
    try:
        yield
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
