"""Wait for what only asking can tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float, every_s: float = 0.05) -> bool:
    """Ask until the answer is yes, or the time is up; whether it was yes."""
    give_up_s = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() >= give_up_s:
            return False
        await asyncio.sleep(every_s)
    return True
