"""What else the machine did meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

QUIET_CORES = 0.15
"""Others that take more than this of the machine disturb a measurement."""

ATTEMPTS = 3

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_GUEST, _IDLE = 8, (3, 4)


class Elsewhere:
    """Cores that processes other than this one and its descendants kept busy, since it was made.

    A descendant that has ended counts with its parent, once that has waited for it.
    """

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._all, self._own, self._waited_us = _busy_ticks(), _own_ticks(), _waited_us()

    def cores(self) -> float:
        """Mean number of cores."""
        ticks = _busy_ticks() - self._all - (_own_ticks() - self._own)
        return max(0.0, ticks / _TICKS_PER_S / (time.monotonic() - self._began_s))

    def waited(self) -> float:
        """Share of the time in which something that could have run waited for a core; NaN where Linux does not say."""
        return (_waited_us() - self._waited_us) / 1e6 / (time.monotonic() - self._began_s)


class Measured(Protocol):
    """What was measured beside others."""

    @property
    def elsewhere_cores(self) -> float:
        """Cores that others took meanwhile."""


_M = TypeVar("_M", bound=Measured)


async def quietest(measure: Callable[[int], Awaitable[_M]], attempts: int = ATTEMPTS) -> _M:
    """Measure again while others take cores, a few times at most; returns the quietest.

    Args:
        measure: given the number of the attempt, from 0.
        attempts: most of them.
    """
    found: list[_M] = []
    while len(found) < attempts and not any(f.elsewhere_cores <= QUIET_CORES for f in found):
        found.append(await measure(len(found)))
    return min(found, key=lambda f: f.elsewhere_cores)


def _busy_ticks() -> int:
    """Of all cores, time stolen by the machine's host included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(ticks for at, ticks in enumerate(fields[:_GUEST]) if at not in _IDLE)


def _waited_us() -> float:
    try:
        return float(Path("/proc/pressure/cpu").read_text().splitlines()[0].rpartition("total=")[2])
    except OSError:
        return float("nan")


def _own_ticks() -> int:
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    return sum(spent for process, spent in ticks.items() if _descends(process, parents))


def _descends(process: int, parents: dict[int, int]) -> bool:
    while process and process != os.getpid():
        process = parents.get(process, 0)
    return process == os.getpid()
