"""The supervisor: parent of a host's dispatchers and replicas. It judges by their exits, and by nothing else."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import msgspec

from inferline_stream.actuators.actuator import (
    DispatcherExit,
    ObservedDispatcher,
    ObservedReplica,
    ReplicaExit,
)
from inferline_stream.actuators.batch_deaths import BatchDeaths
from inferline_stream.actuators.child import Child
from inferline_stream.actuators.children import Children, Ended, Heard
from inferline_stream.actuators.device_watch import NoDevice
from inferline_stream.actuators.dispatcher_posts import Post, Posts
from inferline_stream.actuators.replica_places import Place, Places
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.supervisor_messages import (
    Attach,
    FromDispatcher,
    Replace,
    ReplicaLost,
    Retire,
    Serving,
    Stop,
)
from inferline_stream.errors import InvalidInput
from inferline_stream.kafka.batch_mark import BatchId
from inferline_stream.observability.pipeline_state import DeviceState
from inferline_stream.pipeline.replica_slots import ReplicaSlots, SlottedReplica

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Attachable:
    """A replica that a dispatcher can be connected with, here or on another host.

    Args:
        name: of the replica.
        hardware: the hardware kind it runs on.
        node: that it is on; empty for this one.
        gpu: whether it loads its stage on a GPU.
        again: whether it was connected with a dispatcher before.
        connect: gives it its end of a pair of sockets.
        replace: ends it now, for a reason; another one is started.
    """

    name: str
    hardware: str
    node: str
    gpu: bool
    again: bool
    connect: Callable[[socket.socket], None]
    replace: Callable[[str], None]


class Supervisor:
    """Starts and stops dispatchers and replicas, and connects them: `Actuator` within one process.

    Must be used and closed within one event loop; `async with` closes it.

    Args:
        children: makes what starts the processes.
        drain_timeout_s: time a retiring replica, or a stopping dispatcher, has to end by itself.
        kill_after_s: time from SIGTERM to SIGKILL for a replica that stays.
    """

    def __init__(
        self,
        children: Callable[[Ended, Heard], Children],
        *,
        drain_timeout_s: float = 30.0,
        kill_after_s: float = 5.0,
    ) -> None:
        self._specs: dict[tuple[str, str], ReplicaSpec] = {}
        self._exits: asyncio.Queue[ReplicaExit | DispatcherExit] = asyncio.Queue()
        self._children = children(self._ended, self._hear)
        self._places = Places(
            self._exits,
            self._start_replica,
            self._leave,
            lambda place: self._signal(place, signal.SIGTERM),
            lambda place: self._signal(place, signal.SIGKILL),
            drain_timeout_s=drain_timeout_s,
            kill_after_s=kill_after_s,
        )
        self._posts = Posts(
            self._exits,
            self._start_dispatcher,
            lambda post: self._dispatchers[post].tell(Stop()),
            self._kill_dispatcher,
            self._deal,
            drain_timeout_s=drain_timeout_s,
        )
        self._replicas: dict[Child, Place] = {}
        self._dispatchers: dict[Post, Child] = {}
        self._batch_deaths = BatchDeaths()
        self._looking: asyncio.TimerHandle | None = None
        """The next look for devices that replicas wait for."""
        self._pools: defaultdict[str, ReplicaSlots] = defaultdict(ReplicaSlots)
        self._serving: dict[tuple[str, int], Child] = {}
        self._attached: dict[str, Child] = {}
        """Replica → the dispatcher that it is attached to."""
        self._handed_over: set[str] = set()
        """Replicas that have been attached before."""
        self._replaced: dict[str, str] = {}
        """Replica → why its dispatcher wants another one."""
        self._remote: dict[str, Attachable] = {}

    async def know(self, specs: Mapping[tuple[str, str], ReplicaSpec]) -> None:
        """Set the templates of replicas; see `Actuator.know`."""
        self._specs = dict(specs)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        if replicas > 0 and (stage, hardware) not in self._specs:
            raise ValueError(f"stage {stage!r} on {hardware!r}: no replica is known; call know() first")
        self._places.scale(stage, hardware, replicas, retiring)

    async def dispatch(self, stage: str, dispatchers: Sequence[DispatcherSpec]) -> None:
        """Ask for exactly these dispatchers for a stage; see `Actuator.dispatch`."""
        self._posts.dispatch(stage, dispatchers)

    async def replace_dispatcher(self, dispatcher: str) -> None:
        """Kill a silent dispatcher and start it again; see `Actuator.replace_dispatcher`."""
        self._posts.replace(dispatcher)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone, oldest first."""
        use = {}
        for child, place in self._replicas.items():
            place.pid = child.pid
            place.way = place.way and ("fork" if child.forked else "alone")
            use[child.name] = child.ran_s, child.waited_s
        return tuple(
            replace(seen, ran_s=use[seen.replica][0], waited_s=use[seen.replica][1]) if seen.replica in use else seen
            for seen in self._places.observe()
        )

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that was asked for and is not gone, oldest first."""
        for post, child in self._dispatchers.items():
            post.pid = child.pid
        return self._posts.observe()

    async def next_exit(self) -> ReplicaExit | DispatcherExit:
        """Wait for the next process that ends."""
        return await self._exits.get()

    async def capacity(self) -> Mapping[str, int]:
        """Return the replicas that have a place, of each hardware kind that has none left."""
        return self._places.capacity()

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return how the GPUs of this host stand; see `Actuator.devices`."""
        return self._children.device_states()

    def serving(self, stage: str) -> tuple[str, int]:
        """Return the dispatcher of a stage that serves here, and how many replicas it has; empty where none does."""
        for (of, _), child in self._serving.items():
            if of == stage:
                return child.name, sum(attached is child for attached in self._attached.values())
        return "", 0

    def admit(self, stage: str, remote: Attachable) -> bool:
        """Attach a replica of another host, if a dispatcher serves here; return whether it does."""
        if not self.serving(stage)[0]:
            return False
        self._remote[remote.name] = remote
        self._attach(stage, self._pools[stage].add(remote.name))
        return True

    def retire_remote(self, name: str) -> None:
        """Let a replica of another host finish its batch; its dispatcher then sends it away."""
        if (dispatcher := self._attached.get(name)) is not None:
            dispatcher.tell(Retire(name))

    def remote_gone(self, stage: str, remote: Attachable, *, lost: bool) -> None:
        """Forget a replica of another host.

        Args:
            stage: of the replica.
            remote: the replica.
            lost: whether the way to it broke, so that what it had in hand is not to blame.
        """
        if self._remote.get(remote.name) is not remote:
            return
        del self._remote[remote.name]
        self._pools[stage].remove(remote.name)
        dispatcher = self._attached.pop(remote.name, None)
        if lost and dispatcher is not None:
            dispatcher.tell(ReplicaLost(remote.name))

    async def drain(self, deadline_s: float) -> None:
        """Stop every dispatcher, then retire every replica; see `Actuator.drain`."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s
        await self._posts.drain(deadline_s)
        await self._places.drain(max(0.0, until_s - loop.time()))

    async def aclose(self) -> None:
        """End everything now: SIGTERM, and SIGKILL to what stays; no process is left when this returns."""
        try:
            await self.drain(0.0)
        finally:  # also when cancelled: nothing stays behind
            if self._looking is not None:
                self._looking.cancel()
            self._children.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _start_replica(self, place: Place) -> None:
        if not place.held_up:  # else it has its name
            place.replica = f"{place.stage}-{place.hardware}-{secrets.token_hex(4)}"
        spec = msgspec.structs.replace(self._specs[place.stage, place.hardware], replica=place.replica)
        place.held_up, place.pending = False, ""
        try:
            child = self._children.start_replica(spec)
        except NoDevice as error:
            place.held_up, place.pending = True, str(error)
            if self._looking is None:
                self._looking = asyncio.get_running_loop().call_later(error.again_s, self._look_again)
            return
        except InvalidInput as error:
            self._places.ended(place, error.exit_code, str(error))
            return
        except OSError as error:
            self._places.ended(place, 127, f"could not be started: {error}")
            return
        if spec.isolation.forked:
            place.way = "fork" if child.forked else "alone"
        self._replicas[child] = place
        self._attach(place.stage, self._pools[place.stage].add(place.replica, self._leaving(place.stage)))

    def _leaving(self, stage: str) -> set[str]:
        return {place.replica for place in self._places.all if place.stage == stage and place.retiring}

    def _look_again(self) -> None:
        """Start replicas that wait for a device, if there is one: others than ours may have had it."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for place in list(self._places.all):
            if place.held_up and place.running and not place.retiring:
                self._start_replica(place)

    def _start_dispatcher(self, post: Post) -> None:
        spec = msgspec.structs.replace(post.spec, deadly_batches=self._batch_deaths.deadly(post.stage))
        try:
            child = self._children.start_dispatcher(spec)
        except OSError as error:
            self._posts.ended(post, 127, f"could not be started: {error}")
            return
        post.pid = child.pid
        self._dispatchers[post] = child

    def _kill_dispatcher(self, post: Post) -> None:
        self._dispatchers[post].signal(signal.SIGKILL)

    def _hear(self, child: Child, message: FromDispatcher) -> None:
        """Take one message of a dispatcher's."""
        post = next((post for post, each in self._dispatchers.items() if each is child), None)
        if post is None:
            return
        if isinstance(message, Serving):
            self._serving[post.stage, post.spec.slot] = child
            for member in self._pools[post.stage].of(post.spec.slot):
                self._attach(post.stage, member)
        elif isinstance(message, Replace):
            self._replace(child, message)

    def _replace(self, dispatcher: Child, message: Replace) -> None:
        if (remote := self._remote.get(message.replica)) is not None:
            remote.replace(message.reason)
        for child in self._replicas:
            if child.name == message.replica and self._attached.get(child.name) is dispatcher:
                self._replaced[child.name] = message.reason
                child.signal(signal.SIGKILL)

    def _attach(self, stage: str, member: SlottedReplica) -> None:
        """Connect a replica with the dispatcher that serves its slot, if one does."""
        dispatcher = self._serving.get((stage, member.slot)) if member.slot is not None else None
        if dispatcher is None or self._attached.get(member.replica) is dispatcher:
            return
        if (remote := self._remote.get(member.replica)) is not None:
            self._hand_over(dispatcher, remote, member.number)
            return
        child = next((child for child in self._replicas if child.name == member.replica), None)
        if child is None:
            return
        place, again = self._replicas[child], child.name in self._handed_over
        spec = self._specs.get((stage, place.hardware))
        gpu = spec is not None and spec.hardware.gpus > 0
        self._handed_over.add(child.name)
        local = Attachable(
            child.name, place.hardware, "", gpu, again, child.connect, lambda _: child.signal(signal.SIGKILL)
        )
        self._hand_over(dispatcher, local, member.number)
        if place.retiring:
            self._leave(place)

    def _hand_over(self, dispatcher: Child, replica: Attachable, number: int) -> None:
        """Connect a replica with a dispatcher by a fresh pair of sockets."""
        attach = Attach(replica.name, replica.hardware, number, replica.node, replica.gpu, replica.again)
        try:
            ours, theirs = socket.socketpair()
            dispatcher.take(attach, ours)
            replica.connect(theirs)
        except OSError as error:  # no descriptor is left, say; one that is started again is attached again
            logger.error(
                "replica %s cannot be attached to its dispatcher, and is started again: %s", replica.name, error
            )
            replica.replace(f"it could not be attached: {error}")
            return
        self._attached[replica.name] = dispatcher

    def _leave(self, place: Place) -> None:
        """Have a replica finish its batch and end: by its dispatcher, which may have sent it one, or by itself."""
        dispatcher = self._attached.get(place.replica)
        for child, held in self._replicas.items():
            if held is place:
                if dispatcher is None:
                    child.leave()
                else:
                    dispatcher.tell(Retire(place.replica))

    def _deal(self, stage: str) -> None:
        """Deal a stage's replicas to the slots that it has now."""
        slots = self._posts.slots(stage)
        if slots:  # one that stops, and has no successor, keeps its replicas to its end
            for member in self._pools[stage].deal(slots, self._leaving(stage)):
                self._attach(stage, member)

    def _signal(self, place: Place, number: signal.Signals) -> None:
        if place.held_up:
            self._places.ended(place, 0, "had no device yet")
        for child, held in self._replicas.items():
            if held is place:
                child.signal(number)

    def _ended(self, child: Child, code: int, reason: str, tail: str) -> None:
        place = self._replicas.pop(child, None)
        if place is not None:
            self._replica_ended(child, place, code, reason, tail)
            return
        post = next(post for post, each in self._dispatchers.items() if each is child)
        del self._dispatchers[post]
        if self._serving.get((post.stage, post.spec.slot)) is child:
            del self._serving[post.stage, post.spec.slot]
        orphans = {replica for replica, dispatcher in self._attached.items() if dispatcher is child}
        for replica in orphans:
            del self._attached[replica]
        for held in self._replicas.values():
            if held.retiring and held.replica in orphans:
                self._leave(held)
        if child.died_at is not None and code != 0 and not post.stopping:
            self._died_at(post, child.died_at)
        self._posts.ended(post, code, reason, tail)

    def _died_at(self, post: Post, batch: BatchId) -> None:
        where = f"{post.spec.routes.input_topic}/{batch.partition}, the batch at offset {batch.base_offset}"
        logger.warning("dispatcher %s ended while it took in %s", post.spec.dispatcher, where)
        if self._batch_deaths.died_at(post.stage, batch):
            logger.error("stage %s: dispatchers end whenever they take in %s: it is skipped", post.stage, where)

    def _replica_ended(self, child: Child, place: Place, code: int, reason: str, tail: str) -> None:
        self._pools[place.stage].remove(child.name)
        self._handed_over.discard(child.name)
        self._attached.pop(child.name, None)
        why = self._replaced.pop(child.name, "")
        self._places.ended(place, code, why or reason, tail, at_once=bool(why))
        if child.devices:
            self._look_again()
