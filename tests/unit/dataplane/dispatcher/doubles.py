"""A slot that is played in virtual time: Kafka, the supervisor and replicas as far as it sees them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.dispatcher.session import Session
from inferline_stream.dataplane.dispatcher.slot import Slot
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.frames import Answer, Batch, Call, Done, Ready, Results, ToDispatcher, ToReplica
from inferline_stream.dataplane.routes import Routes, routes_of
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire
from inferline_stream.kafka.pipeline_topics import RecordRules
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, TopicState
from inferline_stream.pipeline.event_classes import class_of
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.settings import Settings

Entry = tuple[int, str]

KIND = "cpu-1"

WALL_S = 1_700_000_000.0
"""How far the clock on the wall is ahead of the other one."""


def same(values: list[bytes]) -> list[bytes]:
    return values


def routes(**of_pipeline: Any) -> Routes:
    """Of a single stage."""
    work = Stage("work", same, hardware="cpu-1")
    ends = {"source": Topic("in", codec="raw"), "sink": Topic("out", codec="raw")}
    return routes_of(Pipeline("p", slo="1s", stages=[work], **{**ends, **of_pipeline}), "work")


class PlayedSlot:
    """A slot, and everything around it in virtual time.

    Args:
        partitions: offset and metadata that the group has committed.
        transactional: whether it is exactly once.
        stage: routes of another stage than the one of `routes`.
        settings: by default the defaults.
        limit: of a batch.
        batch_deadline_s: see `Pool`.
        rules: what topics take.
        of_pipeline: arguments of the pipeline.
    """

    def __init__(
        self,
        partitions: Mapping[int, Entry | None] | None = None,
        *,
        transactional: bool = False,
        stage: Routes | None = None,
        settings: Settings | None = None,
        limit: int = 4,
        batch_deadline_s: float = 60.0,
        rules: RecordRules | None = None,
        **of_pipeline: Any,
    ) -> None:
        self.now_s = 1000.0
        self.routes = stage or routes(**of_pipeline)
        self.numbers = [0, 1] if partitions is None else list(partitions)
        found = dict.fromkeys(self.numbers, (0, "")) if partitions is None else partitions
        self.entries: dict[int, Entry] = {number: entry for number, entry in found.items() if entry is not None}
        """What the group has committed."""
        self.topic = UNKNOWN_TOPIC
        self.held: dict[int, int] = {}
        self.log: list[Any] = []
        """Of partition 0, where a test fills it."""
        self.again: list[int] = []
        """Offsets that were read again."""
        self.sent: list[bytes | None] = []
        self.outgoing: list[Mapping[tuple[str, int], Sequence[Any]]] = []
        self.produced: Callable[[Any], None] = lambda outgoing: None
        self.acknowledges = True
        self.has_lease = True
        self.lease_lost = self.drained = False
        self.replaced: list[str] = []
        self.replicas: dict[str, Replica] = {}
        self._made = functools.partial(
            made_slot,
            self.routes,
            settings or Settings(),
            transactional=transactional,
            batch_deadline_s=batch_deadline_s,
            rules=rules,
            clock_s=lambda: self.now_s,
        )
        self.slot, self.context, self.pool = self._made()
        self.report, self.lease = self.context.report, self.context.lease
        self.recorded: list[tuple[float, bool, on.SlotEvent, list[on.Action]]] = []
        """What happened when, whether the lease was renewed before, and what the slot asked for."""
        self.settled: dict[int, tuple[int, int]] = {}
        """What the next grants say of a join's parts."""
        self._answers: deque[on.SlotEvent] = deque()
        self._timer_s: float | None = None
        self._epoch = 7
        self.plan(limit=limit)

    # The slot

    @property
    def session(self) -> Session:
        return self.slot._session

    @property
    def trouble(self) -> str:
        """What is wrong with the replicas."""
        return self.slot._exchange.trouble

    def phases(self) -> dict[str, str]:
        """Return the phase of each replica, as reported."""
        return {each.replica: each.status.phase for each in self.pool.replicas.values()}

    def plan(self, *, limit: int = 1, concurrency: int = 1, sample: bytes | None = None, **of_plan: Any) -> None:
        """Grant the slot by a plan."""
        times_s, faster_s = of_plan.pop("service_s", {}), of_plan.pop("fallback_s", {})
        hardware = {KIND: HardwarePlan(limit, times_s, concurrency, fallback_s=faster_s)}
        plan = StagePlan(hardware, sample=sample, **of_plan)
        grant = Grant("work", 0, 1, "d", 1, 1, plan=plan, settled=self.settled)
        self._happens(grant, renewed=False)

    def begin(self) -> Session:
        """Begin a session with what is committed."""
        self._epoch += 1
        self._own(self.numbers, epoch=self._epoch)
        return self.session

    def _own(self, numbers: Collection[int], epoch: int = 0, before: int = 0) -> None:
        committed = {number: self.entries[number] for number in numbers if number in self.entries}
        begins = dict.fromkeys(self.slot.beginnings_needed(list(numbers), committed, before), 0)
        of = class_of(next(iter(numbers), 0))
        self.feed(on.Owned(list(numbers), committed, begins, self.topic, epoch, of, before))

    def grow(self, topic: TopicState) -> None:
        """Add partitions to the topic."""
        before, self.topic = self.topic.partitions, topic
        added = range(before, topic.partitions)
        self.numbers = [*self.numbers, *added]
        self._own(added, before=before)

    @contextlib.contextmanager
    def running(self) -> Iterator[Session]:
        """Begin a session."""
        yield self.begin()

    def drop(self) -> None:
        """Drop the session; what was asked of Kafka for it is never heard of."""
        self._answers.clear()
        self.feed(on.Dropped())

    # Time

    def feed(self, event: on.SlotEvent) -> None:
        """Have something happen, and all that follows from it at the same moment."""
        self._happens(event)
        self.settle()

    def _happens(self, event: on.SlotEvent, *, renewed: bool = True) -> None:
        if renewed and self.has_lease:
            self.lease.renew(self.now_s)
        actions = self.slot.on(event, self.now_s)
        self.recorded.append((self.now_s, renewed and self.has_lease, event, list(actions)))
        self.perform(actions)

    def replay(self) -> None:
        """Give a new slot what this one was given: it asks for the same."""
        slot, context, _ = self._made()
        for now_s, renewed, event, actions in self.recorded:
            if renewed:
                context.lease.renew(now_s)
            assert slot.on(event, now_s) == actions, event

    def settle(self) -> None:
        """Let everything happen that is due."""
        for _ in range(10_000):
            if self._answers and self.acknowledges:
                self.answer_one()
                continue
            if self._timer_s is not None and self._timer_s <= self.now_s:
                self._timer_s = None
                self._happens(on.Time())
            else:
                return
        raise AssertionError("it asks for the present again and again")

    def answer_one(self) -> None:
        """Let Kafka answer what it was asked first."""
        event = self._answers.popleft()
        if isinstance(event, on.FoundCommitted):
            event = on.FoundCommitted(dict(self.entries))
        elif isinstance(event, on.OffsetsCommitted):
            self.entries.update(self._committing)
        self._happens(event)
        if not self.acknowledges:
            self.settle()

    def advance(self, by_s: float) -> None:
        """Let time pass."""
        until_s = self.now_s + by_s
        while self._timer_s is not None and self._timer_s <= until_s:
            self.now_s = max(self.now_s, self._timer_s)
            self.settle()
        self.now_s = until_s

    def until(self, holds: Callable[[], bool], what: str, within_s: float = 5000.0) -> None:
        """Let time pass until something holds."""
        until_s = self.now_s + within_s
        self.settle()
        while not holds():
            assert self._timer_s is not None, f"nothing happens until {what}"
            assert self._timer_s <= until_s, f"waited in vain until {what}"
            self.advance(self._timer_s - self.now_s)

    def acknowledge(self) -> None:
        """Let Kafka answer what it was asked, and from now on everything."""
        self.acknowledges = True
        self.settle()

    def perform(self, actions: Iterable[on.Action]) -> None:
        for action in actions:
            match action:
                case on.SendFrame(name, frame):
                    self.replicas[name].frames.append(frame)
                case on.Disconnect(name):
                    self.replicas[name].connected = False
                case Replace(name, _):
                    self.replaced.append(name)
                case on.Hold(positions):
                    self.held |= positions
                case on.Release(numbers):
                    self.held = {number: at for number, at in self.held.items() if number not in numbers}
                case on.WakeAt(at_s):
                    assert self._timer_s is None or at_s < self._timer_s or at_s <= self.now_s
                    self._timer_s = at_s
                case on.Produce(outgoing):
                    self.outgoing.append(outgoing)
                    self.sent += [message.value for messages in outgoing.values() for message in messages]
                    self.produced(outgoing)
                    self._answers.append(on.Produced())
                case on.Commit(entries):
                    self._committing = dict(entries)
                    self._answers.append(on.OffsetsCommitted())
                case on.LookUp():
                    self._answers.append(on.FoundCommitted({}))
                case on.LookAgain(partition, offsets):
                    self.again += offsets
                    self._answers.append(on.ReadAgain(partition, {offset: self.log[offset] for offset in offsets}))
                case on.LeaseLost():
                    self.lease_lost = True
                case on.Drained():
                    self.drained = True

    # Records and replicas

    def fetched(
        self, *values: bytes, partition: int = 0, first: int = 0, key: bytes | None = None, ago_s: float = 0.0
    ) -> None:
        """Hand over records as one fetch brings them."""
        stamp_ms = round((self.now_s + WALL_S - ago_s) * 1000)
        records = [Record(key, value, (), stamp_ms, "in", partition, first + at) for at, value in enumerate(values)]
        self.read({partition: records}, {partition: first + len(records)})

    def read(self, records: Mapping[int, Any], positions: Mapping[int, int]) -> None:
        """End a fetch."""
        self.feed(on.RecordsRead(records, positions, {}, self.now_s + WALL_S))

    def attached(self, name: str = "", *, ready: bool = True, hardware: str = KIND, **how: Any) -> Replica:
        """Attach another replica."""
        name = name or f"r{len(self.replicas)}"
        number = len(self.replicas)
        replica = Replica(self, name, hardware)
        self.feed(Attach(name, hardware, number, **how))
        self.replicas[name] = replica
        if ready:
            replica.ready()
        return replica

    def retire(self, name: str, *, moves: bool = False) -> None:
        self.feed(Retire(name, moves))

    def lost(self, name: str) -> None:
        self.feed(ReplicaLost(name))

    def hand_out(self, limit: int) -> list[Any]:
        """Give a batch to a replica that takes no other."""
        self.plan(limit=limit)
        replica = self.attached()
        self.retire(replica.name)
        hands = self.pool.replicas[replica.name].hands.values() if replica.name in self.pool.replicas else ()
        return [event for hand in hands for event in hand.events]

    def answer(self, events: list[Any]) -> None:
        """Give a batch's results back."""
        for replica in list(self.pool.replicas.values()):
            for hand in list(replica.hands.values()):
                if list(hand.events) == events:
                    self.replicas[replica.replica].answer(Batch(hand.epoch, hand.batch, [e.payload for e in events]))

    def offset(self, partition: int = 0) -> int:
        """Return the committed offset."""
        return self.entries[partition][0]


