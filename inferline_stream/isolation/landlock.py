"""Landlock: the kernel's own list of files and TCP ports for a process and its descendants.

It binds the calling thread alone, so it comes before anything that starts one. It knows ports, not hosts.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from inferline_stream.isolation import kernel_calls

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_REFER = 1 << 13
_CHANGES = 0b1_1111_1111_0000 & ~((1 << 6) | (1 << 11))  # make and remove; no devices
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}
_CONNECT_TCP, _BIND_TCP = 2, 1
_SCOPES = 0b11  # abstract Unix sockets and signals
_VERSION = 1
_BENEATH, _PORT = 1, 2

NETWORK_ABI, SCOPE_ABI = 4, 6
"""First versions that know TCP ports; that know signals and abstract sockets."""


@dataclass(frozen=True, slots=True)
class PathGrant:
    """What may be done with a path and all below it.

    Args:
        path: the file or folder, which links lead to.
        write: whether it may be changed.
        names: whether only the names in it may be listed.
        device: whether it is a device that may be controlled.
        refill: whether files in it may be written beside being read, and none made.
        program: whether it may be run.
    """

    path: str
    write: bool = False
    names: bool = False
    device: bool = False
    refill: bool = False
    program: bool = False


def abi() -> int:
    """Version of Landlock that the kernel offers; 0 for none."""
    try:
        return kernel_calls.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def restrict(grants: Iterable[PathGrant], ports: Collection[int], listens: Collection[int] = ()) -> int:
    """Bind this thread, and all that it will start, to these paths and TCP ports. Paths that do not exist are skipped.

    Files of ``/proc`` stay open for as long as this process lives: a rule is about an inode, and the kernel makes a new
    one for a file of /proc that it has forgotten for lack of memory.

    Args:
        grants: what may be opened.
        ports: that may be connected to.
        listens: ports that may be listened on.

    Returns:
        The version that holds: 0 if the kernel has no Landlock, and nothing does.

    Raises:
        OSError: the kernel refused.
    """
    version = abi()
    if not version:
        return 0
    rights = (1 << max(bits for since, bits in _RIGHTS_BY_ABI.items() if since <= version)) - 1
    network = _CONNECT_TCP | _BIND_TCP if version >= NETWORK_ABI else 0
    scopes = _SCOPES if version >= SCOPE_ABI else 0
    size = 24 if scopes else 16 if network else 8
    ruleset = kernel_calls.call("landlock_create_ruleset", struct.pack("<QQQ", rights, network, scopes)[:size], size, 0)
    try:
        for grant in grants:
            _allow(ruleset, grant, rights)
        for right, numbers in ((_CONNECT_TCP, ports), (_BIND_TCP, listens)) if network else ():
            for port in numbers:
                kernel_calls.call("landlock_add_rule", ruleset, _PORT, struct.pack("<QQ", right, port), 0)
        kernel_calls.call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, grant: PathGrant, handled: int) -> None:
    try:
        file = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
            return
        raise
    try:
        folder = stat.S_ISDIR(os.fstat(file).st_mode)
        wanted = _READ_DIR if grant.names else _READ_FILE | _READ_DIR
        if grant.write:
            wanted |= _WRITE_FILE | _TRUNCATE | _CHANGES | _REFER
        if grant.device:
            wanted |= _IOCTL_DEV
        if grant.refill:
            wanted |= _WRITE_FILE | _TRUNCATE
        if grant.program:
            wanted |= _EXECUTE
        if not folder:
            wanted &= _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
        if wanted & handled:
            kernel_calls.call("landlock_add_rule", ruleset, _BENEATH, struct.pack("<Qi", wanted & handled, file), 0)
    finally:
        if not grant.path.startswith("/proc/"):
            os.close(file)
