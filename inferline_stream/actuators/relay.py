"""Carries frames between a replica in a container and its dispatcher.

No descriptor can be handed into a container, so its standard input and output stay the replica's only connection, and
the supervisor passes frames on, to one dispatcher after another. It looks at their lengths and at nothing else. What a
replica sends is passed on as it comes, since it may claim any length: the supervisor holds a few pieces of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any

from inferline_stream.dataplane.frames import FORMAT, HEADER_BYTES, MAX_FRAME_BYTES, SHORT_BYTES, Leave, encode_frame

_LENGTH = slice(4, 8)
_CHUNK_BYTES = 1 << 18


class Relay:
    """One replica's. Must be made, used and closed within one event loop.

    Args:
        replica: socket that is the replica's standard input and output; this closes it.
        spec: sent to it first.
    """

    def __init__(self, replica: socket.socket, spec: bytes) -> None:
        self._orders: asyncio.Queue[bytes] = asyncio.Queue()
        """For the replica; there are few, since it has one batch in hand."""
        self._orders.put_nowait(spec)
        self._ready: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The replica's first frame, which each dispatcher expects first."""
        self._dispatcher: asyncio.StreamWriter | None = None
        """That is served now."""
        self._taking: asyncio.Task[None] | None = None
        """Its orders."""
        self._tasks = set[asyncio.Task[None]]()
        self._keep(self._serve(replica))

    def connect(self, dispatcher: socket.socket) -> None:
        """Serve another dispatcher from now on; this closes its socket."""
        if self._taking is not None:
            self._taking.cancel()
        self._taking = self._keep(self._take_orders(dispatcher))

    def leave(self) -> None:
        """Ask the replica to end once no batch is in hand."""
        self._orders.put_nowait(bytes(encode_frame(Leave())))

    def close(self) -> None:
        """Close both ends: the replica has ended."""
        for task in self._tasks:
            task.cancel()

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, replica: socket.socket) -> None:
        """Pass on what the replica sends and is to have, to its end, or until what it sends is no frame."""
        reader, writer = await asyncio.open_unix_connection(sock=replica, limit=_CHUNK_BYTES)
        telling = asyncio.create_task(self._tell(writer))
        try:
            with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
                first = await _header(reader, SHORT_BYTES)
                self._ready.set_result(first + await reader.readexactly(_length(first)))
                while True:
                    await self._pass_on(reader)
        finally:
            telling.cancel()
            writer.transport.abort()

    async def _tell(self, replica: asyncio.StreamWriter) -> None:
        while True:
            replica.write(await self._orders.get())

    async def _pass_on(self, reader: asyncio.StreamReader) -> None:
        """Pass one frame on, as it comes, to the dispatcher that was served when it began."""
        piece = await _header(reader, MAX_FRAME_BYTES)
        left, dispatcher = _length(piece), self._dispatcher
        while piece:
            if dispatcher is not None and dispatcher is self._dispatcher:
                with contextlib.suppress(OSError):  # it is gone, and so is what it was to have
                    dispatcher.write(piece)
                    await dispatcher.drain()
            piece = await reader.read(min(left, _CHUNK_BYTES)) if left else b""
            if left and not piece:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(piece)

    async def _take_orders(self, dispatcher: socket.socket) -> None:
        """Serve a dispatcher to its end, or until what comes is no frame."""
        reader, writer = await asyncio.open_unix_connection(sock=dispatcher, limit=_CHUNK_BYTES)
        try:
            writer.write(await asyncio.shield(self._ready))
            self._dispatcher = writer
            with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
                while True:
                    header = await _header(reader, MAX_FRAME_BYTES)
                    self._orders.put_nowait(header + await reader.readexactly(_length(header)))
        finally:
            self._dispatcher = None if self._dispatcher is writer else self._dispatcher
            writer.transport.abort()


async def _header(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    """Read a frame's header. Raises ValueError on what is none, or of a frame that is too long."""
    header = await reader.readexactly(HEADER_BYTES)
    if header[0] != FORMAT or _length(header) > most_bytes:
        raise ValueError(f"format {header[0]} with {_length(header)} bytes is no frame")
    return header


def _length(header: bytes) -> int:
    return int.from_bytes(header[_LENGTH], "little")