def made_slot(
    routes: Routes,
    settings: Settings,
    *,
    transactional: bool,
    batch_deadline_s: float,
    rules: RecordRules | None,
    clock_s: Callable[[], float],
) -> tuple[Slot, SlotContext, Pool]:
    """A slot that nothing has happened to, with what it shares."""
    report = new_report("d", 1, "work", 0, 40, routes=routes)
    written = [topic for of_class in routes.classes for topic in of_class.topics_written]
    emitter = Emitter(routes, dict.fromkeys([*written, "out"], 1), random.Random(1), report, rules)
    lease = Lease(2.0, clock_s)
    context = SlotContext(routes, settings, report, emitter, lease, "me", transactional=transactional)
    pool = Pool(batch_deadline_s)
    return Slot(context, pool), context, pool


class Replica:
    """A replica's end of its connection."""

    def __init__(self, slot: PlayedSlot, name: str, hardware: str = KIND) -> None:
        self._slot = slot
        self.name, self.hardware = name, hardware
        self.connected = True
        self.frames: deque[ToReplica] = deque()

    def next(self) -> ToReplica:
        """Return the next frame, once there is one."""
        self._slot.until(lambda: bool(self.frames), f"{self.name} has a frame")
        return self.frames.popleft()

    def batch(self) -> Batch:
        """Return the next frame, which is a batch."""
        frame = self.next()
        assert isinstance(frame, Batch)
        return frame

    def idle(self) -> bool:
        """Whether no frame waits to be read."""
        return not self.frames

    def say(self, frame: ToDispatcher) -> None:
        """Send a frame."""
        if self.connected:
            self._slot.feed(on.Heard(self.name, frame))

    def ready(self, *, fallback: bool = True) -> None:
        """Say that batches may come, and whether the stage has a fallback."""
        self.say(Ready(self.name, 0.1, None, fallback))

    def answer(self, batch: Batch) -> None:
        """Return what the batch held."""
        outcomes: list[Answer] = [Done(bytes(each), 0) for each in batch.inputs if isinstance(each, bytes)]
        outcomes = outcomes or [Done(b"joined", 0) for _ in batch.inputs]
        self.say(Results(batch.epoch, batch.batch, outcomes, [Call(len(outcomes), 0.01)], 0.01))

    def die(self, broken: str = "") -> None:
        """Close the connection, as the kernel does for a process that ended."""
        if self.connected:
            self.connected = False
            self._slot.feed(on.ConnectionEnded(self.name, broken))


@contextlib.contextmanager
def fed(**how: Any) -> Iterator[PlayedSlot]:
    """A slot that is served."""
    slot = PlayedSlot(**how)
    slot.begin()
    yield slot


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds that other tasks bring about."""
    try:
        async with asyncio.timeout(5.0):
            while not holds():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"waited 5 s in vain until {what}") from None
