"""Steps that run beside one another until the first of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def until_first(*steps: Coroutine[Any, Any, object], beside: asyncio.Task[None] | None = None) -> None:
    """Run steps until the first ends; raise its error if it failed.

    Args:
        steps: cancelled then.
        beside: likewise awaited, but left to the caller.
    """
    tasks = [*map(asyncio.create_task, steps)]
    try:
        waited = tasks if beside is None else [*tasks, beside]
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
