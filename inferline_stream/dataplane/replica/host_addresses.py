"""A host's addresses as they are now, or as they were at the start: a sealed process cannot look names up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]
"""As `socket.getaddrinfo` has an address."""


class HostAddresses:
    """What a host's name stands for. Looks it up once when it is made.

    Args:
        host: its name, or an address.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self.known: Sequence[Found] = ()
        with contextlib.suppress(OSError):
            self.known = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)

    async def look_up(self) -> Sequence[Found]:
        """Return every address of the host.

        Raises:
            OSError: none is known.
        """
        with contextlib.suppress(OSError):
            self.known = await asyncio.get_running_loop().getaddrinfo(self._host, None, type=socket.SOCK_STREAM)
        if not self.known:
            raise OSError(f"{self._host}: no such host is known")
        return self.known
