"""Durations and sizes as people write them: a number with its unit."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime


def is_whole(value: object, least: int = 1, most: float = math.inf) -> bool:
    """Whether a value is a whole number within bounds; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S = 36_500 * 86_400.0
"""Longer is a mistake, and a time so far ahead may be after the calendar's end."""
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def duration_s(text: str) -> float:
    """Seconds meant by a duration such as ``"250ms"``, ``"1.5s"`` or ``"10m"``.

    Raises:
        ValueError: no number, no unit, a unit that is not one of us, ms, s, m, min, h, d, or more than 36500d.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[2] not in _SECONDS:
        units = ", ".join(_SECONDS)
        raise ValueError(f'{text!r} is not a duration: write a number and its unit ({units}), e.g. "250ms"')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST_S:
        raise ValueError(f"{text!r} is longer than 36500d; give a shorter one")
    return seconds


def moment_s(text: str) -> float:
    """Seconds since the epoch of a time such as ``"2026-12-01T06:00:00+01:00"``; without a zone it is UTC.

    Raises:
        ValueError: it is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is not a time: write one such as 2026-12-01T06:00:00+01:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def share(text: str) -> float:
    """Share meant by a percentage such as ``"5%"``.

    Raises:
        ValueError: no number, or no percent sign.
    """
    match = _SHARE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{text!r} is no percentage: write a number and a percent sign, e.g. "5%"')
    return float(match[1]) / 100


def size_bytes(text: str) -> float:
    """Bytes meant by a size such as ``"64MB"`` or ``"256MiB"``.

    Raises:
        ValueError: no number, no unit, or a unit that is none of B, kB, MB, GB, KiB, MiB, GiB.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in _BYTES:
        raise ValueError(f'{text!r} is not a size: write a number and its unit ({", ".join(_BYTES)}), e.g. "64MB"')
    return float(match[1]) * _BYTES[match[2]]


def count_of(number: int, what: str) -> str:
    """``1 replica``, ``2 replicas``: a number of what its singular says."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def format_duration(seconds: float) -> str:
    """A duration for people, with the unit that keeps about three digits."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 1.0:
        return f"{_three_digits(seconds * 1e3)}ms"
    if seconds < 120.0:
        return f"{_three_digits(seconds)}s"
    return f"{_three_digits(seconds / 60)}m" if seconds < 7200 else f"{_three_digits(seconds / 3600)}h"


def _three_digits(number: float) -> str:
    """At least three digits, never an exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
