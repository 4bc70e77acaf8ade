"""A join's dispatcher whose host leaves it hardly any of a core, the shell and the slot as they are, in virtual time.

Each turn of its event loop takes the CPU time that one takes, divided by the share of a core that it has. Its
supervisor kills it for its silence, by the controller's own rule, and starts it again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest

from inferline_stream.controlplane.apply.slot_keeper import Silence
from inferline_stream.dataplane.dispatcher import dispatcher as dispatcher_module
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.dispatcher import Dispatcher
from inferline_stream.dataplane.frames import Batch, Call, Done, Ready, Results
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan, encode_control, grant_key
from inferline_stream.dataplane.supervisor_messages import Attach
from inferline_stream.kafka.fetched_batches import RECORDS_AT_ONCE
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_reader import Fetched
from inferline_stream.kafka.topic_state import TopicState
from inferline_stream.pipeline.names import EVENT_ID, PARENT, SKIPPED
from tests.support import virtual_time
from tests.unit.dataplane.dispatcher.doubles import KIND, Entry
from tests.unit.dataplane.dispatcher.test_join_bounds import join_routes

ME = "both-0-a"
START_S, TURN_S, RECORD_S = 0.8, 0.0004, 17e-6
"""CPU time of a start, of a turn of the event loop, and of taking in one part of a join."""

EVENTS, BUFFERED = 900, 1100
"""What waits, and records that aiokafka has fetched and gives without a turn of the event loop."""


class World:
    """Kafka, the supervisor and a replica, around one dispatcher after the other.

    Args:
        loop: in whose time they live.
        share: of a core.
        deaf: in seconds after a dispatcher began to serve, from when on its reports are not acknowledged, and for how
            long.
        slow_s: until a report is acknowledged.
    """

    def __init__(
        self, loop: virtual_time.VirtualLoop, share: float, deaf: tuple[float, float] = (0.0, 0.0), slow_s: float = 0.1
    ) -> None:
        self.loop, self.share, self.deaf, self.slow_s = loop, share, deaf, slow_s
        self.entries: dict[int, Entry] = {0: (0, "")}
        self.log: list[Record] = []
        self.out: list[bytes] = []
        self.kills = self.read = self.in_turn = self.most_in_turn = 0
        self.held: dict[int, int] = {}
        self.topic, self.group, self.transactional = TopicState("", 1), "p.both", False
        self.silence, self._looked_s = Silence(3.0), 0.0
        self._dead = asyncio.Event()
        self.dispatcher: Dispatcher | None = None
        self._caught_up = False
        self._fetched_to = 0
        self._served_s = 0.0
        for number in range(EVENTS):  # of every third event a part comes much later
            self._part(number, b"right", skips=number % 3 > 0)
        for number in range(0, EVENTS, 3):
            self._part(number, b"left")

    def _part(self, number: int, parent: bytes, *, skips: bool = False) -> None:
        headers = [(EVENT_ID, b"%d" % number), (PARENT, parent), *([(SKIPPED, b"left")] if skips else [])]
        self.log.append(Record(None, b"1", tuple(headers), 1, "p.both", 0, len(self.log)))

    # Time

    def work(self, cpu_s: float) -> None:
        """Let the time pass that so much work takes."""
        self.loop.sleep(cpu_s / self.share)

    def look(self) -> None:
        """Do what the controller has done until now."""
        while self._looked_s < self.loop.time():
            self._looked_s += 0.1
            self.silence.advance(self._looked_s, answered=True)
            if self.silence.fell_silent() and self.dispatcher is not None:
                self.kills += 1
                self.dispatcher = None
                self._dead.set()

    # Kafka

    def caught_up(self) -> bool:
        return self._caught_up

    async def look_for_grants(self) -> None:
        pass

    def hold(self, positions: Mapping[int, int]) -> None:
        self.held = dict(positions)
        self._fetched_to, self._served_s = 0, self.loop.time()

    def release(self, partitions: Iterable[int]) -> None:
        self.held = {}

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 0)

    async def committed(self, partitions: Iterable[int]) -> dict[int, Entry]:
        await asyncio.sleep(0.05)
        return {number: self.entries[number] for number in partitions}

    async def commit(self, offsets: Mapping[int, Entry]) -> None:
        await asyncio.sleep(0.02)
        self.entries.update(offsets)

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        grants, self._caught_up = () if self._caught_up else (self._grant(),), True
        at = self.held.get(0, len(self.log))
        if at >= self._fetched_to:
            await asyncio.sleep(0.02 if at < len(self.log) else wait_s)
            at = self.held.get(0, len(self.log))
            self._fetched_to = min(at + BUFFERED, len(self.log))
        records = self.log[at : min(self._fetched_to, at + RECORDS_AT_ONCE)]
        if records:
            self.held = {0: at + len(records)}
        return Fetched({0: records} if records else {}, grants, self.held, {})

    def _grant(self) -> Record:
        plan = StagePlan({KIND: HardwarePlan(8, {1: 0.004, 8: 0.032})})
        return Record.keyed(
            "assignments", grant_key("both", 0), encode_control(Grant("both", 0, 1, ME, 1, 1, plan=plan))
        )

    async def send(self, outgoing: Mapping[tuple[str, int], Any]) -> None:
        await asyncio.sleep(0.02)
        for (topic, _), messages in outgoing.items():
            self.out += [dict(each.headers)[EVENT_ID] for each in messages if topic == "out"]

    async def note(self, topic: str, key: bytes, value: bytes) -> bool:
        for _ in range(6):  # tasks of aiokafka
            await asyncio.sleep(0)
        await asyncio.sleep(self.slow_s)
        since_s, for_s = self.deaf
        if since_s < self.loop.time() - self._served_s < since_s + for_s:
            await asyncio.sleep(for_s)
            return False
        if self.dispatcher is not None:
            self.silence.heard(ME)
        return True

    def void(self) -> None:
        pass

    # The process

    def send_frame(self, dispatcher: Dispatcher, frame: Any) -> None:
        """Take what the dispatcher sends its replica, which answers after a while."""

        def answer() -> None:
            if dispatcher is self.dispatcher:
                done, took_s = [Done(b"both", 0)] * len(frame.inputs), 0.004 * len(frame.inputs)
                call = [Call(len(done), took_s)]
                dispatcher._feed(on.Heard("r", Results(frame.epoch, frame.batch, done, call, took_s)))

        if isinstance(frame, Batch):
            self.loop.call_later(0.004 * len(frame.inputs), answer)

    async def live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Start a dispatcher, and let it serve until it is killed."""
        self.work(START_S)
        self.look()
        self._caught_up = False
        self.held = {}
        for name in ("TopicReader", "Writer"):
            monkeypatch.setattr(dispatcher_module, name, lambda *_, **__: self)
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made = Dispatcher(DispatcherSpec(ME, 0, join_routes(ordered=False), "127.0.0.1:9"), ends[1])
        made._know(dict.fromkeys([*made._routes.topics_written, "out"], 1), RecordRules({}))
        assert made._slot is not None
        take = made._slot.on

        def taken(event: on.SlotEvent, now_s: float) -> list[on.Action]:
            if isinstance(event, on.RecordsRead):
                event = event._replace(records={number: list(own) for number, own in event.records.items()})
                count = sum(map(len, event.records.values()))
                self.read += count
                self.in_turn += count
                self.most_in_turn = max(self.most_in_turn, self.in_turn)
                self.work(RECORD_S * count)
            return take(event, now_s)

        made._slot.on = taken  # type: ignore[method-assign]
        made._performers = {**made._performers, on.SendFrame: lambda action: self.send_frame(made, action.frame)}
        self.dispatcher = made
        self._dead.clear()
        made._feed(Attach("r", KIND, 0))
        made._feed(on.Heard("r", Ready("r", 0.1, None)))
        made._reporter.touch()
        serving = [asyncio.create_task(each) for each in (made._reporter.run(), made._serve(), made._fetch(0))]
        dead = asyncio.create_task(self._dead.wait())
        try:
            done, _ = await asyncio.wait((dead, *serving), return_when=asyncio.FIRST_COMPLETED)
            for task in done - {dead}:
                task.result()
        finally:
            for task in (dead, *serving, *made._requests):
                task.cancel()
            await asyncio.gather(dead, *serving, *made._requests, return_exceptions=True)
            made._close()
            self.silence.forget(ME)
            for end in ends:
                end.close()


