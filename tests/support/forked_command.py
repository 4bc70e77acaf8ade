"""The command line, each call in a process of its own: forked from one that has imported what commands import.

A new process imports, and loads kernels, for longer than most commands take. Several tests start the
installed script itself; the many that are about messages and documents need not.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.support.imported_command"])
_ONE_READS = threading.Lock()
"""Starting a process looks for others that ended. The second to read an exit code finds 255."""


def forked_command(
    *arguments: str, folder: Path | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Call the command.

    Args:
        arguments: of the command.
        folder: where; here by default.
        environment: all that its environment holds; what ours does by default.
        timeout_s: longest that it may take.

    Raises:
        subprocess.TimeoutExpired: it did not end in time, and was killed.
    """
    with tempfile.TemporaryDirectory() as kept:
        out, err = (Path(kept) / name for name in ("out", "err"))
        given = (arguments, str(folder or Path.cwd()), dict(os.environ if environment is None else environment))
        process = _FORKING.Process(target=_run, args=(*given, str(out), str(err)))
        with _ONE_READS:
            process.start()
        ended = bool(wait([process.sentinel], timeout_s))
        with _ONE_READS:
            if not ended:
                process.kill()
            process.join()
            code = process.exitcode
        if not ended or code is None:
            raise subprocess.TimeoutExpired(list(arguments), timeout_s, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _run(arguments: tuple[str, ...], folder: str, environment: dict[str, str], out: str, err: str) -> None:
    """In the forked process: become what a shell would have started."""
    for descriptor, file, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(file, flags, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["inferline-stream", *arguments]
    from inferline_stream.cli.main import app

    try:
        app()
    finally:
        atexit._run_exitfuncs()
