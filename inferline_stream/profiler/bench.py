"""The profiler's bench: a replica behind a dispatcher's process, both started, placed and sealed as in a run.

Kafka is left out. What it costs is the time between two stages, which is measured by itself; what a replica costs is
the time from handing it a batch to having the results, and nothing before the dispatcher's hands bears on that.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from inferline_stream.actuators.child import Child
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.device_watch import NoDevice
from inferline_stream.actuators.devices import Device, carries, devices_for
from inferline_stream.actuators.nvml import devices as machine_devices
from inferline_stream.actuators.nvml import used_bytes
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.routes import Routes
from inferline_stream.isolation import limits
from inferline_stream.profiler.device_turns import FREED_S
from inferline_stream.profiler.worker_messages import (
    ANSWER_BYTES,
    LENGTH_BYTES,
    Answer,
    Failure,
    Measure,
    Request,
    StageBuilt,
    Times,
    Weigh,
    decode_answer,
    framed,
    length_of,
)
from inferline_stream.profiler.worker_process import WorkerFailed, WorkerProcess

_A = TypeVar("_A", bound=Answer)

_DISPATCHER_MODULE = "inferline_stream.profiler.bench_dispatcher"

NEIGHBOURS_LOAD = 0.5
"""Of the rest of a core that a replica shares, what others take meanwhile: about what plans leave them busy with."""

_NEIGHBOUR = """
import os, random, sys, time
cores, load = set(map(int, sys.argv[1].split(","))), float(sys.argv[2])
os.sched_setaffinity(0, cores)
while True:
    end_s = time.thread_time() + 0.003
    while time.thread_time() < end_s:
        pass
    time.sleep(random.expovariate(load / (1 - load) / 0.003))
