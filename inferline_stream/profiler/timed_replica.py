"""A replica as the profiler's dispatcher has it: given batches as a dispatcher gives those of Kafka, and timed."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from inferline_stream.dataplane.dispatcher.replica_connection import ReplicaConnection
from inferline_stream.dataplane.frames import (
    Batch,
    Broken,
    Done,
    Failed,
    Leave,
    Profiling,
    Ready,
    Results,
    Returned,
    StageInput,
    ToDispatcher,
)
from inferline_stream.profiler.bench_messages import EventOutcome, Failure, Measure, Outcomes, Times

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
            now_s = time.perf_counter()
            began_s[number := self._send(batch, profiling)] = now_s
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

    def _send(self, inputs: Sequence[StageInput], profiling: Profiling | None) -> int:
        number = next(self._numbers)
        self._connection.send(Batch(1, number, list(inputs), profiling=profiling))
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


def _outcome(found: Done | Failed) -> EventOutcome:
    return EventOutcome(b"", 0, found.summary) if isinstance(found, Failed) else EventOutcome(found.value, found.edges)
