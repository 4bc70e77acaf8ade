"""The supervisor's child processes: how they are started, watched by pidfd, and what is kept for each until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inferline_stream.actuators.affinity import cores_for
from inferline_stream.actuators.child_logs import ChildLog, ChildLogs
from inferline_stream.actuators.core_times import cpu_s, waited_s
from inferline_stream.actuators.devices import Device, devices_for, used_by_others
from inferline_stream.actuators.fork_servers import Forked, ForkServers
from inferline_stream.actuators.nvml import devices as machine_devices
from inferline_stream.actuators.processes import FoundProcess, Remote
from inferline_stream.actuators.relay import Relay
from inferline_stream.dataplane.process_specs import (
    DISPATCHER_MODULE,
    REPLICA_MODULE,
    DispatcherSpec,
    ReplicaSpec,
    encode_spec,
)
from inferline_stream.dataplane.replica.replica import BUILT, LEAVE
from inferline_stream.dataplane.supervisor_messages import (
    MAX_DATAGRAM_BYTES,
    Attach,
    FromDispatcher,
    FromSupervisor,
    decode_from_dispatcher,
    encode_attachment,
)
from inferline_stream.isolation.confinement import confined, dispatcher_confinement
from inferline_stream.isolation.containers import RUNTIMES
from inferline_stream.isolation.enforced import unsealed
from inferline_stream.isolation.launch import Launch
from inferline_stream.kafka.batch_mark import BatchId, mark_file, marked_in
from inferline_stream.pipeline.hardware import Hardware

logger = logging.getLogger(__name__)


class NoDevice(Exception):
    """Every device of the kind is taken."""


@dataclass(slots=True, eq=False)
class Child:
    """A replica's or dispatcher's process, and what belongs to it."""

    name: str
    stage: str
    process: subprocess.Popen[bytes] | Forked
    pidfd: int
    launch: Launch
    log: ChildLog
    channel: socket.socket | None = None
    """To the process, SOCK_SEQPACKET; a replica in a container has none."""
    mark: int | None = None
    """Of a dispatcher: where it notes what it takes in."""
    died_at: BatchId | None = None
    """The batch that a dispatcher was taking in when it ended."""
    relay: Relay | None = None
    """Of a replica in a container."""
    held: socket.socket | None = None
    """Of a replica that is not sealed yet: its end of a pair with its dispatcher."""
    sealed: bool = False
    """Whether it may have a connection: the kernel shows its seal, or it has none to show."""
    fault: str = ""
    """Why it was killed."""
    cores: float = 0.0
    pinned: frozenset[int] = frozenset()
    hardware: Hardware | None = None
    devices: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def pending(self) -> str:
        """Empty: it runs."""
        return ""

    @property
    def node(self) -> str:
        """Empty: it runs on this host."""
        return ""

    @property
    def forked(self) -> bool:
        """Whether it was forked by a fork server."""
        return isinstance(self.process, Forked)

    @property
    def ran_s(self) -> float:
        """Its CPU time so far, native threads included."""
        return cpu_s(self.process.pid)

    @property
    def waited_s(self) -> float:
        """Time that it could have run and had no core, stops for its share of one left out."""
        return max(0.0, waited_s(self.process.pid) - self.launch.stopped_s)

    def signal(self, number: signal.Signals) -> None:
        """Signal it; never another process that was given the same number."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def send(self, data: bytes, *files: int) -> None:
        """Send a datagram over its channel; a child that has stopped reading is killed."""
        if self.channel is None:
            return
        try:
            socket.send_fds(self.channel, [data], files)
        except BlockingIOError:
            logger.warning("%s does not read its channel: killed", self.name)
            self.signal(signal.SIGKILL)
        except OSError:
            pass  # it has ended, which its pidfd says

    def tell(self, message: FromSupervisor) -> None:
        """Send a dispatcher a message that hands over nothing."""
        self.send(encode_attachment(message))

    def take(self, attach: Attach, replica: socket.socket) -> None:
        """Hand a dispatcher its end of a socket pair to a replica; this closes our copy."""
        with replica:
            self.send(encode_attachment(attach), replica.fileno())

    def connect(self, dispatcher: socket.socket) -> None:
        """Hand a replica its end of a socket pair to a dispatcher, which is its only one from now on.

        One that seals itself gets it after that: no event is in reach of code that is not sealed.
        """
        if self.relay is not None:
            self.relay.connect(dispatcher)
            return
        if not self.sealed:
            self.drop_held()
            self.held = dispatcher
            return
        with dispatcher:
            self.send(b'{"type":"attach"}', dispatcher.fileno())

    def built(self) -> None:
        """It says that it is built and sealed: look, then let it have its connection."""
        self.launch.ready()
        try:
            lack = unsealed(self.pid, self.launch.confinement, forked=self.forked)
        except OSError as error:
            logger.warning("the seal of %s cannot be looked at from outside: %s", self.name, error)
            lack = ""
        if lack:
            self.fault = f"its stage's code did not seal it, although it says so: {lack}"
            self.signal(signal.SIGKILL)
            return
        self.sealed = True
        if self.held is not None:
            held, self.held = self.held, None
            self.connect(held)

    def drop_held(self) -> None:
        """Close the connection that it was to have."""
        if self.held is not None:
            self.held.close()
            self.held = None

    def leave(self) -> None:
        """Have a replica end once it has no batch in hand."""
        self.send(LEAVE)
        if self.relay is not None:
            self.relay.leave()


