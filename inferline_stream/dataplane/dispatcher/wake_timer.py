"""A timer that is set to the earliest of the times it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class WakeTimer:
    """Calls back once at the earliest time that it was asked for since it last did.

    Args:
        loop: whose clock the times are of.
        wake: called with nothing set, so that it can ask for the next time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._loop = loop
        self._wake = wake
        self._handle: asyncio.TimerHandle | None = None
        self._at_s = 0.0

    def wake_at(self, at_s: float) -> None:
        """Call back at a time, unless an earlier one is set."""
        if self._handle is not None:
            if self._at_s <= at_s:
                return
            self._handle.cancel()
        self._at_s = at_s
        self._handle = self._loop.call_at(at_s, self._due)

    def cancel(self) -> None:
        """Call back at none of the times asked for so far."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        self._handle = None
        self._wake()
