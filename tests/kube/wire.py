"""A pod's network: what it sends to a Service goes through here, and can be cut, slowed or torn."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable


class Wire:
    """Leads from one pod to whichever pod of a Service, as kube-proxy does; `async with` listens.

    Args:
        address: of the pod, on the loopback interface.
        port: of the Service.
        endpoints: addresses of its pods now.
    """

    def __init__(self, address: str, port: int, endpoints: Callable[[], list[str]]) -> None:
        self.address, self.port = address, port
        self._endpoints = endpoints
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.slow_s = 0.0
        """Delay of everything that passes."""
        self.tear_after: int | None = None
        """Bytes from the pod after which its connection is torn, once."""
        self.connections = 0

    def cut(self) -> None:
        """Let nothing pass; neither side is notified."""
        self._open.clear()

    def restore(self) -> None:
        """Let everything pass again, late as it is."""
        self._open.set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._serve, self.address, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports end in the next rounds of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        back: asyncio.StreamWriter | None = None
        try:
            await self._open.wait()
            found = self._endpoints()
            if not found:
                return
            self.connections += 1
            there, back = await asyncio.open_connection(random.choice(found), self.port)
            both = (
                asyncio.ensure_future(self._pass(reader, back, pod=True)),
                asyncio.ensure_future(self._pass(there, writer, pod=False)),
            )
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in both:
                    each.cancel()
                await asyncio.gather(*both, return_exceptions=True)
            await self._open.wait()  # an end does not pass either
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, back):
                if end is not None:
                    end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, pod: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                if self.slow_s:
                    await asyncio.sleep(self.slow_s)
                if pod and self.tear_after is not None:
                    self.tear_after -= len(data)
                    if self.tear_after < 0:
                        writer.write(data[: self.tear_after])
                        await writer.drain()
                        self.tear_after = None
                        return
                writer.write(data)
                await writer.drain()
