"""First process of a pod: one replica's supervisor, for its whole and only life.

``python -m inferline_stream.actuators.pod FOLDER`` with the replica's spec in INFERLINE_REPLICA_SPEC, the pod's name,
which becomes the replica's, in INFERLINE_POD, and a folder that lasts as long as the pod. SIGTERM is passed on: the
replica hands over and leaves. Exits as it did.
A container that is started again in the same pod waits idly until the pod is deleted: names are never used twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from inferline_stream.actuators.local import REPLICA_MODULE
from inferline_stream.actuators.manifests import POD_VARIABLE, SPEC_VARIABLE
from inferline_stream.dataplane.protocol import ReplicaSpec, decode_spec, encode
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch
from inferline_stream.settings import pod_told

logger = logging.getLogger(__name__)


async def live(spec: ReplicaSpec, life: Path) -> int:
    """Run the replica to its end, or wait where this pod has had its replica.

    Args:
        spec: what the replica is told, its name included.
        life: the pod's folder; ``ready`` appears in it once the replica is.

    Returns:
        The exit code for this process.
    """
    loop = asyncio.get_running_loop()
    asked_to_go = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, asked_to_go.set)
    begun = life / "begun"
    if begun.exists():
        logger.warning("pod %s has had its replica; it waits to be deleted", spec.replica)
        await asked_to_go.wait()
        return 0
    begun.touch()
    confinement = confined(spec.isolation, spec.topology, spec.hardware, spec.bootstrap_servers)
    launch = Launch(REPLICA_MODULE, confinement, cores=spec.hardware.cores, orphaned=signal.SIGTERM)
    told, tells = os.pipe()
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
        loop.add_reader(told, _ready, told, life / "ready")
        assert process.stdin is not None
        process.stdin.write(encode(msgspec.structs.replace(spec, ready_fd=tells)) + b"\n")
        ended = asyncio.ensure_future(process.wait())
        going = asyncio.ensure_future(asked_to_go.wait())
        await asyncio.wait((ended, going), return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        if not ended.done():
            process.send_signal(signal.SIGTERM)
        code = await ended
    finally:
        loop.remove_reader(told)
        launch.close()
    return 128 - code if code < 0 else code


def _ready(told: int, mark: Path) -> None:
    if os.read(told, 1):
        mark.touch()
    asyncio.get_running_loop().remove_reader(told)
    os.close(told)


def main() -> int:
    """Supervise the replica that the environment tells of; returns the process's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    pod, given = pod_told(POD_VARIABLE, SPEC_VARIABLE)
    if not given or not pod or len(sys.argv) != 2:
        sys.stderr.write(f"a pod is told its folder, and its replica in {SPEC_VARIABLE} and {POD_VARIABLE}\n")
        return 2
    spec = msgspec.structs.replace(decode_spec(given), replica=pod)
    return asyncio.run(live(spec, Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
