"""Connections that ask for nothing hold neither threads nor those that ask, and only our own names are answered to."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferline_stream.observability.connections import Connections
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer, is_ours
from inferline_stream.observability.metrics import serve_metrics
from tests.unit.observability.states import a_state

DEADLINE_S = 20.0


@contextlib.contextmanager
def serving(handler: type[LimitedHandler], **limits: float) -> Iterator[tuple[str, int]]:
    connections = Connections(**{"most_busy": 9, "most": 9, **limits})
    server = LimitedServer("it", "--port", "127.0.0.1", 0, handler, request_s=1.0, connections=connections)
    with contextlib.closing(server):
        yield "127.0.0.1", server.port


@contextlib.contextmanager
def asking(address: tuple[str, int], **headers: str) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=DEADLINE_S)) as client:
        client.request("GET", "/metrics", headers=headers)
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


@given(st.lists(st.tuples(st.sampled_from(["open", "begin", "end", "tidy"]), st.integers(0, 9)), max_size=80))
def test_busy_connections_are_never_closed_to_make_room(steps):
    """Against plain lists: idle ones in order of since when, and a set of busy ones."""
    connections = Connections(most_busy=2, most=4, idle_s=10.0, request_s=30.0)
    idle: list[int] = []
    busy: set[int] = set()
    for now, (step, number) in enumerate(steps):
        if step == "open" and number not in idle and number not in busy:
            connections.opened(number, now)
            idle.append(number)
        elif step == "begin" and number in idle:
            idle.remove(number)
            busy.add(number)
            assert connections.began(number, now) is (len(busy) <= 2)
        elif step == "end" and number in busy:
            busy.remove(number)
            idle.append(number)
            connections.ended(number, now)
        elif step == "tidy":
            excess = max(0, len(idle) + len(busy) - 4)
            assert connections.in_excess() == idle[:excess]
            del idle[:excess]


def test_who_takes_too_long_has_to_go():
    connections = Connections(most_busy=9, most=9, idle_s=10.0, request_s=30.0)
    for name in "abc":
        connections.opened(name, 0.0)
    connections.began("b", 5.0)
    assert connections.overdue(10.0) == []
    connections.began("c", 9.0)
    connections.ended("c", 10.0)
    assert connections.overdue(11.0) == ["a"]
    connections.keep({"b"})
    assert connections.overdue(36.0) == ["b"]
    assert connections.overdue(99.0) == []


@pytest.mark.parametrize("header", ["localhost", "LOCALHOST:9464", "127.0.0.1:9464", "[::1]:9464", "127.0.0.1"])
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::", "10.0.0.7"])
def test_this_machine_is_asked_by_its_own_names(header: str, bound: str) -> None:
    assert is_ours(header, bound)


@pytest.mark.parametrize(
    ("header", "bound", "ours"),
    [
        ("10.0.0.7:9464", "10.0.0.7", True),
        ("10.0.0.8:9464", "10.0.0.7", False),
        ("metrics.example.com:9464", "metrics.example.com", True),
        ("[fd00::7]:9464", "fd00::7", True),
        ("10.0.0.8:9464", "0.0.0.0", True),
        ("[fd00::7]:9464", "::", True),
        ("run:9464", "0.0.0.0", True),
        ("run:9464", "127.0.0.1", False),
        ("evil.example:9464", "127.0.0.1", False),
        ("evil.example:9464", "0.0.0.0", False),
        ("127.0.0.1.evil.example:9464", "0.0.0.0", False),
        ("localhost.evil.example", "127.0.0.1", False),
        ("", "0.0.0.0", False),
        ("", "127.0.0.1", False),
        ("[::1", "127.0.0.1", True),
        ("[]:80", "0.0.0.0", False),
    ],
)
def test_names_that_anybody_may_register_are_not_ours(header: str, bound: str, ours: bool) -> None:
    assert is_ours(header, bound) is ours


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_metrics_answer_to_no_name_of_another_site(host: str) -> None:
    with contextlib.closing(serve_metrics(lambda: None, 0, host)) as server:
        answers = {}
        for name in ("127.0.0.1", "evil.example"):
            with asking(("127.0.0.1", server.port), Host=f"{name}:{server.port}") as client:
                answer = client.getresponse()
                answers[name] = (answer.status, b"inferline_build" in answer.read())
    assert answers == {"127.0.0.1": (200, True), "evil.example": (421, False)}
