"""What really keeps a process in, found out by trial rather than from what was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import socket
from dataclasses import dataclass

from inferline_stream.isolation import kernel_calls, landlock, limits, syscall_rules
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.pipeline.isolation import Isolation

_LIMITS = {"memory_bytes": resource.RLIMIT_DATA, "file_bytes": resource.RLIMIT_FSIZE, "files": resource.RLIMIT_NOFILE}

_LOOKS = 10
"""At the threads of a process that starts others meanwhile."""


@dataclass(frozen=True, slots=True)
class Enforced:
    """What holds for a replica.

    Args:
        level: declared.
        landlock: version of Landlock that keeps it from files; 0 if nothing does.
        ports: TCP ports that it may connect to; None if any.
        system_calls: how many of the kernel's it can reach; None if all.
        limits: by name, in bytes or numbers.
        groups: controllers of its own control groups.
        missing: what was declared and does not hold, in words.
        sealed: whether only the system calls of moving records are left.
        degraded: whether that is accepted: the stage said so, or its hardware or this machine cannot have more.
    """

    level: str = "none"
    landlock: int = 0
    ports: tuple[int, ...] | None = None
    system_calls: int | None = None
    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    groups: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    sealed: bool = False
    degraded: bool = False


def look(confinement: Confinement) -> Enforced:
    """What holds before the seal."""
    isolation = confinement.isolation
    if not isolation.sandboxed:
        return Enforced()
    missing, accepted = [], []
    files = _refused_files()
    if not files and "/" not in isolation.reads:
        missing.append("files: every path may be opened")
    network = _refused_port(confinement.ports)
    if not network:
        missing.append("network: every TCP port may be reached")
    if int(kernel_calls.status("CapEff") or "1", 16) or kernel_calls.status("NoNewPrivs") != "1":
        missing.append("capabilities: not all are given up")
    on = syscall_rules.machine()
    calls = None
    if on is not None and kernel_calls.status("Seccomp") == "2":
        options = {"network": confinement.network, "helpers": bool(isolation.helpers)}
        options["programs"] = bool(isolation.executes)
        starting = (
            syscall_rules.beside_driver(os.getpid(), on, **options)
            if confinement.gpu
            else syscall_rules.launching(os.getpid(), jit=isolation.jit, **options)
        )
        calls = syscall_rules.reachable(starting, on)
        if confinement.gpu:
            refused = len(on.numbers) - calls
            accepted.append(f"system calls: what a GPU's driver needs is not known, so all but {refused} may be made")
    else:
        missing.append("system calls: all may be made")
    if isolation.seal != "off" and on is None:
        missing.append("system calls: no seal on this machine")
    if lack := limits.unbounded_memory_here(confinement):
        accepted.append(lack)  # without a GPU, what a process allocates for itself is limited all the same
    return Enforced(
        isolation.level,
        landlock.abi() if files else 0,
        confinement.ports if network else None,
        calls,
        {name: soft for name, which in _LIMITS.items() if (soft := resource.getrlimit(which)[0]) >= 0},
        _own_groups(),
        (*missing, *accepted),
        degraded=isolation.on_unsupported == "degrade" or (bool(accepted) and not missing),
    )


def look_again(before: Enforced, system_calls: int, *, few: bool = True) -> Enforced:
    """What holds after the seal: nothing more can be opened to find out.

    Args:
        before: what held before it.
        system_calls: how many can be reached.
        few: whether these are those of moving records.
    """
    try:
        os.getsid(0)  # harmless, allowed to a starting process, and never to a sealed one
    except PermissionError:
        return dataclasses.replace(before, system_calls=system_calls, sealed=few)
    return dataclasses.replace(
        before, missing=(*before.missing, "system calls: the seal does not hold"), degraded=False
    )


def unsealed(process: int, confinement: Confinement, *, forked: bool = False) -> str:
    """Return what a child that says it is sealed lacks by the kernel's own account, in words; empty if nothing.

    The seal is made by a process that has run its stage's code by then, which may have left it out.

    Args:
        process: a child of this process, or of its fork server.
        confinement: of it.
        forked: whether a fork server made it, which has a filter of its own.

    Raises:
        OSError: the process cannot be looked at.
    """
    isolation = confinement.isolation
    if not isolation.sandboxed or syscall_rules.machine() is None:
        return ""
    if isolation.executes and (left := _left_behind(process)):
        return f"{left}, which it has started, still runs"
    inherited = int(kernel_calls.status("Seccomp_filters") or 0)
    started = inherited + int(forked) + 1
    wanted = started + int(isolation.seal != "off")
    checked: set[str] = set()
    for _ in range(_LOOKS):
        # A thread that has been looked at and found sealed starts none that is not.
        threads = set(os.listdir(f"/proc/{process}/task"))
        if threads <= checked:
            return ""
        for thread in threads - checked:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended, as the next look shows
                if lack := _lack(f"{process}/task/{thread}", started, wanted, isolation):
                    return lack
                checked.add(thread)
    return "its threads come and go faster than they can be looked at"


def _left_behind(process: int) -> str:
    """Return the name of another process in a child's session, which none of them can leave; empty if there is none."""
    for folder in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            with open(f"/proc/{folder}/stat", encoding="utf-8", errors="replace") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            state, _, _, session, *_ = rest.split()
            if int(session) == process and int(folder) != process and state not in "ZX":
                return name
    return ""


def _lack(process: str, started: int, wanted: int, isolation: Isolation) -> str:
    # gVisor shows neither.
    if kernel_calls.status("NoNewPrivs", process) == "0":
        return "it may gain privileges"
    found = int(kernel_calls.status("Seccomp_filters", process) or wanted)
    # Where not even the first one could be installed, before any code of the stage, the stage accepts that.
    if found >= wanted or (found < started and isolation.on_unsupported == "degrade"):
        return ""
    return f"it has {found} of {wanted} filters of system calls"


def _refused_files() -> bool:
    try:
        os.listdir("/")
    except PermissionError:
        return True
    return False


def _refused_port(allowed: tuple[int, ...]) -> bool:
    port = next(number for number in range(1, len(allowed) + 2) if number not in allowed)
    try:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == errno.EACCES
    except PermissionError:
        return True  # not even a socket can be made


def _own_groups() -> tuple[str, ...]:
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    own = [line.split(":", 2)[1] for line in lines if line.endswith(f"/inferline-{os.getpid()}")]
    return tuple(sorted(name or "unified" for name in own))
