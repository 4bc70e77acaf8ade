"""An HTTP server of threads for `/metrics` and the live page, with limits on who is connected and for how long."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, ClassVar

from inferline_stream.errors import UsageError
from inferline_stream.observability.connections import Connections

logger = logging.getLogger(__name__)

_LOOK_S = 0.05
"""How often a server looks whether it is to close: a run's end waits for that."""

_MOST_REQUESTS, _MOST_CONNECTIONS = 48, 64
"""Each connection holds a thread and a descriptor of the controller."""

_IDLE_S = 10.0
_AGAIN_S = 0.1

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_EVERY_ADDRESS = frozenset(("0.0.0.0", "::", ""))  # noqa: S104  compared with, not listened on


class LimitedServer(ThreadingHTTPServer):
    """Serves requests by a thread each, from its making until it is closed.

    The standard library's accepts any number of connections, however idle.

    Args:
        name: what it serves.
        option: of the command line, that sets the port.
        host: address or name to listen on.
        port: TCP port, 0 for any free one.
        handler: answers requests.
        request_s: longest time that an answer may take.
        connections: who is connected; by default, limits for a server of the controller.

    Raises:
        UsageError: the port is taken or may not be used.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        name: str,
        option: str,
        host: str,
        port: int,
        handler: type[LimitedHandler],
        *,
        request_s: float,
        connections: Connections | None = None,
    ) -> None:
        self.host = host
        self._connections = connections or Connections(_MOST_REQUESTS, _MOST_CONNECTIONS, _IDLE_S, request_s)
        self._living: set[socket.socket] = set()
        self._lock = Lock()
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family, _, _, _, address = found[0]
            super().__init__(address[:2], handler)  # type: ignore[arg-type]  # of a family that has a host and a port
        except OSError as error:
            raise UsageError(
                f"{name} cannot listen on {host}:{port} ({error.strerror}); choose another {option}, 0 for any"
            ) from None
        self.port: int = self.server_port
        self.url = f"http://{host}:{self.port}/"
        self._thread = Thread(target=self.serve_forever, args=(_LOOK_S,), name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; without a descriptor left, wait a moment, since the next attempt comes at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_AGAIN_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread; those that have been idle longest make room for it."""
        with self._lock:
            self._living.add(request)
            self._connections.opened(request, time.monotonic())
            _end(self._connections.in_excess())
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """End the connections that have taken too long."""
        with self._lock:
            _end(self._connections.overdue(time.monotonic()))

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._living.discard(request)
            self._connections.keep(self._living)
        super().shutdown_request(request)

    def began(self, connection: socket.socket) -> bool:
        """Note that a request is there; return whether there is room for it."""
        with self._lock:
            return self._connections.began(connection, time.monotonic())

    def ended(self, connection: socket.socket) -> None:
        """Note that a request is answered."""
        with self._lock:
            self._connections.ended(connection, time.monotonic())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong; a client that has gone, or was cut off, is no error."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("a request failed")


class LimitedHandler(BaseHTTPRequestHandler):
    """Answers requests that name this server by its own address or name."""

    server: LimitedServer
    timeout = _IDLE_S  # of one read or write
    other_host = "ask by this server's own address"
    fixed_headers: ClassVar[Mapping[str, str]] = {}

    def parse_request(self) -> bool:
        """Read a request's headers; return whether it will be answered."""
        if not super().parse_request():
            return False
        if not self.server.began(self.connection):
            self.answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many requests\n")
        elif not is_ours(self.headers.get("Host", ""), self.server.host):
            self.answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", f"{self.other_host}\n".encode())
        else:
            return True
        self.close_connection = True  # what of a body has not been read must not become the next request
        return False

    def handle_one_request(self) -> None:
        """Answer a request, or end where none comes."""
        super().handle_one_request()
        self.server.ended(self.connection)

    def answer(self, status: HTTPStatus, kind: str, body: bytes, **headers: str) -> None:
        """Send an answer that is all there."""
        self.send_response(status)
        for name, value in {**self.fixed_headers, **headers, "Content-Type": kind}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a line per request would drown the decisions."""


def _end(connections: list[Any]) -> None:
    """Let the threads of these find that they are over; each closes its own."""
    for connection in connections:
        with contextlib.suppress(OSError):  # it has gone already
            connection.shutdown(socket.SHUT_RDWR)


def is_ours(header: str, bound: str) -> bool:
    """Return whether a request's ``Host`` header names this server.

    A server that listens on every address answers to any address, and to names without a dot, as containers have them.
    Neither can be a name that somebody else has registered.

    Args:
        header: of the request.
        bound: the address or name that the server listens on.
    """
    name = _without_port(header.strip()).lower()
    if name in _LOOPBACK or (name and name == bound.strip("[]").lower()):
        return True
    return bound in _EVERY_ADDRESS and bool(name) and ("." not in name or _is_address(name))


def _without_port(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
