"""`/metrics`: the newest state in Prometheus' text format, written and sent with as little work as that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client.core import Metric

from inferline_stream.errors import UsageError
from inferline_stream.observability.metrics import StateCollector
from inferline_stream.observability.state import PipelineState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ENDINGS = {"counter": ("_total", "counter"), "info": ("_info", "gauge")}
"""What the text format adds to a family's name, and what it calls its type."""

_IDLE_S = 90.0
"""Prometheus keeps its connection; nobody else needs one that is silent for longer than a scrape interval."""


def text_of(families: Iterable[Metric]) -> bytes:
    """Families in the text format, version 0.0.4.

    A fraction of what `prometheus_client.generate_latest` takes, which checks again and again names that are ours.
    """
    return "".join(_lines(families)).encode()


def _lines(families: Iterable[Metric]) -> Iterator[str]:
    known: dict[str, str] = {}

    def quoted(value: str) -> str:
        if value not in known:
            known[value] = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        return known[value]

    for family in families:
        ending, kind = _ENDINGS.get(family.type, ("", family.type))
        name, meaning = f"{family.name}{ending}", family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n"
        for sample in family.samples:
            labels = ",".join([f'{label}="{quoted(value)}"' for label, value in sample.labels.items()])
            yield f"{sample.name}{{{labels}}} {float(sample.value)!r}\n"


@dataclass(frozen=True, slots=True)
class MetricsServer:
    """A running `/metrics` endpoint."""

    port: int
    _server: ThreadingHTTPServer
    _thread: Thread

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(state: Callable[[], PipelineState | None], port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve `/metrics` from threads of its own: it answers even where the control loop hangs.

    Args:
        state: returns the newest state; called at each scrape, from another thread.
        port: TCP port, 0 for any free one.
        host: address to listen on.

    Raises:
        UsageError: the port is taken or may not be used.
    """
    try:
        server = ThreadingHTTPServer((host, port), _handler(StateCollector(state)))
    except OSError as error:
        raise UsageError(
            f"metrics cannot listen on {host}:{port} ({error.strerror}); choose another --metrics-port, 0 for any"
        ) from None
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return MetricsServer(server.server_port, server, thread)


def _handler(collector: StateCollector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # whoever scrapes every second need not connect every second
        timeout = _IDLE_S
        wbufsize = -1  # headers and body are sent at once
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if self.path.partition("?")[0] in ("/", "/metrics"):
                self._answer(HTTPStatus.OK, CONTENT_TYPE, text_of(collector.collect()))
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"metrics are at /metrics\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a line per scrape would drown the decisions."""

    return Handler
