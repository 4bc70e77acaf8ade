"""The profiler's way to its dispatchers: orders through one topic, answers through another."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from inferline_stream.dataplane.frames import StageInput
from inferline_stream.errors import StageFailed
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import Names
from inferline_stream.profiler.bench_messages import (
    Answered,
    Assembler,
    BenchAnswer,
    NotReady,
    Order,
    SampleInputs,
    Standing,
    ToBench,
    Unreadable,
    Work,
    decode_from_bench,
    dispatcher_of,
    pieces,
)

SILENT_S = 30.0
"""A dispatcher that has said nothing for so long is lost."""

LOOK_S = 0.1


class BenchLink:
    """Gives orders, and keeps what dispatchers have said.

    Args:
        producer: that orders go out through.
        topic: that they go to.
    """

    def __init__(self, producer: RecordProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self.standing: dict[str, Standing] = {}
        """What each dispatcher said last of its replicas."""
        self.stood: set[str] = set()
        """Replicas that were ready once."""
        self.ends: dict[str, str] = {}
        """Why the process of each dispatcher ended whose next one has said nothing yet."""
        self._incarnations: dict[str, int] = {}
        """Of the process of each dispatcher that lives, or is to come."""
        self._heard_s: dict[str, float] = {}
        self._open: dict[int, str] = {}
        """Dispatchers of the orders that have no answer yet, by number."""
        self._answers: dict[int, BenchAnswer] = {}
        self._assemblers: dict[str, Assembler] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []

    async def give(self, dispatcher: str, inputs: Sequence[StageInput]) -> None:
        """Send the inputs that later orders are about.

        Raises:
            InferlineError: Kafka refuses them, or does not answer.
        """
        await self._send(dispatcher, SampleInputs(list(inputs)))

    async def ask(self, dispatcher: str, replica: str, work: Work) -> BenchAnswer:
        """Give an order and wait for its answer; `NotReady` where the dispatcher's process ends before.

        Args:
            dispatcher: which one.
            replica: that the order is for.
            work: what it is to do.

        Raises:
            StageFailed: the dispatcher is lost.
            InferlineError: Kafka refuses the order, or does not answer.
        """
        number, loop = next(self._numbers), asyncio.get_running_loop()
        self._open[number] = dispatcher
        try:
            await self._send(dispatcher, Order(replica, work, number))
            await self.until(
                lambda: number in self._answers or loop.time() - self._heard_s[dispatcher] > SILENT_S, math.inf
            )
        finally:
            del self._open[number]
        if number not in self._answers:
            raise StageFailed(
                f"dispatcher {dispatcher} in the cluster has been silent for {SILENT_S:g} s, as where its node is "
                "lost; profile again"
            )
        return self._answers.pop(number)

    async def _send(self, dispatcher: str, message: ToBench) -> None:
        for key, value in pieces(dispatcher, message):
            await self._producer.deliver(self._topic, value, key=key)

    def hear(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of the answers' topic.

        Raises:
            StageFailed: it is of another release, or says that this side is.
        """
        if not (dispatcher := dispatcher_of(key)):
            return
        self._heard_s[dispatcher] = asyncio.get_running_loop().time()
        data = self._assemblers.setdefault(dispatcher, Assembler()).add(key or b"", value or b"")
        if data is None:
            return
        try:
            message = decode_from_bench(data)
        except msgspec.MsgspecError as error:
            raise StageFailed(
                f"dispatcher {dispatcher} speaks another release's language ({error}); have the cluster use an image "
                "of this command's release"
            ) from None
        if isinstance(message, Unreadable):
            raise StageFailed(
                f"dispatcher {dispatcher} cannot read what this command sent it: {message.why}; have the cluster use "
                "an image of this command's release"
            )
        if isinstance(message, Answered):
            if message.number in self._open:  # else it is known to be lost
                self._answers.setdefault(message.number, message.answer)
        elif message.incarnation >= self._incarnations.get(dispatcher, 0):  # else a dead process has said it
            self._incarnations[dispatcher] = message.incarnation
            self.ends.pop(dispatcher, None)
            self.standing[dispatcher] = message
            self.stood.update(message.replicas)
        self.touch()

    def ended(self, dispatcher: str, incarnation: int, why: str) -> None:
        """Note that a dispatcher's process has ended: its orders are lost, and the next process has no replica yet."""
        if incarnation >= self._incarnations.get(dispatcher, 0):  # else the next one is heard already
            self._incarnations[dispatcher] = incarnation + 1
            self.ends[dispatcher] = why
            if dispatcher in self.standing:
                self.standing[dispatcher] = Standing(incarnation=incarnation + 1)
        for number, asked in self._open.items():
            if asked == dispatcher:
                self._answers.setdefault(number, NotReady(f"its dispatcher ended: {why}"))
        self.touch()

    def touch(self) -> None:
        """Look again now at what `until` waits for."""
        self._changed.set()

    async def until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """Wait until something holds, for a while; return whether it does.

        Raises:
            InferlineError: a background task failed.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        while not holds():
            for work in self._background:
                if work.done():
                    work.result()
            if loop.time() >= until_s:
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
        return True

    @asynccontextmanager
    async def beside(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run work in the background. If it fails, `until` raises its error."""
        task = asyncio.create_task(work)
        self._background.append(task)
        try:
            yield
        finally:
            self._background.remove(task)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def bench_link(bootstrap_servers: str, names: Names) -> AsyncIterator[BenchLink]:
    """Connect with the topics of a profile, which are there.

    Args:
        bootstrap_servers: of Kafka.
        names: of those topics.

    Raises:
        Unreachable: Kafka does not answer.
    """
    async with (
        RecordProducer(bootstrap_servers) as producer,
        TopicFollower(bootstrap_servers, names.stage_stats, committed_only=False) as answers,
    ):
        link = BenchLink(producer, names.control)

        async def follow() -> None:
            while True:
                for record in await answers.read(LOOK_S):
                    link.hear(record.key, record.value)

        async with link.beside(follow()):
            yield link
