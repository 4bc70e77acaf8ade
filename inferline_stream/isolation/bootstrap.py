"""First code of every process that runs users' stages: it ends with its parent and keeps to its cores.

``python -m inferline_stream.isolation.bootstrap --parent PID,SIGNAL [--cores 0,1] MODULE [ARGUMENT ...]``
restricts the process, then runs MODULE in it as ``__main__``. Nothing that starts threads is imported before.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Collection, Sequence

_PR_SET_PDEATHSIG = 1

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


def command(module: str, cores: Collection[int] = (), orphaned: signal.Signals = signal.SIGKILL) -> list[str]:
    """Command line that runs a module in a restricted child of this process.

    Args:
        module: run as ``__main__``.
        cores: the only ones that the child may run on; empty for all.
        orphaned: what the child is sent when this process has ended, however it ended.
    """
    pinned = ["--cores", ",".join(map(str, sorted(cores)))] if cores else []
    parent = ["--parent", f"{os.getpid()},{orphaned.value}"]
    return [sys.executable, "-m", "inferline_stream.isolation.bootstrap", *parent, *pinned, module]


def thread_variables(cores: float) -> dict[str, str]:
    """Environment that keeps numeric libraries to whole cores: as many threads, at least one."""
    threads = str(max(1, int(cores)))
    # onnxruntime would otherwise look for a host to report to when it is first imported.
    return {**dict.fromkeys(_THREADS, threads), "ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def end_with(parent: int, number: int) -> None:
    """Have the kernel signal this process as soon as its parent is gone, however the parent ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before the kernel knew
        os._exit(1)


def main(arguments: Sequence[str]) -> None:
    """Restrict this process, then become the module."""
    rest = list(arguments)
    while rest and rest[0].startswith("--"):
        option, value, *rest = rest
        if option == "--parent":
            parent, number = value.split(",")
            end_with(int(parent), int(number))
        elif option == "--cores":
            os.sched_setaffinity(0, {int(core) for core in value.split(",")})
        else:
            sys.exit(f"unknown option {option}; {__doc__}")
    if not rest:
        sys.exit(f"no module given; {__doc__}")
    sys.argv = rest
    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