"""


class ReplicaBench:
    """Measures one stage on one kind of hardware. Starts with the first order; a replica that ended is replaced.

    Nothing holds replicas on one GPU to their shares. So one on a share is measured beside copies of itself that keep
    the rest of the device busy all the time. However busy a plan keeps each, none then gets less than was measured.

    Args:
        spec: of the replica.
        routes: of its stage.
        weigher: says what events cost; closed after that where it may hold a device.
        start_timeout_s: longest that building the stage may take.
    """

    def __init__(self, spec: ReplicaSpec, routes: Routes, weigher: WorkerProcess, *, start_timeout_s: float) -> None:
        self._spec = spec
        self._routes = routes
        self._weigher = weigher
        self._start_timeout_s = start_timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="inferline-profile-")
        self._children: Children | None = None
        self._timed: list[_TimedReplica] = []
        """The one whose times count, then its copies."""
        self._neighbour: subprocess.Popen[bytes] | None = None
        self._devices: tuple[str, ...] = ()
        self._before_bytes = 0
        self._share_bytes = math.inf
        self._served_s = self._waited_s = 0.0
        self.start_up_s = 0.0
        """From asking for the first replica to its being ready."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._folder.cleanup()

    @property
    def waited_share(self) -> float:
        """Share of the service time in which the replica had no core."""
        return min(1.0, self._waited_s / self._served_s) if self._served_s else 0.0

    @property
    def taken_bytes(self) -> int | None:
        """Memory of its devices that the replica has taken, as much as each copy; None where nothing says."""
        taken = used_bytes(self._devices) if self._devices else None
        return None if taken is None else max(0, taken - self._before_bytes) // max(1, len(self._timed))

    @property
    def share_bytes(self) -> float:
        """Memory that its share of a device comes to; infinite for whole ones."""
        return self._share_bytes

    async def ask(self, request: Request, answer: type[_A]) -> _A:
        """Weigh events, or time batches of one size.

        Raises:
            WorkerFailed: it could not be done, or the replica has ended.
        """
        if isinstance(request, Weigh):
            found = await self._weigher.ask(request, answer)
            if self._spec.hardware.gpus:
                await self._weigher.close()  # what it holds of a device's memory must neither count nor lack
            return found
        assert isinstance(request, Measure)
        if not self._timed:
            await self._start()
        own, *copies = self._timed
        before_s = own.child.waited_s
        try:
            times = await _beside(copies, request, own.ask(request, answer))
        except WorkerFailed:
            if any(each.ended.done() for each in self._timed):
                self._stop()  # the next order starts others
            raise
        if not isinstance(times, Times):
            return times
        self._waited_s += own.child.waited_s - before_s
        self._served_s += sum(times.service_s)
        return msgspec.structs.replace(times, service_s=[took_s * self._crowding for took_s in times.service_s])

    @property
    def _crowding(self) -> float:
        """How many times as long batches take where the device is shared with more than the copies."""
        kind = self._spec.hardware
        return 1 / (kind.gpus * len(self._timed)) if kind.shares_gpu else 1.0

    async def _start(self) -> None:
        kind = self._spec.hardware
        machine = await self._find_devices() if kind.gpus else ()
        self._children = children = Children(
            Path(self._folder.name), self._child_ended, devices=machine, dispatcher_module=_DISPATCHER_MODULE
        )
        on_device = math.floor(1 / kind.gpus + 1e-6) if kind.shares_gpu else 1
        try:
            for number in range(on_device):
                self._timed.append(timed := _TimedReplica(number))
                start_up_s = await timed.start(children, self._spec, self._routes, self._start_timeout_s)
                self.start_up_s = self.start_up_s or start_up_s
        except TimeoutError:
            self._stop()
            raise WorkerFailed(
                f"was not built within {self._start_timeout_s:g} s; if it needs longer, set INFERLINE_START_TIMEOUT_S, "
                "on a GPU INFERLINE_GPU_START_TIMEOUT_S"
            ) from None
        except NoDevice as error:
            self._stop()
            raise WorkerFailed(str(error)) from None
        except BaseException:
            self._stop()
            raise
        if 0 < kind.cores < 1 and not kind.emulated:
            self._crowd(self._timed[0].child.pinned, kind.cores)

    async def _find_devices(self) -> tuple[Device, ...]:
        """Choose the devices that the replica will be given, and return them as if nobody else used them.

        Memory of a process that has just ended is waited for. Returns all that there are where none has room.
        """
        kind, loop = self._spec.hardware, asyncio.get_running_loop()
        until_s = loop.time() + FREED_S
        while (given := devices_for(kind, machine := machine_devices(), ())) is None and loop.time() < until_s:
            if not any(carries(device, kind) for device in machine):
                break
            await asyncio.sleep(0.1)
        self._devices = given or ()
        self._before_bytes = used_bytes(self._devices) or 0
        chosen = tuple(replace(device, used_bytes=0) for device in machine if device.uuid in self._devices)
        if kind.shares_gpu:
            self._share_bytes = kind.gpus * sum(device.memory_bytes for device in chosen)
        return chosen or machine

    def _crowd(self, cores: Collection[int], own: float) -> None:
        """Have the rest of a shared core used as replicas beside this one would use it."""
        shared = ",".join(map(str, sorted(cores or os.sched_getaffinity(0))))
        load = (1 - own) * NEIGHBOURS_LOAD
        self._neighbour = subprocess.Popen((sys.executable, "-I", "-S", "-c", _NEIGHBOUR, shared, str(load)))
        limits.hold_share(self._neighbour.pid, 1 - own)

    def _child_ended(self, child: Child, code: int, reason: str, tail: str) -> None:
        for timed in self._timed:
            if timed.replica is child and not timed.ended.done():
                timed.ended.set_result((code, reason, tail))

    def _stop(self) -> None:
        if self._neighbour is not None:
            self._neighbour.kill()
            self._neighbour.wait()
            limits.leave_groups(self._neighbour.pid)
            self._neighbour = None
        for timed in self._timed:
            timed.close()
        self._timed = []
        if self._children is not None:
            self._children.close()
            self._children = None


