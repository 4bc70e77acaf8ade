"""Which names our servers answer to."""

from __future__ import annotations

import http.client

import pytest

from inferline_stream.observability.limited_server import is_ours
from inferline_stream.observability.metrics import serve_metrics


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
    server = serve_metrics(lambda: None, 0, host)
    try:
        answers = {}
        for name in (f"127.0.0.1:{server.port}", f"evil.example:{server.port}"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            connection.request("GET", "/metrics", headers={"Host": name})
            answer = connection.getresponse()
            answers[name.partition(":")[0]] = (answer.status, b"inferline_build" in answer.read())
            connection.close()
    finally:
        server.close()
    assert answers == {"127.0.0.1": (200, True), "evil.example": (421, False)}
