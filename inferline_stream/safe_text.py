"""Text of unknown origin, made safe to print: characters that steer a terminal are written as escapes."""

from __future__ import annotations

import re

_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0, DEL, C1, line and paragraph separators, and what turns the direction of text. Surrogates cannot be printed."""


def printable(text: str, keep: str = "") -> str:
    r"""Return the text with every steering character as an escape, e.g. ``\x1b``.

    Args:
        text: from a record, a header, or anything else that somebody may have chosen.
        keep: steering characters that are wanted, e.g. line breaks.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_json(document: str) -> str:
    """Return the same JSON document, of text alone that steers nothing: its line breaks and what JSON escapes."""
    return _STEERING.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def _escape(character: str) -> str:
    return f"\\x{ord(character):02x}" if character < "\u0100" else f"\\u{ord(character):04x}"
