"""What a stage does that its isolation would refuse: the process runs unrestricted, and each such call is looked at.

The kernel hands calls that the seal would not simply allow to another process (seccomp's user notification), which
notes them and lets them go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from inferline_stream.isolation import bpf, kernel_calls, paths, syscall_rules
from inferline_stream.isolation.confinement import Confinement

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_HERE = 0xFFFFFF9C
_LONGEST_PATH = 4096
_WRITING = 0o3 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC

_OPENING = {"open": (None, 0, 1), "openat": (0, 1, 2)}
"""Position of folder, path and flags."""

_CHANGING = {
    **{name: (None, 0) for name in ("mkdir", "rmdir", "unlink", "rename", "chmod", "truncate")},
    **{name: (0, 1) for name in ("mkdirat", "unlinkat", "renameat", "renameat2", "fchmodat", "utimensat")},
}
_MARK = "getsid"
"""What a process calls when it would seal itself: see `enforced.look_again`."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that would have been refused.

    Args:
        sealed: whether after the seal.
        kind: ``"read"``, ``"write"`` or ``"connect"`` where it is not granted, ``"open"`` where it is but comes after
            the seal, or ``"call"``.
        what: the path, the port or the system call.
    """

    sealed: bool
    kind: str
    what: str


def program(on: bpf.Architecture) -> tuple[bpf.Instruction, ...]:
    """The filter of an audited process: whatever the seal would not simply allow is looked at."""
    calls = {name: when for name, when in syscall_rules.sealed(0).items() if when == bpf.ALWAYS}
    return syscall_rules.program(calls, on, otherwise=bpf.NOTIFY)


class Audit:
    """Watches one process that is started with `confinement` and inherits `files`.

    Args:
        confinement: what it would be confined to.
    """

    def __init__(self, confinement: Confinement) -> None:
        self._woken, telling = os.pipe()
        self.files = (telling,)
        self.confinement = replace(confinement, audit=telling)
        self.found: Counter[Finding] = Counter()
        """How often each thing would have been refused."""
        on = syscall_rules.machine()
        assert on is not None, "no process is audited where none can be sealed"
        self._on = on
        self._names = {number: name for name, number in on.numbers.items()}
        self._grants = [(os.path.realpath(grant.path), grant.write, grant.names) for grant in paths.grants(confinement)]
        self._sealed = False
        self._thread: threading.Thread | None = None

    def watch(self, process: int) -> None:
        """The process was started."""
        os.close(self.files[0])
        isolation = self.confinement.isolation
        # A stage that connects is one whose ports have to be declared, and it may make sockets then.
        options = {"network": True, "jit": isolation.jit, "helpers": bool(isolation.helpers)}
        imports = isolation.seal != "strict"
        self._programs = [
            syscall_rules.program(syscall_rules.launching(process, **options), self._on),
            syscall_rules.program(syscall_rules.sealed(process, imports=imports, **options), self._on)
            if isolation.seal != "off"
            else syscall_rules.program(syscall_rules.launching(process, **options), self._on),
        ]
        self._thread = threading.Thread(target=self._watch, args=(process,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The process has ended."""
        if self._thread is not None:
            self._thread.join()
        os.close(self._woken)

    def _watch(self, process: int) -> None:
        number = os.read(self._woken, 16)
        if not number:
            return  # it ended before
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(process)
            listener = kernel_calls.call("pidfd_getfd", pidfd, int(number), 0)
            os.close(pidfd)
            try:
                self._serve(listener)
            finally:
                os.close(listener)

    def _serve(self, listener: int) -> None:
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        while not any(events & select.POLLHUP for _, events in waiting.poll()):
            received = bytearray(80)
            try:
                fcntl.ioctl(listener, _RECEIVE, received)
            except FileNotFoundError:
                continue  # the caller is gone
            ident, thread, _, number, _, _, *arguments = struct.unpack("<QIIiIQ6Q", received)
            with contextlib.suppress(OSError):
                self._judge(thread, self._names.get(number, str(number)), number, arguments)
            with contextlib.suppress(FileNotFoundError):
                fcntl.ioctl(listener, _SEND, bytearray(struct.pack("<QqiI", ident, 0, 0, _CONTINUE)))

    def _judge(self, thread: int, name: str, number: int, arguments: Sequence[int]) -> None:
        if name == _MARK:
            self._sealed = True
            return
        allowed = bpf.verdict(self._programs[self._sealed], self._on.audit, number, arguments) == bpf.ALLOW
        if name in _OPENING:
            folder, path, flags = _OPENING[name]
            write = bool(arguments[flags] & _WRITING)
            self._judge_path(thread, arguments, folder, path, allowed, write=write)
        elif name in _CHANGING:
            self._judge_path(thread, arguments, *_CHANGING[name], allowed, write=True)
        elif name == "connect":
            self._judge_address(thread, *arguments[1:3])
        elif not allowed and name not in syscall_rules.ERRNOS:
            self._add("call", name)

    def _judge_path(
        self, thread: int, arguments: Sequence[int], folder: int | None, path: int, allowed: bool, *, write: bool
    ) -> None:
        at = arguments[folder] & 0xFFFFFFFF if folder is not None else _HERE
        name = os.fsdecode(_memory(thread, arguments[path], _LONGEST_PATH).split(b"\0", 1)[0])
        base = os.readlink(f"/proc/{thread}/cwd" if at == _HERE else f"/proc/{thread}/fd/{at}")
        full = os.path.join(base, name).replace("/proc/self/", f"/proc/{thread}/")
        exists = os.path.lexists(full)
        if full.startswith(f"/proc/{thread}/") or not (exists or write):
            return
        real = os.path.realpath(full)
        granted = any(
            (real == root or (real.startswith(root.rstrip("/") + "/")))
            and (may_write or not write)
            and (not names or os.path.isdir(real))
            for root, may_write, names in self._grants
        )
        if not granted:
            self._add("write" if write else "read", real)
        elif not allowed:
            self._add("open", real)

    def _judge_address(self, thread: int, address: int, length: int) -> None:
        data = _memory(thread, address, min(length, 28))
        family = struct.unpack_from("<H", data)[0]
        if family in (2, 10):
            port = struct.unpack_from(">H", data, 2)[0]
            if port not in self.confinement.ports:
                self._add("connect", str(port))

    def _add(self, kind: str, what: str) -> None:
        if kind == "write" and "__pycache__" in what.split(os.sep):
            return  # Python keeps bytecode where it may, and does without where it may not
        if kind == "write" and self.confinement.isolation.scratch and what.startswith(tempfile.gettempdir()):
            return  # it has a folder for them, though another one
        self.found[Finding(self._sealed, kind, what)] += 1


