import http.client
import itertools
import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import pytest

from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.observability.page.server import PageCommand, PageControl, PageServer, _keep
from inferline_stream.tuner.outlook import HourAhead
from tests.unit.observability.states import a_state

FILES = ("/page.js", "/charts.js", "/dag.js", "/control.js", "/page.css", "/icon.svg")
TOKEN = "a token of 24 characters"
ARROWS = [("language", "verdict", False)]


@pytest.fixture
def page():
    with closing(PageServer(a_state, ARROWS, port=0)) as server:
        yield server


@pytest.fixture
def commands() -> list[PageCommand]:
    return []


@pytest.fixture
def writable(commands: list[PageCommand]):
    with closing(PageServer(a_state, ARROWS, port=0, control=PageControl(TOKEN, commands.append))) as server:
        yield server


@contextmanager
def asking(
    port: int, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, body, headers)
    with closing(connection), closing(connection.getresponse()) as answer:
        yield answer


@pytest.mark.parametrize("path", ["/", *FILES])
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


def test_the_hours_ahead_are_served_two_days_of_them():
    hours = tuple(HourAhead(3600.0 * n, 5.0, {"language": 2}, 0.2) for n in range(168))
    with (
        closing(PageServer(lambda: replace(a_state(), hours=hours), ARROWS, port=0)) as server,
        asking(server.port, "/ahead") as answer,
    ):
        shown = json.loads(answer.read())
    assert len(shown) == 48
    assert shown[1] == {"time_s": 3600.0, "rate": 5.0, "replicas": {"language": 2}, "cost_per_hour": 0.2, "words": ""}


def test_without_a_token_it_takes_no_command(page):
    with asking(page.port, "/control", "POST", '{"action": "pause"}', Authorization=f"Bearer {TOKEN}") as answer:
        assert answer.status == 501
    with asking(page.port, "/history") as answer:
        assert json.loads(answer.read())["writable"] is False


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer another"}, {"Authorization": TOKEN}])
def test_who_does_not_know_the_token_commands_nothing(writable, commands, headers):
    with asking(writable.port, "/control", "POST", '{"action": "pause"}', **headers) as answer:
        assert answer.status == 401
    assert commands == []


def test_who_knows_the_token_is_obeyed(writable, commands):
    body = '{"action": "scale", "stage": "language", "replicas": 5}'
    with asking(writable.port, "/control", "POST", body, Authorization=f"Bearer {TOKEN}") as answer:
        assert answer.status == 200
    assert commands == [PageCommand("scale", "language", 5)]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("pause", "malformed"),
        ('{"action": "drop"}', "drop"),
        ('{"action": "pause", "more": 1}', "more"),
        ('{"action": "scale", "stage": "nowhere", "replicas": 1}', "nowhere"),
        ('{"action": "scale", "stage": "language", "replicas": -1}', "-1 replicas"),
        (" " * 2000, "no command"),
    ],
)
def test_what_is_no_command_is_answered_in_words_and_obeyed_by_nobody(writable, commands, body, words):
    with asking(writable.port, "/control", "POST", body, Authorization=f"Bearer {TOKEN}") as answer:
        assert answer.status == 400
        assert words in answer.read().decode()
    assert commands == []


def test_a_page_of_another_site_commands_nothing_even_with_the_token(writable, commands):
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": f"evil.example:{writable.port}"}
    with asking(writable.port, "/control", "POST", '{"action": "pause"}', **headers) as answer:
        assert answer.status == 421
    assert commands == []


def test_a_command_that_kafka_does_not_take_is_answered_in_words():
    def unreachable(_: PageCommand) -> None:
        raise Unreachable("Kafka at nowhere did not take it")

    with (
        closing(PageServer(a_state, ARROWS, port=0, control=PageControl(TOKEN, unreachable))) as server,
        asking(server.port, "/control", "POST", '{"action": "pause"}', Authorization=f"Bearer {TOKEN}") as answer,
    ):
        assert (answer.status, answer.read()) == (503, b"Kafka at nowhere did not take it\n")


def test_a_token_that_could_be_guessed_is_a_usage_error():
    with pytest.raises(UsageError, match="--ui-token has 6 characters"):
        PageControl("secret", print)


def test_who_comes_late_gets_what_was_before():
    times = itertools.count(1000)
    with closing(PageServer(lambda: replace(a_state(), time_s=float(next(times))), ARROWS, port=0)) as server:
        deadline_s = time.monotonic() + 10
        samples = []
        while len(samples) < 2:
            assert time.monotonic() < deadline_s, "no two samples within 10 s"
            with asking(server.port, "/history") as answer:
                samples = json.loads(answer.read())["samples"]
    assert samples[0][1:] == [55.5, 0.05, 0.12, 0.3, 0.1995, 0.133, 3, 2]
    assert samples[1][0] > samples[0][0]


def test_the_time_before_the_clock_was_set_back_is_forgotten_and_the_time_after_it_kept() -> None:
    class Closing(Event):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.left = times

        def wait(self, timeout: float | None = None) -> bool:
            self.left -= 1
            return self.left < 0

    times_s, samples = iter((5000.0, 5001.0, 1400.0, 1401.0, 1401.0)), deque[Any]()
    _keep(lambda: replace(a_state(), time_s=next(times_s)), samples, Closing(5))
    assert [sample[0] for sample in samples] == [1400.0, 1401.0]


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
    for path in ("/", *FILES):
        with asking(page.port, path) as answer:
            size += len(answer.read())
    assert 10_000 < size <= 300_000
