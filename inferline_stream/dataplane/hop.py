"""Time that a record spends between two stages beyond queueing and service: produce, fetch, decode."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import statistics
import time
from collections.abc import Callable

import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from inferline_stream.dataplane.client import Message, StageReader, StageSender
from inferline_stream.dataplane.connecting import client_options
from inferline_stream.dataplane.headers import read_headers
from inferline_stream.dataplane.topics import TopicSettings, create_topics
from inferline_stream.errors import Unreachable
from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID

_RECORDS = 150
_WARMING = 30
_GAP_S = 0.002
_LOST_AFTER_S = 10.0


async def measure_hop_s(
    bootstrap_servers: str,
    *,
    fetch_wait_s: float,
    prefix: str = "",
    timeout_s: float = 10.0,
    clock_s: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time from sending a result to having decoded it, with a replica's own sender and reader.

    One record at a time, so that none waits for another. Uses a topic of its own, deleted again.

    Raises:
        Unreachable: Kafka does not answer in time, or loses records.
    """
    name = f"{prefix}inferline-hop-{secrets.token_hex(4)}"
    topics = [TopicSettings(topic, 1, "probe of the profiler") for topic in (name, f"{name}.assignments")]
    await create_topics(bootstrap_servers, topics, replication=1, timeout_s=timeout_s)
    reader = StageReader(bootstrap_servers, name, name, topics[1].name, fetch_wait_s=fetch_wait_s)
    sender = StageSender(bootstrap_servers, name)
    try:
        await asyncio.gather(reader.start(timeout_s), sender.start(timeout_s))
        reader.hold({0: 0})
        times_s = await _hops_s(reader, sender, name, clock_s)
    finally:
        await asyncio.gather(reader.stop(), sender.stop())
        await _delete(bootstrap_servers, [topic.name for topic in topics])
    return statistics.median(times_s[_WARMING:])


async def _hops_s(reader: StageReader, sender: StageSender, topic: str, clock_s: Callable[[], float]) -> list[float]:
    """Send records one after the other, each once the one before has come."""
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def read() -> None:
        while True:
            fetched = await reader.fetch((), _LOST_AFTER_S)
            for record in fetched.records.get(0, ()):
                read_headers(record.headers)
                msgspec.json.decode(record.value)
                arrived.put_nowait(clock_s())

    headers = [(EVENT_ID, b"topic/0/0"), (ENTRY_TIME, b"1700000000000000")]
    reading = asyncio.create_task(read())
    times_s = []
    try:
        for i in range(_RECORDS):
            value = msgspec.json.encode({"number": i})
            began_s = clock_s()
            sending = asyncio.create_task(sender.send({(topic, 0): [Message(None, value, headers)]}))
            try:
                async with asyncio.timeout(_LOST_AFTER_S):
                    times_s.append(await arrived.get() - began_s)
                    await sending
            except (TimeoutError, KafkaError) as error:
                raise Unreachable(
                    f"Kafka took no record, or gave none back, in {_LOST_AFTER_S:g} s ({error})"
                ) from error
            await asyncio.sleep(_GAP_S)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    return times_s


async def _delete(bootstrap_servers: str, topics: list[str]) -> None:
    admin = AIOKafkaAdminClient(**client_options(bootstrap_servers))
    with contextlib.suppress(KafkaError):  # an empty topic that stays behind harms nobody
        try:
            await admin.start()
            await admin.delete_topics(topics)
        finally:
            await admin.close()
