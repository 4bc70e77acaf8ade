"""``python -m … [NAMES] CHANNEL``: a dispatcher of the profiler, in the place of the usual one.

An actuator starts it and attaches replicas to it as in a run, so that each is placed, sealed and reached as it will be.
It takes in no events: orders come through one topic, `Order` by `Order`, and answers go out through another. It gives
replicas their batches as a dispatcher gives those of Kafka, and times them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from inferline_stream.dataplane.dispatcher.process import serve
from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.dispatcher.supervisor_channel import SupervisorChannel
from inferline_stream.dataplane.frames import (
    Answer,
    Batch,
    Broken,
    Failed,
    Leave,
    Many,
    Profiling,
    Ready,
    Results,
    Returned,
    Sleep,
    StageInput,
    ToDispatcher,
)
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire, Serving, Stop
from inferline_stream.dataplane.until_first import until_first
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.profiler.bench_messages import (
    NO_ANSWER,
    Answered,
    Assembler,
    BenchAnswer,
    EventOutcome,
    Failure,
    FromBench,
    Measure,
    NotReady,
    Order,
    Outcomes,
    RunEvents,
    SampleInputs,
    Standing,
    Times,
    Unreadable,
    decode_to_bench,
    dispatcher_of,
    pieces,
)

_AT_ONCE = 16
"""Events in one batch that is not timed."""


class TimedReplica:
    """One replica, which it gives batches, and times each from handing it over to having its results.

    Args:
        name: of the replica.
        hardware: kind that it is on.
        sock: the connection to it.
        changed: called where it becomes ready, and where it ends.
        replace: called where what it sends is no frame, with why: it is of no more use.
    """

    def __init__(
        self,
        name: str,
        hardware: str,
        sock: socket.socket,
        *,
        changed: Callable[[], None],
        replace: Callable[[str, str], None],
    ) -> None:
        self.name, self.hardware = name, hardware
        self.is_ready = False
        """Whether it may be given another batch."""
        self._changed, self._replace = changed, replace
        self._heard: asyncio.Queue[ToDispatcher | None] = asyncio.Queue()
        self._connection = ReplicaConnection(sock, self._hear, self._closed)
        self._numbers = itertools.count(1)

    def _hear(self, frame: ToDispatcher | None) -> None:
        if isinstance(frame, Ready):
            self.is_ready = True
            self._changed()
            return
        if frame is None or isinstance(frame, Broken):
            self.is_ready = False
            self._changed()
        self._heard.put_nowait(frame)

    def _closed(self, why: str) -> None:
        if why:
            self._replace(self.name, why)
        self._hear(None)

    def leave(self) -> None:
        """Have the replica end once it has no batch in hand."""
        self._connection.send(Leave())

    def close(self) -> None:
        """Close the connection: whatever is measured fails."""
        self._connection.close()
        self._hear(None)

    async def run(self, inputs: Sequence[StageInput], profiling: Profiling | None = None) -> Outcomes | Failure:
        """Run events once, or ask about them, a few at a time."""
        found: list[EventOutcome] = []
        for start in range(0, len(inputs), _AT_ONCE):
            frame = await self._answer((self._send(inputs[start : start + _AT_ONCE], profiling),))
            if not isinstance(frame, Results):
                return self._failure(frame, _AT_ONCE) or self._ended
            found += map(_outcome, frame.outcomes)
        return Outcomes(found)

    async def measure(self, order: Measure, inputs: Sequence[StageInput]) -> Times | Failure:
        """Time batches of one size, of which the replica has so many in hand.

        Those that begin before it has do not count: the first of a size allocates and compiles.
        """
        events = itertools.cycle(inputs)
        profiling = Profiling(sleeps_s=order.sleeps_s) if order.sleeps_s else None
        began_s: dict[int, float] = {}
        counted: set[int] = set()
        took_s: list[float] = []
        network_s: list[float] = []
        failure: Failure | None = None
        end_s, enough = 0.0, False

        def begin() -> int:
            batch = list(itertools.islice(events, order.batch_size))
            if order.asleep:
                self._connection.send(Sleep())
            now_s = time.perf_counter()
            began_s[number := self._send(batch, profiling, order.version)] = now_s
            return number

        for _ in range(order.concurrency):
            begin()
        while began_s:
            frame = await self._answer(began_s)
            ended_s = time.perf_counter()
            failure = failure or self._failure(frame, order.batch_size)
            if not isinstance(frame, Results):
                return failure or self._ended
            lasted_s = ended_s - began_s.pop(frame.batch)
            if frame.batch in counted and not enough:
                took_s.append(lasted_s)
                network_s.append(max(0.0, lasted_s - frame.busy_s))
            end_s = end_s or ended_s + order.seconds
            enough = len(took_s) >= order.fewest and (ended_s > end_s or len(took_s) >= order.most)
            if failure is None and not enough:
                counted.add(begin())
        return failure or Times(took_s, network_s)

    async def keep_busy(self, order: Measure, inputs: Sequence[StageInput], over: asyncio.Event) -> Failure | None:
        """Run such batches until it is over, without a pause; in short orders, so that the end comes soon."""
        short = msgspec.structs.replace(order, seconds=order.seconds / 4, fewest=1)
        while not over.is_set():
            if isinstance(found := await self.measure(short, inputs), Failure):
                return found
        return None

    @property
    def _ended(self) -> Failure:
        return Failure("its replica has ended", ended=self.name)

    async def _answer(self, batches: Collection[int]) -> ToDispatcher | None:
        """Return the next frame about one of these batches: an order that failed has left others behind."""
        while True:
            frame = await self._heard.get()
            if frame is None or isinstance(frame, Ready) or frame.batch in batches:
                return frame

    def _send(self, inputs: Sequence[StageInput], profiling: Profiling | None, version: int = 0) -> int:
        number = next(self._numbers)
        self._connection.send(Batch(1, number, list(inputs), profiling=profiling, version=version))
        return number

    def _failure(self, frame: ToDispatcher | None, batch_size: int) -> Failure | None:
        if isinstance(frame, Returned):
            return Failure(frame.reason, unavailable=True)
        if isinstance(frame, Broken):
            return Failure(frame.reason, memory=frame.memory)
        if not isinstance(frame, Results):
            return self._ended
        failed = next((outcome for outcome in frame.outcomes if isinstance(outcome, Failed)), None)
        if failed is not None:
            memory = "out of memory" in failed.message.lower() or failed.type == "MemoryError"
            return Failure(f"raised on an event that it had taken before: {failed.summary}", memory=memory)
        if 0 < frame.too_large <= batch_size:
            return Failure("too large for this device: it has no memory for them", memory=True)
        if len(frame.calls) != 1:
            return Failure(f"raised on a batch of {batch_size}, but not on smaller ones", memory=True)
        return None


def _outcome(found: Answer) -> EventOutcome:
    if isinstance(found, Many):
        return EventOutcome(b"", many=tuple((result.value, result.edges) for result in found.results))
    return EventOutcome(b"", 0, found.summary) if isinstance(found, Failed) else EventOutcome(found.value, found.edges)


logger = logging.getLogger(__name__)

MODULE = "inferline_stream.profiler.bench_dispatcher"

_STANDING_S = 2.0
"""How often the profiler hears that this lives, where nothing changes: little beside what is timed."""

_READ_S = 0.2
_SHOWN_BYTES = 16
"""Of a message that cannot be read: its kind, and nothing of an event."""


class BenchDispatcher:
    """Serves the newest order with the replica that it names.

    Args:
        spec: what the process was given.
        channel: to the supervisor.
        seal_it: called once Kafka is connected.
    """

    def __init__(self, spec: DispatcherSpec, channel: socket.socket, seal_it: Callable[[], None]) -> None:
        self._spec = spec
        self._supervisor = SupervisorChannel(channel, self._attach, self._hear)
        self._seal_it = seal_it
        self._names = spec.routes.names
        self._replicas: dict[str, TimedReplica] = {}
        self._changed = asyncio.Event()
        """Set where another replica is ready, or one is no longer."""
        self._inputs: list[StageInput] = []
        self._assembler = Assembler()
        self._stopped = asyncio.Event()
        self._saying = asyncio.Lock()
        """Held for all pieces of a message."""

    def leave(self, why: str) -> None:
        """End."""
        logger.info("dispatcher %s leaves: %s", self._spec.dispatcher, why)
        self._stopped.set()

    async def run(self) -> int:
        """Serve until the supervisor says stop, or is gone; return the exit code.

        Raises:
            Unreachable: Kafka does not answer.
        """
        servers = self._spec.bootstrap_servers
        async with TopicFollower(servers, self._names.control) as orders, RecordProducer(servers) as producer:
            self._seal_it()
            self._supervisor.listen()
            self._supervisor.say(Serving())
            try:
                await until_first(self._follow(orders, producer), self._stand(producer), self._stopped.wait())
            finally:
                self._supervisor.close()
        return 0

    def _attach(self, message: Attach, sock: socket.socket) -> None:
        self._drop(message.replica)
        self._replicas[message.replica] = TimedReplica(
            message.replica, message.hardware, sock, changed=self._changed.set, replace=self._replace
        )

    def _replace(self, replica: str, why: str) -> None:
        self._supervisor.say(Replace(replica, f"{NO_ANSWER}: {why}"))

    def _hear(self, message: Retire | ReplicaLost | Stop | None) -> None:
        match message:
            case Retire(name):
                if (replica := self._replicas.get(name)) is not None:
                    replica.leave()
            case ReplicaLost(name):
                self._drop(name)
            case Stop():
                self.leave("stopped")
            case None:
                self.leave("the supervisor is gone")

    def _drop(self, name: str) -> None:
        if (replica := self._replicas.pop(name, None)) is not None:
            replica.close()

    async def _follow(self, orders: TopicFollower, producer: RecordProducer) -> None:
        """Take orders as they come; one that was given to a process before this one only if none has come since."""
        records = await orders.read_to(await orders.end())
        while True:
            order = self._newest_order(records)
            if isinstance(order, Unreadable):
                await self._say(producer, order)
            elif order is not None:
                answer = await self._carried_out(order)
                await self._say(producer, self._standing)  # first: the next order follows from it
                await self._say(producer, Answered(order.number, answer))
            records = await orders.read(_READ_S)

    def _newest_order(self, records: Sequence[Record]) -> Order | Unreadable | None:
        """Take in records; return the last order that one of them completes, if any does, or what cannot be read."""
        order: Order | None = None
        for record in records:
            if dispatcher_of(record.key) != self._spec.dispatcher:
                continue
            if (data := self._assembler.add(record.key or b"", record.value or b"")) is None:
                continue
            try:
                message = decode_to_bench(data)
            except msgspec.MsgspecError as error:
                why = f"{error} in {len(data)} bytes that begin with {data[:_SHOWN_BYTES]!r}"
                logger.error("what the profiler sent cannot be read: %s; use one release for both", why)
                return Unreadable(why)  # an order after it may be about inputs that it held
            if isinstance(message, SampleInputs):
                self._inputs = message.inputs
            else:
                order = message
        return order

    @property
    def _standing(self) -> Standing:
        """The replicas that an order could be carried out with."""
        ready = {name: each.hardware for name, each in self._replicas.items() if each.is_ready}
        return Standing(ready, self._spec.incarnation)

    async def _carried_out(self, order: Order) -> BenchAnswer:
        work = order.work
        beside = work.beside if isinstance(work, Measure) else []
        replicas = [self._replicas.get(name) for name in (order.replica, *beside)]
        ready = [replica for replica in replicas if replica is not None and replica.is_ready]
        if len(ready) < len(replicas):
            return NotReady()
        if isinstance(work, RunEvents):
            return await ready[0].run(work.inputs)
        inputs = [self._inputs[at] for at in work.events]
        if not isinstance(work, Measure):
            return await ready[0].run(inputs, Profiling(weighs=work.what))
        over = asyncio.Event()
        busy = asyncio.gather(*(copy.keep_busy(work, inputs, over) for copy in ready[1:]))
        found = await ready[0].measure(work, inputs)
        over.set()
        return next((failure for failure in await busy if failure is not None), found)

    async def _stand(self, producer: RecordProducer) -> None:
        while True:
            self._changed.clear()
            await self._say(producer, self._standing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STANDING_S):
                    await self._changed.wait()

    async def _say(self, producer: RecordProducer, message: FromBench) -> None:
        async with self._saying:
            for key, value in pieces(self._spec.dispatcher, message):
                await producer.deliver(self._names.stage_stats, value, key=key)


def _made(spec: DispatcherSpec, mark: int, seal_it: Callable[[], None], channel: socket.socket) -> BenchDispatcher:
    if mark >= 0:
        os.close(mark)  # nothing is taken in from Kafka
    return BenchDispatcher(spec, channel, seal_it)


if __name__ == "__main__":
    *_names, _channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    code = serve(_channel, _names[0] if _names else None, functools.partial(_made, channel=_channel))
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
