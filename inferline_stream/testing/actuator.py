"""An actuator without processes: for tests of whatever decides about replicas."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from inferline_stream.actuators.actuator import ObservedReplica, ReplicaExit
from inferline_stream.actuators.places import Place, Places


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
        self._started = started
        self._numbers = itertools.count(1)
        self._places = Places(
            self._start,
            lambda place: self._places.ended(place, -15, "killed by SIGTERM"),
            lambda place: None,
            drain_timeout_s=drain_timeout_s,
            kill_after_s=0.0,
        )
        self.room: dict[str, int] = {}
        """Most replicas of a hardware kind."""
        self.older: set[str] = set()
        """Replicas that something else is about to replace."""
        self.asked: list[tuple[str, str, int]] = []
        """Every call of `scale`: stage, hardware, replicas."""

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        self.asked.append((stage, hardware, replicas))
        self._places.scale(stage, hardware, replicas, retiring)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Every replica that was asked for and is not gone, oldest first."""
        return tuple(replace(r, older=r.replica in self.older) for r in self._places.observe())

    async def capacity(self) -> Mapping[str, int]:
        """Replicas that have a place, of each kind that has none left; and what a test says of other kinds."""
        return {**self.room, **self._places.capacity()}

    async def next_exit(self) -> ReplicaExit:
        """Wait for the next replica that ends."""
        return await self._places.next_exit()

    async def drain(self, deadline_s: float) -> None:
        """Retire every replica and wait until all are gone."""
        await self._places.drain(deadline_s)

    async def aclose(self) -> None:
        """End every replica now."""
        await self.drain(0.0)

    def crash(self, replica: str, exit_code: int = -9, reason: str = "killed by SIGKILL") -> None:
        """The replica dies."""
        self._places.ended(self._running(replica), exit_code, reason)

    def finish(self, replica: str) -> None:
        """The replica ends by itself, as one does that was drained."""
        self._places.ended(self._running(replica), 0, "ended by itself")

    def _running(self, replica: str) -> Place:
        for place in self._places.all:
            if place.replica == replica and place.running:
                return place
        raise KeyError(f"no replica {replica!r} runs")

    def _start(self, place: Place) -> None:
        place.pid = next(self._numbers)
        place.replica = f"{place.stage}-{place.hardware}-{place.pid}"
        if self._started is not None:
            self._started(place.observed)
