"""A model server that a replica starts for itself: it ends with the replica, and the replica with it."""

from __future__ import annotations

import http.client
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from inferline_stream.dataplane.replica import server_parent
from inferline_stream.errors import StageFailed
from inferline_stream.pipeline.model_server import PORT

_POLL_S = 0.05


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
        self._process = subprocess.Popen([*parent, *self._command], stdin=subprocess.DEVNULL, stdout=2)

    def await_ready(self, url: str, *, headers: Mapping[str, str] | None = None, any_answer: bool = False) -> None:
        """Wait until the server answers there with 200, or at all, however long its model takes to load.

        Args:
            url: asked by GET.
            headers: of the request.
            any_answer: whatever it answers will do.

        Raises:
            StageFailed: it has ended.
        """
        parts = urlsplit(url)
        while not self.ended():
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5.0)
            try:
                connection.request("GET", parts.path, headers=dict(headers or {}))
                if connection.getresponse().status == HTTPStatus.OK or any_answer:
                    return
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(_POLL_S)
        raise StageFailed(self.ended())

    def ended(self) -> str:
        """How the server has ended, in words; empty while it runs."""
        code = self._process.poll()
        return "" if code is None else f"server {self._command[0]!r} ended with exit code {code}"
