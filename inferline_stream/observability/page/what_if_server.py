"""Serves the page on which people move an SLO, traffic and prices, and see what that would come to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from inferline_stream.errors import InferlineError
from inferline_stream.observability.limited_server import LimitedHandler, LimitedServer
from inferline_stream.observability.page.server import HEADERS, page_file

logger = logging.getLogger(__name__)

_FILES = {
    "/": ("what-if.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/what-if.js": ("what-if.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_LONGEST_ANSWER_S = 600.0

Answer = Callable[[bytes], Any]
"""What answers a question, given as JSON. It raises a ValueError for what is none, an `InferlineError` for what cannot
be, and a LookupError where nobody waits for the answer any more."""


class WhatIfServer:
    """The page, from its making until it is closed.

    Args:
        answers: by path, such as ``/plan``.
        port: TCP port, 0 for any free one.
        host: address to listen on.

    Raises:
        UsageError: the port is taken or may not be used.
    """

    def __init__(self, answers: Mapping[str, Answer], port: int, host: str = "127.0.0.1") -> None:
        handler = partial(_Handler, answers)
        self._server = LimitedServer("the page", "--ui-port", host, port, handler, request_s=_LONGEST_ANSWER_S)  # type: ignore[arg-type]  # makes one
        self.url = f"http://{host}:{self._server.port}/"

    def close(self) -> None:
        """Free the port."""
        self._server.close()


class _Handler(LimitedHandler):
    protocol_version = "HTTP/1.1"
    other_host = "ask for this page by its own address"
    fixed_headers = HEADERS

    def __init__(self, answers: Mapping[str, Answer], *of_connection: Any) -> None:
        self._answers = answers
        super().__init__(*of_connection)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        if asked.path in _FILES:
            name, kind = _FILES[asked.path]
            self.answer(HTTPStatus.OK, kind, page_file(name))
        elif asked.path in self._answers:
            question = parse_qs(asked.query).get("question", ["{}"])[0]
            self.answer(*_answered(self._answers[asked.path], question.encode()))
        else:
            self.answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")


def _answered(answer: Answer, question: bytes) -> tuple[HTTPStatus, str, bytes]:
    try:
        return HTTPStatus.OK, "application/json", msgspec.json.encode(answer(question))
    except LookupError:
        return HTTPStatus.CONFLICT, "text/plain", b"a newer question has come\n"
    except (ValueError, InferlineError) as error:  # msgspec's errors are ValueErrors
        return HTTPStatus.BAD_REQUEST, "text/plain", f"{error}\n".encode()
