"""The embedded broker as a process beside the run, for those who have no Kafka at hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import plaintext

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0


@asynccontextmanager
async def embedded_broker_process() -> AsyncIterator[str]:
    """Yield its bootstrap servers; it ends with the block, and by itself when this process is gone.

    Raises:
        Unreachable: it did not start.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferline_stream.embedded_broker",
        "--port", "0", "--output", "json", "--parent-pipe",
        stdin=PIPE, stdout=PIPE,
        start_new_session=True,  # Ctrl-C in the terminal is for the run, which still needs its broker to drain
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                bootstrap_servers = plaintext(json.loads(await process.stdout.readline())["bootstrap_servers"])
        except (TimeoutError, ValueError, KeyError):
            raise Unreachable("the embedded broker did not start; give --bootstrap-servers of a Kafka") from None
        yield bootstrap_servers
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        process.stdin.close()
