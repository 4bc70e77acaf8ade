import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from inferline_stream.errors import UsageError
from inferline_stream.observability.page.server import PageServer
from tests.unit.observability.states import a_state

ARROWS = [("language", "verdict", False)]


@pytest.fixture
def page():
    with PageServer(a_state, ARROWS, port=0) as server:
        yield server


@contextmanager
def asking(port: int, path: str, method: str = "GET", **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, headers=headers)
    with closing(connection), closing(connection.getresponse()) as answer:
        yield answer


@pytest.mark.parametrize("path", ["/", "/page.js", "/charts.js", "/page.css", "/icon.svg"])
def test_every_file_of_the_page_is_served_with_headers_that_allow_nothing_from_elsewhere(page, path):
    with asking(page.port, path) as answer:
        assert answer.status == 200
        assert answer.read()
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../server.py", "/server.py", "/etc/passwd", "/%2e%2e/server.py"])
def test_nothing_else_is_served(page, path):
    with asking(page.port, path) as answer:
        assert answer.status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_it_is_read_only(page, method):
    with asking(page.port, "/", method) as answer:
        assert answer.status == 501


def test_a_page_of_another_site_cannot_read_it_through_a_name_of_its_own(page):
    with asking(page.port, "/events", Host=f"evil.example:{page.port}") as answer:
        assert answer.status == 421


def test_updates_stream_as_one_json_object_each(page):
    with asking(page.port, "/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        lines = [answer.readline().decode().strip() for _ in range(5)]
    updates = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert updates[0]["pipeline"] == "moderation"
    assert updates[0]["slo_missed"] == 30
    assert updates[0]["arrows"] == [["language", "verdict", False]]


def test_closing_ends_open_streams():
    page = PageServer(a_state, ARROWS, port=0)
    with asking(page.port, "/events") as answer:
        answer.readline()
        page.close()
        assert answer.read().endswith(b"\n")  # it ends, within the time-out of the connection


def test_a_taken_port_is_a_usage_error_that_names_the_option(page):
    with pytest.raises(UsageError, match=f"{page.port}.*--ui-port"):
        PageServer(a_state, ARROWS, port=page.port)


def test_the_page_is_small_enough_to_be_there_at_once(page):
    size = 0
    for path in ("/", "/page.js", "/charts.js", "/page.css", "/icon.svg"):
        with asking(page.port, path) as answer:
            size += len(answer.read())
    assert 10_000 < size <= 300_000
