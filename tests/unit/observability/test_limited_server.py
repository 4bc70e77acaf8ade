"""Connections that ask for nothing hold neither threads nor those that ask."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

from inferline_stream.observability.connections import Connections
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer
from inferline_stream.observability.metrics import serve_metrics
from tests.unit.observability.states import a_state

DEADLINE_S = 20.0


@contextlib.contextmanager
def serving(handler: type[LimitedHandler], **limits: float) -> Iterator[tuple[str, int]]:
    server = LimitedServer("127.0.0.1", 0, handler, Connections(**{"most_busy": 9, "most": 9, **limits}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def asking(address: tuple[str, int]) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=DEADLINE_S)) as client:
        client.request("GET", "/metrics")
        yield client


class Answering(LimitedHandler):
    def do_GET(self) -> None:
        self.answer(HTTPStatus.OK, "text/plain", b"yes")


def test_any_number_of_idle_connections_holds_up_no_scrape_and_few_threads():
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        server = serve_metrics(a_state, port=0)
        stack.callback(server.close)
        address = ("127.0.0.1", server.port)
        for number in range(300):
            stack.enter_context(socket.create_connection(address, DEADLINE_S))
            if number % 100 == 99:
                with asking(address) as client:
                    assert b"inferline_state_age_seconds" in client.getresponse().read()
        assert threading.active_count() - before < 100


def ended_while_dripping(connection: socket.socket) -> bool:
    connection.settimeout(0.02)
    for _ in range(1000):
        try:
            connection.sendall(b"G")
            return not connection.recv(1)
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_headers_that_do_not_come_are_not_waited_for_however_slowly_they_drip():
    with (
        serving(Answering, idle_s=0.3, request_s=60.0) as address,
        socket.create_connection(address, DEADLINE_S) as silent,
        socket.create_connection(address, DEADLINE_S) as slow,
    ):
        assert ended_while_dripping(slow)
        assert silent.recv(1) == b""


def test_an_answer_that_takes_longer_than_an_idle_connection_may_is_not_cut_off():
    let = threading.Event()

    class Waiting(LimitedHandler):
        def do_GET(self) -> None:
            let.wait(DEADLINE_S)
            self.answer(HTTPStatus.OK, "text/plain", b"at last")

    with (
        serving(Waiting, idle_s=0.3, request_s=60.0) as address,
        asking(address) as client,
        socket.create_connection(address, DEADLINE_S) as idle,
    ):
        assert idle.recv(1) == b"", "it has been idle for too long"
        let.set()
        assert client.getresponse().read() == b"at last"


def test_a_request_beyond_the_limit_is_asked_to_come_again():
    begun, let = threading.Event(), threading.Event()

    class Waiting(LimitedHandler):
        def do_GET(self) -> None:
            begun.set()
            let.wait(DEADLINE_S)
            self.answer(HTTPStatus.OK, "text/plain", b"yes")

    with serving(Waiting, most_busy=1, idle_s=60.0, request_s=60.0) as address, asking(address) as first:
        begun.wait(DEADLINE_S)
        with asking(address) as second:
            assert second.getresponse().status == 503
        let.set()
        assert first.getresponse().read() == b"yes"
