"""This host as benches use it: their processes, and what else has cores and devices of a replica meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from inferline_stream.actuators.actuator import Actuator, ObservedReplica
from inferline_stream.actuators.children import Children, Ended, Heard
from inferline_stream.actuators.devices import Device, carries, devices_for
from inferline_stream.actuators.nvml import devices as machine_devices
from inferline_stream.actuators.nvml import used_bytes
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.process_specs import ReplicaSpec
from inferline_stream.isolation import limits
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Stage
from inferline_stream.profiler.bench_dispatcher import MODULE
from inferline_stream.profiler.replica_failures import ReplicaFailed

FREED_S = 10.0
"""Longest wait for the memory of a process that has ended: drivers give it back a little later."""

_TURN_S = 0.5
"""A replica that has waited for its device so long takes another one's: the driver has answered by then."""

_LOOK_S = 0.1
_DRAIN_S, _KILL_S = 5.0, 1.0

NEIGHBOURS_LOAD = 0.5
"""Of the rest of a core that a replica shares, what others take meanwhile: about what plans leave them busy with."""

_NEIGHBOUR = """
import os, random, sys, time
cores, load, parent = set(map(int, sys.argv[1].split(","))), float(sys.argv[2]), int(sys.argv[3])
os.sched_setaffinity(0, cores)
while os.getppid() == parent:
    end_s = time.thread_time() + 0.003
    while time.thread_time() < end_s:
        pass
    time.sleep(random.expovariate(load / (1 - load) / 0.003))
"""


async def _no_room() -> bool:
    return False


class ThisHost:
    """Starts the processes of benches here.

    Nothing holds replicas on one GPU to their shares. So one on a share is measured beside copies of itself that keep
    the rest of the device busy all the time. However busy a plan keeps each, none then gets less than was measured.

    Args:
        devices: see `Children`.
        make_room: called where a replica waits for a device; ends another one that has one, and returns whether it has.
    """

    def __init__(
        self,
        *,
        devices: tuple[Device, ...] | None = None,
        make_room: Callable[[], Awaitable[bool]] = _no_room,
    ) -> None:
        self._devices = devices
        self._make_room = make_room
        self._children: Children | None = None

    @asynccontextmanager
    async def actuator(self, names: Names) -> AsyncIterator[Actuator]:
        """Start nothing yet; no process is left at the end. See `benches.MakeActuator`."""
        times = {"drain_timeout_s": _DRAIN_S, "kill_after_s": _KILL_S}
        with tempfile.TemporaryDirectory(prefix="inferline-profile-") as folder:
            # What has asked for a replica says to the user what its end means.
            async with Supervisor(partial(self._made, Path(folder)), logs_ends=False, **times) as supervisor:
                yield supervisor

    def _made(self, folder: Path, ended: Ended, heard: Heard) -> Children:
        self._children = Children(folder, ended, heard, devices=self._devices, dispatcher_module=MODULE)
        return self._children

    def forks(self, spec: ReplicaSpec) -> bool | None:
        """Return whether the next replica is forked; None while that is not known."""
        assert self._children is not None
        return self._children.forks(spec)

    async def see_to_device(self, kind: Hardware, pending: Callable[[], Awaitable[str]]) -> None:
        """See that a replica gets a device, for ever.

        Args:
            kind: that it is on.
            pending: says what it waits for; empty for nothing.

        Raises:
            ReplicaFailed: others use all of them.
        """
        loop = asyncio.get_running_loop()
        since_s = loop.time()
        while True:
            why, waited_s = await pending(), loop.time() - since_s
            if not why or (waited_s > _TURN_S and await self._make_room()):
                since_s = loop.time()
            elif waited_s > FREED_S:
                taken = devices_for(kind, machine_devices(), ()) is None
                raise ReplicaFailed(f"no device that is {kind.name} is free: others use them" if taken else why)
            await asyncio.sleep(_LOOK_S)


@contextlib.contextmanager
def neighbour(kind: Hardware, replica: ObservedReplica | None) -> Iterator[None]:
    """Have the rest of a core that a replica shares used as replicas beside it would use it."""
    cores = set[int]()
    if replica is not None and replica.pid is not None and 0 < kind.cores < 1:
        with contextlib.suppress(ProcessLookupError):  # it has ended: what is asked of it next says so
            cores = os.sched_getaffinity(replica.pid)
    if not cores:
        yield
        return
    shared = ",".join(map(str, sorted(cores)))
    load = (1 - kind.cores) * NEIGHBOURS_LOAD
    command = (sys.executable, "-I", "-S", "-c", _NEIGHBOUR, shared, str(load), str(os.getpid()))
    beside = subprocess.Popen(command, start_new_session=True)  # Ctrl-C is the profiler's
    limits.hold_share(beside.pid, 1 - kind.cores)
    try:
        yield
    finally:
        beside.kill()
        beside.wait()
        limits.leave_groups(beside.pid)


@dataclass(frozen=True, slots=True)
class HeldDevice:
    """Devices that a replica and its copies are given, and what they take of their memory.

    Args:
        kind: of the replica.
        devices: as if nobody else used them; all that there are where none has room.
        before_bytes: used before.
    """

    kind: Hardware
    devices: tuple[Device, ...]
    before_bytes: int = 0

    @property
    def taken_bytes(self) -> int | None:
        """Memory of its devices that the replica has taken, as much as each copy; None where nothing says."""
        taken = used_bytes(tuple(device.uuid for device in self.devices))
        return None if taken is None else max(0, taken - self.before_bytes) // self.kind.parts

    @property
    def share_bytes(self) -> float:
        """Memory that its share of a device comes to; infinite for whole ones."""
        if not self.kind.shares_gpu:
            return math.inf
        return self.kind.gpus * sum(device.memory_bytes for device in self.devices)


async def device_for(kind: Hardware) -> HeldDevice:
    """Choose the devices that a replica will be given. Memory of a process that has just ended is waited for."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + FREED_S
    while (given := devices_for(kind, machine := machine_devices(), ())) is None and loop.time() < until_s:
        if not any(carries(device, kind) for device in machine):
            break
        await asyncio.sleep(_LOOK_S)
    chosen = tuple(replace(device, used_bytes=0) for device in machine if device.uuid in (given or ()))
    return HeldDevice(kind, chosen or tuple(machine), used_bytes(given or ()) or 0)


def sample_spec(
    stage: Stage,
    topology: Path,
    kinds: Sequence[Hardware],
    isolation: Isolation | None = None,
    purpose: Literal["profile", "check"] = "profile",
) -> ReplicaSpec:
    """Return the replica that runs a stage's sample: at its own pace, and on a device where it may have one here.

    Args:
        stage: the stage.
        topology: the topology file.
        kinds: that it may run on; the first of which there is room counts.
        isolation: in place of the stage's own.
        purpose: see `ReplicaSpec`.
    """
    on_device = [kind for kind in kinds if kind.gpus]
    machine = machine_devices() if on_device else ()
    empty = [replace(device, used_bytes=0, busy=0.0) for device in machine]
    here = [kind for kind in on_device if devices_for(kind, empty, ()) is not None]
    free = [kind for kind in here if devices_for(kind, machine, ()) is not None]
    kind = replace((free or here or [Hardware("sample", 0.0)])[0], cores=0.0)
    own = replace(isolation or stage.confined, forked=False)  # there is one of it
    return ReplicaSpec("", stage.name, str(topology.resolve()), kind, isolation=own, purpose=purpose)
