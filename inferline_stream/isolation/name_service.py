"""Host names for sealed replicas: they cannot look names up themselves, so the process that started them does.

One datagram of a socket pair asks for a name, another answers with addresses. A name could carry data out, so that
names are short, few and of hosts. `NameService` answers, and `Loop` asks, where it may not look a name up. In the same
way it asks for the access token that a program prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import socket
from collections.abc import Coroutine
from typing import Any

import uvloop

from inferline_stream.errors import Unreachable
from inferline_stream.isolation.token_program import TIMEOUT_S, program_says

logger = logging.getLogger(__name__)

_LONGEST = 253
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9.])?")
_MOST_NAMES = 64
"""That one replica may ask for: brokers are few."""

_TOKEN = "token!"  # noqa: S105  a question that is no host's name


class NameService:
    """Answers one process. Must be made, used and closed within one event loop.

    Args:
        token_program: prints an access token for Kafka; empty for a process that gets none.
    """

    def __init__(self, token_program: str = "") -> None:
        self._token_program = token_program
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
        if host == _TOKEN and self._token_program:
            self._begin(self._answer_token())
            return
        self.known.add(host)
        if len(data) <= _LONGEST and _HOST.fullmatch(host) and len(self.known) <= _MOST_NAMES:
            self._begin(self._answer(host))
        else:
            self.known.discard(host)
            self._send(host, [])

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_token(self) -> None:
        try:
            said = [await program_says(self._token_program)]
        except Unreachable as error:
            logger.warning("%s", error)
            said = []
        self._send(_TOKEN, said)

    async def _answer(self, host: str) -> None:
        try:
            found = await self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # the second of a name with a part that is empty or too long
            found = []
        self._send(host, list(dict.fromkeys(str(address[0]) for *_, address in found)))

    def _send(self, host: str, addresses: list[str]) -> None:
        with contextlib.suppress(OSError):  # it does not read, or is gone
            self._ours.send(json.dumps([host[:_LONGEST], addresses]).encode())


_ANSWER_S = 5.0
_LONGEST_ANSWER = 65536


class Loop(uvloop.Loop):
    """uvloop's, with names resolved by itself before the seal, and by the process that started the replica after it."""

    channel: socket.socket | None = None
    """Where names are asked for, see `NameService`; without it, only names known at the seal are reached."""

    sealed = False

    def __init__(self) -> None:
        super().__init__()
        self._addresses: dict[str, list[str]] = {}
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        """As of every event loop; each address of the host is tried in turn."""
        if host is None or _is_address(host):
            return await super().create_connection(protocol_factory, host, port, **options)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        refused: OSError | None = None
        for address in await self.addresses(host):
            try:
                return await super().create_connection(protocol_factory, address, port, **options)
            except OSError as error:
                refused = error
        raise refused or OSError(f"{host}: no such host was known when the replica was sealed, and none is now")

    async def addresses(self, host: str) -> list[str]:
        """Addresses of a host, as they are now if that can be found out, else as they were.

        Raises:
            OSError: before the seal, there is no such host.
        """
        if not self.sealed:
            known = await self.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            self._addresses[host] = list(dict.fromkeys(str(address[0]) for *_, address in known))
        elif self.channel is not None:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    found = await self._ask(self.channel, host)
            except (TimeoutError, OSError):
                found = []
            self._addresses[host] = found or self._addresses.get(host, [])
        return self._addresses.get(host, [])

    async def token(self) -> str:
        """What the token program prints, run by the process that started this sealed one; empty where it fails."""
        if self.channel is None:
            return ""
        try:
            async with asyncio.timeout(TIMEOUT_S + _ANSWER_S):
                return "".join(await self._ask(self.channel, _TOKEN))
        except (TimeoutError, OSError):
            return ""

    async def _ask(self, channel: socket.socket, host: str) -> list[str]:
        if not self._asked:
            self.add_reader(channel, self._answered, channel)
        future = self._asked.get(host)
        if future is None:
            future = self._asked[host] = self.create_future()
            channel.send(host.encode("ascii"))
        return await asyncio.shield(future)

    def _answered(self, channel: socket.socket) -> None:
        try:
            data = channel.recv(_LONGEST_ANSWER)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.remove_reader(channel)
            return
        host, addresses = json.loads(data)
        future = self._asked.pop(host, None)
        if future is not None and not future.done():
            future.set_result(addresses)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
