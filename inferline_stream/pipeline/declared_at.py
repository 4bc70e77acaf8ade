"""Where a topology declares something."""

from __future__ import annotations

import sys


def declared_at() -> str:
    """Return ``file:line`` of the code that constructs the object whose constructor calls this."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
