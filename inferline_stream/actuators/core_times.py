"""What processes do with cores: the time that they have run, and the time that they waited to run."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_LOST = ("user", "system", "irq", "softirq", "steal")
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def cpu_s(process: int) -> float:
    """CPU time of a process with all its threads so far, in seconds; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks_s = (int(fields[11]) + int(fields[12])) * _TICK_S
        return max(_schedule(process)[0], ticks_s)  # of the first thread it is exact, of all to a hundredth
    except (OSError, IndexError, ValueError):
        return 0.0


def waited_s(process: int) -> float:
    """Time that a process's first thread could have run and had no core, stops by its control group included."""
    try:
        return _schedule(process)[1]
    except (OSError, IndexError, ValueError):
        return 0.0


def _schedule(process: int) -> tuple[float, float]:
    ran, waited, _ = Path(f"/proc/{process}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def taken_s(cores: Collection[int]) -> float:
    """Return for how long these cores were taken so far, programs with a nice value above 0 left out.

    The kernel does not say how far each of those gives way. At 19, as our own planning runs, one takes hardly anything
    from replicas; to count it would hold decisions for a batch job that harms nobody.
    """
    found = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in cores:
            counts = dict(zip(_COLUMNS, ticks, strict=False))
            found += sum(int(counts.get(column, 0)) for column in _LOST) * _TICK_S
    return found
