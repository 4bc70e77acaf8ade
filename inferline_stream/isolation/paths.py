"""Files that a sandboxed process may read: system libraries, Python, the topology's code, what is declared."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.landlock import PathGrant

_SYSTEM = (
    *("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/share", "/lib", "/lib64"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/timezone", "/etc/hosts"),
    *("/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services", "/etc/mime.types"),
    *("/etc/passwd", "/etc/group", "/etc/ca-certificates", "/etc/os-release"),
    # Certificates of authorities alone: beside them lie private keys, as in /etc/ssl/private and /etc/pki/tls/private.
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/cert.pem", "/etc/ssl/ca-bundle.pem"),
    *("/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf"),
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems"),
    *("/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/cap_last_cap"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage"),
    *("/sys/fs/cgroup", "/sys/bus/pci"),
    *("/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
)
_GPU_READS = (
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/devices",
    "/proc/sys/vm/mmap_min_addr",
    "/sys/bus/pci",
    "/sys/devices",
    "/sys/module/nvidia",
    "/sys/class",
)
_CUDA = ("/usr/local/nvidia", "/opt/nvidia", "/opt/cuda", "/run/nvidia-persistenced")
"""Where libraries lie beside the usual folders: of the driver in containers, of distributions. `/usr/local/cuda-12.4`
and its like are looked for, and folders of LD_LIBRARY_PATH are taken as they are given."""
_SHM = "/dev/shm"  # noqa: S108  the one of the system
_GPU_NODE = re.compile(r"nvidia(\d+|-caps)")
"""Of a GPU, and the folder of what makes and uses slices."""
_CODE = (".py", ".so")
_DEEPEST = 8
_NOT_ITS_OWN = ("net", "task", "root", "cwd", "map_files")


def grants(confinement: Confinement) -> Iterator[PathGrant]:
    """Everything that a process may touch."""
    isolation = confinement.isolation
    for path in (*_SYSTEM, *_python(), *_own_process(), *confinement.kafka_files, *isolation.reads):
        yield PathGrant(path)
    for folder in ("/proc/self", "/proc/self/task"):
        yield PathGrant(folder, names=True)
    yield PathGrant("/dev/null", write=True)
    # Installed packages may have data beside their code; whatever else is on the search path is taken for code alone.
    whole = tuple(f"{path}{os.sep}" for path in (sys.prefix, sys.base_prefix, *isolation.reads))
    code = [str(Path(confinement.topology).parent)] if confinement.topology else []
    for entry in (*code, *sys.path):
        if entry and not f"{entry}{os.sep}".startswith(whole):
            # A dispatcher runs no code of users: it needs installed packages, and its own is found by its name.
            whose = confinement.topology or os.path.basename(entry) in ("site-packages", "dist-packages")
            yield from _code(Path(entry)) if whose else [PathGrant(entry, names=True)]
    for path in (*isolation.writes, *filter(None, [confinement.scratch])):
        yield PathGrant(path, write=True)
    for path in isolation.executes:
        yield PathGrant(path, program=True)
    for path in _loaders() if isolation.executes else ():
        yield PathGrant(path, program=True)
    for _, path in isolation.mounts:
        yield PathGrant(path)
    if confinement.gpu or isolation.shm_mb is not None:
        yield PathGrant(_SHM, write=True)
    if confinement.gpu:
        yield from _gpu(confinement.nodes)


def _gpu(nodes: tuple[str, ...] | None) -> Iterator[PathGrant]:
    """What CUDA opens: its libraries, what the kernel says about the driver, and the nodes of these devices."""
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if os.path.isabs(path)]
    for path in (*_GPU_READS, *_CUDA, *glob.glob("/usr/local/cuda*"), *libraries):
        yield PathGrant(path)
    # CUDA names its threads by the C library, which opens their `comm` to read and to write, and ends where it cannot.
    # A rule knows folders and no patterns, so the process may read all files of its threads, `net` included.
    yield PathGrant("/proc/self/task", refill=True)
    found = [name for name in os.listdir("/dev") if name.startswith("nvidia")]
    # What belongs to no GPU: nvidiactl, nvidia-uvm.
    every = found if nodes is None else [name for name in found if not _GPU_NODE.fullmatch(name)]
    for name in (*every, *(nodes or ())):
        yield PathGrant(f"/dev/{name}", write=True, device=True)


def _loaders() -> Iterator[str]:
    """What the kernel runs to start a program: the loader of its libraries, which runs what could be loaded, too."""
    for folder in ("/lib", "/lib64", "/lib/*-linux-gnu", "/lib/*-linux-musl"):
        yield from glob.glob(f"{folder}/ld-*.so*")


def _own_process() -> Iterator[str]:
    """What the kernel tells a process about itself; ``net`` would tell it who is connected to whom on this host."""
    with contextlib.suppress(OSError):
        yield from (f"/proc/self/{name}" for name in os.listdir("/proc/self") if name not in _NOT_ITS_OWN)


def _python() -> Iterator[str]:
    """The interpreter, its libraries and this package, wherever they are installed."""
    yield from {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    yield os.path.dirname(os.path.realpath(sys.executable))
    package = Path(__file__).parents[1]
    yield str(package)
    yield str((package / "connectors").resolve())  # a link, in a checkout


def _code(folder: Path) -> Iterator[PathGrant]:
    """The topology's modules, at any depth. Its data is each stage's own: another stage's model stays out of reach."""
    if folder.is_file():
        yield PathGrant(str(folder))  # an archive of modules
        return
    yield PathGrant(str(folder), names=True)
    for parent, folders, files in os.walk(folder):
        at = Path(parent)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not os.path.exists(at / name / "pyvenv.cfg") and name != "node_modules"
        ]
        if len(at.relative_to(folder).parts) >= _DEEPEST:
            folders.clear()
        if at.name == "__pycache__":
            yield PathGrant(parent)
            continue
        for name in files:
            if name.endswith(_CODE):
                yield PathGrant(str(at / name))
