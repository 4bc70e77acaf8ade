"""An event loop whose time passes only when nothing is left to do, and then at once."""

from __future__ import annotations

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import patch

EPOCH_S = 1.7e9
_STUCK_S = 5.0


class _Selector(selectors.DefaultSelector):
    """Lets the loop's clock pass instead of waiting."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0.0)
        if ready or timeout == 0.0:
            return ready
        if timeout is None:  # a thread may answer; nothing else can
            if ready := super().select(_STUCK_S):
                return ready
            raise AssertionError("every task waits for something that never comes")
        self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time`, and while `run` runs that of module `time`, are virtual."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s

    def sleep(self, duration_s: float) -> None:
        """Let time pass that nothing else can use, as where this process is held up."""
        self._clock.now_s += duration_s


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end in virtual time."""
    loop = VirtualLoop()
    try:
        with (
            patch.object(time, "time", lambda: EPOCH_S + loop.time()),
            patch.object(time, "monotonic", loop.time),
            patch.object(time, "clock_gettime", lambda clock: loop.time()),
            patch.object(time, "sleep", loop.sleep),
        ):
            loop.run_until_complete(work)
    finally:
        loop.close()


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make of a test that awaits one that runs to the end in virtual time."""

    def tested() -> None:
        run(test())

    return functools.update_wrapper(tested, test, updated=())
