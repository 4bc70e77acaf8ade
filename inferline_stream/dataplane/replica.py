"""A replica: the process that moves one stage's records.

``python -m inferline_stream.dataplane.replica`` with a `ReplicaSpec` as one line of JSON on standard input, which
stays open: its end means that the supervisor is gone, and the replica leaves in good order. So does SIGTERM.

Exit codes: 0 left in good order; 3 the topology or stage cannot be loaded; 5 Kafka does not answer; 70 the stage broke
its contract, or the replica an assumption; 75 fenced by its successor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from typing import IO

from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.protocol import ReplicaSpec, decode_spec
from inferline_stream.dataplane.wiring import Wiring
from inferline_stream.errors import InferlineError, StageFailed

logger = logging.getLogger(__name__)

EXIT_STAGE_FAILED = 70
EXIT_FENCED = 75

_SWITCH_INTERVAL_S = 0.001
"""A stage that holds the interpreter lets the event loop in this often: by default 5 ms, five times per hop."""


def main() -> int:
    """Run a replica to its end; returns the process's exit code."""
    started_s = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    line = sys.stdin.buffer.readline()
    if not line.strip():
        print("a replica is started with its ReplicaSpec as JSON on standard input", file=sys.stderr)  # noqa: T201
        return 2
    spec = decode_spec(line)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        pipeline = load_topology(spec.topology)
        wiring = Wiring(pipeline, spec.stage, spec.prefix)
        return _run(spec, wiring, started_s)
    except StageFailed as error:
        logger.error("replica %s: %s", spec.replica, error)
        return EXIT_STAGE_FAILED
    except InferlineError as error:
        logger.error("replica %s: %s", spec.replica, error)
        return error.exit_code


def _run(spec: ReplicaSpec, wiring: Wiring, started_s: float) -> int:
    import uvloop

    from inferline_stream.dataplane.moving import Moving

    async def serve() -> int:
        moving = Moving(spec, wiring, started_s)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, moving.leave, f"{number.name} received")
        _when_closed(sys.stdin.buffer, lambda: loop.call_soon_threadsafe(moving.leave, "the supervisor is gone"))
        return await moving.run()

    return uvloop.run(serve())


def _when_closed(stream: IO[bytes], told: object) -> None:
    """Call back once a stream ends. A thread, because standard input may be a file, which no event loop watches."""
    assert callable(told)

    def wait() -> None:
        while os.read(stream.fileno(), 4096):
            pass
        try:
            told()
        except RuntimeError:  # the event loop is closed: we are leaving anyway
            return

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a stage that hangs in its thread must not keep the process