class _TimedReplica:
    """A replica behind a dispatcher's process of its own.

    Args:
        number: among those of a bench.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.replica: Child | None = None
        self.ended: asyncio.Future[tuple[int, str, str]] = asyncio.get_running_loop().create_future()
        """Exit code, reason and last lines of the replica."""

    @property
    def child(self) -> Child:
        """The replica's process, once it was started."""
        assert self.replica is not None
        return self.replica

    async def start(self, children: Children, spec: ReplicaSpec, routes: Routes, timeout_s: float) -> float:
        """Start both; return the time from asking for the replica to its being ready, in seconds.

        Raises:
            NoDevice: there is none for it.
            WorkerFailed: the stage could not be built.
            TimeoutError: not in time.
        """
        ours, theirs = socket.socketpair()
        here, there = socket.socketpair()
        self._streams = await asyncio.open_connection(sock=ours)
        with theirs, here, there:
            name = f"{spec.stage}-{self._number}-profile"
            dispatcher = children.start_dispatcher(DispatcherSpec(name, self._number, routes, ""))
            dispatcher.send(b"bench", theirs.fileno(), here.fileno())
            theirs.close()
            await self._answer(StageBuilt)
            began_s = time.perf_counter()
            replica = f"{spec.stage}-{spec.hardware.name}-{secrets.token_hex(4)}"
            child = self.replica = children.start_replica(msgspec.structs.replace(spec, replica=replica))
            if child.relay is not None:
                child.relay.connect(there.dup())
            else:
                child.send(b'{"type":"attach"}', there.fileno())
        async with asyncio.timeout(timeout_s):
            await self._answer(StageBuilt)
        return time.perf_counter() - began_s

    async def ask(self, request: Measure, answer: type[_A]) -> _A:
        """Time batches.

        Raises:
            WorkerFailed: it could not be done, or the replica has ended.
        """
        assert self._streams is not None
        self._streams[1].write(framed(request))
        return await self._answer(answer)

    async def keep_busy(self, request: Measure, over: asyncio.Event) -> None:
        """Run such batches until it is over, without a pause; in short orders, so that the end comes soon."""
        short = msgspec.structs.replace(request, seconds=request.seconds / 4, fewest=1)
        while not over.is_set():
            await self.ask(short, Times)

    def close(self) -> None:
        """Close the connection to the dispatcher."""
        if self._streams is not None:
            self._streams[1].close()

    async def _answer(self, answer: type[_A]) -> _A:
        assert self._streams is not None
        reader, _ = self._streams
        try:
            length = length_of(await reader.readexactly(LENGTH_BYTES))
            found = decode_answer(await reader.readexactly(min(length, ANSWER_BYTES)))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._failed(Failure("its dispatcher has ended")) from None
        if isinstance(found, answer):
            return found
        assert isinstance(found, Failure)
        raise await self._failed(found)

    async def _failed(self, failure: Failure) -> WorkerFailed:
        """Return the error, with the replica's own last words where it has ended."""
        code, reason, tail = 0, "", ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                code, reason, tail = await asyncio.shield(self.ended)
        return exit_failure(code, tail, failure) if reason else WorkerFailed.of(failure)


async def _beside(copies: Sequence[_TimedReplica], request: Measure, timing: Awaitable[_A]) -> _A:
    """Return what is timed while copies run the same batches.

    Raises:
        WorkerFailed: it could not be timed, or one of the copies fails, as where their memory does not fit.
    """
    over = asyncio.Event()
    busy = asyncio.gather(*(copy.keep_busy(request, over) for copy in copies))
    try:
        found = await timing
    except asyncio.CancelledError:
        busy.cancel()
        raise
    except WorkerFailed:
        over.set()
        await asyncio.gather(busy, return_exceptions=True)
        raise
    over.set()
    await busy
    return found


def exit_failure(code: int, tail: str, failure: Failure) -> WorkerFailed:
    """Return the error of a replica that has ended.

    Args:
        code: its exit code.
        tail: the last lines that it wrote.
        failure: what is known otherwise.
    """
    if code == -9:  # what the kernel does when memory runs out
        return WorkerFailed("its process was killed, as the system does when memory runs out", memory=True)
    if code == 70:
        return WorkerFailed.of(failure)
    last = tail.splitlines()[-1] if tail else "it wrote nothing"
    return WorkerFailed(last if code == 3 else f"its process ended with exit code {code}: {last}")