class Children:
    """Starts processes and reports their ends. Must be used and closed within one event loop.

    Args:
        log_folder: for the files that hold what they print.
        ended: called with each child that has ended, its exit code, a reason in words and its last lines.
        heard: called with each message of a dispatcher.
        devices: GPUs that replicas may be given; by default those of this machine, looked at when one is needed.
        placed: whether something else has chosen cores and devices, as for a pod: a replica may use all that it sees.
        replica_module: what a replica's process runs as ``__main__``.
        dispatcher_module: likewise.
        single: whether it starts one process: nothing is started then that could fork the next one.
    """

    def __init__(
        self,
        log_folder: Path,
        ended: Callable[[Child, int, str, str], None],
        heard: Callable[[Child, FromDispatcher], None] = lambda child, message: None,
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
        self._placed = placed
        self._modules = (replica_module, dispatcher_module)
        self._single = single
        self._fork_servers = ForkServers()
        self._machine = os.sched_getaffinity(0)

    async def found(self) -> Sequence[FoundProcess[Child]]:
        """Return nothing: children end with their parent."""
        return ()

    def start_replica(self, spec: ReplicaSpec) -> Child:
        """Start a replica.

        Raises:
            NoDevice: its GPU is not free.
            InvalidInput: its isolation needs what this machine does not have.
            OSError: the process could not be started.
        """
        devices = () if self._placed else self._devices_for(spec.hardware)
        cores = spec.hardware.cores
        taken = [(other.cores, other.pinned) for other in self.all]
        pinned = frozenset[int]() if self._placed else cores_for(cores, self._machine, taken)
        launch = Launch(
            self._modules[0],
            confined(spec.isolation, spec.topology, spec.hardware),
            cores=cores,
            pinned=pinned,
            devices=None if self._placed else devices,
        )
        if spec.isolation.level in RUNTIMES:
            child = self._contained(spec, launch)
        else:
            child = self._started(
                spec.replica,
                spec.stage,
                launch,
                encode_spec(spec),
                lambda channel, log: (
                    None if self._single else self._fork_servers.fork_replica(spec, launch, channel, log, pinned)
                ),
            )
        child.cores, child.pinned, child.hardware, child.devices = cores, pinned, spec.hardware, devices
        child.sealed = not spec.isolation.sandboxed
        if child.channel is not None:
            asyncio.get_running_loop().add_reader(child.channel, self._hear_replica, child)
        return child

    def start_dispatcher(self, spec: DispatcherSpec) -> Child:
        """Start a dispatcher.

        Raises:
            OSError: the process could not be started.
        """
        confinement = dispatcher_confinement(spec.bootstrap_servers, spec.tracing)
        launch = Launch(self._modules[1], confinement, cores=1, devices=())
        forks = self._modules[1] == DISPATCHER_MODULE and not self._single
        child = self._started(
            spec.dispatcher,
            spec.routes.stage,
            launch,
            encode_spec(spec),
            lambda channel, log: self._fork_servers.fork_dispatcher(launch, channel, log) if forks else None,
            mark=mark_file(),
        )
        assert child.channel is not None
        asyncio.get_running_loop().add_reader(child.channel, self._hear_dispatcher, child)
        return child

    async def room(self, specs: Iterable[ReplicaSpec]) -> Mapping[str, int]:
        """Return nothing: a replica that finds no device waits for one, and says so."""
        return {}

    def attach(self, dispatcher: Child, replica: Child | Remote, attach: Attach) -> None:
        """Connect a replica with a dispatcher by a fresh pair of sockets."""
        ours, theirs = socket.socketpair()
        dispatcher.take(attach, ours)
        replica.connect(theirs)

    def close(self) -> None:
        """Kill every child and the fork servers; none is left when this returns, and their ends are not reported."""
        self._ended = lambda *_: None
        self._logs.close()
        for child in list(self.all):
            child.signal(signal.SIGKILL)
            self._reap(child)
        self._fork_servers.close()

    def _started(
        self,
        name: str,
        stage: str,
        launch: Launch,
        spec: bytes,
        fork: Callable[[int, IO[bytes]], Forked | None],
        *,
        mark: int | None = None,
    ) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            log = self._logs.of(name)
            with log.path.open("ab") as file:
                process = fork(theirs.fileno(), file) or subprocess.Popen(
                    [*launch.command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=launch.environment,
                    pass_fds=(*launch.files, theirs.fileno()),
                    start_new_session=True,  # Ctrl-C in the terminal is for the run, which drains its children
                )
            child = self._watched(Child(name, stage, process, -1, launch, log, ours, mark))
        except OSError:
            launch.close()
            ours.close()
            if mark is not None:
                os.close(mark)
            raise
        finally:
            theirs.close()
        child.send(spec, *(() if mark is None else (mark,)))
        return child

    def _hear_dispatcher(self, child: Child) -> None:
        """Take one message of a dispatcher's."""
        assert child.channel is not None
        try:
            data = child.channel.recv(MAX_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(child.channel)
            return  # it ends, which its pidfd says
        self._heard(child, decode_from_dispatcher(data))

    def _contained(self, spec: ReplicaSpec, launch: Launch) -> Child:
        ours, theirs = socket.socketpair()
        try:
            log = self._logs.of(spec.replica)
            with log.path.open("ab") as file:
                process = subprocess.Popen(
                    launch.command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=file,
                    env=launch.environment,
                    start_new_session=True,
                )
            return self._watched(
                Child(
                    spec.replica,
                    spec.stage,
                    process,
                    -1,
                    launch,
                    log,
                    relay=Relay(ours, encode_spec(spec)),
                )
            )
        except OSError:
            launch.close()
            ours.close()
            raise
        finally:
            theirs.close()

    def _watched(self, child: Child) -> Child:
        child.pidfd = os.pidfd_open(child.process.pid)
        child.launch.started(child.process.pid)
        self.all.append(child)
        self._logs.started(child.log)
        asyncio.get_running_loop().add_reader(child.pidfd, self._reap, child)
        logger.info("%s started, process %d", child.name, child.process.pid)
        return child

    def _devices_for(self, hardware: Hardware) -> tuple[str, ...]:
        if not hardware.gpus:
            return ()
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
        self._seen = tuple(used_by_others(before.get(d.uuid, d), d) for d in machine_devices())
        return self._seen

    def _hear_replica(self, child: Child) -> None:
        """Take a replica's one message: it is built."""
        assert child.channel is not None
        try:
            data = child.channel.recv(len(BUILT))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data == BUILT:
            child.built()
        asyncio.get_running_loop().remove_reader(child.channel)  # it ends, or has said all

    def _reap(self, child: Child) -> None:
        """Take the exit code of a child that has ended, and report it."""
        self.all.remove(child)
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.pidfd)
        code = child.process.wait()
        os.close(child.pidfd)
        if child.channel is not None:
            loop.remove_reader(child.channel)
            child.channel.close()
        if child.relay is not None:
            child.relay.close()
        child.drop_held()
        if child.mark is not None:
            child.died_at = marked_in(child.mark)
            os.close(child.mark)
        overran = child.launch.overran
        child.launch.close()
        tail = "" if code == 0 else child.log.tail()
        self._logs.ended(child.log, child.stage, code)
        self._ended(child, code, child.fault or _reason(code, tail, overran, child.log.path), tail)


def _reason(code: int, tail: str, overran: str, log: Path) -> str:
    if code < 0:
        killed = f"killed by {signal.Signals(-code).name}"
        return f"{killed}: {overran}" if overran else killed
    if code == 0:
        return "ended by itself"
    said = tail.splitlines()[-1].strip() if tail else "it wrote nothing"
    return f"exit code {code}: {said} (log: {log})"
