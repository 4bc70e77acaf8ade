"""Log lines, and files that options name."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferline_stream.cli.output import log_to_people, print_in_any_encoding, print_json, write_text
from inferline_stream.errors import UsageError


@pytest.fixture
def _loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_loggers_as_before")
def test_a_line_for_people_is_its_message_and_nothing_that_a_terminal_would_obey() -> None:
    written = io.StringIO()
    log_to_people(logging.StreamHandler(written))
    logging.getLogger("inferline_stream.of_this_test").error("replica %s ended: \x1b[2J", "a-1")
    assert written.getvalue() == "replica a-1 ended: \\x1b[2J\n"


def test_a_document_is_the_same_where_output_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    print_json({"×": "\U0001f600"})
    assert json.loads(written.getvalue()) == {"×": "\U0001f600"}


def test_what_the_encoding_of_output_lacks_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    print_in_any_encoding()
    print("2 × cpu-1")  # noqa: T201  what commands do
    assert written.getvalue() == b"2 ? cpu-1\n"


def test_a_file_that_cannot_be_written_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the page to .*no/page\.html: No such file .*; choose another --html"):
        write_text("<html>", tmp_path / "no/page.html", "the page", "--html")
    write_text("€", tmp_path / "page.html", "the page", "--html")
    assert (tmp_path / "page.html").read_bytes() == "€".encode()
