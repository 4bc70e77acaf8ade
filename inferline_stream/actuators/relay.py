"""Carries frames between a replica in a container and its dispatcher.

No descriptor can be handed into a container, so its standard input and output stay the replica's only connection, and
the supervisor passes whole frames on, to one dispatcher after another. It looks at their lengths and at nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from inferline_stream.dataplane.frames import FORMAT, HEADER_BYTES, MAX_FRAME_BYTES, Leave, encode_frame

_LENGTH = slice(4, 8)
_CHUNK_BYTES = 1 << 18


class Relay:
    """One replica's. Must be made, used and closed within one event loop.

    Args:
        replica: socket that is the replica's standard input and output.
        spec: sent to it first.
    """

    def __init__(self, replica: socket.socket, spec: bytes) -> None:
        self._ready: bytes | None = None
        """The replica's first frame, which each dispatcher expects first."""
        self._dispatcher: _End | None = None
        self._replica = _End(replica, self._answer)
        self._replica.send(spec)

    def connect(self, dispatcher: socket.socket) -> None:
        """Serve another dispatcher from now on."""
        if self._dispatcher is not None:
            self._dispatcher.close()
        self._dispatcher = _End(dispatcher, self._replica.send)
        if self._ready is not None:
            self._dispatcher.send(self._ready)

    def leave(self) -> None:
        """Ask the replica to end once no batch is in hand."""
        self._replica.send(bytes(encode_frame(Leave())))

    def close(self) -> None:
        """Close both ends: the replica has ended."""
        for end in (self._replica, self._dispatcher):
            if end is not None:
                end.close()

    def _answer(self, frame: bytes) -> None:
        self._ready = self._ready or frame
        if self._dispatcher is not None:
            self._dispatcher.send(frame)


class _End:
    """One of the two sockets: whole frames in, whole frames out."""

    def __init__(self, connected: socket.socket, received: Callable[[bytes], None]) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._received = received
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._write()))

    def send(self, frame: bytes) -> None:
        """Send a frame behind those that wait; there are few, since a replica has one batch in hand."""
        self._out.put_nowait(frame)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        # Not before they have ended: the event loop still watches the descriptor for them.
        asyncio.gather(*self._tasks, return_exceptions=True).add_done_callback(lambda _: self._socket.close())

    async def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            async for frame in frames(self._socket):
                self._received(frame)
        # The other side is to notice that nothing comes any more.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    async def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await asyncio.get_running_loop().sock_sendall(self._socket, await self._out.get())


async def frames(source: socket.socket) -> AsyncIterator[bytes]:
    """Yield whole frames. Raises ValueError on what is no frame."""
    data = bytearray()
    while chunk := await asyncio.get_running_loop().sock_recv(source, _CHUNK_BYTES):
        data += chunk
        while len(data) >= HEADER_BYTES:
            length = int.from_bytes(data[_LENGTH], "little")
            if data[0] != FORMAT or length > MAX_FRAME_BYTES:
                raise ValueError(f"format {data[0]} with {length} bytes is no frame")
            if len(data) < HEADER_BYTES + length:
                break
            yield bytes(data[: HEADER_BYTES + length])
            del data[: HEADER_BYTES + length]
