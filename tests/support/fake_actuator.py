"""An actuator without processes: for tests of what decides about replicas and dispatchers."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.actuators.wanted_processes import WantedProcess, WantedProcesses
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.observability.pipeline_state import DeviceState


class FakeActuator:
    """`Actuator` in memory, on the running event loop's clock, so that it follows a virtual one.

    Replicas and dispatchers end when a test says so: `crash`, or `finish` for one that ends in order. One that was
    asked to go and that nobody finishes is killed after the deadline, as processes are.

    Args:
        drain_timeout_s: time that one that was asked to go has to end by itself.
        started: called with each replica as it starts, e.g. to have it report ready.
        dispatching: called with the spec of each dispatcher as it starts, its incarnation set.
    """

    def __init__(
        self,
        *,
        drain_timeout_s: float = 30.0,
        started: Callable[[ObservedReplica], None] | None = None,
        dispatching: Callable[[DispatcherSpec], None] | None = None,
    ) -> None:
        self._started = started
        self._dispatching = dispatching
        self._numbers = itertools.count(1)
        self._wanted = WantedProcesses(
            self._start,
            lambda process: None,
            self._kill,
            drain_timeout_s=drain_timeout_s,
            kill_after_s=0.0,
        )
        wanted = self._wanted
        wanted.specs = None
        self.dispatch, self.replace_dispatcher, self.drain = wanted.dispatch, wanted.replace_dispatcher, wanted.drain
        self.dispatchers, self.next_exit = wanted.dispatchers, wanted.next_exit
        self.nodes: dict[str, str] = {}
        """By replica, the node that it is on."""
        self.going: set[str] = set()
        """Nodes that are taken away soon."""
        self.room: dict[str, int] = {}
        """Most replicas of a hardware kind."""
        self.asked: list[tuple[str, str, int]] = []
        """Every call of `scale`: stage, hardware, replicas."""
        self.known: dict[tuple[str, str], ReplicaSpec] | None = None
        """Templates by stage and hardware kind; None before the first `know`."""

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone; see `Actuator.observe`."""
        found = await self._wanted.observe()
        if not self.nodes:
            return found
        on = [self.nodes.get(replica.replica, "") for replica in found]
        return tuple(replace(r, node=node, going=node in self.going) for r, node in zip(found, on, strict=True))

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas; see `Actuator.know`."""
        self.known = self._wanted.specs = dict(specs)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`. A test need not call `know` before."""
        await self._wanted.scale(stage, hardware, replicas, retiring)
        self.asked.append((stage, hardware, replicas))

    async def capacity(self) -> Mapping[str, int]:
        """Return the replicas that have a place, of each kind that has none left; and what a test says of others."""
        return {**self.room, **await self._wanted.capacity()}

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return none."""
        return ()

    async def aclose(self) -> None:
        """End everything now."""
        await self.drain(0.0)

    def crash(self, name: str, exit_code: int = -9, reason: str = "killed by SIGKILL") -> None:
        """Have a replica or a dispatcher die."""
        self._wanted.ended(self._running(name), exit_code, reason)

    def finish(self, name: str) -> None:
        """Have a replica or a dispatcher end by itself, as one does that has drained."""
        self.crash(name, 0, "ended by itself")

    def _running(self, name: str) -> WantedProcess:
        for process in (*self._wanted.replicas, *self._wanted.named.values()):
            if process.name == name and process.running:
                return process
        raise KeyError(f"no {name!r} runs")

    def _start(self, process: WantedProcess) -> None:
        process.pid = next(self._numbers)
        if process.spec is not None:
            if self._dispatching is not None:
                self._dispatching(process.spec)
            return
        process.name = f"{process.stage}-{process.hardware}-{process.pid}"
        if self._started is not None:
            self._started(process.observed)

    def _kill(self, process: WantedProcess, number: signal.Signals) -> None:
        self._wanted.ended(process, -number, f"killed by {number.name}")
