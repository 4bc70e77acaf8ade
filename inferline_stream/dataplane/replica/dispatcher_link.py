"""A replica's way to its dispatcher: a socket, or standard input and output where the replica is in a container."""

from __future__ import annotations

import os
from typing import Protocol


class DispatcherLink(Protocol):
    """What a socket and `StandardStreams` have in common."""

    def fileno(self) -> int:
        """Return the descriptor to poll."""

    def recv(self, size: int, /) -> bytes:
        """Return what has come, at most so many bytes; none at the end."""

    def sendall(self, data: bytes | bytearray, /) -> None:
        """Send all of it."""

    def close(self) -> None:
        """Close it."""


class StandardStreams:
    """Frames over standard input and output. What the stage prints goes to standard error from now on."""

    def __init__(self) -> None:
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        os.close(nothing)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._input

    def recv(self, size: int) -> bytes:
        """Return what has come, at most so many bytes; none at the end."""
        return os.read(self._input, size)

    def read_line(self) -> bytes:
        """Return the first line; what follows it stays in the stream."""
        line = bytearray()
        while not line.endswith(b"\n") and (byte := os.read(self._input, 1)):
            line += byte
        return bytes(line)

    def sendall(self, data: bytes | bytearray) -> None:
        """Send all of it."""
        with memoryview(data) as left:
            at = 0
            while at < len(left):
                at += os.write(self._output, left[at:])

    def close(self) -> None:
        """Close both."""
        os.close(self._input)
        os.close(self._output)
