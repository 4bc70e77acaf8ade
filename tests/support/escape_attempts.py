"""Thirty-six ways out of a process that a stage could try, each tried for real against something made for it.

Run as ``__main__`` (see `probes`), it seals itself as standard input says, tries them all, and reports. None of them
harms anything where it succeeds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inferline_stream.isolation import kernel_calls
from inferline_stream.isolation.confinement import decoded
from inferline_stream.isolation.seal import seal

_BLOCKED = frozenset(
    (
        *(errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT),
        *(errno.EOPNOTSUPP, errno.ENODEV, errno.ENOTSOCK),
    )
)
_HERE = -100
_PASSWORD = re.compile(rb"inferline-secret-[0-9a-f]{32}")
_PIPE_BYTES = 65536
_NEW_USER = 0x10000000
_FIOSETOWN = 0x8901


@dataclass(frozen=True, slots=True)
class Targets:
    """What was put up to be attacked.

    Args:
        secret: a file of another stage.
        folder: a folder that anyone may write to.
        process: another process of the same user, and an address that it has mapped.
        address: of that mapping.
        tcp: port of a listening socket that is nobody's business.
        udp: likewise.
        abstract: name of an abstract Unix socket.
        code: a module of another stage.
        inherited: descriptor of a TCP socket that was there when the process began.
        password: SHA-256 of Kafka's password, in hexadecimal digits.
    """

    secret: str
    folder: str
    process: int
    address: int
    tcp: int
    udp: int
    abstract: str
    code: str
    inherited: int
    password: str


@dataclass(frozen=True, slots=True)
class Before:
    """What a stage prepares before the seal, to use it afterwards.

    Args:
        udp: a socket to send datagrams with; None where none could be made.
        owned: whether another process is the one that the kernel signals for a file of ours.
        regions: address and size of the process's own memory.
    """

    udp: socket.socket | None
    owned: bool
    regions: tuple[tuple[int, int], ...]


def prepare(to: Targets) -> Before:
    """Open and find out what a sealed process could use."""
    try:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        udp = None
    owned, pair = False, socket.socketpair()
    for own in (
        lambda: fcntl.fcntl(pair[0], fcntl.F_SETOWN, to.process),
        lambda: fcntl.ioctl(pair[1], _FIOSETOWN, struct.pack("<i", to.process)),
    ):
        with contextlib.suppress(OSError):
            own()
            owned = True  # the rest, to have a signal sent, needs no further permission
    regions = []
    with open("/proc/self/maps", encoding="ascii") as maps:
        for span, rights, _, _, inode, *name in map(str.split, maps):
            first, last = (int(end, 16) for end in span.split("-"))
            if rights.startswith("rw") and inode == "0" and name != ["[vvar]"]:
                regions.append((first, last - first))
    return Before(udp, owned, tuple(regions))


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def _write(to: Targets) -> None:
    path = os.path.join(to.folder, "written")
    with open(path, "wb") as file:
        file.write(b"x")
    os.unlink(path)


def _execute_memory(to: Targets) -> None:
    memory = os.memfd_create("program")
    with open("/bin/true", "rb") as program:
        os.write(memory, program.read())
    child = os.fork()
    if child == 0:
        try:
            os.execve(memory, ["true"], {})
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError(errno.EPERM, "it could not be executed")


def _connect(family: int, protocol: int, address: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as opened:
        opened.settimeout(2)
        opened.connect(address)


def _fast_open(to: Targets) -> None:
    with socket.socket() as opened:
        opened.sendto(b"x", 0x20000000, ("127.0.0.1", to.tcp))


def _datagram(to: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.sendto(b"x", ("127.0.0.1", to.udp))


def _datagram_of_before(to: Targets, before: Before) -> None:
    if before.udp is None:
        raise PermissionError(errno.EPERM, "no such socket could be made")
    before.udp.sendto(b"x", ("127.0.0.1", to.udp))


def _signal_for_a_file(to: Targets, before: Before) -> None:
    if not before.owned:
        raise PermissionError(errno.EPERM, "no other process can be named")


def _connect_inherited(to: Targets) -> None:
    address = struct.pack("<H", socket.AF_INET) + struct.pack(">H4s8x", to.tcp, socket.inet_aton("127.0.0.1"))
    kernel_calls.call("connect", to.inherited, address, len(address))


def _credentials(to: Targets, before: Before) -> None:
    """Look for Kafka's password in this process's environment and memory, and in another's environment."""
    if any(hashlib.sha256(value.encode()).hexdigest() == to.password for value in os.environ.values()):
        return
    for part in _memory(before.regions):
        for found in _PASSWORD.findall(part):
            if hashlib.sha256(found).hexdigest() == to.password:
                return
    _read(f"/proc/{to.process}/environ")


