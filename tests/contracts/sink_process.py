"""Sinks and sources as the processes that they are, and what their topics hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from inferline_stream.connectors.sinks.topic_sink import TopicSink
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.pipeline.names import EVENT_ID
from tests.contracts.commands import command


async def topic_on(bootstrap_servers: str, partitions: int = 2, **settings: str) -> str:
    """Create a topic, and one for its dead letters."""
    name = f"topic-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(name, partitions, 1, topic_configs=settings), NewTopic(f"{name}.dlq", 1, 1)]
        )
    finally:
        await admin.close()
    return name


async def send(bootstrap_servers: str, topic: str, events: list[tuple[str, bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        for known, value in events:
            await producer.send_and_wait(topic, value, headers=[(EVENT_ID, known.encode())])
    finally:
        await producer.stop()


async def send_nothing(bootstrap_servers: str, topic: str) -> None:
    """Send a record without key and value, which other clients than aiokafka do."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=None)
        await (await producer.send_batch(batch, topic, partition=0))
    finally:
        await producer.stop()


def numbered(numbers: range) -> list[tuple[str, bytes]]:
    return [(f"e{n}", b'{"n": %d}' % n) for n in numbers]


class Command:
    """A sink's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._errors = b""

    async def stopped(self, code: int = 0) -> dict[str, Any]:
        """Its counts, after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        output, self._errors = await self.process.communicate()
        assert self.process.returncode == code, self._errors
        counts: dict[str, Any] = json.loads(output)
        return counts

    async def errors(self) -> bytes:
        """What it wrote to standard error, once it has ended."""
        return self._errors

    def worker(self) -> int:
        """The isolated process beneath, that moves the records."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


@contextlib.asynccontextmanager
async def running(kind: str, bootstrap_servers: str, topic: str, *options: str) -> AsyncIterator[Command]:
    module = f"inferline_stream.connectors.{kind}"
    to = ("--bootstrap-servers", bootstrap_servers, "--topic", topic)
    async with command(sys.executable, "-m", module, *to, *options) as process:
        yield Command(process)


@contextlib.asynccontextmanager
async def moving(sink: TopicSink) -> AsyncIterator[None]:
    """A sink that moves records within the block."""
    stop = asyncio.Event()
    async with sink:
        following = asyncio.create_task(sink.follow(stop))
        try:
            yield
        finally:
            stop.set()
            await following


async def until_stored(where: str, topic: str, group: str) -> None:
    """Wait until a group has committed everything that is in a topic now."""
    async with Offsets(where) as offsets:
        partitions = await offsets.partitions(topic)
        ends = (await offsets.ends({topic: partitions}))[topic]
        while tuple(at.offset for at in await offsets.committed(group, topic, partitions)) != ends:
            await asyncio.sleep(0.02)
