"""A session without Kafka, whose reader and sender only remember, and replicas without processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any

from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.frames import (
    Batch,
    Call,
    Done,
    Failed,
    Leave,
    Ready,
    Results,
    ToDispatcher,
    encode_frame,
    to_replica,
)
from inferline_stream.dataplane.routes import Routes, routes_of
from inferline_stream.kafka.batch_mark import BatchWatch
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_reader import Fetched
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.settings import Settings

Entry = tuple[int, str]


def same(values: list[bytes]) -> list[bytes]:
    return values


def routes(**of_pipeline: Any) -> Routes:
    """Of a single stage."""
    work = Stage("work", same, hardware="cpu-1")
    ends = {"source": Topic("in", codec="raw"), "sink": Topic("out", codec="raw")}
    return routes_of(Pipeline("p", slo="1s", stages=[work], **{**ends, **of_pipeline}), "work")


class Reader:
    """Remembers what is held and committed."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.entries: dict[int, Entry] = {}
        self.topic = UNKNOWN_TOPIC
        self.log: list[Any] = []
        """Of partition 0, where a test fills it."""
        self.again: list[int] = []
        """Offsets that were read again."""

    async def read_again(self, partition: int, offsets: Collection[int]) -> dict[int, Any]:
        self.again += offsets
        return {offset: self.log[offset] for offset in offsets}

    def hold(self, positions: Mapping[int, int]) -> None:
        self.held.update(positions)

    def release(self, partitions: Iterable[int]) -> None:
        for number in partitions:
            self.held.pop(number, None)

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 0)

    async def committed(self, partitions: Iterable[int]) -> dict[int, Entry]:
        return {number: self.entries[number] for number in partitions if number in self.entries}

    async def commit(self, offsets: Mapping[int, Entry]) -> None:
        self.entries.update(offsets)

    def offsets_for_transaction(self, offsets: Mapping[int, Entry]) -> dict[int, Entry]:
        return dict(offsets)


class Sender:
    """Remembers what was sent; acknowledges it while `acknowledges` is set."""

    def __init__(self, reader: Reader, *, transactional: bool) -> None:
        self.transactional = transactional
        self.sent: list[bytes | None] = []
        self.acknowledges = asyncio.Event()
        self.acknowledges.set()
        self.began = asyncio.Event()
        self.is_void = False
        self._reader = reader

    async def send(self, outgoing: Mapping[tuple[str, int], Any]) -> None:
        self.sent += [message.value for messages in outgoing.values() for message in messages]
        self.began.set()
        await self.acknowledges.wait()

    async def begin(self) -> None:
        pass

    async def note(self, topic: str, key: bytes, value: bytes) -> bool:
        return True

    def void(self) -> None:
        self.is_void = True

    async def commit(self, offsets: Mapping[Any, Entry], group: str) -> None:
        self._reader.entries.update(offsets)


class Slot:
    """A session with its doubles.

    Args:
        partitions: offset and metadata that the group has committed.
        transactional: whether it is exactly once.
        stage: routes of another stage than the one of `routes`.
        settings: by default the defaults.
        of_pipeline: arguments of the pipeline.
    """

    def __init__(
        self,
        partitions: Mapping[int, Entry | None] | None = None,
        *,
        transactional: bool = False,
        kick: Callable[[], None] = lambda: None,
        stage: Routes | None = None,
        settings: Settings | None = None,
        **of_pipeline: Any,
    ) -> None:
        self.settings = settings or Settings()
        self.found = {0: (0, ""), 1: (0, "")} if partitions is None else dict(partitions)
        self.now_s = 0.0
        self.routes = stage or routes(**of_pipeline)
        self.reader = Reader()
        self.reader.entries = {number: entry for number, entry in self.found.items() if entry is not None}
        self.sender = Sender(self.reader, transactional=transactional)
        self.lease = Lease(2.0, lambda: self.now_s)
        self.lease.renew(0.0)
        self.report = new_report("d", 1, "work", 0, 40)
        self.kick = kick
        self.session = self.new_session()

    def new_session(self) -> SlotSession:
        topics = dict.fromkeys([*self.routes.topics_written, "out"], 1)
        return SlotSession(
            self.routes,
            reader=self.reader,  # type: ignore[arg-type]
            sender=self.sender,
            emitter=Emitter(self.routes, topics, random.Random(1), self.report),
            lease=self.lease,
            report=self.report,
            settings=self.settings,
            owner="me",
            live_since_us=0.0,
            kick=self.kick,
            watch=BatchWatch("in"),
        )

    async def begin(self) -> SlotSession:
        """Begin with what is committed."""
        await self.session.begin(self.found, await self.reader.committed(self.found))
        return self.session

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SlotSession]:
        """Begin and run the session."""
        session = await self.begin()
        work = asyncio.create_task(session.run())
        try:
            yield session
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def fetched(
        self, *values: bytes, partition: int = 0, first: int = 0, key: bytes | None = None, ago_s: float = 0.0
    ) -> None:
        """Hand the session records as one fetch brings them."""
        records = [
            Record(key, value, (), round((time.time() - ago_s) * 1000), "in", partition, first + at)
            for at, value in enumerate(values)
        ]
        positions = {partition: first + len(records)}
        self.session.take_in(Fetched({partition: records}, (), positions, {}))

    def hand_out(self, limit: int) -> list[Any]:
        """Take a batch as the feeder does."""
        events = self.session.take(limit)
        self.session.handed(events)
        return events

    def answer(self, events: list[Any]) -> None:
        """Give a batch's results back as the feeder does."""
        self.session.finished(events, [Done(event.payload, 0) for event in events])
        self.session.returned(events)

    def offset(self, partition: int = 0) -> int:
        """Return the committed offset."""
        return self.reader.entries[partition][0]


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds that other tasks bring about."""
    try:
        async with asyncio.timeout(5.0):
            while not holds():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"waited 5 s in vain until {what}") from None


class Replica:
    """A replica's end of its connection."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.name = name
        self._sock = sock
        self._frames = to_replica()
        self._heard: list[Batch | Leave] = []

    async def next(self) -> Batch | Leave:
        """Return the next frame."""
        while not self._heard:
            async with asyncio.timeout(5.0):
                data = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 16)
            assert data, f"the connection of {self.name} has ended"
            self._heard += self._frames.feed(data)
        return self._heard.pop(0)

    async def batch(self) -> Batch:
        """Return the next frame, which is a batch."""
        frame = await self.next()
        assert isinstance(frame, Batch)
        return frame

    def idle(self) -> bool:
        """Whether no frame waits to be read."""
        try:
            return not self._heard and not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True

    def say(self, frame: ToDispatcher) -> None:
        """Send a frame."""
        self._sock.sendall(encode_frame(frame))

    def ready(self) -> None:
        """Say that batches may come."""
        self.say(Ready(self.name, 0.1, None))

    def answer(self, batch: Batch) -> None:
        """Return what the batch held."""
        outcomes: list[Done | Failed] = [Done(bytes(each), 0) for each in batch.inputs]  # type: ignore[arg-type]
        self.say(Results(batch.epoch, batch.batch, outcomes, [Call(len(outcomes), 0.01)], 0.01))

    def die(self) -> None:
        """Close the connection, as the kernel does for a process that ended."""
        self._sock.close()
