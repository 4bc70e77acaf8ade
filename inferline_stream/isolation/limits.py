"""Limits that hold without control groups, and control groups where they may be used."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

from inferline_stream.isolation.confinement import Confinement
from inferline_stream.pipeline.isolation import Isolation

PERIOD_US = 5_000
"""Of a share of a core. The shorter it is, the less a small batch waits for its next period; the kernel looks at what
was used at its ticks, 1 to 10 ms apart, and much shorter periods would be those."""

_LEAST_QUOTA_US = 1_000
"""The kernel refuses less."""

_ENDS_S = 0.5
"""Longest that helpers which were killed are waited for."""

_MIB = 1 << 20
_OPEN_FILES = 1024
_THREADS = 64
"""Of one process; a stage that needs more has another problem."""


_ROOT = Path("/sys/fs/cgroup")


def _hierarchies() -> list[tuple[list[str], str]]:
    """Controllers of each hierarchy of groups, none for version 2, and this process's group in it, below `_ROOT`."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    parts = (line.split(":", 2) for line in lines)
    return [(controllers.split(",") if controllers else [], path.lstrip("/")) for _, controllers, path in parts]


def memory_bytes(confinement: Confinement) -> int:
    """Most memory of a process: what is declared, else half of the machine's, so that one cannot fill it."""
    declared = confinement.isolation.memory_mb
    if declared is not None:
        return declared * _MIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def limit(confinement: Confinement) -> None:
    """Limit this process and all that it starts. What it allocates counts, not what it maps: libraries are free."""
    sizes = {
        resource.RLIMIT_CORE: 0,  # a dump would hold every secret of the process
        resource.RLIMIT_FSIZE: max(confinement.isolation.file_mb, confinement.isolation.shm_mb or 0) * _MIB,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    if not confinement.gpu:  # drivers of GPUs reserve more than there is
        sizes[resource.RLIMIT_DATA] = memory_bytes(confinement)
    for which, size in sizes.items():
        hard = resource.getrlimit(which)[1]
        most = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(which, (most, most))
    if confinement.topology:  # users' code: of all processes, the kernel ends this one first
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def join_groups(confinement: Confinement, process: int) -> tuple[str, ...]:
    """Put a process into control groups of its own for the limits that its stage declares, and of memory beside a GPU.

    Not for cores: the starter of a process holds its share of one (`hold_share`), sandboxed or not.

    Returns:
        The controllers whose limit holds; none where control groups are not ours to make.
    """
    isolation = confinement.isolation
    wanted = {}
    if isolation.memory_mb is not None or confinement.gpu:
        wanted["memory"] = ("memory.limit_in_bytes", "memory.max", memory_bytes(confinement))
    if isolation.helpers:
        wanted["pids"] = ("pids.max", "pids.max", _THREADS * (1 + isolation.helpers))
    held = []
    for controller, (first, second, value) in wanted.items():
        folder, unified = own_group(controller)
        if folder is not None and _join(folder / _name(process), process, {second if unified else first: value}):
            held.append(controller)
    return tuple(held)


def begin_share(process: int) -> bool:
    """Put a process that will have a share of a core into a group of its own, without a limit yet.

    What it starts from now on is in that group, and held with it by `hold_share`.
    """
    folder, unified = _cpu_group()
    if folder is None:
        return False
    no_limit: dict[str, int | str] = {"cpu.max": "max"} if unified else {"cpu.cfs_quota_us": -1}
    return _join(folder / _name(process), process, no_limit)


def hold_share(process: int, cores: float) -> bool:
    """Keep a process, with its threads and what it started since `begin_share`, to a share of a core.

    Returns whether that holds. The kernel stops them once the share of a period is used up, and lets them go on with
    the next one.
    """
    folder, unified = _cpu_group()
    if folder is None:
        return False
    period_us, quota_us = _share_us(cores)
    settings: dict[str, int | str] = (
        {"cpu.max": f"{quota_us} {period_us}"}
        if unified
        else {"cpu.cfs_period_us": period_us, "cpu.cfs_quota_us": quota_us}
    )
    return _join(folder / _name(process), process, settings)


def _share_us(cores: float) -> tuple[int, int]:
    """Return a period, and what of it is a share of a core, in microseconds."""
    period_us = max(PERIOD_US, math.ceil(_LEAST_QUOTA_US / cores))
    return period_us, round(cores * period_us)


@cache
def shares_held() -> bool:
    """Return whether this process may make control groups for cores, by trial with a process that only waits."""
    if _cpu_group()[0] is None:
        return False
    with subprocess.Popen(
        (sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"), stdin=subprocess.PIPE
    ) as waiting:
        held = hold_share(waiting.pid, 0.5)
        waiting.communicate()
    leave_groups(waiting.pid)
    return held


def stopped_s(process: int) -> float:
    """Seconds for which `hold_share` has stopped a process so far; 0 where it holds nothing."""
    folder, unified = _cpu_group()
    if folder is None:
        return 0.0
    try:
        lines = (folder / _name(process) / "cpu.stat").read_text().splitlines()
    except OSError:
        return 0.0
    counts = dict(line.split() for line in lines)
    return int(counts.get("throttled_usec", 0)) / 1e6 if unified else int(counts.get("throttled_time", 0)) / 1e9


@cache
def _cpu_group() -> tuple[Path | None, bool]:
    """The group that groups for cores may be made in, and whether it is of version 2.

    In version 2 a user's session is a group that passes no controller on, within one of the user's own that does.
    """
    folder, unified = own_group("cpu")
    if folder is None and unified:
        for group in _unified_groups():
            with contextlib.suppress(OSError):
                if "cpu" in (group / "cgroup.subtree_control").read_text().split():
                    folder = group
                    break
    usable = folder is not None and os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)
    return (folder if usable else None), unified


def _unified_groups() -> Iterator[Path]:
    """The groups of version 2 around this process, innermost first."""
    for controllers, path in _hierarchies():
        if not controllers:
            own = _ROOT / path
            yield from (group for group in (own, *own.parents) if group.is_relative_to(_ROOT))


def cores_here() -> float:
    """Cores that this process may use: those that it is kept to, and no more than its control groups let through."""
    found = [float(len(os.sched_getaffinity(0)))]
    groups = [(group, "") for group in _unified_groups()]
    for controllers, path in _hierarchies():
        if "cpu" in controllers:
            own = _ROOT / "cpu" / path
            groups += [(group, "v1") for group in (own, *own.parents) if "cpu" in group.parts]
    for group, version in groups:
        with contextlib.suppress(OSError, ValueError):  # no group, or no limit
            if version:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            else:
                quota, period = (group / "cpu.max").read_text().split()
            if int(quota) > 0:
                found.append(int(quota) / int(period))
    return min(found)


def unbounded_memory(isolation: Isolation) -> str:
    """What would escape the memory that a stage declares, in words, on this machine; empty if nothing."""
    if not isolation.sandboxed or isolation.memory_mb is None:
        return ""
    folder, _ = own_group("memory")
    return "" if folder is not None and os.access(folder, os.W_OK) else _escaping(isolation.memory_mb)


def unbounded_memory_here(confinement: Confinement) -> str:
    """The same of this process, by the limits of its control groups."""
    declared = confinement.isolation.memory_mb
    if not confinement.isolation.sandboxed or (declared is None and not confinement.gpu):
        return ""
    held = group_memory_bytes()
    if held is not None and held <= memory_bytes(confinement):
        return ""
    if confinement.gpu:  # `limit` leaves out what a driver of GPUs would not start with
        return "memory: nothing bounds what the process takes of this host's, since no control group limits it"
    return _escaping(memory_bytes(confinement) // _MIB)


def _escaping(memory_mb: int) -> str:
    return f"memory: shared mappings escape memory_mb={memory_mb}, since no control group limits the process"


def group_memory_bytes() -> int | None:
    """The least memory that a control group of this process allows; None where none limits it."""
    found = []
    for folder, setting in _memory_groups():
        for group in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no group, no limit, or not ours to see
                found.append(int((group / setting).read_text()))
    return min(found, default=None)


def _memory_groups() -> Iterator[tuple[Path, str]]:
    """Folder of this process's group in either version, and the name of its limit."""
    for controllers, path in _hierarchies():
        if not controllers:
            yield _ROOT / path, "memory.max"
        elif "memory" in controllers:
            yield _ROOT / "memory" / path, "memory.limit_in_bytes"


def overran_memory(process: int) -> bool:
    """Whether the kernel has killed in a process's own group for its limit of memory; asked before it is removed."""
    folder, unified = own_group("memory")
    if folder is None:
        return False
    counts_file = folder / _name(process) / ("memory.events" if unified else "memory.oom_control")
    try:
        counts = dict(line.split() for line in counts_file.read_text().splitlines())
    except OSError:
        return False
    return int(counts.get("oom_kill", 0)) > 0


def leave_groups(process: int) -> None:
    """Remove the control groups of a process that has ended; helpers that it has left behind are killed."""
    folders = (own_group("memory")[0], own_group("pids")[0], _cpu_group()[0])
    groups = {folder / _name(process) for folder in folders if folder is not None}
    if left := [group for group in groups if not _removed(group)]:
        _kill({helper for group in left for helper in _within(group)})
        for group in left:
            _removed(group)


def _removed(group: Path) -> bool:
    """Remove a group; returns whether there is none now."""
    try:
        group.rmdir()
    except OSError:
        return not group.exists()
    return True


def _within(group: Path) -> list[int]:
    try:
        return [int(helper) for helper in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _kill(processes: Collection[int]) -> None:
    """Kill processes, and wait for their ends for a moment: a group that they are in cannot be removed before."""
    left, until_s = select.poll(), time.monotonic() + _ENDS_S
    ends = set()
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            end = os.pidfd_open(process)
            ends.add(end)
            left.register(end, select.POLLIN)
            signal.pidfd_send_signal(end, signal.SIGKILL)
    waited_for = set(ends)
    while waited_for and (left_s := until_s - time.monotonic()) > 0:
        for end, _ in left.poll(left_s * 1e3):
            left.unregister(end)
            waited_for.discard(end)
    for end in ends:
        os.close(end)


def _name(process: int) -> str:
    return f"inferline-{process}"


def _join(group: Path, process: int, settings: Mapping[str, int | str]) -> bool:
    try:
        group.mkdir(exist_ok=True)
        for setting, value in settings.items():
            (group / setting).write_text(str(value))
        (group / "cgroup.procs").write_text(str(process))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return False
    return True


def own_group(controller: str) -> tuple[Path | None, bool]:
    """The group that groups for a controller may be made in, and whether control groups are of version 2.

    None where none is ours: in version 2 a group says which controllers it passes on; in version 1 a group other than
    the root is a service manager's.
    """
    found = _hierarchies()
    for controllers, path in found:
        if controller in controllers:
            folder = _ROOT / controller
            return (folder if not path and folder.is_dir() else None), False
    unified = next((path for controllers, path in found if not controllers), None)
    if unified is None:
        return None, False
    folder = _ROOT / unified
    try:
        delegated = controller in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        delegated = False
    return (folder if delegated else None), True
