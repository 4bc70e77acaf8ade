"""Replicas as processes of this machine, one each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from inferline_stream.actuators.actuator import ObservedReplica, ReplicaExit
from inferline_stream.actuators.affinity import cores_for
from inferline_stream.actuators.devices import Device, devices_for
from inferline_stream.actuators.nvml import devices as machine_devices
from inferline_stream.actuators.parents import Forked, Parents
from inferline_stream.actuators.places import Place, Places
from inferline_stream.actuators.supervising import REPLICA_MODULE, reason_of
from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.errors import InvalidTopology
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.hardware import Hardware

logger = logging.getLogger(__name__)

_TAIL_BYTES = 8192
_TAIL_LINES = 15
_LONGEST_LINE = 300
_DEAD_LOGS = 10
"""Of each stage: one that dies again and again would else fill the disk with its last words."""


@dataclass(slots=True, eq=False)
class _Process:
    """A replica's process, and what belongs to it."""

    process: subprocess.Popen[bytes] | Forked
    pidfd: int
    launch: Launch
    log: Path
    cores: float
    pinned: frozenset[int]
    hardware: Hardware
    devices: tuple[str, ...] = ()


class LocalActuator:
    """One process per replica, told its `ReplicaSpec` on standard input.

    Processes end with this one, however it ends. What they print goes to one file each. Must be used and
    closed within one event loop; `async with` closes it.

    Args:
        template: the spec of a replica of that stage and hardware kind; its ``replica`` is replaced.
        log_folder: where the files go that hold what replicas print.
        drain_timeout_s: time a retiring replica has to end by itself before it is sent SIGTERM.
        kill_after_s: time from SIGTERM to SIGKILL.
        module: what each process runs as ``__main__``.
        devices: GPUs that replicas may be given; by default those of this machine, looked for when one is needed.
    """

    def __init__(
        self,
        template: Callable[[str, str], ReplicaSpec],
        log_folder: Path,
        *,
        drain_timeout_s: float = 30.0,
        kill_after_s: float = 5.0,
        module: str = REPLICA_MODULE,
        devices: tuple[Device, ...] | None = None,
    ) -> None:
        self._devices = devices
        self._template = template
        self._log_folder = log_folder
        self._module = module
        self._processes: dict[Place, _Process] = {}
        self._dead_logs: dict[str, deque[Path]] = {}
        self._parents = Parents()
        self._places = Places(
            self._start,
            lambda place: self._signal(place, signal.SIGTERM),
            lambda place: self._signal(place, signal.SIGKILL),
            drain_timeout_s=drain_timeout_s,
            kill_after_s=kill_after_s,
        )
        self._machine = os.sched_getaffinity(0)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        self._places.scale(stage, hardware, replicas, retiring)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Every replica that was asked for and is not gone, oldest first."""
        return self._places.observe()

    def forks(self, stage: str, hardware: str) -> bool:
        """Whether a parent is ready to fork the next replica."""
        return self._parents.ready(stage, hardware)

    async def capacity(self) -> Mapping[str, int]:
        """Replicas that have a place, of each hardware kind that has none left."""
        return self._places.capacity()

    async def next_exit(self) -> ReplicaExit:
        """Wait for the next replica that ends."""
        return await self._places.next_exit()

    async def drain(self, deadline_s: float) -> None:
        """Retire every replica and wait until all are gone."""
        await self._places.drain(deadline_s)

    async def aclose(self) -> None:
        """SIGTERM to every replica, SIGKILL to those that stay; none is left when this returns."""
        try:
            await self.drain(0.0)
        finally:  # also when cancelled: nothing stays behind
            for place in list(self._processes):
                self._signal(place, signal.SIGKILL)
                self._reap(place)
            self._parents.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _start(self, place: Place) -> None:
        spec = self._template(place.stage, place.hardware)
        place.replica = f"{place.stage}-{place.hardware}-{secrets.token_hex(4)}"
        devices = self._devices_for(spec.hardware)
        if devices is None:
            place.held_up = True
            place.pending = f"waits for a device that is {spec.hardware.name}: {spec.hardware.gpu_model or 'a GPU'}"
            return
        place.held_up, place.pending = False, ""
        log = self._log_folder / f"{place.replica}.log"
        cores = spec.hardware.cores
        taken = [(other.cores, other.pinned) for other in self._processes.values()]
        pinned = cores_for(cores, self._machine, taken)
        confinement = confined(spec.isolation, spec.topology, spec.hardware, spec.bootstrap_servers)
        # A replica that is left alone hands over what it can, rather than die in the middle of a batch.
        try:
            launch = Launch(self._module, confinement, cores=cores, pinned=pinned, orphaned=signal.SIGTERM)
        except InvalidTopology as error:
            self._places.ended(place, error.exit_code, str(error))
            return
        # A replica sees its own devices, and one without a GPU sees none: it would else take memory on each.
        launch.environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        try:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                forked = self._parents.fork(spec, launch, file, pinned)
                process = forked or subprocess.Popen(
                    launch.command,
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=launch.environment,
                    pass_fds=launch.files,
                    start_new_session=True,  # Ctrl-C in the terminal is for the run, which drains its replicas
                )
        except OSError as error:
            launch.close()
            self._places.ended(place, 127, f"could not be started: {error}")
            return
        place.pid = process.pid
        if spec.isolation.forked:
            place.way = "fork" if forked else "alone"
        own = self._processes[place] = _Process(
            process, os.pidfd_open(process.pid), launch, log, cores, pinned, spec.hardware, devices
        )
        launch.started(process.pid)
        asyncio.get_running_loop().add_reader(own.pidfd, self._reap, place)
        # One line, far smaller than a pipe holds, so this does not wait for the child. The pipe stays open: its
        # end tells the replica that nobody looks after it any more. One that has ended already breaks it, which
        # is told as its exit.
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(encode(msgspec.structs.replace(spec, replica=place.replica)) + b"\n")
            process.stdin.flush()
        logger.info("replica %s started, process %d", place.replica, process.pid)

    def _devices_for(self, hardware: Hardware) -> tuple[str, ...] | None:
        if not hardware.gpus:
            return ()
        if self._devices is None:
            self._devices = machine_devices()
        taken = [(other.hardware, other.devices) for other in self._processes.values()]
        return devices_for(hardware, self._devices, taken)

    def _signal(self, place: Place, number: signal.Signals) -> None:
        if place.held_up:
            self._places.ended(place, 0, "had no device yet")
        elif (own := self._processes.get(place)) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(own.pidfd, number)  # never hits another process that got the same pid

    def _reap(self, place: Place) -> None:
        """The process has ended: take its exit code, and tell."""
        own = self._processes.pop(place)
        asyncio.get_running_loop().remove_reader(own.pidfd)
        os.close(own.pidfd)
        assert own.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            own.process.stdin.close()
        code = own.process.wait()
        overran = own.launch.overran
        own.launch.close()
        tail = "" if code == 0 else _tail(own.log)
        if code == 0 and own.log.stat().st_size == 0:
            own.log.unlink()  # nothing to read
        else:
            self._keep_few(place.stage, own.log)
        self._places.ended(place, code, _reason(code, tail, overran, own.log), tail)
        for other in self._places.all if own.devices else ():
            if other.held_up and other.running:
                self._start(other)

    def _keep_few(self, stage: str, log: Path) -> None:
        logs = self._dead_logs.setdefault(stage, deque())
        logs.append(log)
        if len(logs) > _DEAD_LOGS:
            logs.popleft().unlink(missing_ok=True)


def _reason(code: int, tail: str, overran: str, log: Path) -> str:
    if code <= 0:
        return f"{reason_of(code)}: {overran}" if overran else reason_of(code)
    said = tail.splitlines()[-1].strip() if tail else "it wrote nothing"
    return f"{reason_of(code)}: {said} (log: {log})"


def _tail(log: Path) -> str:
    """The last lines of a log that are not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line[:_LONGEST_LINE] for line in lines if line.strip()][-_TAIL_LINES:])
