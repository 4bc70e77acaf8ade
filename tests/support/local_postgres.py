"""A PostgreSQL server as a process of one's own, from the machine's own programs: it can be stopped and started."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from inferline_stream.errors import Unreachable

_HOST = "127.0.0.1"
_START_S = 30.0
_USER = "tester"


class LocalPostgres:
    """A server in a temporary folder, with one user who has a password. Every method blocks.

    Raises:
        Unreachable: PostgreSQL is not installed, or does not start.
    """

    password = "open sesame"
    database = "postgres"
    user = _USER

    def __init__(self) -> None:
        self._programs = _programs()
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is, without the password."""
        return f"postgresql://{_USER}@{_HOST}:{self.port}/{self.database}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferline-postgres-")))
            self._data = folder / "data"
            secret = folder / "password"
            secret.write_text(self.password)
            folder.chmod(0o711)
            self._data.mkdir(mode=0o700)
            # It refuses to run as root: nobody owns its files then.
            self._owner = None if os.geteuid() else pwd.getpwnam("nobody").pw_uid
            if self._owner is not None:
                for path in (self._data, secret):
                    os.chown(path, self._owner, -1)
            self._run(
                "initdb", "-D", str(self._data), "-U", _USER, f"--pwfile={secret}", "-A", "scram-sha-256", "--no-sync"
            )
            with socket.socket() as free:
                free.bind((_HOST, 0))
                self.port = free.getsockname()[1]
            stack.callback(self.stop)
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "listen_addresses": _HOST, "unix_socket_directories": "", "port": str(self.port),
            "shared_buffers": "16MB", "fsync": "off",
        }  # fmt: skip
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        log = self._data / "log"
        with log.open("ab") as said:
            before = said.tell()
            self._process = subprocess.Popen(command, stdout=said, stderr=said, user=self._owner, cwd="/")
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if b"ready to accept connections" in log.read_bytes()[before:]:
                return
            time.sleep(0.05)
        raise Unreachable(f"PostgreSQL does not start: {log.read_bytes()[before:].decode(errors='replace')[-500:]}")

    def stop(self) -> None:
        """Stop it at once, as if its machine had lost power."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_START_S)
        self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True, text=True, user=self._owner, cwd="/", check=False,
        )  # fmt: skip
        if done.returncode:
            raise Unreachable(f"{program}: {done.stderr.strip()}")


def _programs() -> Path:
    """The folder of PostgreSQL's programs: Debian has the server's own apart from the search path."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        raise Unreachable("PostgreSQL is not installed; install your system's package postgresql")
    return folders[-1]
