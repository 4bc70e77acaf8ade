"""The embedded broker as a process beside the run, for those who have no Kafka at hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from types import TracebackType
from typing import Self

from inferline_stream.errors import Unreachable
from inferline_stream.kafka.connection import plaintext

_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0


class EmbeddedBrokerProcess:
    """Runs from entering to leaving; ends by itself when this process is gone.

    Raises:
        Unreachable: on entering, it did not start.
    """

    def __init__(self) -> None:
        self.bootstrap_servers = ""
        self._process: Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferline_stream.embedded_broker",
            "--port", "0", "--output", "json", "--parent-pipe",
            stdin=PIPE, stdout=PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for the run, which still needs its broker to drain
        )  # fmt: skip
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await self._process.stdout.readline()
            self.bootstrap_servers = plaintext(json.loads(line)["bootstrap_servers"])
        except (TimeoutError, ValueError, KeyError):
            await self.__aexit__(None, None, None)
            raise Unreachable("the embedded broker did not start; give --bootstrap-servers of a Kafka") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
