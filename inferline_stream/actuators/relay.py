"""Carries frames between a replica in a container and its dispatcher.

No descriptor can be handed into a container, so its standard input and output stay the replica's only connection, and
the supervisor passes frames on, to one dispatcher after another. It looks at their lengths and at nothing else. What a
replica sends is passed on as it comes, since it may claim any length: the supervisor holds a few pieces of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from inferline_stream.dataplane.frames import (
    FORMAT,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    SHORT_BYTES,
    Leave,
    encode_frame,
)

_LENGTH = slice(4, 8)
_CHUNK_BYTES = 1 << 18
_PIECES = 4
"""Of a replica's frames that wait for its dispatcher; the replica waits behind them."""


class Piece(NamedTuple):
    """A part of a frame, as it came."""

    data: bytes
    begins: bool
    ends: bool


class Relay:
    """One replica's. Must be made, used and closed within one event loop.

    Args:
        replica: socket that is the replica's standard input and output.
        spec: sent to it first.
    """

    def __init__(self, replica: socket.socket, spec: bytes) -> None:
        self._ready = b""
        """The replica's first frame, which each dispatcher expects first."""
        self._is_ready = False
        self._dispatcher: _End | None = None
        self._begun = False
        """Whether the dispatcher has had the beginning of what the replica sends now."""
        self._replica = _End(replica, self._answer)
        self._replica.send(spec)

    def connect(self, dispatcher: socket.socket) -> None:
        """Serve another dispatcher from now on."""
        if self._dispatcher is not None:
            self._dispatcher.close()
        self._dispatcher, self._begun = _End(dispatcher, self._order, pieces=_PIECES), False
        if self._is_ready:
            self._dispatcher.send(self._ready)

    def leave(self) -> None:
        """Ask the replica to end once no batch is in hand."""
        self._replica.send(bytes(encode_frame(Leave())))

    def close(self) -> None:
        """Close both ends: the replica has ended."""
        for end in (self._replica, self._dispatcher):
            if end is not None:
                end.close()

    async def _order(self, source: socket.socket) -> None:
        async for frame in _frames(source):
            self._replica.send(frame)

    async def _answer(self, source: socket.socket) -> None:
        async for piece in _pieces(source):
            if not self._is_ready:
                self._get_ready(piece)
                continue
            self._begun = self._begun or piece.begins
            if self._begun and self._dispatcher is not None:
                await self._dispatcher.pass_on(piece.data)

    def _get_ready(self, piece: Piece) -> None:
        self._ready += piece.data
        if len(self._ready) > SHORT_BYTES:
            raise ValueError(f"a first frame of more than {SHORT_BYTES} bytes is none")
        self._is_ready = piece.ends
        if self._is_ready and self._dispatcher is not None:
            self._dispatcher.send(self._ready)


class _End:
    """One of the two sockets.

    Args:
        connected: the socket; this closes it.
        read: reads it to its end, or until what comes is no frame.
        pieces: as many wait to be sent before `pass_on` waits, too; 0 for any number.
    """

    def __init__(
        self, connected: socket.socket, read: Callable[[socket.socket], Awaitable[None]], *, pieces: int = 0
    ) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._out: asyncio.Queue[bytes] = asyncio.Queue(pieces)
        self._is_open = True
        self._tasks = (asyncio.create_task(self._read(read)), asyncio.create_task(self._write()))

    def send(self, frame: bytes) -> None:
        """Send a frame behind those that wait; there are few, since a replica has one batch in hand."""
        self._out.put_nowait(frame)

    async def pass_on(self, piece: bytes) -> None:
        """Send a piece of a frame once there is room; one for a dispatcher that is gone is lost."""
        if self._is_open:
            await self._out.put(piece)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        # Not before they have ended: the event loop still watches the descriptor for them.
        asyncio.gather(*self._tasks, return_exceptions=True).add_done_callback(lambda _: self._socket.close())

    async def _read(self, read: Callable[[socket.socket], Awaitable[None]]) -> None:
        with contextlib.suppress(OSError, ValueError):
            await read(self._socket)
        # The other side is to notice that nothing comes any more.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _write(self) -> None:
        try:
            while True:
                await asyncio.get_running_loop().sock_sendall(self._socket, await self._out.get())
        except OSError:
            pass
        finally:
            self._is_open = False
            while not self._out.empty():  # lets go who waits in `pass_on`
                self._out.get_nowait()


async def _frames(source: socket.socket) -> AsyncIterator[bytes]:
    """Yield whole frames. Raises ValueError on what is no frame."""
    whole = bytearray()
    async for piece in _pieces(source):
        whole += piece.data
        if piece.ends:
            yield bytes(whole)
            whole.clear()


async def _pieces(source: socket.socket) -> AsyncIterator[Piece]:
    """Yield what comes, cut where frames begin. Raises ValueError on what is no frame."""
    data, left = bytearray(), 0
    while chunk := await asyncio.get_running_loop().sock_recv(source, _CHUNK_BYTES):
        data += chunk
        while data:
            begins = not left
            if begins:
                if len(data) < HEADER_BYTES:
                    break
                length = int.from_bytes(data[_LENGTH], "little")
                if data[0] != FORMAT or length > MAX_FRAME_BYTES:
                    raise ValueError(f"format {data[0]} with {length} bytes is no frame")
                left = HEADER_BYTES + length
            part = bytes(data[:left])
            del data[:left]
            left -= len(part)
            yield Piece(part, begins, not left)
