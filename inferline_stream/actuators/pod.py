"""First process of a pod: one replica's supervisor, for its whole and only life.

``python -m inferline_stream.actuators.pod FOLDER`` with the replica's spec in INFERLINE_REPLICA_SPEC, the pod's name,
which becomes the replica's, in INFERLINE_POD, and a folder that lasts as long as the pod. SIGTERM is passed on: the
replica hands over and leaves. Exits as it did.
A container that is started again in the same pod waits idly until the pod is deleted: names are never used twice.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import msgspec

from inferline_stream.actuators.manifests import POD_VARIABLE, SPEC_VARIABLE
from inferline_stream.actuators.supervising import supervise
from inferline_stream.dataplane.protocol import ReplicaSpec, decode_spec
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
    going = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, going.set)
    begun = life / "begun"
    if begun.exists():
        logger.warning("pod %s has had its replica; it waits to be deleted", spec.replica)
        await going.wait()
        return 0
    begun.touch()
    code = await supervise(spec, going, ready=(life / "ready").touch, contained=True)
    return 128 - code if code < 0 else code


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
