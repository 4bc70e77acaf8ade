"""A model server that a replica starts for itself: it ends with the replica, and the replica with it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from inferline_stream.dataplane.replica import server_parent
from inferline_stream.errors import StageFailed
from inferline_stream.pipeline.model_server import PORT

logger = logging.getLogger(__name__)

_POLL_S = 0.05

_SILENT_S = 5.0
"""How long a server may take before the log says what it answers; said again at twice the time."""


class ServerProcess:
    """A server's process, on a port of its own.

    Args:
        command: what to run; ``{port}`` stands for the port.
        folder: to run it in.

    Raises:
        StageFailed: it cannot be started.
    """

    def __init__(self, command: str, folder: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._command = shlex.split(command.replace(PORT, str(self.port)))
        program = self._command[0]
        if shutil.which(os.path.join(folder, program) if os.path.dirname(program) else program) is None:
            raise StageFailed(f"server {program!r} cannot be started: there is no such program, or it may not be run")
        parent = [sys.executable, "-I", "-S", os.path.abspath(server_parent.__file__), str(os.getpid()), folder]
        self.asleep: bool | None = False
        """Whether it was put to sleep, by whichever of its models; None where it was asked to and has not said."""
        self.wake: Callable[[], Awaitable[None]] | None = None
        """Wakes it; None where it never sleeps."""
        self._process = subprocess.Popen([*parent, *self._command], stdin=subprocess.DEVNULL, stdout=2)

    def await_ready(self, lack: Callable[[], str]) -> None:
        """Wait until the server is ready, however long its model takes to load.

        Args:
            lack: returns what it lacks still; empty where it is ready.

        Raises:
            StageFailed: it has ended.
        """
        began_s, silent_s = time.monotonic(), _SILENT_S
        while not self.ended():
            said = lack()
            if not said:
                return
            waited_s = time.monotonic() - began_s
            if waited_s > silent_s:
                logger.warning("server %r is not ready after %.0f s: %s", self._command[0], waited_s, said)
                silent_s = 2 * waited_s
            time.sleep(_POLL_S)
        raise StageFailed(self.ended())

    def ended(self) -> str:
        """How the server has ended, in words; empty while it runs."""
        code = self._process.poll()
        return "" if code is None else f"server {self._command[0]!r} ended with exit code {code}"
