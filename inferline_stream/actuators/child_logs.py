"""Files that hold what child processes print: cut while they grow, and few are kept of those that ended.

In a pod they are copied to the host's own standard error, where the cluster collects it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 8192
_TAIL_LINES = 15
_LONGEST_LINE = 500
_DEAD_LOGS = 10
"""Of each stage: one that dies again and again would otherwise fill the disk with its last words."""

LOG_BYTES = 16 << 20
"""Of each file of the log folder: what nothing else limits, such as a replica that is not in a sandbox, prints on."""

LOG_KEPT_BYTES = 1 << 20
"""What stays of a log that was too long: its end."""

_LOOK_S = 1.0
"""How often logs are looked at."""

_COPY_S = 0.5
_COPY_BYTES = 1 << 16
"""Of each file at a time: a child that prints without end delays nobody."""


@dataclass(slots=True, eq=False)
class ChildLog:
    """One child's file, which may hold what earlier ones of its name have printed.

    Args:
        path: of the file.
        start: its size when the child was started.
    """

    path: Path
    start: int

    def tail(self) -> str:
        """Return the child's last lines that are not empty."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(self.start, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join([line[:_LONGEST_LINE] for line in lines if line.strip()][-_TAIL_LINES:])


class ChildLogs:
    """The files of a folder. Must be used and closed within one event loop.

    Args:
        folder: for the files; made when the first one is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: set[ChildLog] = set()
        self._dead: dict[str, deque[Path]] = {}
        """By stage, oldest first."""
        self._looking: asyncio.TimerHandle | None = None

    def of(self, name: str) -> ChildLog:
        """Return the log of a child that is about to start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}.log"
        return ChildLog(path, path.stat().st_size if path.exists() else 0)

    def started(self, log: ChildLog) -> None:
        """Keep a log short while its child runs."""
        self._running.add(log)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._cut)

    def ended(self, log: ChildLog, stage: str, code: int) -> None:
        """Remove the log of a child that ended well and printed nothing; of the others, keep a stage's newest."""
        self._running.discard(log)
        with contextlib.suppress(OSError):  # somebody has removed it
            if code == 0 and log.path.stat().st_size == 0:
                log.path.unlink()
                return
        dead = self._dead.setdefault(stage, deque())
        if log.path not in dead:
            dead.append(log.path)
        if len(dead) > _DEAD_LOGS:
            oldest = dead.popleft()
            if all(other.path != oldest for other in self._running):  # a dispatcher keeps its name when it starts again
                with contextlib.suppress(OSError):  # it is gone, or the file system takes no writes any more
                    oldest.unlink()

    def close(self) -> None:
        """Look at no log any more."""
        if self._looking is not None:
            self._looking.cancel()

    def _cut(self) -> None:
        """Keep the logs short, for as long as this supervisor lives."""
        self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._cut)
        cut = {path for path in self._folder.glob("*.log") if cut_log(path)}
        for log in self._running:
            if log.path in cut:
                log.start = 0


def cut_log(log: Path) -> bool:
    """Shorten a log to its end, if it has become too long; return whether it was.

    Its writer goes on at the new end, since logs are opened for appending alone. What is written between our
    reading and our cutting is lost.
    """
    with contextlib.suppress(OSError):  # it was removed meanwhile, or the disk is full
        if log.stat().st_size <= LOG_BYTES:
            return False
        file = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            _, _, kept = os.pread(file, LOG_KEPT_BYTES, size - LOG_KEPT_BYTES).partition(b"\n")
            os.ftruncate(file, 0)
            os.write(file, b"[%d bytes were cut off here: a log may have %d]\n%b" % (size - len(kept), LOG_BYTES, kept))
        finally:
            os.close(file)
        return True
    return False


@asynccontextmanager
async def copied_logs(folder: Path) -> AsyncIterator[None]:
    """Copy the files of a folder to standard error as they grow, within the block."""
    copied: dict[Path, int] = {}

    async def copy_for_ever() -> None:
        while True:
            await asyncio.sleep(_COPY_S)
            _copy(folder, copied)

    copying = asyncio.create_task(copy_for_ever())
    try:
        yield
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
        _copy(folder, copied)


def _copy(folder: Path, copied: dict[Path, int]) -> None:
    """Copy what has come since the last time; by file, so much was copied before."""
    for file in sorted(folder.glob("*.log")):
        with contextlib.suppress(OSError), file.open("rb") as opened:
            at = copied.get(file, 0)
            if opened.seek(0, 2) < at:  # it was cut to its end
                at = 0
            opened.seek(at)
            data = opened.read(_COPY_BYTES)
            copied[file] = at + len(data)
            if data:
                sys.stderr.write(data.decode(errors="replace"))
    sys.stderr.flush()
