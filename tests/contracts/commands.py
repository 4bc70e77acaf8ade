"""Commands that tests run as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0


@contextlib.asynccontextmanager
async def command(*line: str, **given: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command while it is needed, for `DEADLINE_S` at most; one that still runs at the end is killed."""
    process = await asyncio.create_subprocess_exec(
        *line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **given
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_lines(path: Path, count: int) -> None:
    """Wait until a file that another process writes holds so many whole lines."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        await asyncio.sleep(0.05)


def isolated_part_of(process: asyncio.subprocess.Process) -> int:
    """The process beneath a connector's command that moves the records, where connectors can be isolated."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else process.pid
