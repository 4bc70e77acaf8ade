"""How processes of ours without a command line log: plain text to standard error, whatever records hold."""

from __future__ import annotations

import logging

from inferline_stream.safe_text import printable


class PrintableFormatter(logging.Formatter):
    """Log lines for people: what records hold may be part of them. Line breaks stay, for tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        return printable(super().format(record), "\n\t")


def log_to_stderr_plainly() -> None:
    """Let a process of ours, which has no command line, log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
