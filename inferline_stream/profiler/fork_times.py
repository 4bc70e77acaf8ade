"""How long the next replica of a stage takes to start where a fork server forks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from inferline_stream.actuators.fork_servers import Forked, ForkServers
from inferline_stream.dataplane.frames import Ready, to_dispatcher
from inferline_stream.dataplane.process_specs import ReplicaSpec, encode_spec
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.hardware import Hardware

_MODULE = "inferline_stream.dataplane.replica"
_TIMES = 3
"""Of which the median counts: the first touches pages that the fork server shares with nobody yet."""


async def forked_start_up_s(
    topology: Path, stage: str, hardware: Hardware, confinement: Confinement, *, timeout_s: float
) -> float | None:
    """Return the time from asking the fork server for a replica to a stage that is built and sealed.

    Args:
        topology: the topology file.
        stage: the stage's name.
        hardware: the kind that it runs on.
        confinement: of its replicas.
        timeout_s: longest that the fork server, or one replica, may take.

    Returns:
        Seconds; None where no fork server can fork it, so that replicas start by themselves.
    """
    if confinement.gpu:
        return None  # CUDA does not survive a fork, so that no fork server is made
    spec = ReplicaSpec("", stage, str(topology), hardware, isolation=confinement.isolation)
    with contextlib.closing(ForkServers()) as servers, contextlib.suppress(TimeoutError):
        took_s = []
        async with asyncio.timeout(timeout_s):
            await _forked(servers, spec, confinement)  # starts the fork server
            while not servers.ready(stage, hardware.name):
                if servers.refused(stage, hardware.name):
                    return None
                await asyncio.sleep(0.01)
        for _ in range(_TIMES):
            began_s = time.perf_counter()
            async with asyncio.timeout(timeout_s):
                if not await _forked(servers, spec, confinement):
                    return None
            took_s.append(time.perf_counter() - began_s)
        return sorted(took_s)[_TIMES // 2]
    return None


async def _forked(servers: ForkServers, spec: ReplicaSpec, confinement: Confinement) -> bool:
    """Return whether a replica was forked and became ready; it is killed again."""
    with contextlib.ExitStack() as stack:
        launch = Launch(_MODULE, confinement, cores=spec.hardware.cores)
        stack.callback(launch.close)
        nowhere = stack.enter_context(open(os.devnull, "wb"))  # noqa: ASYNC230  no file of a disk
        ours, theirs = map(stack.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        here, there = map(stack.enter_context, socket.socketpair())
        begun: asyncio.Future[Forked | None] = asyncio.get_running_loop().create_future()
        if not servers.fork_replica(spec, launch, theirs.fileno(), nowhere, (), begun=begun.set_result):
            return False
        if (forked := await asyncio.shield(begun)) is None:
            return False
        stack.callback(_kill, forked.pidfd)
        launch.started(forked.pid)
        theirs.close()
        ours.send(encode_spec(spec))
        socket.send_fds(ours, [b"{}"], [there.fileno()])
        there.close()
        return await _is_ready(here)


async def _is_ready(replica: socket.socket) -> bool:
    """Wait until a replica says that it is ready, or ends."""
    replica.setblocking(False)
    frames, loop = to_dispatcher(), asyncio.get_running_loop()
    while data := await loop.sock_recv(replica, 65536):
        if any(isinstance(frame, Ready) for frame in frames.feed(data)):
            return True
    return False


def _kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may have ended, and its fork server has waited for it
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
