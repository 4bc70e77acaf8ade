"""A dispatcher's end of the socket pair to one replica."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from inferline_stream.dataplane.frames import (
    Answerable,
    FrameError,
    ToDispatcher,
    ToReplica,
    encode_frame,
    to_dispatcher,
)

_RECEIVE_BYTES = 256 * 1024


class ReplicaConnection:
    """Sends frames without waiting and hands over those that come.

    Args:
        sock: a connected stream socket; this closes it.
        heard: called with each frame.
        closed: called once, after the replica has closed its end or broken the format, unless `close` came first.
        answerable: see `FrameBuffer`.
    """

    def __init__(
        self,
        sock: socket.socket,
        heard: Callable[[ToDispatcher], None],
        closed: Callable[[str], None],
        answerable: Answerable | None = None,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._heard = heard
        self._closed = closed
        self._frames = to_dispatcher(answerable)
        self._unsent = bytearray()
        self._loop = asyncio.get_running_loop()
        self._is_open = True
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, frame: ToReplica) -> None:
        """Send a frame; one that a dead replica cannot take is lost, and `closed` follows."""
        if not self._is_open:
            return
        data = encode_frame(frame)
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reader sees the end
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def close(self) -> None:
        """Close the connection without a call of `closed`."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            for frame in self._frames.feed(data):
                self._heard(frame)
                if not self._is_open:
                    return
        except FrameError as error:
            self._end(str(error))
            return
        if not data:
            self._end("")

    def _writable(self) -> None:
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _end(self, why: str) -> None:
        self.close()
        self._closed(why)
