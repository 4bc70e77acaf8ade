"""An actuator without processes: for tests of what decides about replicas and dispatchers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

from inferline_stream.actuators.actuator import DispatcherExit, ObservedDispatcher, ObservedReplica, ReplicaExit
from inferline_stream.actuators.dispatcher_posts import Post, Posts
from inferline_stream.actuators.replica_places import Place, Places
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
        self._exits: asyncio.Queue[ReplicaExit | DispatcherExit] = asyncio.Queue()
        self._places = Places(
            self._exits,
            self._start,
            lambda place: None,
            lambda place: self._places.ended(place, -15, "killed by SIGTERM"),
            lambda place: None,
            drain_timeout_s=drain_timeout_s,
            kill_after_s=0.0,
        )
        self._posts = Posts(
            self._exits,
            self._start_dispatcher,
            lambda post: None,
            lambda post: self._posts.ended(post, -9, "killed by SIGKILL"),
            drain_timeout_s=drain_timeout_s,
        )
        self.room: dict[str, int] = {}
        """Most replicas of a hardware kind."""
        self.asked: list[tuple[str, str, int]] = []
        """Every call of `scale`: stage, hardware, replicas."""
        self.known: dict[tuple[str, str], ReplicaSpec] | None = None
        """Templates by stage and hardware kind; None before the first `know`."""

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas; see `Actuator.know`."""
        self.known = dict(specs)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`. A test need not call `know` before."""
        if self.known is not None and replicas > 0 and (stage, hardware) not in self.known:
            raise ValueError(f"stage {stage!r} on {hardware!r}: no replica is known; call know() first")
        self.asked.append((stage, hardware, replicas))
        self._places.scale(stage, hardware, replicas, retiring)

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """Ask for exactly these dispatchers for a stage; see `Actuator.dispatch`."""
        self._posts.dispatch(stage, dispatchers)

    async def replace_dispatcher(self, dispatcher: str) -> None:
        """Kill a silent dispatcher and start it again; see `Actuator.replace_dispatcher`."""
        self._posts.replace(dispatcher)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone, oldest first."""
        return self._places.observe()

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that was asked for and is not gone, oldest first."""
        return self._posts.observe()

    async def capacity(self) -> Mapping[str, int]:
        """Return the replicas that have a place, of each kind that has none left; and what a test says of others."""
        return {**self.room, **self._places.capacity()}

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return none."""
        return ()

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        """Wait for the next replica or dispatcher that ends."""
        return await self._exits.get()

    async def drain(self, deadline_s: float) -> None:
        """Stop every dispatcher, then retire every replica, and wait until all are gone."""
        until_s = asyncio.get_running_loop().time() + deadline_s
        await self._posts.drain(deadline_s)
        await self._places.drain(max(0.0, until_s - asyncio.get_running_loop().time()))

    async def aclose(self) -> None:
        """End everything now."""
        await self.drain(0.0)

    def crash(self, name: str, exit_code: int = -9, reason: str = "killed by SIGKILL") -> None:
        """Have a replica or a dispatcher die."""
        post = self._posts.of(name)
        if post is not None and post.pid is not None:
            self._posts.ended(post, exit_code, reason)
        else:
            self._places.ended(self._running(name), exit_code, reason)

    def finish(self, name: str) -> None:
        """Have a replica or a dispatcher end by itself, as one does that has drained."""
        self.crash(name, 0, "ended by itself")

    def _running(self, replica: str) -> Place:
        for place in self._places.all:
            if place.replica == replica and place.running:
                return place
        raise KeyError(f"no {replica!r} runs")

    def _start(self, place: Place) -> None:
        place.pid = next(self._numbers)
        place.replica = f"{place.stage}-{place.hardware}-{place.pid}"
        if self._started is not None:
            self._started(place.observed)

    def _start_dispatcher(self, post: Post) -> None:
        post.pid = next(self._numbers)
        if self._dispatching is not None:
            self._dispatching(post.spec)
