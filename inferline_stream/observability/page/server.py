"""Serves the live page and its stream of updates from threads of its own. It is read-only."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import BoundedSemaphore, Event, Thread

from inferline_stream.errors import UsageError
from inferline_stream.observability.page.snapshot import Arrows, snapshot
from inferline_stream.observability.state import PipelineState

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

UPDATE_S = 0.4
"""Pause between two updates: more than two a second."""

MOST_VIEWERS = 32
"""Streams at once; each holds a thread."""


class PageServer:
    """The page of one pipeline. Use as a context manager, or call `close`.

    Args:
        state: returns the newest state, None before there is one; called from other threads.
        arrows: edges of the DAG.
        port: TCP port, 0 for any free one.
        host: address to listen on.

    Raises:
        UsageError: the port is taken or may not be used.
    """

    def __init__(
        self, state: Callable[[], PipelineState | None], arrows: Arrows, port: int, host: str = "127.0.0.1"
    ) -> None:
        self._closing = Event()
        handler = _handler(state, arrows, self._closing, {host, "localhost", "127.0.0.1", "[::1]"})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise UsageError(
                f"the page cannot listen on {host}:{port} ({error.strerror}); choose another --ui-port, 0 for any"
            ) from None
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self.url = f"http://{host}:{self.port}/"
        self._thread = Thread(target=self._server.serve_forever, name="page", daemon=True)
        self._thread.start()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every stream and free the port."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@cache
def _file(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _handler(
    state: Callable[[], PipelineState | None], arrows: Arrows, closing: Event, hosts: set[str]
) -> type[BaseHTTPRequestHandler]:
    viewers = BoundedSemaphore(MOST_VIEWERS)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_GET(self) -> None:
            # A page of another site could otherwise read ours through a name that resolves to this machine.
            if self.headers.get("Host", "").rpartition(":")[0] not in hosts:
                self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"ask for this page by its own address\n")
            elif self.path == "/events":
                self._stream()
            elif self.path in _FILES:
                name, kind = _FILES[self.path]
                self._answer(HTTPStatus.OK, kind, _file(name))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            for header, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            if not viewers.acquire(blocking=False):
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many viewers\n")
                return
            self.close_connection = True
            try:
                self.send_response(HTTPStatus.OK)
                for header, value in {**_HEADERS, "Content-Type": "text/event-stream"}.items():
                    self.send_header(header, value)
                self.end_headers()
                self.wfile.write(b"retry: 1000\n\n")
                while not closing.is_set():
                    newest = state()
                    if newest is not None:
                        self.wfile.write(b"data: " + snapshot(newest, arrows) + b"\n\n")
                    else:
                        self.wfile.write(b": no state yet\n\n")
                    self.wfile.flush()
                    closing.wait(UPDATE_S)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass  # the viewer has left
            finally:
                viewers.release()

        def log_message(self, *_: object) -> None:
            """Say nothing: a line per request would drown the decisions."""

    return Handler
