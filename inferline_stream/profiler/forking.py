"""How long the next replica of a stage takes to start where a pre-imported parent forks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from inferline_stream.actuators.parents import Forked, Parents
from inferline_stream.actuators.supervising import REPLICA_MODULE
from inferline_stream.dataplane.parent import READY
from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.hardware import Hardware

_TIMES = 3
"""Of which the median counts: the first touches pages that the parent shares with nobody yet."""


async def forked_start_up_s(
    topology: Path, stage: str, hardware: Hardware, confinement: Confinement, *, timeout_s: float
) -> float | None:
    """From asking the parent for a replica to a stage that is built and sealed.

    Args:
        topology: the topology file.
        stage: the stage's name.
        hardware: the kind that it runs on.
        confinement: of its replicas.
        timeout_s: longest that the parent, or one replica, may take.

    Returns:
        Seconds; None where no parent can fork it, so that replicas start by themselves.
    """
    spec = ReplicaSpec("", stage, str(topology), "", "", hardware, 1, isolation=confinement.isolation)
    with contextlib.closing(Parents()) as parents, contextlib.suppress(TimeoutError):
        took_s = []
        async with asyncio.timeout(timeout_s):
            await _forked(parents, spec, confinement)  # brings the parent
            while not parents.ready(stage, hardware.name):
                if parents.refused(stage, hardware.name):
                    return None
                await asyncio.sleep(0.01)
        for _ in range(_TIMES):
            began_s = time.perf_counter()
            async with asyncio.timeout(timeout_s):
                if not await _forked(parents, spec, confinement):
                    return None
            took_s.append(time.perf_counter() - began_s)
        return sorted(took_s)[_TIMES // 2]
    return None


async def _forked(parents: Parents, spec: ReplicaSpec, confinement: Confinement) -> bool:
    """Whether a replica was forked and became ready."""
    launch = Launch(REPLICA_MODULE, confinement, cores=spec.hardware.cores)
    forked, said = _fork(parents, spec, launch)
    try:
        if forked is None:
            return False
        launch.started(forked.pid)
        forked.stdin.write(encode(spec) + b"\n")
        forked.stdin.flush()
        ready = READY in await _told(said)
        forked.stdin.close()
        return ready
    finally:
        if forked is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(forked.pid, signal.SIGKILL)  # its parent has not waited for it yet, or it is gone
        os.close(said)
        launch.close()


def _fork(parents: Parents, spec: ReplicaSpec, launch: Launch) -> tuple[Forked | None, int]:
    """The replica, and the end of a pipe that holds what it prints."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "wb") as prints:
        return parents.fork(spec, launch, prints, (), rehearsal=True), reading


async def _told(said: int) -> bytes:
    """What it printed, up to the word that it is ready or to its end."""
    loop, found, more = asyncio.get_running_loop(), b"", asyncio.Event()
    loop.add_reader(said, more.set)
    try:
        while not found.endswith(READY):
            await more.wait()
            more.clear()
            try:
                data = os.read(said, 65536)
            except BlockingIOError:
                continue
            if not data:
                break
            found = (found + data)[-65536:]
    finally:
        loop.remove_reader(said)
    return found
