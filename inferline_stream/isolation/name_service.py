"""Host names for sealed replicas: they cannot look names up themselves, so the process that started them does.

One datagram of a socket pair asks for a name, another answers with addresses. A name could carry data out, so that
names are short, few and of hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket

_LONGEST = 253
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9.])?")
_MOST_NAMES = 64
"""That one replica may ask for: brokers are few."""


class NameService:
    """Answers one replica. Must be made, used and closed within one event loop."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """The replica's end; to be closed here once the replica has it."""
        self._ours.setblocking(False)
        self.known: set[str] = set()
        """Every name that was asked for."""
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(self._ours, self._asked)

    def close(self) -> None:
        """Answer no more."""
        self._loop.remove_reader(self._ours)
        self._ours.close()
        self.theirs.close()
        for task in self._tasks:
            task.cancel()

    def _asked(self) -> None:
        try:
            data = self._ours.recv(_LONGEST + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._ours)
            return
        host = data.decode("ascii", errors="replace")
        self.known.add(host)
        if len(data) <= _LONGEST and _HOST.fullmatch(host) and len(self.known) <= _MOST_NAMES:
            task = self._loop.create_task(self._answer(host))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.known.discard(host)
            self._send(host, [])

    async def _answer(self, host: str) -> None:
        try:
            found = await self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        self._send(host, list(dict.fromkeys(str(address[0]) for *_, address in found)))

    def _send(self, host: str, addresses: list[str]) -> None:
        with contextlib.suppress(OSError):  # it does not read, or is gone
            self._ours.send(json.dumps([host[:_LONGEST], addresses]).encode())
