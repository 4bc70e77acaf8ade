"""Runs the attempts to escape in a process that is isolated as a replica is."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferline_stream.errors import InvalidInput
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.isolation import Isolation
from tests.support import escape_attempts
from tests.support.escape_attempts import Attempt, Targets

_WITHIN_S = 30.0
_PASSWORD_VARIABLE = "INFERLINE_KAFKA_SASL_PASSWORD"
_VICTIM = (
    "import ctypes, sys; kept = ctypes.create_string_buffer(b's'); "
    "print(ctypes.addressof(kept), flush=True); sys.stdin.read()"
)


@dataclass(frozen=True, slots=True)
class Probed:
    """What one level withstood.

    Args:
        attempts: each of them.
        held: what was found to be enforced.
        seal_ms: time that the seal took, milliseconds.
    """

    attempts: tuple[Attempt, ...]
    held: Enforced
    seal_ms: float

    @property
    def blocked(self) -> int:
        """How many attempts failed as they should."""
        return sum(found.blocked for found in self.attempts)


async def probe(isolation: Isolation, *, gpu: bool = False) -> Probed:
    """Try every way out under an isolation.

    Args:
        isolation: the level.
        gpu: whether as a replica on a GPU is confined.

    Raises:
        InvalidInput: this machine cannot isolate so, or the process ended early.
    """
    password = f"inferline-secret-{secrets.token_hex(16)}"
    async with _targets(password) as (targets, topology):
        with _password(password):
            confinement = Confinement(isolation, topology, gpu=gpu)
            launch = Launch("escape_attempts", confinement, cores=1)
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**launch.environment, "PYTHONPATH": os.path.dirname(topology)},
            pass_fds=(*launch.files, targets.inherited),
        )
        launch.started(process.pid)
        try:
            given = json.dumps({"confinement": launch.confinement.encoded(), "targets": asdict(targets)})
            async with asyncio.timeout(_WITHIN_S):
                output, said = await process.communicate(f"{given}\n".encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            launch.close()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise InvalidInput(lines[-1] if lines else f"the probing process ended with {process.returncode}")
    found = json.loads(output)
    held: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in found["held"].items()}
    return Probed(tuple(Attempt(**each) for each in found["attempts"]), Enforced(**held), found["seal_ms"])


@contextlib.asynccontextmanager
async def _targets(password: str) -> AsyncIterator[tuple[Targets, str]]:
    """A secret, a folder, a process and sockets, and a topology's folder to run in."""
    async with contextlib.AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferline-probe-")))
        stage = root / "stage"
        stage.mkdir()
        (root / "open").mkdir(mode=0o777)
        (root / "model").write_text("weights of another stage")
        (stage / "another.py").write_text("# code of another stage")
        shutil.copy(escape_attempts.__file__, stage)
        name = f"inferline-{secrets.token_hex(8)}"
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(f"\0{name}")
        unix.listen()
        victim = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _VICTIM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, _PASSWORD_VARIABLE: password},
        )
        inherited = stack.enter_context(socket.socket())
        stack.push_async_callback(_ended, victim)
        assert victim.stdout is not None
        address = int(await victim.stdout.readline())
        ports = (tcp.getsockname()[1], udp.getsockname()[1])
        yield (
            Targets(
                str(root / "model"),
                str(root / "open"),
                victim.pid,
                address,
                *ports,
                name,
                str(stage / "another.py"),
                inherited.fileno(),
                hashlib.sha256(password.encode()).hexdigest(),
            ),
            str(stage / "topology.py"),
        )


@contextlib.contextmanager
def _password(password: str) -> Iterator[None]:
    """Have Kafka's password in the environment, where a controller has it."""
    before = os.environ.get(_PASSWORD_VARIABLE)
    os.environ[_PASSWORD_VARIABLE] = password
    try:
        yield
    finally:
        del os.environ[_PASSWORD_VARIABLE]
        if before is not None:
            os.environ[_PASSWORD_VARIABLE] = before


async def _ended(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.communicate()
