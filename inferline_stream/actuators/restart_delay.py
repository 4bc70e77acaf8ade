"""How long to wait before a replica or a dispatcher that died is started again."""

from __future__ import annotations

FIRST_RESTART_S = 0.1
"""Wait before a dead replica's first restart: short, since most deaths are single ones."""

LONGEST_RESTART_S = 30.0
"""Waits double up to this: a stage that cannot start costs little, and is back soon after it is fixed."""

SETTLED_S = 5.0
"""A replica that lived this long had started: its death is a new one, not the same again."""


def restart_in_s(failures: int) -> float:
    """Wait before the restart that follows so many deaths in a row, 1 or more."""
    return float(min(LONGEST_RESTART_S, FIRST_RESTART_S * 2.0 ** min(failures - 1, 60)))