def _memory(regions: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """This process's own memory, through a pipe: what has gone since is an error there, and no crash."""
    libc = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        for first, size in regions:
            data = bytearray()
            for at in range(first, first + size, _PIPE_BYTES):
                length = min(_PIPE_BYTES, first + size - at)
                if libc.write(writing, ctypes.c_void_p(at), ctypes.c_size_t(length)) > 0:
                    data += os.read(reading, _PIPE_BYTES)
            yield bytes(data)
    finally:
        os.close(reading)
        os.close(writing)


def _bind(to: Targets) -> None:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()


def _opened(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def _io_uring(to: Targets) -> None:
    os.close(kernel_calls.call("io_uring_setup", 1, bytes(120)))


def _user_namespace(to: Targets) -> None:
    child = kernel_calls.call("clone", _NEW_USER | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _bpf(to: Targets) -> None:
    os.close(kernel_calls.call("bpf", 0, struct.pack("<IIII", 2, 4, 4, 1) + bytes(56), 72))  # an array of one number


def _perf(to: Targets) -> None:
    os.close(kernel_calls.call("perf_event_open", struct.pack("<IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, 0))


def _handle(to: Targets) -> None:
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0) + bytes(128))
    mount = ctypes.create_string_buffer(4)
    kernel_calls.call("name_to_handle_at", _HERE, to.secret.encode() + b"\0", handle, mount, 0)  # type: ignore[arg-type]
    root = os.open(os.path.dirname(to.secret), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(kernel_calls.call("open_by_handle_at", root, handle, os.O_RDONLY))  # type: ignore[arg-type]
    finally:
        os.close(root)


def _pidfd(to: Targets) -> None:
    process = os.pidfd_open(to.process)
    try:
        os.close(kernel_calls.call("pidfd_getfd", process, 0, 0))
    finally:
        os.close(process)


def _other_memory(to: Targets) -> None:
    room = ctypes.create_string_buffer(1)
    ours, theirs = struct.pack("<QQ", ctypes.addressof(room), 1), struct.pack("<QQ", to.address, 1)
    kernel_calls.call("process_vm_readv", to.process, ours, 1, theirs, 1, 0)


ATTEMPTS: Mapping[str, Callable[[Targets], object]] = {
    "read a secret of the host": lambda to: _read("/etc/shadow"),
    "read another stage's code": lambda to: _read(to.code),
    "read who is connected to whom on this host": lambda to: _read("/proc/self/net/tcp"),
    "read it as one of its threads": lambda to: _read("/proc/thread-self/net/tcp"),
    "connect an inherited socket": _connect_inherited,
    "read a secret of another stage": lambda to: _read(to.secret),
    "read another process's environment": lambda to: _read(f"/proc/{to.process}/environ"),
    "open another process's memory": lambda to: open(f"/proc/{to.process}/mem", "rb").close(),
    "copy another process's memory": _other_memory,
    "signal another process": lambda to: os.kill(to.process, signal.SIGCONT),
    "trace another process": lambda to: kernel_calls.call("ptrace", 0x4206, to.process, 0, 0),
    "take another process's open file": _pidfd,
    "write a file": _write,
    "execute a program": lambda to: subprocess.run(["/bin/true"], check=True),
    "execute a program from memory": _execute_memory,
    "write to memory and execute it": lambda to: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
    "connect to another TCP port": lambda to: _connect(socket.AF_INET, 0, ("127.0.0.1", to.tcp)),
    "connect to it by multipath TCP": lambda to: _connect(socket.AF_INET, 262, ("127.0.0.1", to.tcp)),
    "send to it by TCP fast open": _fast_open,
    "send a UDP datagram": _datagram,
    "connect to an abstract Unix socket": lambda to: _connect(socket.AF_UNIX, 0, f"\0{to.abstract}"),
    "listen on a TCP port": _bind,
    "open a netlink socket": lambda to: _opened(16, socket.SOCK_RAW),
    "open a packet socket": lambda to: _opened(17, socket.SOCK_RAW),
    "open a virtual machine socket": lambda to: _opened(40, socket.SOCK_STREAM),
    "open a crypto socket": lambda to: _opened(38, socket.SOCK_SEQPACKET),
    "set up io_uring": _io_uring,
    "make a user namespace": _user_namespace,
    "make a BPF map": _bpf,
    "handle others' page faults": lambda to: os.close(kernel_calls.call("userfaultfd", 0)),
    "watch performance events": _perf,
    "use the kernel's keyring": lambda to: kernel_calls.call("keyctl", 0, -3, 1),
    "open a file by its handle": _handle,
}

PREPARED: Mapping[str, Callable[[Targets, Before], object]] = {
    "send a datagram by a socket opened before": _datagram_of_before,
    "have the kernel signal another process": _signal_for_a_file,
    "find Kafka's password": _credentials,
}
"""Those that begin before the seal."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one attempt went.

    Args:
        name: what was tried.
        blocked: whether it failed as it should.
        answer: the kernel's, as an errno's name; ``"succeeded"``, or what went wrong with the attempt itself.
    """

    name: str
    blocked: bool
    answer: str


def attempt(name: str, targets: Targets, before: Before) -> Attempt:
    """Try one way out."""
    try:
        if name in PREPARED:
            PREPARED[name](targets, before)
        else:
            ATTEMPTS[name](targets)
    except OSError as error:
        number = error.errno or 0
        blocked = number in _BLOCKED or (number == errno.ENOENT and name.startswith("connect"))
        return Attempt(name, blocked, errno.errorcode.get(number, str(error)))
    except Exception as error:
        return Attempt(name, blocked=False, answer=f"{type(error).__name__}: {error}")
    return Attempt(name, blocked=False, answer="succeeded")


def main() -> None:
    """Seal, try, tell."""
    given = json.loads(sys.stdin.readline())
    targets = Targets(**given["targets"])
    before = prepare(targets)
    began_s = time.perf_counter()
    held = seal(decoded(given["confinement"]))
    seal_ms = (time.perf_counter() - began_s) * 1e3
    found = [asdict(attempt(name, targets, before)) for name in (*ATTEMPTS, *PREPARED)]
    sys.stdout.write(json.dumps({"seal_ms": seal_ms, "held": asdict(held), "attempts": found}) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
