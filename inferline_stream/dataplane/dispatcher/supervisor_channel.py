"""A dispatcher's end of the channel to its supervisor."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from inferline_stream.dataplane.supervisor_messages import (
    MAX_DATAGRAM_BYTES,
    Attach,
    FromDispatcher,
    Replace,
    ReplicaLost,
    Retire,
    Stop,
    decode_from_supervisor,
    encode_attachment,
)

logger = logging.getLogger(__name__)


class SupervisorChannel:
    """Hands over what the supervisor sends, and sends without waiting.

    Args:
        sock: SOCK_SEQPACKET; the spec has been read from it.
        attach: called with each replica and the connection to it.
        heard: called with each other message; with None once, at the channel's end.
    """

    def __init__(
        self,
        sock: socket.socket,
        attach: Callable[[Attach, socket.socket], None],
        heard: Callable[[Retire | ReplicaLost | Stop | None], None],
    ) -> None:
        self._sock = sock
        self._attach = attach
        self._heard = heard

    def listen(self) -> None:
        """Begin to hand over messages, within the running event loop."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Hand over no more messages."""
        asyncio.get_running_loop().remove_reader(self._sock)

    def say(self, message: FromDispatcher) -> None:
        """Send a message; one that the supervisor does not take is lost."""
        try:
            self._sock.send(encode_attachment(message))
        except OSError as error:
            logger.warning("the supervisor does not take a message: %s", error)

    def _readable(self) -> None:
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._sock, MAX_DATAGRAM_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                data, files = b"", []
            if not data:
                self.close()
                self._heard(None)
                return
            message = decode_from_supervisor(data)
            if not isinstance(message, Attach):
                self._heard(message)
            elif files:
                self._attach(message, socket.socket(fileno=files[0]))
            else:
                self.say(Replace(message.replica, "its connection did not arrive: too many files are open"))
