"""The kernel's doors that Python has no door to: capabilities, seccomp and one-way switches, through the C library."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence

from inferline_stream.isolation import bpf, syscall_rules

SET_PDEATHSIG, SET_DUMPABLE, SET_NO_NEW_PRIVS, _CAPBSET_DROP, _SET_SECUREBITS, _CAP_AMBIENT = 1, 4, 38, 24, 28, 47
_CLEAR_ALL = 4
_SETPCAP = 8
_NO_ROOT_LOCKED = 0b1111  # uid 0 gets no capabilities back, and neither switch can be turned again
_CAPABILITY_VERSION = 0x20080522
_SECCOMP_FILTER = 1
_TSYNC, _TSYNC_ESRCH = 1, 16

_DESCRIBED_BYTES = 16
_PRIVATE, _ANONYMOUS, _FIXED_NEW = 0x2, 0x20, 0x100000

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p


def prctl(option: int, *arguments: int) -> int:
    """`prctl(2)`.

    Raises:
        OSError: the kernel refused.
    """
    return _checked(_LIBC.prctl(option, *(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4])))


def call(name: str, *arguments: int | bytes | None) -> int:
    """A system call by name.

    Raises:
        OSError: the kernel refused, or has no such call.
    """
    on = syscall_rules.machine()
    if on is None:
        raise OSError(f"no system call numbers are known for {os.uname().sysname} on {os.uname().machine}")
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(_LIBC.syscall(ctypes.c_long(on.numbers[name]), *passed))


def drop_capabilities() -> None:
    """Give up every capability for good, and what would give uid 0 new ones."""
    effective = int(status("CapEff") or "0", 16)
    if effective >> _SETPCAP & 1:
        prctl(_SET_SECUREBITS, _NO_ROOT_LOCKED)
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            last = int(file.read())
        for capability in range(last + 1):
            prctl(_CAPBSET_DROP, capability)
    prctl(_CAP_AMBIENT, _CLEAR_ALL)
    header, nothing = struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24)
    call("capset", header, nothing)


def install_filter(program: Sequence[bpf.Instruction]) -> None:
    """Put every thread of this process under a filter; needs `SET_NO_NEW_PRIVS`.

    Args:
        program: the filter.

    Raises:
        OSError: the kernel refused; with ESRCH, a thread has a filter of its own already.
    """
    code = ctypes.create_string_buffer(bpf.encoded(program))
    described = ctypes.create_string_buffer(_described(len(program), ctypes.addressof(code)))
    _install(ctypes.addressof(described), _TSYNC | _TSYNC_ESRCH)


def fix_filter(program: Sequence[bpf.Instruction]) -> bool:
    """Lay a filter down for `install_fixed_filter`, where nothing in this process can change it any more.

    Returns whether that is so: the kernel knows how from Linux 6.10 (`mseal`).
    """
    at = syscall_rules.FIXED_FILTER_AT
    data = _described(len(program), at + _DESCRIBED_BYTES) + bpf.encoded(program)
    size = ctypes.c_size_t(len(data))
    try:
        made = _LIBC.mmap(ctypes.c_void_p(at), size, mmap.PROT_WRITE, _PRIVATE | _ANONYMOUS | _FIXED_NEW, -1, 0)
        _checked(-1 if made != at else 0)
        ctypes.memmove(at, data, len(data))
        _checked(_LIBC.mprotect(ctypes.c_void_p(at), size, mmap.PROT_READ))
        call("mseal", at, -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE, 0)
    except OSError:
        return False
    return True


def install_fixed_filter() -> None:
    """Put every thread of this process under the filter that `fix_filter` has laid down.

    Raises:
        OSError: as `install_filter`; with EFAULT, there is none.
    """
    _install(syscall_rules.FIXED_FILTER_AT, _TSYNC | _TSYNC_ESRCH)


def _described(instructions: int, at: int) -> bytes:
    """struct sock_fprog."""
    return struct.pack("<HxxxxxxQ", instructions, at)


def _install(described: int, flags: int) -> None:
    on = syscall_rules.machine()
    assert on is not None, "only a known machine has a program"
    given = (ctypes.c_long(_SECCOMP_FILTER), ctypes.c_long(flags), ctypes.c_void_p(described))
    _checked(_LIBC.syscall(ctypes.c_long(on.numbers["seccomp"]), *given))


def status(key: str, process: str = "self") -> str | None:
    """One line of ``/proc/PROCESS/status``; None where there is none, or this process's own cannot be read.

    Raises:
        OSError: another process's cannot be read.
    """
    try:
        with open(f"/proc/{process}/status", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(f"{key}:")), None)
    except OSError:
        if process != "self":
            raise
        return None


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
