"""The workers of a consumer group that runs already: how many there are, and who changes their number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from pathlib import Path
from typing import Protocol

from inferline_stream.errors import InferlineError

COMMAND_LIMIT_S = 60.0
"""A command that has not ended by then is killed."""

_SAID_BYTES = 2000
"""Of what a command has printed, its end goes into an error."""

_LAST_WORDS_S = 1.0


class GroupWorkers(Protocol):
    """Changes the number of a group's workers. One call at a time."""

    async def wanted(self) -> int | None:
        """Return how many were asked for last; None where nobody knows.

        Raises:
            InferlineError: what keeps them refuses.
            Unreachable: it does not answer.
        """

    async def scale(self, workers: int) -> None:
        """Ask for a number of workers; returns before they are at work.

        Raises:
            InferlineError: what keeps them refuses, or failed; what runs stays as it is.
            Unreachable: it does not answer.
        """


class CommandWorkers:
    """Workers whose number a command of the user's sets.

    Args:
        run: the command, with ``{replicas}`` for the number; split into words, and run without a shell.
        folder: that it runs in.
        limit_s: longest that it may take.
    """

    def __init__(self, run: str, folder: Path, limit_s: float = COMMAND_LIMIT_S) -> None:
        self._run, self._folder, self._limit_s = run, folder, limit_s
        self._wanted: int | None = None

    async def wanted(self) -> int | None:
        """Return what the command was last run with; see `GroupWorkers.wanted`."""
        return self._wanted

    async def scale(self, workers: int) -> None:
        """Run the command; see `GroupWorkers.scale`."""
        words = [word.replace("{replicas}", str(workers)) for word in shlex.split(self._run)]
        said = shlex.join(words)
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise InferlineError(f"`{said}` cannot be run in {self._folder}: {error.strerror}") from None
        printed = bytearray()
        reading = asyncio.create_task(_keep_end(process.stdout, printed))
        try:
            async with asyncio.timeout(self._limit_s):
                code = await process.wait()
                # What it has left running in the background may keep its output open: that is not waited for.
                await asyncio.wait({reading}, timeout=_LAST_WORDS_S)
        except TimeoutError:
            raise InferlineError(f"`{said}` has not ended in {self._limit_s:g} s, and was killed") from None
        finally:
            reading.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code:
            why = printed.decode(errors="replace").strip() or "it printed nothing"
            raise InferlineError(f"`{said}` ended with {code}: {why}")
        self._wanted = workers


async def _keep_end(stream: asyncio.StreamReader | None, kept: bytearray) -> None:
    assert stream is not None, "the command's output is a pipe"
    while chunk := await stream.read(1 << 16):
        kept += chunk
        del kept[:-_SAID_BYTES]