def declaration(findings: Iterable[Finding], confinement: Confinement) -> str:
    """The isolation under which these findings would not have been refused, as it is written in a topology."""
    isolation = confinement.isolation
    found = set(findings)
    folder = os.path.dirname(confinement.topology) + os.sep
    temporary = {f for f in found if f.kind == "write" and f.what.startswith(tempfile.gettempdir())}
    calls = {f.what for f in found if f.kind == "call"}
    late = any(f.sealed and f.kind in ("read", "write", "open") for f in found)
    wanted = {
        "reads": _all(isolation.reads, {f.what for f in found if f.kind == "read"}, folder),
        "writes": _all(isolation.writes, {f.what for f in found - temporary if f.kind == "write"}, folder),
        "ports": sorted({*isolation.ports, *(int(f.what) for f in found if f.kind == "connect")}),
        "seal": "imports" if late and isolation.seal == "strict" else isolation.seal,
        "jit": isolation.jit or bool(calls & {"mmap", "mprotect"}),
        "helpers": isolation.helpers or int(bool(calls & {"clone", "fork", "vfork"})),
        "scratch": isolation.scratch or bool(temporary),
    }
    plain = {"reads": [], "writes": [], "ports": [], "seal": "strict", "jit": False, "helpers": 0, "scratch": False}
    inner = "".join(f", {name}={value!r}" for name, value in wanted.items() if value != plain[name])
    return f'Isolation("{isolation.level}"{inner})' if inner else f'"{isolation.level}"'


def _all(declared: Iterable[str], found: Iterable[str], folder: str) -> list[str]:
    return sorted({path.removeprefix(folder) for path in (*declared, *found)})


def _memory(thread: int, address: int, length: int) -> bytes:
    """A piece of another process's memory, as much of it as is there."""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as file:
        file.seek(address)
        found = b""
        while len(found) < length:
            # Never beyond a page at once: the next one may not be there.
            part = file.read(min(length - len(found), 4096 - (address + len(found)) % 4096))
            found += part
            if not part or b"\0" in part:
                break
        return found
