"""One replica's supervisor, where replicas are not this machine's own: within a pod, or within a Ray actor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable

import msgspec

from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch

REPLICA_MODULE = "inferline_stream.dataplane.bound_replica"


async def supervise(
    spec: ReplicaSpec,
    going: asyncio.Event,
    *,
    started: Callable[[int], None] = lambda pid: None,
    ready: Callable[[], None] = lambda: None,
    contained: bool = False,
    module: str = REPLICA_MODULE,
) -> int:
    """Run a replica to its end. Must not be cancelled: it ends soon after it was asked to.

    Args:
        spec: what the replica is told, its name included.
        going: once set, the replica is asked to hand over and leave.
        started: told its process.
        ready: called when it is ready.
        contained: whether this process is in the container already that its isolation may ask for.
        module: what it runs as ``__main__``.

    Returns:
        Its exit code; negative for a signal.
    """
    loop = asyncio.get_running_loop()
    confinement = confined(spec.isolation, spec.topology, spec.hardware, spec.bootstrap_servers)
    launch = Launch(module, confinement, cores=spec.hardware.cores, orphaned=signal.SIGTERM, contained=contained)
    told, tells = os.pipe()

    def heard() -> None:
        if os.read(told, 1):
            ready()
        loop.remove_reader(told)

    try:
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=subprocess.PIPE,
            env=launch.environment,
            pass_fds=(*launch.files, tells),
            start_new_session=True,
        )
        os.close(tells)
        launch.started(process.pid)
        started(process.pid)
        loop.add_reader(told, heard)
        assert process.stdin is not None
        process.stdin.write(encode(msgspec.structs.replace(spec, ready_fd=tells)) + b"\n")
        ended, asked = asyncio.ensure_future(process.wait()), asyncio.ensure_future(going.wait())
        await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not ended.done():
            process.send_signal(signal.SIGTERM)
        return await ended
    finally:
        loop.remove_reader(told)
        os.close(told)
        launch.close()


def reason_of(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return "ended by itself" if code == 0 else f"exit code {code}"
