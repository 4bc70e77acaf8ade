import json
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from inferline_stream.cli.output import console
from inferline_stream.observability.plain_logs import PrintableFormatter
from inferline_stream.safe_text import printable, printable_json


@given(st.text(alphabet=st.characters(codec=None)))
def test_printable_text_steers_nothing_and_can_be_written(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not {unicodedata.bidirectional(character) for character in shown} & turning
    shown.encode()


@given(st.text())
def test_a_printable_document_is_the_same_document(text: str) -> None:
    document = json.dumps({"text": text}, ensure_ascii=False, indent=2)
    shown = printable_json(document)
    assert json.loads(shown) == {"text": text}
    assert not set(shown) & set("\x1b\x7f\x9b\u202e\u2066")


def test_plain_text_of_any_language_stays_as_it_is() -> None:
    text = "naïve – 日本語 עברית فارسی 👩‍🔬 λ"
    assert printable(text) == text


def test_a_log_line_steers_nothing_and_keeps_the_lines_of_a_traceback() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        given = logging.LogRecord("a", logging.INFO, "", 0, "event %s", ("\x1b]0;x\x07\u202e",), sys.exc_info())
    line = PrintableFormatter("%(message)s").format(given)
    assert line.startswith("event \\x1b]0;x\\x07\\u202e\nTraceback")
    assert "\x1b" not in line


def test_the_console_prints_no_names_that_steer_it(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="run", caption=Text("why: \x1b[2J"))
    table.add_row(Text("ended: \x1b[31m"), "\x9b1m")
    console().print(table)
    console().print(Text("lost: \x1b[2J", style="bold"))
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x9b")
    assert "lost: \\x1b[2J" in printed
