"""An actuator without processes: for tests of whatever decides about replicas."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from inferline_stream.actuators.actuator import (
    SETTLED_S,
    ObservedReplica,
    ReplicaExit,
    restart_in_s,
    surplus,
)


@dataclass(slots=True, eq=False)
class _Place:
    seen: ObservedReplica
    failures: int = 0
    timer: asyncio.TimerHandle | None = None


class FakeActuator:
    """`Actuator` in memory, on the running event loop's clock, so that it follows a virtual one.

    Replicas end when a test says so: `crash`, or `finish` for one that has handed everything over.
    Retiring ones that nobody finishes are made to end after the deadline, as processes are.

    Args:
        drain_timeout_s: time a retiring replica has to end by itself.
        started: called with each replica as it starts, e.g. to have it report ready.
    """

    def __init__(
        self, *, drain_timeout_s: float = 30.0, started: Callable[[ObservedReplica], None] | None = None
    ) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._started = started
        self._numbers = itertools.count(1)
        self._places: list[_Place] = []
        self._exits: asyncio.Queue[ReplicaExit] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.asked: list[tuple[str, str, int]] = []
        """Every call of `scale`: stage, hardware, replicas."""

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        if replicas < 0:
            raise ValueError(f"stage {stage!r} on {hardware!r}: {replicas} replicas must be 0 or more")
        self.asked.append((stage, hardware, replicas))
        alike = [place for place in self._places if (place.seen.stage, place.seen.hardware) == (stage, hardware)]
        leaving = surplus([place.seen for place in alike], replicas, retiring)
        for place in alike:
            if place.seen.replica in leaving:
                self._retire(place, self._drain_timeout_s)
        for _ in range(replicas - sum(place.seen.state != "retiring" for place in alike)):
            place = _Place(ObservedReplica("", stage, hardware, "waiting", None, 0.0, 0))
            self._places.append(place)
            self._start(place)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Every replica that was asked for and is not gone, oldest first."""
        return tuple(place.seen for place in self._places)

    async def next_exit(self) -> ReplicaExit:
        """Wait for the next replica that ends."""
        return await self._exits.get()

    async def drain(self, deadline_s: float) -> None:
        """Retire every replica and wait until all are gone."""
        for place in list(self._places):
            self._retire(place, deadline_s)
        while self._places:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """End every replica now."""
        await self.drain(0.0)

    def crash(self, replica: str, exit_code: int = -9, reason: str = "killed by SIGKILL") -> None:
        """The replica dies."""
        self._end(self._running(replica), exit_code, reason)

    def finish(self, replica: str) -> None:
        """The replica ends by itself, as one does that was drained."""
        self._end(self._running(replica), 0, "ended by itself")

    def _running(self, replica: str) -> _Place:
        for place in self._places:
            if place.seen.replica == replica and place.seen.state != "waiting":
                return place
        raise KeyError(f"no replica {replica!r} runs")

    def _start(self, place: _Place) -> None:
        number = next(self._numbers)
        name = f"{place.seen.stage}-{place.seen.hardware}-{number}"
        now_s = asyncio.get_running_loop().time()
        place.timer = None
        place.seen = replace(place.seen, replica=name, state="running", pid=number, started_s=now_s)
        if self._started is not None:
            self._started(place.seen)

    def _retire(self, place: _Place, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        if place.seen.state == "retiring" and place.timer and place.timer.when() <= loop.time() + deadline_s:
            return  # it has to be gone sooner than that
        if place.timer is not None:
            place.timer.cancel()
        if place.seen.state == "waiting":
            self._forget(place)
            return
        place.seen = replace(place.seen, state="retiring")
        place.timer = loop.call_later(deadline_s, self._end, place, -15, "killed by SIGTERM")

    def _end(self, place: _Place, code: int, reason: str) -> None:
        loop = asyncio.get_running_loop()
        seen = place.seen
        if place.timer is not None:
            place.timer.cancel()
        delay_s = None
        if seen.state != "retiring":
            place.failures = 1 if loop.time() - seen.started_s >= SETTLED_S else place.failures + 1
            delay_s = restart_in_s(place.failures)
            place.seen = replace(seen, state="waiting", pid=None, restarts=seen.restarts + 1)
            place.timer = loop.call_later(delay_s, self._start, place)
        else:
            self._forget(place)
        self._exits.put_nowait(
            ReplicaExit(seen.replica, seen.stage, seen.hardware, code, seen.state == "retiring", reason, delay_s)
        )

    def _forget(self, place: _Place) -> None:
        self._places.remove(place)
        self._changed.set()
