"""Log lines on standard error: for people, or one JSON object each for whatever collects them."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from inferline_stream.observability.plain_logs import PrintableFormatter

_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOISY = ("aiokafka", "faust", "mode")


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