def lived(monkeypatch: pytest.MonkeyPatch, share: float, most_s: float, **how: Any) -> World:
    """Have dispatchers serve until everything is done, or for so long."""
    found = []

    async def until_done() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualLoop)
        world = World(loop, share, **how)
        found.append(world)
        select = loop._clock.select

        def turn(timeout: float | None = None) -> Any:
            world.work(TURN_S)
            world.in_turn = 0
            ready = select(timeout)
            world.look()
            return ready

        async def lives() -> None:
            while True:
                await world.live(monkeypatch)

        with monkeypatch.context() as changed:
            changed.setattr(loop._clock, "select", turn)
            living = asyncio.create_task(lives())
            while loop.time() < most_s and world.entries[0][0] < len(world.log):
                await asyncio.sleep(1.0)
                if living.done():
                    living.result()
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)

    virtual_time.run(until_done())
    return found[0]


@pytest.mark.parametrize(
    ("share", "most_s", "how"),
    [(0.02, 120.0, {}), (0.004, 600.0, {}), (0.1, 60.0, {"deaf": (0.5, 2.0)}), (0.1, 120.0, {"slow_s": 1.3})],
    ids=["a fiftieth", "a 250th", "reports are away for longer than the lease", "reports take most of the lease"],
)
def test_a_dispatcher_with_hardly_any_of_a_core_works_off_what_waits_in_a_join(
    monkeypatch: pytest.MonkeyPatch, share: float, most_s: float, how: dict[str, Any]
) -> None:
    world = lived(monkeypatch, share, most_s, **how)
    assert world.entries[0][0] == len(world.log), f"{len(set(world.out))} of {EVENTS} are done, {world.kills} kills"
    assert sorted(map(int, world.out)) == list(range(EVENTS)), "events are lost or repeated"
    assert (world.kills, world.read) == (0, len(world.log)), "a successor would have to read everything again"
    assert world.most_in_turn == RECORDS_AT_ONCE, "whatever else happens waits for what aiokafka has fetched"
