"""``python -m inferline_stream.actuators.supervisor_process FD``: the supervisor, with its first controller at FD.

It serves one controller at a time, the one that came last. A controller that dies leaves it alone; without another one
it drains and ends after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from inferline_stream.actuators import supervisor_calls as calls
from inferline_stream.actuators.actuator import ReplicaExit
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.observability.plain_logs import log_to_stderr_plainly

logger = logging.getLogger(__name__)


class _Process:
    """Serves controllers until one closes it, or none comes any more."""

    def __init__(self, hello: calls.Hello) -> None:
        self._hello = hello
        self._terms = terms = hello.terms
        self.supervisor = Supervisor(
            partial(
                Children,
                Path(terms.log_folder),
                replica_module=terms.replica_module,
                dispatcher_module=terms.dispatcher_module,
            ),
            drain_timeout_s=terms.drain_timeout_s,
            kill_after_s=terms.kill_after_s,
        )
        self._listed = bool(hello.listen)
        self._writer: asyncio.StreamWriter | None = None
        """To the controller that came last."""
        self._served = hello
        """Of the controller that came last."""
        self._superseded: set[str] = set()
        self._unsent: list[calls.Ended] = []
        self._orphaned: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.over = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello: calls.Hello) -> None:
        """Serve a controller to the end of its connection."""
        if self._writer is not None:
            logger.info("another controller has come")
            self._superseded.add(self._served.controller)
            self._writer.write(calls.encode_line(calls.Reply(0, error=calls.SUPERSEDED)))
            self._writer.close()
        if self._orphaned is not None:
            self._orphaned.cancel()
            self._orphaned = None
        self._writer, self._served = writer, hello
        writer.write(calls.encode_line(calls.Reply(0, os.getpid())))
        for ended in self._unsent:
            writer.write(calls.encode_line(ended))
        self._unsent.clear()
        with contextlib.suppress(ConnectionError):
            while line := await calls.next_line(reader):
                request = calls.decode_from_controller(line)
                if isinstance(request, calls.Request):
                    self._keep(self._answer(request, writer))
        writer.close()
        if self._writer is writer:
            self._writer = None
            logger.info("the controller is gone; without another one, all ends in %.0f s", self._terms.orphan_s)
            loop = asyncio.get_running_loop()
            self._orphaned = loop.call_later(self._terms.orphan_s, self.end)

    async def adopt(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a controller that has come later, if it is one of ours; otherwise make room for its supervisor."""
        line = b""
        with contextlib.suppress(ConnectionError):
            line = await calls.next_line(reader)
        if not line:  # a controller that is deposed as it connects leaves without a hello
            writer.close()
            return
        hello = calls.decode_from_controller(line)
        if isinstance(hello, calls.Hello) and self._is_deposed(hello):
            writer.write(calls.encode_line(calls.Reply(0, error=calls.SUPERSEDED)))
            writer.close()
            return
        if isinstance(hello, calls.Hello) and hello.terms.identity == self._terms.identity and self._ending is None:
            with contextlib.suppress(asyncio.CancelledError):  # at the end of the process; asyncio would log it
                await self.serve(reader, writer, hello)
            return
        logger.info("a controller with another identity has come: this one drains")
        writer.write(calls.encode_line(calls.Reply(0, error="another identity")))
        writer.close()
        self.end()

    def _is_deposed(self, hello: calls.Hello) -> bool:
        """Whether another controller leads in its place: one that is served, or was after it."""
        older = self._writer is not None and hello.term < self._served.term
        return older or hello.controller in self._superseded

    async def report(self) -> None:
        """Report each exit to the controller, or keep it for the next one."""
        while True:
            gone = await self.supervisor.next_exit()
            ended = calls.Ended(replica=gone) if isinstance(gone, ReplicaExit) else calls.Ended(dispatcher=gone)
            if self._writer is None or self._writer.is_closing():
                self._unsent.append(ended)
            else:
                self._writer.write(calls.encode_line(ended))

    def end(self) -> None:
        """Drain, and end."""
        if self._ending is None:
            self.unlist()
            self._ending = asyncio.create_task(self._drained())

    def unlist(self) -> None:
        """Remove the socket at which later controllers come; only once, since the next supervisor makes its own."""
        if self._listed:
            self._listed = False
            Path(self._hello.listen).unlink(missing_ok=True)

    async def _drained(self) -> None:
        await self.supervisor.drain(self._terms.drain_timeout_s)
        self.over.set()

    def _keep(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: calls.Request, writer: asyncio.StreamWriter) -> None:
        if self._ending is not None and request.method in calls.LEFT_TO_THE_NEXT:
            return
        try:
            call = getattr(self.supervisor, request.method)
            reply = calls.Reply(request.number, await call(*calls.arguments_of(request)))
        except ValueError as error:
            reply = calls.Reply(request.number, error=str(error))
        except Exception as error:  # the controller waits for an answer
            logger.exception("%s failed", request.method)
            reply = calls.Reply(request.number, error=f"the supervisor failed: {error!r}; see its supervisor.log")
        with contextlib.suppress(ConnectionError):
            writer.write(calls.encode_line(reply))
            await writer.drain()
        if request.method == "aclose":
            self.over.set()


async def _main(first: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=first, limit=calls.LONGEST_LINE_BYTES)
    hello = calls.decode_from_controller(await calls.next_line(reader))
    assert isinstance(hello, calls.Hello)
    process = _Process(hello)
    async with process.supervisor:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, process.end)
        server = None
        if hello.listen:
            server = await asyncio.start_unix_server(process.adopt, hello.listen, limit=calls.LONGEST_LINE_BYTES)
        working = [
            asyncio.create_task(process.report()),
            asyncio.create_task(process.serve(reader, writer, hello)),
        ]
        await process.over.wait()
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        if server is not None:
            server.close()
            process.unlist()


if __name__ == "__main__":
    log_to_stderr_plainly()
    asyncio.run(_main(socket.socket(fileno=int(sys.argv[1]))))
