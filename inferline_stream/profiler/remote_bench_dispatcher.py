"""``python -m … [NAMES] CHANNEL``: a dispatcher of the profiler in a cluster, in the place of the usual one.

An actuator starts it and attaches replicas to it as in a run, so that each is placed, sealed and reached as it will be.
It takes in no events: orders come through one topic, `Order` by `Order`, and answers go out through another.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence

import msgspec

from inferline_stream.dataplane.dispatcher.process import serve
from inferline_stream.dataplane.dispatcher.supervisor_channel import SupervisorChannel
from inferline_stream.dataplane.frames import Done, Failed, StageInput
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.supervisor_messages import Attach, ReplicaLost, Retire, Serving, Stop
from inferline_stream.dataplane.until_first import until_first
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.profiler.bench_dispatcher import Bench
from inferline_stream.profiler.bench_messages import (
    Answered,
    Assembler,
    BenchAnswer,
    FromBench,
    NotReady,
    Order,
    RunEvents,
    SampleInputs,
    Standing,
    Unreadable,
    decode_to_bench,
    dispatcher_of,
    pieces,
)
from inferline_stream.profiler.worker_messages import EventOutcome, Failure, Outcomes, StageBuilt

logger = logging.getLogger(__name__)

MODULE = "inferline_stream.profiler.remote_bench_dispatcher"

_STANDING_S = 0.5
"""How often the profiler hears that this lives."""

_LOOK_S = 0.05
_READ_S = 0.2
_SHOWN_BYTES = 16
"""Of a message that cannot be read: its kind, and nothing of an event."""


class RemoteBench:
    """Serves the newest order with whichever replica is attached.

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
        self._nothing = Standing(incarnation=spec.incarnation)
        self._attached = self._nothing
        self._bench: Bench | None = None
        self._ready = False
        self._building: asyncio.Task[None] | None = None
        """Kept, or it would be collected."""
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
        self._drop()
        self._attached = Standing(message.replica, message.hardware, self._spec.incarnation)
        self._bench = Bench(sock, remote=True)
        self._building = asyncio.create_task(self._built(self._bench))

    def _hear(self, message: Retire | ReplicaLost | Stop | None) -> None:
        match message:
            case Retire(replica):
                if replica == self._attached.replica and self._bench is not None:
                    self._bench.leave()
            case ReplicaLost(replica):
                if replica == self._attached.replica:
                    self._drop()
            case Stop():
                self.leave("stopped")
            case None:
                self.leave("the supervisor is gone")

    async def _built(self, bench: Bench) -> None:
        built = isinstance(await bench.built(), StageBuilt)
        if bench is self._bench:
            self._ready = built
            if not built:
                self._drop()

    def _drop(self) -> None:
        if self._bench is not None:
            self._bench.close()
        self._attached, self._bench, self._ready = self._nothing, None, False

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

    def _newest_order(self, records: Sequence[Record]) -> Order | RunEvents | Unreadable | None:
        """Take in records; return the last order that one of them completes, if any does, or what cannot be read."""
        order: Order | RunEvents | None = None
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
        """The replica that an order would be carried out with."""
        return self._attached if self._ready and self._bench is not None and self._bench.alive else self._nothing

    async def _carried_out(self, order: Order | RunEvents) -> BenchAnswer:
        if self._bench is None or not self._standing.replica:
            return NotReady()
        if isinstance(order, RunEvents):
            found = await self._bench.run(order.inputs)
            return found if isinstance(found, Failure) else Outcomes([*map(self._outcome, found)])
        inputs = [self._inputs[at] for at in order.events]
        return await self._bench.measure(msgspec.structs.replace(order.measure, inputs=inputs))

    def _outcome(self, found: Done | Failed) -> EventOutcome:
        if isinstance(found, Failed):
            return EventOutcome(b"", [], found.summary)
        taken = [child for bit, child in enumerate(self._spec.routes.children) if found.edges >> bit & 1]
        return EventOutcome(found.value, sorted(taken))

    async def _stand(self, producer: RecordProducer) -> None:
        said, said_s, loop = self._nothing, float("-inf"), asyncio.get_running_loop()
        while True:
            standing = self._standing
            if standing != said or loop.time() - said_s >= _STANDING_S:
                said, said_s = standing, loop.time()
                await self._say(producer, standing)
            await asyncio.sleep(_LOOK_S)

    async def _say(self, producer: RecordProducer, message: FromBench) -> None:
        async with self._saying:
            for key, value in pieces(self._spec.dispatcher, message):
                await producer.deliver(self._names.stage_stats, value, key=key)


def _made(spec: DispatcherSpec, mark: int, seal_it: Callable[[], None], channel: socket.socket) -> RemoteBench:
    if mark >= 0:
        os.close(mark)  # nothing is taken in from Kafka
    return RemoteBench(spec, channel, seal_it)


if __name__ == "__main__":
    *_names, _channel = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    code = serve(_channel, _names[0] if _names else None, functools.partial(_made, channel=_channel))
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)
