"""A dispatcher follows grants and lease; without Kafka: its reader, sender and reports are doubles."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any

import pytest

from inferline_stream.dataplane.dispatcher import dispatcher as dispatcher_module
from inferline_stream.dataplane.dispatcher.dispatcher import Dispatcher
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.dataplane.frames import Batch, Done, Failed, Ready, Results, encode_frame, to_replica
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.slot_grants import Grant, encode_control, grant_key
from inferline_stream.dataplane.supervisor_messages import MAX_DATAGRAM_BYTES, Attach, Replace, decode_from_dispatcher
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import KafkaFailed, Record
from inferline_stream.kafka.topic_reader import Fetched
from inferline_stream.kafka.topic_state import TopicState
from tests.unit.dataplane.dispatcher.doubles import KIND, Entry, routes, until

ME, SUCCESSOR = "work-0-a", "work-0-b"


class Log:
    """A reader whose fetches end when the test says so; it remembers what is held and committed."""

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.entries: dict[int, Entry] = {0: (0, "")}
        self.topic, self.group = TopicState("", 1), "p.work"
        self.fetches: asyncio.Queue[Fetched] = asyncio.Queue()
        self.fetching = 0
        self.may_catch_up = True
        self.may_look = asyncio.Event()
        self.may_look.set()

    def caught_up(self) -> bool:
        return self.may_catch_up

    async def look_for_grants(self) -> None:
        pass

    def hold(self, positions: Mapping[int, int]) -> None:
        self.held.update(positions)

    def release(self, partitions: Iterable[int]) -> None:
        for number in partitions:
            self.held.pop(number, None)

    async def committed(self, partitions: Iterable[int]) -> dict[int, Entry]:
        await self.may_look.wait()
        return {number: self.entries[number] for number in partitions if number in self.entries}

    async def commit(self, offsets: Mapping[int, Entry]) -> None:
        self.entries.update(offsets)

    def offsets_for_transaction(self, offsets: Mapping[int, Entry]) -> dict[int, Entry]:
        return dict(offsets)

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        self.fetching += 1
        return await self.fetches.get()

    def bring(self, *values: bytes, first: int = 0, grants: Iterable[Any] = ()) -> None:
        """End a fetch, with records of partition 0 if it is held, and with grants."""
        records = [Record(None, v, timestamp_ms=1, topic="in", offset=first + at) for at, v in enumerate(values)]
        self.fetches.put_nowait(Fetched({0: records} if records else {}, tuple(grants), {}, {}))


class Sender:
    """Remembers what was done, in its order, and fails where the test says so."""

    def __init__(self, log: Log, *, transactional: bool) -> None:
        self.transactional = transactional
        self.did: list[Any] = []
        self.fails: Exception | None = None
        self._log = log

    async def start_again(self, *_: Any) -> None:
        self.did.append("start again")

    async def note(self, topic: str, key: bytes, value: bytes) -> bool:
        return True

    async def begin(self) -> None:
        self.did.append("begin")

    async def send(self, outgoing: Mapping[tuple[str, int], Any]) -> None:
        if self.fails is not None:
            raise self.fails
        self.did.append([message.value for messages in outgoing.values() for message in messages])

    async def commit(self, offsets: Mapping[str, Mapping[int, Entry]]) -> None:
        (of_group,) = offsets.values()
        self._log.entries.update(of_group)
        self.did.append(of_group[0][0])

    def void(self) -> None:
        self.did.append("void")


def grant(dispatcher: str, number: int, *, begins: bool = True, slots: int = 1) -> Any:
    value = encode_control(Grant("work", 0, slots, dispatcher, 1, number, begins))
    return Record.keyed("assignments", grant_key("work", 0), value)


class Run:
    """A dispatcher at work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, transactional: bool) -> None:
        self.log = Log()
        self.sender = Sender(self.log, transactional=transactional)
        self.lease = Lease(2.0)
        self.lease.renew(self.lease.now_s() + 3600.0)
        doubles = {"TopicReader": self.log, "Writer": self.sender, "Lease": self.lease}
        for name, double in doubles.items():
            monkeypatch.setattr(dispatcher_module, name, lambda *_, double=double, **__: double)
        self.supervisor, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.dispatcher = made = Dispatcher(DispatcherSpec(ME, 0, routes(), "127.0.0.1:9"), self.channel)
        made._know(dict.fromkeys([*made._routes.topics_written, "out"], 1), RecordRules({}))
        self.serving = asyncio.create_task(made._serve())
        self.fetching = asyncio.create_task(made._fetch(0))
        self.frames, self.ends = to_replica(), [self.supervisor, self.channel]

    async def serve(self) -> None:
        """Grant the slot, and wait until it is served."""
        self.log.bring(grants=[grant(ME, 1)])
        await until(lambda: self.log.held == {0: 0}, "it serves")

    def attach(self) -> socket.socket:
        """Attach a replica that is ready, and return its end of the connection."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.ends.append(theirs)
        self.dispatcher._attach(Attach("r", KIND, 0), ours)
        theirs.sendall(encode_frame(Ready("r", 0.1, None)))
        return theirs

    async def batch(self, replica: socket.socket) -> Batch:
        """Return the next batch that a replica reads."""
        while True:
            async with asyncio.timeout(5.0):
                data = await asyncio.get_running_loop().sock_recv(replica, 1 << 16)
            for frame in self.frames.feed(data):
                assert isinstance(frame, Batch)
                return frame

    def lapse(self) -> None:
        """Let the lease expire."""
        self.lease._until_s = self.lease.now_s() - 0.1
        self.dispatcher._tenure.changed.set()

    async def close(self) -> None:
        for task in (self.serving, self.fetching):
            task.cancel()
        await asyncio.gather(self.serving, self.fetching, return_exceptions=True)
        self.dispatcher._close()
        for sock in self.ends:
            sock.close()


def answer(replica: socket.socket, batch: Batch) -> None:
    done: list[Done | Failed] = [Done(bytes(each), 0) for each in batch.inputs]  # type: ignore[arg-type]
    replica.sendall(encode_frame(Results(batch.epoch, batch.batch, done, [], 0.01)))


@pytest.fixture(params=[False, True])
async def run(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Run]:
    run = Run(monkeypatch, transactional=request.param)
    yield run
    await run.close()


async def test_records_go_through_a_replica_to_the_sender_and_are_then_committed(run: Run) -> None:
    replica = run.attach()
    await run.serve()
    assert run.log.fetching == 2, "the second fetch began before the session, and its records count"
    run.log.bring(b"a", b"b")
    for value in (b"a", b"b"):  # no grant says that batches may be larger
        batch = await run.batch(replica)
        assert batch.inputs == [value]
        answer(replica, batch)
    await until(lambda: run.log.entries[0][0] == 2, "they are committed")
    did = [each for each in run.sender.did if each not in ("start again", "begin")]
    assert [value for each in did if isinstance(each, list) for value in each] == [b"a", b"b"]
    if run.sender.transactional:
        assert (run.sender.did[0], did.index([b"a"]) < did.index(1)) == ("start again", True)


async def test_a_replica_whose_answer_is_no_frame_is_replaced(run: Run) -> None:
    replica = run.attach()
    await until(
        lambda: bool(run.dispatcher._slot.fill(run.dispatcher._report, 0.0) or run.dispatcher._report.replicas), ""
    )
    replica.sendall(b"no frame at all")
    run.supervisor.settimeout(5.0)
    said = await asyncio.to_thread(run.supervisor.recv, MAX_DATAGRAM_BYTES)
    assert isinstance(decode_from_dispatcher(said), Replace)


async def test_a_slot_that_is_lost_while_it_is_begun_is_not_served(run: Run) -> None:
    run.log.may_look.clear()
    run.log.bring(grants=[grant(ME, 1)])
    await until(lambda: run.dispatcher._tenure._has_served, "it begins")
    run.log.bring(grants=[grant(SUCCESSOR, 2, begins=False)])
    await until(lambda: run.dispatcher._report.number == 2, "it has read who is next")
    run.log.may_look.set()
    await asyncio.wait_for(run.serving, 5)
    assert (run.log.held, run.dispatcher._report.phase, run.sender.did[-1]) == ({}, "standby", "void")


DELETED = Record.keyed("assignments", grant_key("work", 0), None)


@pytest.mark.parametrize(
    "meanwhile",
    [(), (grant(SUCCESSOR, 2),), (grant(ME, 2, begins=False),), (grant(ME, 2, slots=2),), (DELETED,)],
    ids=["nothing", "a successor", "not yet", "other partitions", "nobody"],
)
async def test_after_a_lapse_a_session_goes_on_once_it_is_known_that_nobody_else_has_served(
    run: Run, meanwhile: tuple[Any, ...]
) -> None:
    replica = run.attach()
    await run.serve()
    run.log.bring(b"a")
    batch = await run.batch(replica)
    run.log.may_catch_up = False
    run.lapse()
    delivery = run.dispatcher._slot._session.delivery
    await until(lambda: delivery._lapsed, "it knows")
    before = list(run.sender.did)
    run.lease.renew(run.lease.now_s() + 3600.0)
    answer(replica, batch)
    await asyncio.sleep(0.1)
    assert run.sender.did == before, "it sends before it has read all grants"
    if meanwhile:
        run.log.bring(grants=[*meanwhile, grant(ME, 3)])
        await until(lambda: run.dispatcher._report.number == 3, "it has read who has served")
    run.log.may_catch_up = True
    if meanwhile:
        await until(lambda: run.dispatcher._slot._session.delivery is not delivery, "the session is dropped")
        assert run.sender.did[len(before)] == "void"
    else:
        await until(lambda: run.log.entries[0][0] == 1, "it commits")
        assert next(each for each in run.sender.did[len(before) :] if each != "begin") == [b"a"]
        assert run.dispatcher._slot._session.delivery is delivery


async def test_after_a_long_lapse_no_session_goes_on(run: Run) -> None:
    await run.serve()
    delivery = run.dispatcher._slot._session.delivery
    run.dispatcher._tenure._lapse_s = 0.2
    run.lapse()
    await until(lambda: run.sender.did[-1:] == ["void"], "the session is dropped while there is no lease")
    run.lease.renew(run.lease.now_s() + 3600.0)
    await until(lambda: run.dispatcher._slot._session.delivery is not delivery, "another one is begun")


async def test_a_lease_that_expires_between_the_last_look_and_the_drain_ends_the_session(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A starved event loop takes long from one task to the next."""
    watch, replica = run.dispatcher._tenure.watch, run.attach()

    async def watched() -> bool:
        found = await watch()
        run.lease._until_s = run.lease.now_s() - 0.1
        answer(replica, batch)
        await until(lambda: run.dispatcher._slot._session.delivery._lapsed, "something was to be sent")
        run.lease.renew(run.lease.now_s() + 3600.0)
        return found

    monkeypatch.setattr(run.dispatcher._tenure, "watch", watched)
    await run.serve()
    run.log.bring(b"a")
    batch = await run.batch(replica)
    run.log.bring(grants=[grant(SUCCESSOR, 2, begins=False)])
    await asyncio.wait_for(run.serving, 5)
    assert (run.sender.did[-1], run.log.entries[0][0]) == ("void", 0)


async def test_a_slot_that_another_is_to_serve_is_drained_and_what_fails_meanwhile_ends_the_dispatcher(
    run: Run,
) -> None:
    replica = run.attach()
    await run.serve()
    run.log.bring(b"a")
    batch = await run.batch(replica)
    run.log.bring(grants=[grant(SUCCESSOR, 2, begins=False)])
    await until(lambda: run.dispatcher._report.phase == "draining", "it drains")
    run.sender.fails = KafkaFailed("no answer")
    answer(replica, batch)
    with pytest.raises(KafkaFailed, match="no answer"):
        await asyncio.wait_for(run.serving, 5)


async def test_a_drained_slot_is_left_once_what_was_in_hand_is_committed(run: Run) -> None:
    replica = run.attach()
    await run.serve()
    run.log.bring(b"a", b"b")
    batch = await run.batch(replica)
    run.log.bring(grants=[grant(SUCCESSOR, 2, begins=False)])
    await until(lambda: run.dispatcher._report.phase == "draining", "it drains")
    answer(replica, batch)
    await asyncio.wait_for(run.serving, 5)
    assert (run.log.entries[0][0], run.log.held) == (1, {})
