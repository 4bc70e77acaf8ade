"""The two steps in which a replica shuts itself in: before its first import, and before its first record."""

from __future__ import annotations

import contextlib
import encodings.ascii
import encodings.idna
import encodings.latin_1
import encodings.utf_8_sig
import errno
import linecache
import os
import socket
import stat
import sys
import warnings
from collections.abc import Collection, Iterator

from inferline_stream.errors import InvalidInput
from inferline_stream.isolation import enforced, kernel_calls, landlock, limits, paths, syscall_rules
from inferline_stream.isolation.bpf import Architecture, Calls
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.pipeline.isolation import Isolation

_AT_HAND = (encodings.ascii, encodings.idna, encodings.latin_1, encodings.utf_8_sig)
"""Text encodings are looked up at their first use, which may come after the seal."""


def confine(confinement: Confinement, *, forks: bool = False) -> None:
    """First step: files, TCP ports, capabilities, limits and the system calls of a start. One thread may exist.

    Args:
        confinement: what this process may touch.
        forks: whether it is a parent that replicas are forked from.

    Raises:
        InvalidInput: the machine cannot do it, and the stage does not accept less.
    """
    isolation = confinement.isolation
    lacking = unsupported(isolation)
    if lacking and isolation.on_unsupported == "fail":
        raise InvalidInput(refusal(isolation, lacking))
    if lacking:
        warnings.warn(f"isolation {isolation.level!r} is not whole here: {'; '.join(lacking)}", stacklevel=2)
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["1"]
    if len(threads) > 1:
        raise InvalidInput(
            f"{len(threads)} threads run before the first import, and Landlock would bind only one of them: remove the "
            "*.pth file or sitecustomize that starts them, or run without isolation"
        )
    on = syscall_rules.machine()
    if not forks:
        limits.join_groups(confinement, os.getpid())
    limits.limit(confinement)
    if on is None:
        return
    kernel_calls.prctl(kernel_calls.SET_NO_NEW_PRIVS, 1)
    kernel_calls.drop_capabilities()
    # A fork finds what it needs in a folder of /proc that is not there yet; others' secrets stay closed even so.
    processes = [landlock.PathGrant("/proc")] if forks else []
    landlock.restrict((*paths.grants(confinement), *processes), confinement.ports, confinement.listens)
    # What a fork server forks has another seal, with its own process's number in it.
    sealing = isolation.seal != "off" and not forks
    fixed = sealing and kernel_calls.fix_filter(syscall_rules.program(_sealed_calls(confinement, on), on))
    if confinement.gpu:
        programs = bool(isolation.executes)
        calls = syscall_rules.beside_driver(os.getpid(), on, **_allowed(confinement), programs=programs, fixed=fixed)
    else:
        more = {
            "jit": isolation.jit,
            "programs": bool(isolation.executes),
            "serves": bool(confinement.listens),
            "forks": forks,
            "fixed": fixed,
        }
        calls = syscall_rules.launching(os.getpid(), **_allowed(confinement), **more)
    with _supported(isolation):
        kernel_calls.install_filter(syscall_rules.program(calls, on))


def confine_fork(confinement: Confinement) -> None:
    """What a fork of a confined parent gives up in turn: other processes' folders, and forking."""
    isolation, on = confinement.isolation, syscall_rules.machine()
    landlock.restrict(paths.grants(confinement), confinement.ports)
    if on is not None:
        calls = syscall_rules.launching(os.getpid(), **_allowed(confinement), jit=isolation.jit)
        with _supported(isolation):
            kernel_calls.install_filter(syscall_rules.program(calls, on))


def seal(confinement: Confinement, *, keep: Collection[int] = ()) -> Enforced:
    """Second step: give up all but the system calls of moving records, in every thread.

    Args:
        confinement: what this process may touch.
        keep: descriptors of sockets that stay. Where users' code runs, others that lead out of this process are closed.

    Returns:
        What holds now, by trial.

    Raises:
        InvalidInput: it is less than declared, and the stage does not accept less.
    """
    isolation = confinement.isolation
    on = syscall_rules.machine()
    before = enforced.look(confinement)
    if isolation.sandboxed and not confinement.kafka_ports:
        _close_sockets(confinement, keep)
    if not isolation.sandboxed or isolation.seal == "off" or on is None:
        return _accepted(isolation, before)
    if confinement.topology:
        _have_at_hand(os.path.dirname(confinement.topology))
    calls = _sealed_calls(confinement, on)
    with _supported(isolation):
        kernel_calls.prctl(kernel_calls.SET_NO_NEW_PRIVS, 1)
        kernel_calls.prctl(kernel_calls.SET_DUMPABLE, 0)  # no core dump, and others of its user may not read its memory
        try:
            kernel_calls.install_fixed_filter()
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            kernel_calls.install_filter(syscall_rules.program(calls, on))
    return _accepted(
        isolation, enforced.look_again(before, syscall_rules.reachable(calls, on), few=not confinement.gpu)
    )


