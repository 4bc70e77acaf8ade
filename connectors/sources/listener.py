"""Accepts connections for an HTTP server, and closes those that ask for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Hashable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from inferline_stream.observability.connections import Connections

_SWEEP_S = 0.5
_AGAIN_S = 0.1


class Listener:
    """Hands accepted connections to a server. aiohttp and asyncio accept any number, and wait for headers for ever.

    Args:
        server: handles requests; it reports them to `connections`.
        listening: the socket.
        tls: of HTTPS; None for HTTP.
        connections: who is connected.
    """

    def __init__(
        self, server: web.Server, listening: socket.socket, tls: ssl.SSLContext | None, connections: Connections
    ) -> None:
        self._server, self._listening, self._tls, self._connections = server, listening, tls, connections
        self._greeted: set[asyncio.Task[None]] = set()
        """Connections whose TLS handshake is under way."""

    async def run(self) -> None:
        """Accept until cancelled."""
        self._listening.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            tasks.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError:  # the client has gone already, or there is no descriptor left
                await asyncio.sleep(_AGAIN_S)
                continue
            greeting = loop.create_task(self._greet(accepted))
            self._greeted.add(greeting)
            greeting.add_done_callback(self._greeted.discard)
            self._connections.keep({*self._server.connections, *self._greeted})
            self._connections.opened(greeting, loop.time())
            for connection in self._connections.in_excess():
                _close(connection)

    async def _greet(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # no TLS, or it has gone; the transport has closed the socket
            _, handler = await loop.connect_accepted_socket(self._server, accepted, ssl=self._tls)
            self._connections.opened(handler, loop.time())

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._connections.keep({*self._server.connections, *self._greeted})
            for connection in self._connections.overdue(loop.time()):
                _close(connection)


def _close(connection: Hashable) -> None:
    if isinstance(connection, asyncio.Task):
        connection.cancel()
    elif isinstance(connection, RequestHandler) and connection.transport is not None:
        connection.transport.abort()  # what it has not read of its answer is not waited for
