"""A dispatcher follows grants and lease; without Kafka: its reader, sender and reports are doubles."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any

import pytest

from inferline_stream.dataplane.dispatcher import dispatcher as dispatcher_module
from inferline_stream.dataplane.dispatcher.dispatcher import Dispatcher
from inferline_stream.dataplane.dispatcher.lease import Lease, LeaseExpired
from inferline_stream.dataplane.dispatcher.session import SlotSession
from inferline_stream.dataplane.frames import Done
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.slot_grants import Grant, encode_control, grant_key
from inferline_stream.kafka.records import KafkaFailed, Record
from inferline_stream.kafka.topic_reader import Fetched
from inferline_stream.kafka.topic_state import TopicState
from tests.unit.dataplane.dispatcher.doubles import Entry, Reader, Sender, routes, until

ME, SUCCESSOR = "work-0-a", "work-0-b"


class Log(Reader):
    """A reader whose fetches end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = {0: (0, "")}
        self.topic = TopicState("", 1)
        self.fetches: asyncio.Queue[Fetched] = asyncio.Queue()
        self.fetching = 0
        self.may_catch_up = True
        self.may_look = asyncio.Event()
        self.may_look.set()

    def caught_up(self) -> bool:
        return self.may_catch_up

    async def look_for_grants(self) -> None:
        pass

    async def committed(self, partitions: Iterable[int]) -> dict[int, Entry]:
        await self.may_look.wait()
        return await super().committed(partitions)

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        self.fetching += 1
        return await self.fetches.get()

    def bring(self, *values: bytes, first: int = 0, grants: Iterable[Any] = ()) -> None:
        """End a fetch, with records of partition 0 if it is held, and with grants."""
        records = [Record(None, v, timestamp_ms=1, topic="in", offset=first + at) for at, v in enumerate(values)]
        self.fetches.put_nowait(Fetched({0: records} if records else {}, tuple(grants), {}, {}))


def grant(dispatcher: str, number: int, *, begins: bool = True) -> Any:
    value = encode_control(Grant("work", 0, 1, dispatcher, 1, number, begins))
    return Record.keyed("assignments", grant_key("work", 0), value)


class Run:
    """A dispatcher at work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.log = Log()
        self.sender = Sender(self.log, transactional=False)
        self.lease = Lease(2.0, lambda: self.now_s)
        self.lease.renew(0.0)
        doubles = {"TopicReader": self.log, "Writer": self.sender, "Lease": self.lease}
        for name, double in doubles.items():
            monkeypatch.setattr(dispatcher_module, name, lambda *_, double=double, **__: double)
        self.supervisor, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.dispatcher = made = Dispatcher(DispatcherSpec(ME, 0, routes(), "127.0.0.1:9"), self.channel)
        made._partitions = dict.fromkeys([*made._routes.topics_written, "out"], 1)
        self.serving = asyncio.create_task(made._serve())
        self.fetching = asyncio.create_task(made._fetch())

    async def session(self) -> SlotSession:
        """Grant the slot, and return the session that begins."""
        self.log.bring(grants=[grant(ME, 1)])
        await until(lambda: self.dispatcher._session is not None, "it serves")
        assert self.dispatcher._session is not None
        return self.dispatcher._session

    async def close(self) -> None:
        for task in (self.serving, self.fetching):
            task.cancel()
        await asyncio.gather(self.serving, self.fetching, return_exceptions=True)
        self.dispatcher._feeder.close()
        self.supervisor.close()
        self.channel.close()


@pytest.fixture
async def run(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    run = Run(monkeypatch)
    yield run
    await run.close()


async def test_records_of_a_fetch_that_was_under_way_when_the_session_began_are_taken_in(run: Run) -> None:
    session = await run.session()
    assert run.log.fetching == 2, "the second fetch began before the session"
    run.log.bring(b"a", b"b")
    await until(lambda: run.log.fetching == 3, "the fetch has ended")
    assert [event.payload for event in session.take(9)] == [b"a", b"b"]


async def test_a_slot_that_is_lost_while_it_is_begun_is_not_served(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[SlotSession | None] = []
    monkeypatch.setattr(run.dispatcher._feeder, "serve", served.append)
    run.log.may_look.clear()
    run.log.bring(grants=[grant(ME, 1)])
    await until(lambda: run.dispatcher._has_served, "it begins")
    run.log.bring(grants=[grant(SUCCESSOR, 2, begins=False)])
    await until(lambda: run.dispatcher._report.number == 2, "it has read who is next")
    run.log.may_look.set()
    await asyncio.wait_for(run.serving, 5)
    assert (served, run.log.held, run.dispatcher._report.phase) == ([None], {}, "standby")


async def test_a_dropped_session_sends_nothing_once_the_lease_is_back(run: Run) -> None:
    session = await run.session()
    run.log.bring(b"a")
    await until(lambda: len(session.queue) == 1, "the record is taken in")
    run.log.may_catch_up = False
    run.now_s = 3.0
    run.dispatcher._grant_changed.set()
    await until(lambda: run.dispatcher._session is None, "the session is dropped")
    assert run.sender.is_void
    run.lease.renew(run.now_s)
    session.finished(events := session.take(1), [Done(b"a", 0) for _ in events])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run.sender.began.wait(), 0.2)


async def test_a_drain_that_fails_is_not_taken_for_one_that_has_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await run.session()

    async def fails() -> None:
        raise KafkaFailed("no answer")

    monkeypatch.setattr(session, "drain", fails)
    run.log.bring(grants=[grant(SUCCESSOR, 2, begins=False)])
    with pytest.raises(KafkaFailed, match="no answer"):
        await asyncio.wait_for(run.serving, 5)


async def test_a_lease_that_has_expired_for_two_tasks_at_once_is_an_expired_lease() -> None:
    async def expired() -> None:
        raise LeaseExpired

    async def session() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(expired())
            tasks.create_task(expired())

    work = asyncio.create_task(session())
    await asyncio.wait([work])
    with pytest.raises(LeaseExpired):
        dispatcher_module._only(work)
