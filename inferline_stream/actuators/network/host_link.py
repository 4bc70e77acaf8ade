"""The connection between a replica's host and its dispatcher's: records of bytes and of messages, inside TLS.

A record is one byte of its kind, four of its length, and that many of content. Bytes are what the replica's and the
dispatcher's own sockets carry, cut anywhere. Each side sends something at least every `PING_S`, and takes the other one
for lost after `SILENT_S` without a byte: a partition sends no end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import cast

import msgspec

from inferline_stream.pipeline.names import WIRE_VERSION

PING_S = 0.8
"""Longest time without sending anything."""

SILENT_S = 2.5
"""Shorter than the shortest hard deadline of a batch, 3 s: a partition is not blamed on a replica or its events."""

SHUTDOWN_S = 1.0
"""Longest that TLS may take to end a connection in order."""

_HEADER = struct.Struct("<BI")
_BYTES, _MESSAGE = 0, 1
_LONGEST = 1 << 20
_CHUNK_BYTES = 1 << 18


class HostHello(msgspec.Struct, frozen=True, tag="hello"):
    """Replica's host to the dispatcher's, first: which replica would be served over this connection."""

    replica: str
    hardware: str
    node: str = ""
    version: int = WIRE_VERSION
    gpu: bool = False
    """Whether it loads its stage on a GPU."""
    again: bool = False
    """Whether it was connected with a dispatcher before."""


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    """Answer to `HostHello`: what serves here. Nothing does where the dispatcher waits for a grant, or starts."""

    dispatcher: str
    """Empty where no dispatcher serves here now."""
    slots: int = 1
    """Of the stage: so many dispatchers serve it."""
    replicas: int = 0
    """Of the same version that the dispatcher has, but those that leave it."""


class Take(msgspec.Struct, frozen=True, tag="take"):
    """Replica's host: the offer is taken, attach the replica."""


class Leaving(msgspec.Struct, frozen=True, tag="leaving"):
    """Replica's host: let the replica finish its batch, then send it away."""


class SeenElsewhere(msgspec.Struct, frozen=True, tag="seen"):
    """Replica's host: so many replicas has another dispatcher. It decides whether the replica should go there."""

    replicas: int


class HostEnded(msgspec.Struct, frozen=True, tag="ended"):
    """Replica's host, last: the replica's process has ended, whatever it had in hand."""

    reason: str


class EndReplica(msgspec.Struct, frozen=True, tag="end"):
    """Dispatcher's host: end the replica now, and start another one in its place."""

    reason: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Either side: nothing but a sign of life."""


Message = HostHello | Offer | Take | Leaving | SeenElsewhere | HostEnded | EndReplica | Ping

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class HostLink(asyncio.Protocol):
    """One end. Must be used within one event loop.

    Args:
        heard: called with each message but `Ping`.
        closed: called once with the reason when the connection is gone, unless `close` came first.
    """

    def __init__(self, heard: Callable[[HostLink, Message], None], closed: Callable[[HostLink, str], None]) -> None:
        self._heard = heard
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._sock: socket.socket | None = None
        self._unsent = bytearray()
        """What the local socket does not take yet."""
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._looked_s = 0.0
        self._silent_s = 0.0
        self._quiet = False
        """Whether nothing was sent since the last look."""
        self._why = "the other side closed the connection"
        self._first: Callable[[], object] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to watch for silence."""
        self._transport = cast("asyncio.Transport", transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._looked_s = self._loop.time()
        self._timer = self._loop.call_later(PING_S, self._look)

    def data_received(self, data: bytes) -> None:
        """Take records apart."""
        self._silent_s = 0.0
        self._data += data
        at, size = 0, len(self._data)
        while size - at >= _HEADER.size and self._transport is not None:
            kind, length = _HEADER.unpack_from(self._data, at)
            if kind > _MESSAGE or length > _LONGEST:
                self._end(f"a record of kind {kind} with {length} bytes is none of this release")
                return
            end = at + _HEADER.size + length
            if end > size:
                break
            content = bytes(self._data[at + _HEADER.size : end])
            at = end
            if kind == _BYTES:
                self._to_socket(content)
                continue
            try:
                message = _decode(content)
            except msgspec.MsgspecError as error:
                self._end(f"a message cannot be read: {error}")
                return
            if not isinstance(message, Ping):
                self._heard(self, message)
        del self._data[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end, unless it was our own doing."""
        was_open, self._transport = self._transport is not None, None
        if was_open:  # before the local socket is closed: who is called may keep it by `drop`
            self._closed(self, str(exc) if exc is not None else self._why)
        self._release()

    def pause_writing(self) -> None:
        """Read nothing more from the local socket."""
        self._paused = True
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())

    def resume_writing(self) -> None:
        """Read from it again."""
        self._paused = False
        if self._sock is not None:
            self._loop.add_reader(self._sock.fileno(), self._from_socket)

    # What hosts use

    def send(self, message: Message) -> None:
        """Send a message."""
        self._write(_MESSAGE, _encode(message))

    def carry(self, sock: socket.socket) -> None:
        """Carry what a local socket sends and is to receive. Its end closes the connection; this closes the socket."""
        if self._transport is None:  # it has ended meanwhile
            sock.close()
            return
        sock.setblocking(False)
        self._sock = sock
        if not self._paused:
            self._loop.add_reader(sock.fileno(), self._from_socket)

    def on_first(self, call: Callable[[], object]) -> None:
        """Have a function called once the local socket has something to send."""
        self._first = call

    def drop(self) -> socket.socket | None:
        """Carry nothing more, and return the local socket, which stays open; what comes for it is lost."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
        return sock

    def close(self) -> None:
        """Close the connection once what was sent is out, without a call of ``closed``."""
        transport, self._transport = self._transport, None
        self._release()
        if transport is not None:
            transport.close()

    # Within

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sock = self.drop()
        if sock is not None:
            sock.close()

    def _end(self, why: str) -> None:
        self._why = why
        if self._transport is not None:
            self._transport.abort()

    def _write(self, kind: int, content: bytes) -> None:
        if self._transport is not None:
            self._quiet = False
            self._transport.write(_HEADER.pack(kind, len(content)) + content)

    def _from_socket(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            if self._first is not None:
                self._first()
                self._first = None
            self._write(_BYTES, data)
            return
        self._loop.remove_reader(self._sock.fileno())
        self._why = "the local end closed"
        if self._transport is not None:
            self._transport.close()

    def _to_socket(self, content: bytes) -> None:
        if self._sock is None:
            return
        sent = 0
        if not self._unsent:
            with contextlib.suppress(OSError):  # of a process that has ended, which its reader sees
                sent = self._sock.send(content)
        if sent < len(content):
            if not self._unsent:
                self._loop.add_writer(self._sock.fileno(), self._drain)
                if self._transport is not None:
                    self._transport.pause_reading()
            self._unsent += content[sent:]

    def _drain(self) -> None:
        assert self._sock is not None
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        self._silent_s = 0.0  # nothing is read meanwhile
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())
            if self._transport is not None:
                self._transport.resume_reading()

    def _look(self) -> None:
        """Send a sign of life, and notice that none comes. Time in which this process did not run counts little."""
        now_s = self._loop.time()
        if not self._unsent:
            self._silent_s += min(now_s - self._looked_s, 1.5 * PING_S)
        self._looked_s = now_s
        if self._silent_s > SILENT_S:
            self._end(f"nothing came for {self._silent_s:.1f} s")
            return
        if self._quiet:
            self.send(Ping())
        self._quiet = True
        self._timer = self._loop.call_later(PING_S / 2, self._look)
