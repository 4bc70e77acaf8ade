"""Wait for what only asking can tell, and know whether something else drives a step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float, every_s: float = 0.05) -> bool:
    """Ask until the answer is yes, or the time is up; whether it was yes."""
    give_up_s = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() >= give_up_s:
            return False
        await asyncio.sleep(every_s)
    return True


@dataclass(slots=True)
class Driver:
    """What drives a step of the control loop in the loop's place, until it was silent for so long."""

    silent_s: float
    _heard_s: float = float("-inf")

    def heard(self) -> float:
        """It is at work now; returns the event loop's time."""
        self._heard_s = asyncio.get_running_loop().time()
        return self._heard_s

    @property
    def drives(self) -> bool:
        """Whether it does at present."""
        return asyncio.get_running_loop().time() - self._heard_s < self.silent_s
