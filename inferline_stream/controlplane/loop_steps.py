"""Steps of the control loop: what wakes one, and what comes of its errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from inferline_stream.errors import InferlineError

logger = logging.getLogger(__name__)

OVER_S = 10.0
"""An error is over once its step has worked for so long: one that comes and goes would fill the log with its ends."""

AGAIN_S = 60.0
"""How often an error that lasts is logged, with how often it has come since."""

_KNOWN = 50
"""Different errors that are remembered. Where texts differ every time, those not raised for longest are forgotten."""


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float, every_s: float = 0.05) -> bool:
    """Ask until the answer is yes, or the time is up; whether it was yes."""
    give_up_s = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() >= give_up_s:
            return False
        await asyncio.sleep(every_s)
    return True


async def woken(wake: asyncio.Event, within_s: float) -> None:
    """Wait until something has changed, or for so long."""
    try:
        async with asyncio.timeout(within_s):
            await wake.wait()
    except TimeoutError:
        pass
    wake.clear()


@dataclass(slots=True)
class _Repeated:
    step: object
    logged_s: float
    since: int = 0
    worked_s: float | None = None
    """Since when its step has worked again."""


class StepFailures:
    """Counts what steps raise, and logs each error once, then now and then, and its end, so that it fills no log."""

    def __init__(self) -> None:
        self.count = 0
        """All that were raised."""
        self._known: dict[str, _Repeated] = {}

    def add(self, step: object, error: Exception, now_s: float) -> None:
        """Count an error. A new one is logged, with its traceback unless it is of a kind that says what to do.

        Args:
            step: any value that stands for the step.
            error: what it raised.
            now_s: on any clock.
        """
        self.count += 1
        what = f"{type(error).__name__}: {error}"
        known = self._known.get(what)
        if known is None:
            traceback = None if isinstance(error, InferlineError) else error
            logger.error("a step of the control loop failed: %s", what, exc_info=traceback)
            self._known[what] = _Repeated(step, now_s)
            if len(self._known) > _KNOWN:
                del self._known[next(iter(self._known))]
            return
        self._known[what] = self._known.pop(what)
        known.step, known.worked_s = step, None
        known.since += 1
        if now_s - known.logged_s >= AGAIN_S:
            logger.error(
                "a step of the control loop failed %d more times in %.0f s: %s",
                known.since,
                now_s - known.logged_s,
                what,
            )
            self._known[what] = _Repeated(step, now_s)

    def worked(self, step: object, now_s: float) -> None:
        """Note that a step has raised nothing, and log which of its errors are over."""
        for what, known in list(self._known.items()):
            if known.step != step:
                continue
            if known.worked_s is None:
                known.worked_s = now_s
            elif now_s - known.worked_s >= OVER_S:
                del self._known[what]
                logger.info("a step of the control loop has worked for %.0f s after: %s", now_s - known.worked_s, what)
