"""What tests wait for, each time with a deadline."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 90.0


async def until(holds: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> None:
    """Wait until something holds: what is called, or awaited where it returns a coroutine, is true."""
    try:
        async with asyncio.timeout(within_s) as limit:
            while not (await held if inspect.isawaitable(held := holds()) else held):
                await asyncio.sleep(0.02)
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"not within {within_s:g} s: {what}") from None


async def next_exit(reporter: Any) -> Any:
    """The next end of a replica or a dispatcher that an actuator or a supervisor reports."""
    async with asyncio.timeout(DEADLINE_S):
        return await reporter.next_exit()


def alive(pid: int | None) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
