"""The parent of a model server that a replica starts: ends the server, and all that it has started, with the replica.

``python -I -S server_parent.py PARENT FOLDER COMMAND [ARGUMENT ...]`` runs the command in the folder, and ends as it
does. Once the process PARENT is gone, however it ended, the server is asked to end; what is left then is killed.
Processes whose own parent has ended become children of this one, so that none is left behind. It imports the standard
library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

_GRACE_S = 3.0
"""How long a server has to end by itself: it may remove what it shares with its helpers."""

_POLL_S = 0.02
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
EXIT_NOT_STARTED = 127


class _Orphaned(Exception):
    """The replica is gone."""


def main(parent: int, folder: str, command: list[str]) -> int:
    """Run the server to its end, or to the replica's; returns the exit code, that of a killed server being above 128.

    Args:
        parent: process of the replica.
        folder: to run the server in.
        command: its program and arguments.
    """
    libc = ctypes.CDLL(None)
    server: subprocess.Popen[bytes] | None = None
    try:
        signal.signal(signal.SIGTERM, _orphaned)
        libc.prctl(_SET_CHILD_SUBREAPER, 1)
        libc.prctl(_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before the kernel knew
            return 1
        try:
            server = subprocess.Popen(command, cwd=folder, start_new_session=True)
        except OSError as error:
            sys.stderr.write(f"server {command[0]!r} cannot be started: {error.strerror}\n")
            return EXIT_NOT_STARTED
        while True:
            process, status = os.waitpid(-1, 0)
            if process == server.pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
    except _Orphaned:
        if server is not None:
            server.terminate()
            until_s = time.monotonic() + _GRACE_S
            while time.monotonic() < until_s and server.poll() is None:
                time.sleep(_POLL_S)
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_all()


def _orphaned(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Orphaned


def _end_all() -> None:
    """Kill every process below this one."""
    while True:
        for process in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # its own children are children of this process then
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    own = os.getpid()
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            process = int(name)
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == own:
                    yield process


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
