"""Where commands write: data on standard output, all else on standard error: bars, and log lines as text or JSON."""

from __future__ import annotations

import io
import itertools
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from inferline_stream.errors import UsageError
from inferline_stream.observability.plain_logs import PrintableFormatter
from inferline_stream.safe_text import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

_PIPE_COLUMNS = 120
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOISY = ("aiokafka", "faust", "httpx2", "mode")


def console(*, error: bool = False) -> Console:
    """Where people read: the terminal, or a pipe that keeps whole lines.

    NO_COLOR and COLUMNS are respected. Where standard error holds JSON log lines, what would be printed there
    becomes lines of it. Names and reasons that come out of records steer no terminal: see `printable`.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Printable(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text, "\n"))

    stream = sys.stderr if error else sys.stdout
    if error and logs_as_json():
        return Printable(file=_AsLogLines(), width=10_000, highlight=False, color_system=None)
    columns = None if stream.isatty() else shutil.get_terminal_size((_PIPE_COLUMNS, 50)).columns
    return Printable(stderr=error, width=columns, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    import msgspec

    text = printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    if sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        text = "".join(each if each.isascii() else json.dumps(each)[1:-1] for each in text)
    print(text)


def write_text(text: str, file: Path | None, what: str, option: str = "--save") -> None:
    """Write a text to a file; without one, print it.

    Raises:
        UsageError: the file that the option names cannot be written.
    """
    if file is None:
        print(text, end="")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {what} to {file}: {error.strerror}; choose another {option}") from None


def print_in_any_encoding() -> None:
    """Have what standard output and error cannot encode, as in an ASCII locale, be printed as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class _AsLogLines(io.StringIO):
    """Logs what is printed to it, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            logger.info("%s", line)
        return len(text)


class Bar:
    """Progress of long work on standard error, with the time that is left; without a terminal there, only notes.

    Args:
        label: what is being done, e.g. ``profiling``.
    """

    def __init__(self, label: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._console = console(error=True)
        columns = (
            TextColumn(label),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("", total=None, visible=False, left="")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:  # elsewhere it would print an empty line
            self._bar.stop()

    def show(self, done: float, total: float | None, doing: str = "") -> None:
        """So much is done of so much; a total of None where nobody can know."""
        visible = total is None or total > 0
        left = "" if total is None else "left"
        self._bar.update(self._task, completed=done, total=total, description=doing, visible=visible, left=left)

    def each(self, total: int) -> Callable[[str], None]:
        """Return a function that takes each of so many steps by name, as it begins."""
        begun = itertools.count()
        return lambda doing: self.show(next(begun), total, doing)

    def note(self, text: str) -> None:
        """Something worth keeping on the screen."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}``, then ``error`` with a traceback, then whatever ``extra`` gave."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        line |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
        return json.dumps(line, default=str)


class _StandardError(logging.Handler):
    """Writes to what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:  # as the logging module does: what cannot be logged must not end the work
            self.handleError(record)


def log_to_stderr(kind: Literal["text", "json"], level: str | None = None) -> None:
    """Let every logger write to standard error.

    Args:
        kind: lines for people, or JSON.
        level: least severe lines shown; by default warnings for people, who see decisions elsewhere, else info.
    """
    handler = _StandardError()
    handler.setFormatter(JsonLines() if kind == "json" else PrintableFormatter("%(levelname)s: %(message)s"))
    usual = logging.INFO if kind == "json" else logging.WARNING
    _log_to(handler, usual if level is None else level.upper())


def log_to_people(handler: logging.Handler) -> None:
    """Write lines for people through a handler that does not tear the live table; JSON lines stay where they are."""
    if not logs_as_json():
        handler.setFormatter(PrintableFormatter("%(message)s"))
        _log_to(handler, logging.getLogger().level)


def logs_as_json() -> bool:
    """Whether standard error holds JSON lines, so that nothing else may be written there."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def _log_to(handler: logging.Handler, level: int | str) -> None:
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what matters of them comes as our own errors
