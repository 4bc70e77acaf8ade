"""The places that replicas fill: which are wanted, which retire, and when a dead one is started again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from inferline_stream.actuators.actuator import DispatcherExit, ObservedReplica, ReplicaExit, Way, placed, surplus
from inferline_stream.actuators.restart_delay import SETTLED_S, restart_in_s

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Place:
    """One wanted replica, or the wait for the next one.

    Args:
        stage: it runs.
        hardware: it runs on.
        replica: its name, a new one at each start.
        running: whether it was started and has not ended.
        pid: its process, where known.
        node: the host that it runs on, where that is another one.
        pending: why it does not run yet although it was started; empty if it does.
        held_up: whether nothing at all was started for it yet, and there is nothing to hand over.
        started_s: when, on the event loop's clock.
        restarts: deaths so far.
        failures: deaths in a row, none of which came long after its start.
        retiring: whether it was asked to go.
        way: how it came to run, where that differs.
    """

    stage: str
    hardware: str
    replica: str = ""
    running: bool = False
    pid: int | None = None
    node: str = ""
    pending: str = ""
    held_up: bool = False
    started_s: float = 0.0
    restarts: int = 0
    failures: int = 0
    retiring: bool = False
    way: Way = ""
    _timer: asyncio.TimerHandle | None = None
    """The restart, or the end of one that should have ended."""

    @property
    def observed(self) -> ObservedReplica:
        """As an actuator shows it."""
        running: Literal["running", "waiting"] = "running" if self.running else "waiting"
        state = "retiring" if self.retiring else running
        return ObservedReplica(
            self.replica,
            self.stage,
            self.hardware,
            state,
            self.pid,
            self.started_s,
            self.restarts,
            self.pending,
            self.way,
            self.node,
        )


class Places:
    """Keeps the places of an actuator; see `Actuator` for the promises.

    Args:
        exits: takes the exits.
        start: called with a place to fill: names the replica, and later calls `ended`, perhaps at once.
        leave: asks a running replica to finish its batch and end.
        terminate: asks a running replica to end; it is given ``kill_after_s``.
        kill: ends one at once. Both must lead to `ended`.
        drain_timeout_s: time a retiring replica has to end by itself.
        kill_after_s: time from ``terminate`` to ``kill``.
    """

    def __init__(
        self,
        exits: asyncio.Queue[ReplicaExit | DispatcherExit],
        start: Callable[[Place], None],
        leave: Callable[[Place], None],
        terminate: Callable[[Place], None],
        kill: Callable[[Place], None],
        *,
        drain_timeout_s: float,
        kill_after_s: float,
    ) -> None:
        self._exits = exits
        self._begin = start
        self._ask_to_leave = leave
        self._ask_to_end = terminate
        self._kill = kill
        self._drain_timeout_s = drain_timeout_s
        self._kill_after_s = kill_after_s
        self._changed = asyncio.Event()
        self.all: list[Place] = []
        """Oldest first."""

    def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """As `Actuator.scale`."""
        if replicas < 0:
            raise ValueError(f"stage {stage!r} on {hardware!r}: {replicas} replicas must be 0 or more")
        alike = [place for place in self.all if (place.stage, place.hardware) == (stage, hardware)]
        leaving = surplus([place.observed for place in alike], replicas, retiring)
        for place in alike:
            if place.replica in leaving:
                self._retire(place, self._drain_timeout_s)
        for _ in range(replicas - sum(not place.retiring for place in alike)):
            place = Place(stage, hardware)
            self.all.append(place)
            self._start(place)

    def observe(self) -> tuple[ObservedReplica, ...]:
        """As `Actuator.observe`."""
        return tuple(place.observed for place in self.all)

    def capacity(self) -> dict[str, int]:
        """As `Actuator.capacity`."""
        return placed(self.observe(), asyncio.get_running_loop().time())

    async def drain(self, deadline_s: float) -> None:
        """As `Actuator.drain`."""
        for place in list(self.all):
            self._retire(place, deadline_s)
        while self.all:
            self._changed.clear()
            await self._changed.wait()

    def ended(self, place: Place, code: int, reason: str, tail: str = "", *, at_once: bool = False) -> None:
        """Report that a replica has ended, and fill its place again unless it was to go.

        Args:
            place: of the replica.
            code: its exit code.
            reason: in words.
            tail: the last lines that it wrote.
            at_once: whether to start the next one without a wait, unless this one did not live long either.
        """
        loop = asyncio.get_running_loop()
        if place._timer is not None:
            place._timer.cancel()
            place._timer = None
        place.running, place.pid, place.node, place.pending = False, None, "", ""
        delay_s = None
        if place.retiring:
            logger.info("replica %s retired: %s", place.replica, reason)
        else:
            place.restarts += 1
            place.failures = 1 if loop.time() - place.started_s >= SETTLED_S else place.failures + 1
            delay_s = 0.0 if at_once and place.failures == 1 else restart_in_s(place.failures)
            logger.warning("replica %s ended: %s; restarted in %.1f s", place.replica, reason, delay_s)
        self._exits.put_nowait(
            ReplicaExit(place.replica, place.stage, place.hardware, code, place.retiring, reason, delay_s, tail)
        )
        if delay_s is None:
            self._forget(place)
        else:
            place._timer = loop.call_later(delay_s, self._start, place)

    def _start(self, place: Place) -> None:
        place._timer = None
        place.running = True
        place.started_s = asyncio.get_running_loop().time()
        self._begin(place)

    def _retire(self, place: Place, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        if place.retiring and place._timer is not None and place._timer.when() <= loop.time() + deadline_s:
            return  # it has to be gone sooner than that
        already, place.retiring = place.retiring, True
        if place._timer is not None:
            place._timer.cancel()
        if place.running:
            place._timer = loop.call_later(0.0 if place.held_up else deadline_s, self._terminate, place)
            if not already:
                self._ask_to_leave(place)
        else:
            self._forget(place)

    def _terminate(self, place: Place) -> None:
        place._timer = asyncio.get_running_loop().call_later(self._kill_after_s, self._kill, place)
        self._ask_to_end(place)

    def _forget(self, place: Place) -> None:
        self.all.remove(place)
        self._changed.set()
