"""How the supervisor starts its child processes, watches them by pidfd, and reports their ends."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from inferline_stream.actuators import mps
from inferline_stream.actuators.batch_deaths import is_batchs_doing
from inferline_stream.actuators.child import Child
from inferline_stream.actuators.child_logs import ChildLogs
from inferline_stream.actuators.devices import Device, cores_for, devices_for, used_by_others
from inferline_stream.actuators.fork_servers import Begun, Forked, ForkServers
from inferline_stream.actuators.nvml import DeviceWatch, NoDevice
from inferline_stream.actuators.nvml import devices as machine_devices
from inferline_stream.dataplane.process_specs import (
    DISPATCHER_MODULE,
    REPLICA_MODULE,
    DispatcherSpec,
    ReplicaSpec,
    encode_spec,
)
from inferline_stream.dataplane.replica.replica import BUILT
from inferline_stream.dataplane.supervisor_messages import (
    MAX_DATAGRAM_BYTES,
    FromDispatcher,
    decode_from_dispatcher,
)
from inferline_stream.isolation.confinement import confined, dispatcher_confinement
from inferline_stream.isolation.launch import Launch, UvmNode
from inferline_stream.kafka.batch_mark import mark_file, marked_in, ran_before_s
from inferline_stream.pipeline.hardware import Hardware

logger = logging.getLogger(__name__)

_NOT_STARTED = 127
"""Exit code of a child that could not be started."""

Ended = Callable[[Child, int, str, str], None]
"""Takes a child that has ended, its exit code, a reason in words and its last lines."""

Heard = Callable[[Child, FromDispatcher], None]
"""Takes a dispatcher and its message."""


class Children:
    """Starts processes and reports their ends. Must be used and closed within one event loop.

    Args:
        log_folder: for the files that hold what they print.
        ended: called with each child that has ended, its exit code, a reason in words and its last lines.
        heard: called with each message of a dispatcher.
        devices: GPUs that replicas may be given; by default those of this machine, looked at when one is needed.
        placed: whether something else has chosen cores and devices, as for a pod: a replica may use all that is seen.
        replica_module: what a replica's process runs as ``__main__``.
        dispatcher_module: likewise.
        single: whether it starts one process: nothing is started then that could fork the next one.
    """

    def __init__(
        self,
        log_folder: Path,
        ended: Ended,
        heard: Heard = lambda child, message: None,
        *,
        devices: tuple[Device, ...] | None = None,
        placed: bool = False,
        replica_module: str = REPLICA_MODULE,
        dispatcher_module: str = DISPATCHER_MODULE,
        single: bool = False,
    ) -> None:
        self.all: list[Child] = []
        self._logs = ChildLogs(log_folder)
        self._ended = ended
        self._heard = heard
        self._given = devices
        self._seen: tuple[Device, ...] = ()
        self.device_watch = DeviceWatch()
        self._freed_s = 0.0
        """When the last one ended that had a device: its memory is free a little later."""
        self._placed = placed
        self._modules = (replica_module, dispatcher_module)
        self._single = single
        self._fork_servers = ForkServers()
        self._uvm = UvmNode()
        self._machine = os.sched_getaffinity(0)

    def start_replica(self, spec: ReplicaSpec) -> Child:
        """Start a replica.

        Raises:
            NoDevice: its GPU is not free.
            InvalidInput: its isolation needs what this machine does not have.
            OSError: the process could not be started.
        """
        if spec.hardware.gpus and not self._placed and spec.isolation.sandboxed and (lack := self._uvm.lack()):
            raise NoDevice(lack)
        devices = self._devices_for(spec.hardware)
        cores = spec.hardware.cores
        taken = [(other.cores, other.pinned) for other in self.all]
        known = [d for d in (self._seen if self._given is None else self._given) if d.uuid in devices]
        near = frozenset[int]().union(*(device.near for device in known))
        pinned = frozenset[int]() if self._placed else cores_for(cores, self._machine, taken, near)
        launch = Launch(
            self._modules[0],
            confined(spec.isolation, spec.topology, spec.hardware),
            cores=cores,
            pinned=pinned,
            devices=devices or None if self._placed else devices,
            nodes=_nodes(known),
            also=mps.variables(spec.hardware, spec.isolation, known),
            kernels=str(Path(spec.topology).parent / ".inferline" / "kernels" / f"{spec.stage}.{spec.hardware.name}"),
            profiled=spec.purpose == "profile",
        )
        child = self._started(
            spec.replica,
            spec.stage,
            launch,
            encode_spec(spec),
            lambda channel, log, begun: (
                not self._single and self._fork_servers.fork_replica(spec, launch, channel, log, pinned, begun=begun)
            ),
            hear=self._hear_replica,
        )
        child.cores, child.pinned, child.hardware, child.devices = cores, pinned, spec.hardware, devices
        child.sealed = not spec.isolation.sandboxed
        return child

    def start_dispatcher(self, spec: DispatcherSpec) -> Child:
        """Start a dispatcher.

        Raises:
            OSError: the process could not be started.
        """
        confinement = dispatcher_confinement(spec.bootstrap_servers, spec.tracing)
        launch = Launch(self._modules[1], confinement, cores=1, devices=())
        forks = self._modules[1] == DISPATCHER_MODULE and not self._single
        return self._started(
            spec.dispatcher,
            spec.routes.stage,
            launch,
            encode_spec(spec),
            lambda channel, log, begun: forks and self._fork_servers.fork_dispatcher(launch, channel, log, begun),
            hear=self._hear_dispatcher,
            mark=mark_file(),
        )

    def forks(self, spec: ReplicaSpec) -> bool | None:
        """Return whether the next replica of a stage and hardware kind is forked; None while that is not known."""
        if self._fork_servers.refused(spec.stage, spec.hardware.name):
            return False
        return self._fork_servers.ready(spec.stage, spec.hardware.name) or None

    def close(self) -> None:
        """Kill every child and the fork servers; none is left when this returns, and their ends are not reported."""
        self._ended = lambda *_: None
        self._logs.close()
        self.device_watch.close()
        for child in list(self.all):
            child.signal(signal.SIGKILL)
            if child.process is not None:
                _wait(child.pidfd)
            self._gone(child, -signal.SIGKILL)
        self._fork_servers.close()

    def _started(
        self,
        name: str,
        stage: str,
        launch: Launch,
        spec: bytes,
        fork: Callable[[int, IO[bytes], Begun], bool],
        *,
        hear: Callable[[Child], None],
        mark: int | None = None,
    ) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        child = Child(name, stage, launch, self._logs.of(name), channel=ours, mark=mark)
        try:
            with child.log.path.open("ab") as file:
                asked = fork(theirs.fileno(), file, partial(self._forked, child, theirs, hear))
            if not asked:
                self._begin(child, theirs, hear)
        except OSError:
            launch.close()
            ours.close()
            theirs.close()
            if mark is not None:
                os.close(mark)
            raise
        self.all.append(child)
        child.send(spec, *(() if mark is None else (mark,)))
        return child

    def _forked(
        self, child: Child, theirs: socket.socket, hear: Callable[[Child], None], forked: Forked | None
    ) -> None:
        """A fork server has made its process, or it has to start by itself."""
        child.process = forked
        if forked is not None:
            child.pidfd = forked.pidfd
        if child not in self.all:  # closed meanwhile: the fork servers end what they have forked
            theirs.close()
            return
        try:
            self._begin(child, theirs, hear)
        except OSError as error:
            theirs.close()
            self._gone(child, _NOT_STARTED, f"could not be started: {error}")

    def _begin(self, child: Child, theirs: socket.socket, hear: Callable[[Child], None]) -> None:
        if child.process is None:
            with child.log.path.open("ab") as file:
                child.process = subprocess.Popen(
                    [*child.launch.command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=child.launch.environment,
                    pass_fds=(*child.launch.files, theirs.fileno()),
                    start_new_session=True,  # Ctrl-C in the terminal is for the run, which drains its children
                )
        theirs.close()
        self._watch(child)
        assert child.channel is not None
        asyncio.get_running_loop().add_reader(child.channel, hear, child)

    def _hear_dispatcher(self, child: Child) -> None:
        if data := _received(child, MAX_DATAGRAM_BYTES):
            self._heard(child, decode_from_dispatcher(data))

    def _watch(self, child: Child) -> None:
        assert child.process is not None
        if child.pidfd < 0:
            child.pidfd = os.pidfd_open(child.process.pid)
        child.launch.started(child.process.pid)
        self._logs.started(child.log)
        asyncio.get_running_loop().add_reader(child.pidfd, self._reap, child)
        logger.info("%s started, process %d", child.name, child.process.pid)
        if child.due is not None:
            child.signal(child.due)

    def _devices_for(self, hardware: Hardware) -> tuple[str, ...]:
        if not hardware.gpus:
            return ()
        if self._placed:
            self._seen = machine_devices()
            return tuple(device.uuid for device in self._seen)
        taken = [(other.hardware, other.devices) for other in self.all if other.hardware is not None]
        found = devices_for(hardware, self._machine_devices({uuid for _, own in taken for uuid in own}), taken)
        if found is None:
            raise NoDevice(f"waits for a device that is {hardware.name}: {hardware.gpu_model or 'a GPU'}")
        return found

    def _machine_devices(self, ours: Collection[str]) -> tuple[Device, ...]:
        """Return the devices and what others use of them now; of ours, what they used before we did."""
        if self._given is not None:
            return self._given
        before = {device.uuid: device for device in self._seen if device.uuid in ours}
        now = self.device_watch.devices(self._freed_s)
        self._seen = tuple(used_by_others(before.get(d.uuid, d), d) for d in now)
        return self._seen

    def _hear_replica(self, child: Child) -> None:
        if (data := _received(child, len(BUILT))) is None:
            return
        if data == BUILT:
            child.built()
        assert child.channel is not None
        asyncio.get_running_loop().remove_reader(child.channel)  # it has said all

    def _reap(self, child: Child) -> None:
        """Take the exit code of a child that has ended, and report it."""
        asyncio.get_running_loop().remove_reader(child.pidfd)
        if isinstance(child.process, Forked):
            child.process.when_reaped(partial(self._gone, child))
        elif child.process is not None:
            self._gone(child, child.process.wait())

    def _gone(self, child: Child, code: int, why: str = "") -> None:
        """Let go of what belongs to a child that has ended, or was never started, and report it."""
        self.all.remove(child)
        loop = asyncio.get_running_loop()
        if child.pidfd >= 0:
            loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
        if isinstance(child.process, subprocess.Popen):
            child.process.wait()
        if child.channel is not None:
            loop.remove_reader(child.channel)
            child.channel.close()
        child.drop_held()
        if child.mark is not None:
            busy_s = child.ran_at_kill_s - ran_before_s(child.mark)
            if is_batchs_doing(code, overran=bool(child.launch.overran), busy_s=busy_s):
                child.died_at = marked_in(child.mark)
            os.close(child.mark)
        if child.devices:
            self._freed_s = time.monotonic()
        overran = child.launch.overran
        child.launch.close()
        tail = "" if code == 0 else child.log.tail()
        self._logs.ended(child.log, child.stage, code)
        self._ended(child, code, child.fault or why or _reason(code, tail, overran, child.log.path), tail)


def _received(child: Child, size: int) -> bytes | None:
    """Return a child's next message; None where it has sent none, and an empty one, the last, where it ends."""
    assert child.channel is not None
    try:
        data = child.channel.recv(size)
    except BlockingIOError:
        return None
    except OSError:
        data = b""
    if not data:
        asyncio.get_running_loop().remove_reader(child.channel)  # its pidfd says the rest
    return data


def _wait(pidfd: int) -> None:
    """Wait for the end of a process that was killed."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    waiting.poll()


def _reason(code: int, tail: str, overran: str, log: Path) -> str:
    if code < 0:
        try:
            killed = f"killed by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal, or what a fork server makes up
            killed = f"killed by signal {-code}"
        return f"{killed}: {overran}" if overran else killed
    if code == 0:
        return "ended by itself"
    said = tail.splitlines()[-1].strip() if tail else "it wrote nothing"
    return f"exit code {code}: {said} (log: {log})"


def _nodes(devices: Sequence[Device]) -> tuple[str, ...] | None:
    """Return the devices' nodes; None where NVML does not know those of each."""
    if not devices or not all(device.nodes for device in devices):
        return None
    return tuple(sorted({node for device in devices for node in device.nodes}))