def _allowed(confinement: Confinement) -> dict[str, bool]:
    """What the rules of every process depend on, with a GPU or without, before the seal and after."""
    signals = landlock.abi() >= landlock.SCOPE_ABI
    return {"network": confinement.network, "helpers": bool(confinement.isolation.helpers), "signals": signals}


def _sealed_calls(confinement: Confinement, on: Architecture) -> Calls:
    if confinement.gpu:
        return syscall_rules.beside_driver(os.getpid(), on, **_allowed(confinement), sealed=True)
    isolation = confinement.isolation
    return syscall_rules.sealed(
        os.getpid(),
        **_allowed(confinement),
        imports=isolation.seal == "imports",
        jit=isolation.jit,
        writes=bool(isolation.writes),
        serves=bool(confinement.listens),
    )


def _close_sockets(confinement: Confinement, keep: Collection[int]) -> None:
    """Close sockets that lead out of this process, such as a UDP socket: what is open needs no further permission.

    Pairs stay, as event loops have them: nothing but this process, or a helper that it has forked, is at their end.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # it was the listing's own
            if file not in keep and stat.S_ISSOCK(os.fstat(file).st_mode) and not _stays(file, confinement):
                os.dup2(nothing, file)  # the number stays taken: whatever holds it must not close another's file
    os.close(nothing)


def _stays(file: int, confinement: Confinement) -> bool:
    opened = socket.socket(fileno=os.dup(file))
    with opened:
        if opened.family == socket.AF_UNIX:
            return not opened.getsockname() and not opened.getpeername()
        try:
            port = opened.getpeername()[1]
        except OSError:
            return False
        return opened.type == socket.SOCK_STREAM and port in confinement.isolation.ports


def _accepted(isolation: Isolation, found: Enforced) -> Enforced:
    if found.missing and isolation.on_unsupported == "fail" and not found.degraded:
        raise InvalidInput(refusal(isolation, found.missing))
    return found


def unsupported(isolation: Isolation) -> tuple[str, ...]:
    """What this machine lacks for an isolation level, in words; empty if nothing."""
    if not isolation.sandboxed:
        return ()
    if syscall_rules.machine() is None:
        name = os.uname()
        return (f"replicas are sealed on Linux x86-64 and aarch64 only, and this is {name.sysname} {name.machine}",)
    version = landlock.abi()
    lacking = []
    if not version:
        lacking.append("the kernel has no Landlock (it needs 5.13, and landlock among its security modules): no files")
    elif version < landlock.NETWORK_ABI:
        lacking.append(f"the kernel's Landlock has version {version}; TCP ports need 4 (Linux 6.7)")
    if kernel_calls.status("Seccomp") is None:
        lacking.append("the kernel has no seccomp: no system calls")
    return tuple(lacking)


def refusal(isolation: Isolation, lacking: tuple[str, ...]) -> str:
    """What to say, and to write, where a level is not available."""
    return (
        f'isolation {isolation.level!r} is not available here: {"; ".join(lacking)}. Write isolation="none", or '
        f'isolation=Isolation("{isolation.level}", on_unsupported="degrade") to take what there is'
    )


@contextlib.contextmanager
def _supported(isolation: Isolation) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise InvalidInput("a thread has a seccomp filter of its own: the seal would not hold for it") from error
        if isolation.on_unsupported == "fail":
            raise InvalidInput(refusal(isolation, (f"seccomp: {error.strerror}",))) from error


def _have_at_hand(folder: str) -> None:
    """Load what is otherwise looked up late: the sources that a traceback shows."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and file.startswith(folder + os.sep):
            lines = linecache.getlines(file)
            # Without a time of change they are never compared with the file, which is out of reach by then.
            linecache.cache[file] = (sum(map(len, lines)), None, lines, file)
