"""Replicas as processes of this machine, one each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from inferline_stream.actuators.actuator import (
    SETTLED_S,
    ObservedReplica,
    ReplicaExit,
    restart_in_s,
    surplus,
)
from inferline_stream.actuators.affinity import cores_for
from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch

logger = logging.getLogger(__name__)

REPLICA_MODULE = "inferline_stream.dataplane.replica"

_TAIL_BYTES = 8192
_TAIL_LINES = 15


@dataclass(slots=True, eq=False)
class _Place:
    """One wanted replica: a process, or the wait for the next one."""

    stage: str
    hardware: str
    replica: str = ""
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    cores: float = 0.0
    pinned: frozenset[int] = frozenset()
    launch: Launch | None = None
    log: Path = Path()
    started_s: float = 0.0
    restarts: int = 0
    failures: int = 0
    """Deaths in a row, none of which came long after its start."""
    retiring: bool = False
    timer: asyncio.TimerHandle | None = None
    """The restart, or the signal to one that should have ended."""


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
    """

    def __init__(
        self,
        template: Callable[[str, str], ReplicaSpec],
        log_folder: Path,
        *,
        drain_timeout_s: float = 30.0,
        kill_after_s: float = 5.0,
        module: str = REPLICA_MODULE,
    ) -> None:
        self._template = template
        self._log_folder = log_folder
        self._drain_timeout_s = drain_timeout_s
        self._kill_after_s = kill_after_s
        self._module = module
        self._places: list[_Place] = []
        self._exits: asyncio.Queue[ReplicaExit] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._machine = os.sched_getaffinity(0)

    async def scale(self, stage: str, hardware: str, replicas: int, retiring: Collection[str] = ()) -> None:
        """Ask for exactly this many replicas; see `Actuator.scale`."""
        if replicas < 0:
            raise ValueError(f"stage {stage!r} on {hardware!r}: {replicas} replicas must be 0 or more")
        alike = [place for place in self._places if (place.stage, place.hardware) == (stage, hardware)]
        leaving = surplus([_observed(place) for place in alike], replicas, retiring)
        for place in alike:
            if place.replica in leaving:
                self._retire(place, self._drain_timeout_s)
        for _ in range(replicas - sum(not place.retiring for place in alike)):
            place = _Place(stage, hardware)
            self._places.append(place)
            self._start(place)

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Every replica that was asked for and is not gone, oldest first."""
        return tuple(_observed(place) for place in self._places)

    async def next_exit(self) -> ReplicaExit:
        """Wait for the next replica that ends."""
        return await self._exits.get()

    async def drain(self, deadline_s: float) -> None:
        """Retire every replica and wait until all are gone."""
        for place in list(self._places):
            self._retire(place, deadline_s)
        while self._places:
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """SIGTERM to every replica, SIGKILL to those that stay; none is left when this returns."""
        try:
            await self.drain(0.0)
        finally:  # also when cancelled: nothing stays behind
            for place in list(self._places):
                if place.process is not None:
                    self._signal(place, signal.SIGKILL)
                    self._reap(place)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _start(self, place: _Place) -> None:
        place.timer = None
        spec = self._template(place.stage, place.hardware)
        place.replica = f"{place.stage}-{place.hardware}-{secrets.token_hex(4)}"
        place.started_s = asyncio.get_running_loop().time()
        place.log = self._log_folder / f"{place.replica}.log"
        place.cores = spec.hardware.cores
        taken = [(other.cores, other.pinned) for other in self._places if other.process is not None]
        place.pinned = cores_for(place.cores, self._machine, taken)
        confinement = confined(spec.isolation, spec.topology, spec.hardware, spec.bootstrap_servers)
        try:
            # A replica that is left alone hands over what it can, rather than die in the middle of a batch.
            launch = place.launch = Launch(
                self._module, confinement, cores=place.cores, pinned=place.pinned, orphaned=signal.SIGTERM
            )
            self._log_folder.mkdir(parents=True, exist_ok=True)
            with place.log.open("ab") as log:
                place.process = subprocess.Popen(
                    launch.command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=launch.environment,
                    pass_fds=launch.files,
                    start_new_session=True,  # Ctrl-C in the terminal is for the run, which drains its replicas
                )
        except OSError as error:
            self._ended(place, 127, f"could not be started: {error}", tail="")
            return
        place.pidfd = os.pidfd_open(place.process.pid)
        launch.started(place.process.pid)
        asyncio.get_running_loop().add_reader(place.pidfd, self._reap, place)
        # One line, far smaller than a pipe holds, so this does not wait for the child. The pipe stays open: its
        # end tells the replica that nobody looks after it any more. One that has ended already breaks it, which
        # is told as its exit.
        assert place.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            place.process.stdin.write(encode(msgspec.structs.replace(spec, replica=place.replica)) + b"\n")
            place.process.stdin.flush()
        logger.info("replica %s started, process %d", place.replica, place.process.pid)

    def _retire(self, place: _Place, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        if place.retiring and place.timer is not None and place.timer.when() <= loop.time() + deadline_s:
            return  # it has to be gone sooner than that
        place.retiring = True
        if place.timer is not None:
            place.timer.cancel()
        if place.process is None:
            self._forget(place)
        else:
            place.timer = loop.call_later(deadline_s, self._terminate, place)

    def _terminate(self, place: _Place) -> None:
        self._signal(place, signal.SIGTERM)
        place.timer = asyncio.get_running_loop().call_later(self._kill_after_s, self._signal, place, signal.SIGKILL)

    def _signal(self, place: _Place, number: signal.Signals) -> None:
        if place.process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(place.pidfd, number)  # never hits another process that got the same pid

    def _reap(self, place: _Place) -> None:
        """The process has ended: take its exit code, tell, and fill its place again unless it was to go."""
        assert place.process is not None
        asyncio.get_running_loop().remove_reader(place.pidfd)
        os.close(place.pidfd)
        assert place.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            place.process.stdin.close()
        code = place.process.wait()
        if place.timer is not None:
            place.timer.cancel()
            place.timer = None
        tail = "" if code == 0 else _tail(place.log)
        self._ended(place, code, _reason(code, tail, place.log), tail)

    def _ended(self, place: _Place, code: int, reason: str, tail: str) -> None:
        loop = asyncio.get_running_loop()
        if place.launch is not None:
            place.launch.close()
        place.process, place.pidfd, place.pinned, place.launch = None, -1, frozenset(), None
        delay_s = None
        if not place.retiring:
            place.restarts += 1
            place.failures = 1 if loop.time() - place.started_s >= SETTLED_S else place.failures + 1
            delay_s = restart_in_s(place.failures)
            logger.warning("replica %s ended: %s; restarted in %.1f s", place.replica, reason, delay_s)
        self._exits.put_nowait(
            ReplicaExit(place.replica, place.stage, place.hardware, code, place.retiring, reason, delay_s, tail)
        )
        if delay_s is None:
            logger.info("replica %s retired: %s", place.replica, reason)
            if code == 0 and place.log.stat().st_size == 0:
                place.log.unlink()  # nothing to read
            self._forget(place)
        else:
            place.timer = loop.call_later(delay_s, self._start, place)

    def _forget(self, place: _Place) -> None:
        self._places.remove(place)
        self._changed.set()


def _observed(place: _Place) -> ObservedReplica:
    running: Literal["running", "waiting"] = "running" if place.process is not None else "waiting"
    state = "retiring" if place.retiring else running
    pid = place.process.pid if place.process is not None else None
    return ObservedReplica(place.replica, place.stage, place.hardware, state, pid, place.started_s, place.restarts)


def _reason(code: int, tail: str, log: Path) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    if code == 0:
        return "ended by itself"
    said = tail.splitlines()[-1].strip() if tail else "it wrote nothing"
    return f"exit code {code}: {said} (log: {log})"


def _tail(log: Path) -> str:
    """The last lines of a log that are not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-_TAIL_LINES:])
