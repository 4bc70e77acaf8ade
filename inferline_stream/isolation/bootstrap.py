"""First code of every process that runs users' stages: it ends with its parent, keeps to its cores, and shuts doors.

``python -P isolation/bootstrap.py --parent PID,SIGNAL [--cores 0,1] [--confinement JSON] MODULE [ARGUMENT ...]``
restricts the process, then runs MODULE in it as ``__main__``. It is started by its path and imports the standard
library alone, because Landlock binds only the thread that asks for it and those that this thread starts later: a
library that has started a thread before would keep a way out.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferline_stream.isolation.confinement import Confinement

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)

_CACHES = {"CUDA_CACHE_PATH": "cuda", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
"""Where a process on a GPU keeps what it compiles. By default that is in the home folder, where it may not write."""

EXIT_UNSUPPORTED = 3


def keep_compiled(scratch: str, kept: str) -> None:
    """Keep what a process that has ended has compiled, in the place of what was kept before.

    Its code may have put anything there: links stay links, so that nothing they lead to is read.
    """
    folders = ((name, os.path.join(scratch, name)) for name in _CACHES.values())
    made = [n for n, path in folders if os.path.isdir(path) and not os.path.islink(path) and os.listdir(path)]
    if not made:
        return
    new = f"{kept}.new"
    shutil.rmtree(new, ignore_errors=True)
    for name in made:
        with contextlib.suppress(OSError):  # of a pipe or the like, which no cache has
            shutil.copytree(os.path.join(scratch, name), os.path.join(new, name), symlinks=True)
    shutil.rmtree(kept, ignore_errors=True)
    os.replace(new, kept)


def command(
    module: str,
    cores: Collection[int] = (),
    orphaned: signal.Signals = signal.SIGKILL,
    confinement: Confinement | None = None,
    *,
    forks: bool = False,
) -> list[str]:
    """Command line that runs a module in a restricted child of this process.

    Args:
        module: run as ``__main__``.
        cores: the only ones that the child may run on; empty for all.
        orphaned: what the child is sent when this process has ended, however it ended.
        confinement: what it may touch; None for all that this process may.
        forks: whether it is a parent that replicas are forked from.
    """
    pinned = ["--cores", ",".join(map(str, sorted(cores)))] if cores else []
    parent = ["--parent", f"{os.getpid()},{orphaned.value}"]
    option = "--forking" if forks else "--confinement"
    within = [option, confinement.encoded()] if confinement is not None else []
    # -P: neither this file's folder nor the current one may lend modules their names.
    return [sys.executable, "-P", os.path.abspath(__file__), *parent, *pinned, *within, module]


def environment(
    cores: float, confinement: Confinement | None, source: Mapping[str, str], devices: Sequence[str] | None = None
) -> dict[str, str]:
    """Environment of a child: numeric libraries keep to whole cores; nothing secret where it is confined.

    A child sees its own GPUs, and one without any sees none: it would otherwise take memory on each.
    """
    threads = str(max(1, int(cores)))
    given = dict(source)
    if confinement is not None:
        from inferline_stream.isolation.confinement import visible

        given = visible(source, confinement)
        given |= {"TMPDIR": confinement.scratch} if confinement.scratch else {}
        if confinement.gpu and confinement.scratch:
            given = {name: os.path.join(confinement.scratch, folder) for name, folder in _CACHES.items()} | given
        given |= {"UV_USE_IO_URING": "0", "JOBLIB_MULTIPROCESSING": "1" if confinement.isolation.helpers else "0"}
    # onnxruntime would otherwise look for a host to report to when it is first imported.
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    given |= {} if devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
    return {**given, **dict.fromkeys(_THREADS, threads), **quiet}


def end_with(parent: int, number: int) -> None:
    """Have the kernel signal this process as soon as its parent is gone, however the parent ended."""
    from inferline_stream.isolation import kernel_calls

    kernel_calls.prctl(kernel_calls.SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """Restrict this process, then become the module."""
    rest = list(arguments)
    confinement, forks = None, False
    while rest and rest[0].startswith("--"):
        option, value, *rest = rest
        if option == "--parent":
            parent, number = value.split(",")
            end_with(int(parent), int(number))
        elif option == "--cores":
            os.sched_setaffinity(0, {int(core) for core in value.split(",")})
        elif option in ("--confinement", "--forking"):
            confinement, forks = value, option == "--forking"
        else:
            sys.exit(f"unknown option {option}; {__doc__}")
    if not rest:
        sys.exit(f"no module given; {__doc__}")
    if confinement is not None:
        _confine(confinement, forks=forks)
    sys.argv = rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)


def _confine(text: str, *, forks: bool) -> None:
    from inferline_stream.errors import InferlineError
    from inferline_stream.isolation.confinement import decoded
    from inferline_stream.isolation.seal import confine

    confinement = decoded(text)
    if confinement.kernels:
        with contextlib.suppress(OSError):  # none yet, or replaced meanwhile: it compiles again
            shutil.copytree(confinement.kernels, confinement.scratch, symlinks=True, dirs_exist_ok=True)
    try:
        confine(confinement, forks=forks)
    except InferlineError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_UNSUPPORTED)


if __name__ == "__main__":
    if find_spec("inferline_stream") is None:  # run from a checkout that is not installed
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    main(sys.argv[1:])
