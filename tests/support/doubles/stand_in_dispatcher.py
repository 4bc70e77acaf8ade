"""Stands in for a dispatcher: speaks with its supervisor and its replicas as one does, and has no Kafka.

It prints what happens, a line each. Each replica that is ready gets a batch with the event ``1``. SIGUSR1 asks for
another replica in place of the one with the lowest number; SIGUSR2 ends it as if it were fenced.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import Any

from inferline_stream.dataplane.frames import Batch, FrameBuffer, Leave, Ready, encode_frame, to_dispatcher
from inferline_stream.dataplane.process_specs import EXIT_FENCED, decode_dispatcher_spec
from inferline_stream.dataplane.supervisor_messages import (
    MAX_DATAGRAM_BYTES,
    Attach,
    Replace,
    Retire,
    Serving,
    decode_from_supervisor,
    encode_attachment,
)


class StandIn:
    """A dispatcher without records."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        spec = decode_dispatcher_spec(channel.recv(MAX_DATAGRAM_BYTES))
        self._epoch = spec.incarnation
        self._replicas: dict[str, tuple[socket.socket, FrameBuffer]] = {}
        self._busy: set[str] = set()
        self._retiring: set[str] = set()
        self._numbers: dict[str, int] = {}
        signal.signal(signal.SIGUSR1, lambda *_: self._replace())
        signal.signal(signal.SIGUSR2, lambda *_: os._exit(EXIT_FENCED))
        self._say(f"started {spec.dispatcher} {spec.incarnation}")  # who reads it may send a signal at once
        channel.send(encode_attachment(Serving()))

    def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        while True:
            waiting: list[Any] = [self._channel, *(link for link, _ in self._replicas.values())]
            ready, _, _ = select.select(waiting, [], [], 0.05)  # signals come in between
            for name, (link, frames) in list(self._replicas.items()):
                if link in ready:
                    self._receive(name, link, frames)
            if self._channel in ready:
                data, files, _, _ = socket.recv_fds(self._channel, MAX_DATAGRAM_BYTES, 1)
                if not data:
                    return 1
                message = decode_from_supervisor(data)
                if isinstance(message, Attach):
                    self._say(f"attached {message.replica} {message.number}")
                    self._replicas[message.replica] = socket.socket(fileno=files[0]), to_dispatcher()
                    self._numbers[message.replica] = message.number
                elif isinstance(message, Retire):
                    self._say(f"retires {message.replica} {'to move' if message.moves else 'for good'}")
                    self._retiring.add(message.replica)
                    self._leave(message.replica)
                else:
                    self._say("stopped")
                    return 0

    def _receive(self, name: str, link: socket.socket, frames: FrameBuffer) -> None:
        try:
            data = link.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self._say(f"lost {name}")
            link.close()
            del self._replicas[name]
        for frame in frames.feed(data):
            if isinstance(frame, Ready):
                self._say(f"ready {name}")
                self._busy.add(name)
                link.sendall(encode_frame(Batch(self._epoch, 1, [b"1"])))
            else:
                self._say(f"{type(frame).__name__.lower()} {name} {frame.epoch}")
                self._busy.discard(name)
                self._leave(name)

    def _leave(self, name: str) -> None:
        if name in self._retiring and name not in self._busy and name in self._replicas:
            self._replicas[name][0].sendall(encode_frame(Leave()))

    def _replace(self) -> None:
        first = min(self._replicas, key=lambda name: self._numbers[name])
        self._channel.send(encode_attachment(Replace(first, "it is far behind the others")))

    @staticmethod
    def _say(what: str) -> None:
        sys.stdout.write(f"{what}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(StandIn(socket.socket(fileno=int(sys.argv[-1]))).run())
