"""A dispatcher's process on the bench: it hands a replica batches of sample events, as one does those of Kafka.

Its channel brings the `DispatcherSpec`, then one datagram with two descriptors: of the profiler's orders, and of the
connection to the replica. It answers `StageBuilt` once it could begin, again once the replica could, and then each
`Measure` with `Times`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
import time
from collections.abc import Sequence

import uvloop

from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.frames import (
    Batch,
    Broken,
    Done,
    Failed,
    Leave,
    Results,
    Returned,
    StageInput,
    ToDispatcher,
)
from inferline_stream.dataplane.frames import Ready as Built
from inferline_stream.dataplane.supervisor_messages import MAX_DATAGRAM_BYTES
from inferline_stream.isolation.addressed_loop import Loop
from inferline_stream.isolation.confinement import dispatcher_confinement
from inferline_stream.isolation.seal import seal
from inferline_stream.profiler.worker_messages import (
    LENGTH_BYTES,
    SAMPLE_BATCH,
    Answer,
    Failure,
    Measure,
    StageBuilt,
    Times,
    decode_request,
    framed,
    length_of,
)

_ENDED = Failure("its replica has ended", ended=True)


class Bench:
    """One replica, which it gives batches, and times each from handing it over to having its results.

    Args:
        replica: the connection to it.
        remote: whether it is on another host, so that the way there and back is no part of its service time.
    """

    def __init__(self, replica: socket.socket, *, remote: bool = False) -> None:
        self._remote = remote
        self._heard: asyncio.Queue[ToDispatcher | None] = asyncio.Queue()
        self._connection = ReplicaConnection(replica, self._hear, lambda why: self._hear(None))
        self._numbers = itertools.count(1)
        self.alive = True
        """Whether the replica may be given another batch."""

    def _hear(self, frame: ToDispatcher | None) -> None:
        self.alive = self.alive and frame is not None and not isinstance(frame, Broken)
        self._heard.put_nowait(frame)

    async def built(self) -> Answer:
        """Wait until the replica says that it is ready."""
        return StageBuilt() if isinstance(await self._heard.get(), Built) else _ENDED

    def leave(self) -> None:
        """Have the replica end once it has no batch in hand."""
        self._connection.send(Leave())

    def close(self) -> None:
        """Close the connection: whatever is measured fails."""
        self._connection.close()
        self._hear(None)

    async def run(self, inputs: Sequence[StageInput]) -> list[Done | Failed] | Failure:
        """Run events once, a few at a time; returns what became of each."""
        found: list[Done | Failed] = []
        for start in range(0, len(inputs), SAMPLE_BATCH):
            self._connection.send(Batch(1, next(self._numbers), list(inputs[start : start + SAMPLE_BATCH])))
            frame = await self._heard.get()
            if not isinstance(frame, Results):
                return _failure(frame, SAMPLE_BATCH) or _ENDED
            found += frame.outcomes
        return found

    async def measure(self, order: Measure) -> Times | Failure:
        """Time batches of one size; the first, which allocates and compiles, does not count."""
        if order.concurrency > 1:
            return await self._measure_together(order)
        events = itertools.cycle(order.inputs)
        service_s: list[float] = []
        network_s: list[float] = []
        end_s = 0.0
        while len(service_s) <= order.fewest or (len(service_s) <= order.most and time.perf_counter() < end_s):
            inputs = list(itertools.islice(events, order.batch_size))
            began_s = time.perf_counter()
            self._connection.send(Batch(1, next(self._numbers), inputs))
            frame = await self._heard.get()
            took_s = time.perf_counter() - began_s
            if failure := _failure(frame, order.batch_size):
                return failure
            network_s.append(self._network_s(frame, took_s))
            service_s.append(took_s - network_s[-1])
            end_s = end_s or time.perf_counter() + order.seconds
        return Times(service_s[1:], network_s[1:])

    async def _measure_together(self, order: Measure) -> Times | Failure:
        """Time batches of which the replica has so many in hand; those that begin before it has do not count."""
        events = itertools.cycle(order.inputs)
        began_s: dict[int, float] = {}
        counted: set[int] = set()
        service_s: list[float] = []
        network_s: list[float] = []

        def begin() -> int:
            batch = next(self._numbers)
            inputs = list(itertools.islice(events, order.batch_size))
            began_s[batch] = time.perf_counter()
            self._connection.send(Batch(1, batch, inputs))
            return batch

        for _ in range(order.concurrency):
            begin()
        end_s = time.perf_counter() + order.seconds
        failure: Failure | None = None
        while began_s:
            frame = await self._heard.get()
            ended_s = time.perf_counter()
            failure = failure or _failure(frame, order.batch_size)
            if not isinstance(frame, Results):
                return failure or _ENDED
            took_s = ended_s - began_s.pop(frame.batch)
            enough = len(service_s) >= order.fewest and (ended_s > end_s or len(service_s) >= order.most)
            if frame.batch in counted and not enough:
                network_s.append(self._network_s(frame, took_s))
                service_s.append(took_s - network_s[-1])
            if failure is None and not enough:
                counted.add(begin())
        return failure or Times(service_s, network_s)

    def _network_s(self, frame: ToDispatcher | None, took_s: float) -> float:
        """Return what the network took of a batch, as a dispatcher counts it."""
        assert isinstance(frame, Results)
        return max(0.0, took_s - frame.busy_s) if self._remote else 0.0


def _failure(frame: ToDispatcher | None, batch_size: int) -> Failure | None:
    if isinstance(frame, Returned):
        return Failure(frame.reason, unavailable=True)
    if isinstance(frame, Broken):
        return Failure(frame.reason, memory=frame.memory)
    if not isinstance(frame, Results):
        return _ENDED
    failed = next((outcome for outcome in frame.outcomes if isinstance(outcome, Failed)), None)
    if failed is not None:
        memory = "out of memory" in failed.message.lower() or failed.type == "MemoryError"
        return Failure(f"raised on an event that it had taken before: {failed.summary}", memory=memory)
    if 0 < frame.too_large <= batch_size:
        return Failure("too large for this device: it has no memory for them", memory=True)
    if len(frame.calls) != 1:
        return Failure(f"raised on a batch of {batch_size}, but not on smaller ones", memory=True)
    return None


async def _serve(orders: socket.socket, replica: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=orders)
    bench = Bench(replica)
    seal(dispatcher_confinement(""))
    writer.write(framed(StageBuilt()))
    answer = await bench.built()
    while True:
        writer.write(framed(answer))
        await writer.drain()
        try:
            header = await reader.readexactly(LENGTH_BYTES)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        request = decode_request(await reader.readexactly(length_of(header)))
        assert isinstance(request, Measure)
        answer = await bench.measure(request)


def main(channel: socket.socket) -> None:
    """Serve until the profiler closes its end."""
    for descriptor in socket.recv_fds(channel, MAX_DATAGRAM_BYTES, 1)[1]:
        os.close(descriptor)  # of the mark: nothing is taken in from Kafka
    _, descriptors, _, _ = socket.recv_fds(channel, MAX_DATAGRAM_BYTES, 2)
    if len(descriptors) == 2:
        orders, replica = (socket.socket(fileno=number) for number in descriptors)
        uvloop.run(_serve(orders, replica), loop_factory=Loop)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[-1])))
