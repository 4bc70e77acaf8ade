"""The supervisor: parent of a host's dispatchers and replicas. It judges by their exits, and by nothing else."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import msgspec

from inferline_stream.actuators.actuator import ObservedDispatcher, ObservedReplica
from inferline_stream.actuators.batch_deaths import BatchDeaths
from inferline_stream.actuators.child import Child
from inferline_stream.actuators.children import Children, Ended, Heard
from inferline_stream.actuators.nvml import NoDevice
from inferline_stream.actuators.wanted_processes import WantedProcess, WantedProcesses
from inferline_stream.dataplane.process_specs import DispatcherSpec
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


@dataclass(slots=True, eq=False)
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
        dispatcher: that it is connected with.
        why: its dispatcher wants another one in its place; empty if it does not.
        leaves: of another host, whether it finishes its batch, and then ends or serves another dispatcher.
    """

    name: str
    hardware: str
    node: str
    gpu: bool
    again: bool
    connect: Callable[[socket.socket], None]
    replace: Callable[[str], None]
    dispatcher: Child | None = None
    why: str = ""
    leaves: Literal["", "for good", "for another"] = ""


class Supervisor:
    """Starts and stops dispatchers and replicas, and connects them: `Actuator` within one process.

    Must be used and closed within one event loop; `async with` closes it.

    Args:
        children: makes what starts the processes.
        drain_timeout_s: time a retiring replica, or a stopping dispatcher, has to end by itself.
        kill_after_s: time from SIGTERM to SIGKILL for a replica that stays.
        logs_ends: see `WantedProcesses`.
    """

    def __init__(
        self,
        children: Callable[[Ended, Heard], Children],
        *,
        drain_timeout_s: float = 30.0,
        kill_after_s: float = 5.0,
        logs_ends: bool = True,
    ) -> None:
        self._children = children(self._ended, self._hear)
        self._wanted = WantedProcesses(
            self._start,
            self._leave,
            self._signal,
            self._deal,
            drain_timeout_s=drain_timeout_s,
            kill_after_s=kill_after_s,
            logs_ends=logs_ends,
        )
        wanted = self._wanted  # these promises of `Actuator` it keeps as they are
        self.know, self.scale, self.dispatch, self.drain = wanted.know, wanted.scale, wanted.dispatch, wanted.drain
        self.replace_dispatcher = wanted.replace_dispatcher
        self.next_exit, self.capacity = wanted.next_exit, wanted.capacity
        self._running: dict[Child, WantedProcess] = {}
        self._batch_deaths = BatchDeaths()
        self._looking: asyncio.TimerHandle | None = None
        """The next look for devices that replicas wait for."""
        self._pools: defaultdict[str, ReplicaSlots] = defaultdict(ReplicaSlots)
        """By stage."""
        self._serving: dict[tuple[str, int], Child] = {}
        self._members: dict[str, Attachable] = {}
        """Replicas that run, here or elsewhere."""

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return every replica that was asked for and is not gone, oldest first."""
        use = {}
        for child, process in self._running.items():
            process.pid = child.pid
            process.way = process.way and ("fork" if child.forked else "alone")
            use[child.name] = child.ran_s, child.waited_s
        return tuple(
            replace(seen, ran_s=use[seen.replica][0], waited_s=use[seen.replica][1]) if seen.replica in use else seen
            for seen in await self._wanted.observe()
        )

    async def dispatchers(self) -> tuple[ObservedDispatcher, ...]:
        """Return every dispatcher that was asked for and is not gone, oldest first."""
        for child, process in self._running.items():
            process.pid = child.pid
        return await self._wanted.dispatchers()

    async def devices(self) -> tuple[DeviceState, ...]:
        """Return how the GPUs of this host stand; see `Actuator.devices`."""
        return self._children.device_watch.states()

    def serving(self, stage: str) -> tuple[str, int]:
        """Return the dispatcher of a stage that serves here, and how many replicas stay with it.

        Its name is empty where none serves.
        """
        for (of, _), child in self._serving.items():
            if of == stage:
                return child.name, sum(not member.leaves for member in self._members_of(child))
        return "", 0

    def admit(self, stage: str, remote: Attachable) -> bool:
        """Attach a replica of another host, if a dispatcher serves here; return whether it does."""
        if not self.serving(stage)[0]:
            return False
        self._members[remote.name] = remote
        self._attach(stage, self._pools[stage].add(remote.name))
        return True

    def retire_remote(self, remote: Attachable) -> None:
        """Let a replica of another host finish its batch; its dispatcher then sends it away."""
        remote.leaves = "for good"
        if remote.dispatcher is not None:
            remote.dispatcher.tell(Retire(remote.name))

    def move_remote(self, remote: Attachable, others: int) -> None:
        """Let a replica of another host go to a dispatcher that has so many, where two more stay with its own.

        Those that are on their way count as there already: many replicas see at once what one slot lacks.
        """
        if remote.dispatcher is None or remote.leaves:
            return
        leaves = Counter(member.leaves for member in self._members_of(remote.dispatcher))
        if leaves[""] - (others + leaves["for another"]) > 1:
            remote.leaves = "for another"
            remote.dispatcher.tell(Retire(remote.name, moves=True))

    def _members_of(self, dispatcher: Child) -> Iterator[Attachable]:
        return (member for member in self._members.values() if member.dispatcher is dispatcher)

    def remote_gone(self, stage: str, remote: Attachable, *, lost: bool) -> None:
        """Forget a replica of another host.

        Args:
            stage: of the replica.
            remote: the replica.
            lost: whether the way to it broke, so that what it had in hand is not to blame.
        """
        if self._members.get(remote.name) is not remote:
            return
        del self._members[remote.name]
        self._pools[stage].remove(remote.name)
        if lost and remote.dispatcher is not None:
            remote.dispatcher.tell(ReplicaLost(remote.name))

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

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _start(self, process: WantedProcess) -> None:
        if process.spec is None:
            self._start_replica(process)
            return
        spec = msgspec.structs.replace(process.spec, deadly_batches=self._batch_deaths.deadly(process.stage))
        try:
            child = self._children.start_dispatcher(spec)
        except OSError as error:
            self._wanted.ended(process, 127, f"could not be started: {error}")
            return
        process.pid = child.pid
        self._running[child] = process

    def _start_replica(self, replica: WantedProcess) -> None:
        replica.held_up, replica.pending = False, ""
        try:
            spec = self._wanted.replica_spec(replica)
            child = self._children.start_replica(spec)
        except NoDevice as error:
            replica.held_up, replica.pending = True, str(error)
            if self._looking is None:
                self._looking = asyncio.get_running_loop().call_later(error.again_s, self._look_again)
            return
        except InvalidInput as error:
            self._wanted.ended(replica, error.exit_code, str(error))
            return
        except OSError as error:
            self._wanted.ended(replica, 127, f"could not be started: {error}")
            return
        if spec.isolation.forked:
            replica.way = "fork" if child.forked else "alone"
        self._running[child] = replica
        self._members[child.name] = Attachable(
            child.name,
            replica.hardware,
            "",
            spec.hardware.gpus > 0,
            False,
            child.connect,
            lambda _: child.signal(signal.SIGKILL),
        )
        self._attach(replica.stage, self._pools[replica.stage].add(replica.name, self._leaving(replica.stage)))

    def _leaving(self, stage: str) -> set[str]:
        return {replica.name for replica in self._wanted.replicas if replica.stage == stage and replica.leaving}

    def _look_again(self) -> None:
        """Start replicas that wait for a device, if there is one: others than ours may have had it."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for replica in list(self._wanted.replicas):
            if replica.held_up and replica.running and not replica.leaving:
                self._start_replica(replica)

    def _child(self, name: str) -> Child | None:
        """Return the process of a replica or dispatcher, if it runs."""
        return next((child for child in self._running if child.name == name), None)

    def _hear(self, child: Child, message: FromDispatcher) -> None:
        """Take one message of a dispatcher's."""
        process = self._running.get(child)
        if process is None or process.spec is None:
            return
        if isinstance(message, Serving):
            self._serving[process.stage, process.spec.slot] = child
            for member in self._pools[process.stage].of(process.spec.slot):
                self._attach(process.stage, member)
        elif isinstance(message, Replace):
            self._replace(child, message)

    def _replace(self, dispatcher: Child, message: Replace) -> None:
        member = self._members.get(message.replica)
        if member is not None and member.dispatcher is dispatcher:
            member.why = message.reason
            member.replace(message.reason)

    def _attach(self, stage: str, slotted: SlottedReplica) -> None:
        """Connect a replica with the dispatcher that serves its slot, if one does."""
        dispatcher = self._serving.get((stage, slotted.slot)) if slotted.slot is not None else None
        member = self._members.get(slotted.replica)
        if dispatcher is None or member is None or member.dispatcher is dispatcher:
            return
        self._hand_over(dispatcher, member, slotted.number)
        child = self._child(member.name)
        if child is not None and self._running[child].leaving:
            self._leave(self._running[child])

    def _hand_over(self, dispatcher: Child, replica: Attachable, number: int) -> None:
        """Connect a replica with a dispatcher by a fresh pair of sockets."""
        attach = Attach(replica.name, replica.hardware, number, replica.node, replica.gpu, replica.again)
        replica.again = True
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
        replica.dispatcher = dispatcher

    def _leave(self, process: WantedProcess) -> None:
        """Have a dispatcher drain, or a replica finish its batch: by its dispatcher, which may have sent it one."""
        child, member = self._child(process.name), self._members.get(process.name)
        if child is None:
            return
        if process.spec is not None:
            child.tell(Stop())
        elif member is None or member.dispatcher is None:
            child.leave()
        else:
            member.dispatcher.tell(Retire(process.name))

    def _deal(self, stage: str) -> None:
        """Deal a stage's replicas to the slots that it has now."""
        slots = self._wanted.slots(stage)
        if slots:  # one that stops, and has no successor, keeps its replicas to its end
            for member in self._pools[stage].deal(slots, self._leaving(stage)):
                self._attach(stage, member)

    def _signal(self, process: WantedProcess, number: signal.Signals) -> None:
        if process.held_up:
            self._wanted.ended(process, 0, "had no device yet")
        elif (child := self._child(process.name)) is not None:
            child.signal(number)

    def _ended(self, child: Child, code: int, reason: str, tail: str) -> None:
        process = self._running.pop(child)
        if process.spec is None:
            self._replica_ended(child, process, code, reason, tail)
            return
        if self._serving.get((process.stage, process.spec.slot)) is child:
            del self._serving[process.stage, process.spec.slot]
        orphans = {member.name for member in self._members.values() if member.dispatcher is child}
        for name in orphans:
            self._members[name].dispatcher = None
        for held in self._wanted.replicas:
            if held.leaving and held.name in orphans:
                self._leave(held)
        if child.died_at is not None and code != 0 and not process.leaving:
            self._died_at(process.name, process.spec, child.died_at)
        self._wanted.ended(process, code, reason, tail)

    def _died_at(self, dispatcher: str, spec: DispatcherSpec, batch: BatchId) -> None:
        stage = spec.routes.stage
        where = f"{spec.routes.place(batch.partition)}, the batch at offset {batch.base_offset}"
        logger.warning("dispatcher %s ended while it took in %s", dispatcher, where)
        if self._batch_deaths.died_at(stage, batch):
            logger.error("stage %s: dispatchers end whenever they take in %s: it is skipped", stage, where)

    def _replica_ended(self, child: Child, replica: WantedProcess, code: int, reason: str, tail: str) -> None:
        self._pools[replica.stage].remove(child.name)
        why = self._members.pop(child.name).why
        self._wanted.ended(replica, code, why or reason, tail, at_once=bool(why))
        if child.devices:
            self._look_again()
