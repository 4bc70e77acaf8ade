"""Serves the page on which people move an SLO, traffic and prices, and see what that would come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from inferline_stream.errors import InferlineError
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer
from inferline_stream.observability.page.page_files import HEADERS, WHAT_IF, page_file

_FILES = {**WHAT_IF, "/": WHAT_IF["/what-if"]}

_LONGEST_ANSWER_S = 600.0

Answer = Callable[[bytes], Any]
"""What answers a question, given as JSON. It raises a ValueError for what is none, an `InferlineError` for what cannot
be, and a LookupError where nobody waits for the answer any more."""

Answers = Mapping[str, Answer]
"""By path, such as ``/plan``."""


def serve_what_if(answers: Answers, port: int) -> LimitedServer:
    """Serve the page, on this host alone.

    Args:
        answers: to what the page asks.
        port: TCP port, 0 for any free one.

    Raises:
        UsageError: the port is taken or may not be used.
    """
    handler = partial(_Handler, answers)
    return LimitedServer("the page", "--ui-port", "127.0.0.1", port, handler, request_s=_LONGEST_ANSWER_S)  # type: ignore[arg-type]  # makes one


class _Handler(LimitedHandler):
    protocol_version = "HTTP/1.1"
    other_host = "ask for this page by its own address"
    fixed_headers = HEADERS

    def __init__(self, answers: Answers, *of_connection: Any) -> None:
        self._answers = answers
        super().__init__(*of_connection)

    def do_GET(self) -> None:
        if self.path in _FILES:
            name, kind = _FILES[self.path]
            self.answer(HTTPStatus.OK, kind, page_file(name))
        else:
            self.answer(*answered(self._answers, self.path))


def answered(answers: Answers, target: str) -> tuple[HTTPStatus, str, bytes]:
    """Return status, content type and body for a request's path with its question."""
    asked = urlsplit(target)
    if asked.path not in answers:
        return HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n"
    question = parse_qs(asked.query).get("question", ["{}"])[0]
    try:
        return HTTPStatus.OK, "application/json", msgspec.json.encode(answers[asked.path](question.encode()))
    except LookupError:  # a newer question has come
        return HTTPStatus.OK, "application/json", b"null"
    except (ValueError, InferlineError) as error:  # msgspec's errors are ValueErrors
        return HTTPStatus.BAD_REQUEST, "text/plain", f"{error}\n".encode()
