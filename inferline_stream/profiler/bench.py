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
from collections.abc import Collection
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
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._neighbour: subprocess.Popen[bytes] | None = None
        self._ended: asyncio.Future[tuple[int, str, str]] | None = None
        self._devices: tuple[str, ...] = ()
        self._before_bytes = 0
        self._share_bytes = math.inf
        self._replica: Child | None = None
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
        """Memory of its devices that the replica has taken; None where nothing says."""
        taken = used_bytes(self._devices) if self._devices else None
        return None if taken is None else max(0, taken - self._before_bytes)

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
        if self._streams is None:
            await self._start()
        assert self._replica is not None
        before_s = self._replica.waited_s
        times = await self._ask(request, answer)
        if isinstance(times, Times):
            self._waited_s += self._replica.waited_s - before_s
            self._served_s += sum(times.service_s)
        return times

    async def _start(self) -> None:
        kind = self._spec.hardware
        machine = await self._find_devices() if kind.gpus else ()
        self._children = children = Children(
            Path(self._folder.name), self._child_ended, devices=machine, dispatcher_module=_DISPATCHER_MODULE
        )
        self._ended = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        here, there = socket.socketpair()
        self._streams = await asyncio.open_connection(sock=ours)
        try:
            with theirs, here, there:
                name = f"{self._spec.stage}-0-profile"
                dispatcher = children.start_dispatcher(DispatcherSpec(name, 0, self._routes, ""))
                dispatcher.send(b"bench", theirs.fileno(), here.fileno())
                theirs.close()
                await self._answer(StageBuilt)
                began_s = time.perf_counter()
                replica = f"{self._spec.stage}-{kind.name}-{secrets.token_hex(4)}"
                child = self._replica = children.start_replica(msgspec.structs.replace(self._spec, replica=replica))
                if child.relay is not None:
                    child.relay.connect(there.dup())
                else:
                    child.send(b'{"type":"attach"}', there.fileno())
        except NoDevice as error:
            self._stop()
            raise WorkerFailed(str(error)) from None
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._answer(StageBuilt)
        except TimeoutError:
            self._stop()
            raise WorkerFailed(
                f"was not built within {self._start_timeout_s:g} s; if it needs longer, set INFERLINE_START_TIMEOUT_S, "
                "on a GPU INFERLINE_GPU_START_TIMEOUT_S"
            ) from None
        self.start_up_s = self.start_up_s or time.perf_counter() - began_s
        if 0 < kind.cores < 1 and not kind.emulated:
            self._crowd(child.pinned, kind.cores)

    async def _find_devices(self) -> tuple[Device, ...]:
        """Choose the devices that the replica will be given; returns all that there are.

        Memory of a process that has just ended is waited for.
        """
        kind, loop = self._spec.hardware, asyncio.get_running_loop()
        until_s = loop.time() + FREED_S
        while (given := devices_for(kind, machine := machine_devices(), ())) is None and loop.time() < until_s:
            if not any(carries(device, kind) for device in machine):
                break
            await asyncio.sleep(0.1)
        self._devices = given or ()
        self._before_bytes = used_bytes(self._devices) or 0
        if kind.shares_gpu:
            whole = sum(device.memory_bytes for device in machine if device.uuid in self._devices)
            self._share_bytes = kind.gpus * whole
        return machine

    def _crowd(self, cores: Collection[int], own: float) -> None:
        """Have the rest of a shared core used as replicas beside this one would use it."""
        shared = ",".join(map(str, sorted(cores or os.sched_getaffinity(0))))
        load = (1 - own) * NEIGHBOURS_LOAD
        self._neighbour = subprocess.Popen((sys.executable, "-I", "-S", "-c", _NEIGHBOUR, shared, str(load)))
        limits.hold_share(self._neighbour.pid, 1 - own)

    async def _ask(self, request: Measure, answer: type[_A]) -> _A:
        assert self._streams is not None
        self._streams[1].write(framed(request))
        return await self._answer(answer)

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
        """Return the error, with the replica's own last words where it has ended; the next order starts another one."""
        assert self._ended is not None
        code, reason, tail = 0, "", ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                code, reason, tail = await asyncio.shield(self._ended)
        if not reason:
            return WorkerFailed.of(failure)
        self._stop()
        return exit_failure(code, tail, failure)

    def _child_ended(self, child: Child, code: int, reason: str, tail: str) -> None:
        if child.hardware is not None and self._ended is not None and not self._ended.done():
            self._ended.set_result((code, reason, tail))

    def _stop(self) -> None:
        if self._neighbour is not None:
            self._neighbour.kill()
            self._neighbour.wait()
            limits.leave_groups(self._neighbour.pid)
            self._neighbour = None
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        if self._children is not None:
            self._children.close()
            self._children = None


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
