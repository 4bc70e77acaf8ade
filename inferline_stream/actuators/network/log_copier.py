"""Copies what a host's children write to the host's own standard error, where a cluster collects it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Self

_EVERY_S = 0.5
_MOST_BYTES = 1 << 16
"""Of each file at a time: a child that prints without end delays nobody."""


class LogCopier:
    """Copies the files of a folder as they grow, from entering to leaving.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copied: dict[Path, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._copy_for_ever())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.copy()

    def copy(self) -> None:
        """Copy what has come since the last time."""
        for file in sorted(self._folder.glob("*.log")):
            with contextlib.suppress(OSError), file.open("rb") as opened:
                at = self._copied.get(file, 0)
                if opened.seek(0, 2) < at:  # it was cut to its end
                    at = 0
                opened.seek(at)
                data = opened.read(_MOST_BYTES)
                self._copied[file] = at + len(data)
                if data:
                    sys.stderr.write(data.decode(errors="replace"))
        sys.stderr.flush()

    async def _copy_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            self.copy()
