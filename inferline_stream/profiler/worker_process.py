"""The profiler's side of a worker process: started, asked, and gone when it is no longer needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from inferline_stream.actuators.affinity import cores_for
from inferline_stream.errors import StageFailed
from inferline_stream.isolation.audit import Audit
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.launch import Launch
from inferline_stream.profiler.worker_messages import (
    ANSWER_BYTES,
    LENGTH_BYTES,
    Answer,
    Begin,
    Failure,
    Request,
    StageBuilt,
    decode_answer,
    framed,
    length_of,
)

MODULE = "inferline_stream.profiler.worker"

_A = TypeVar("_A", bound=Answer)


class WorkerFailed(StageFailed):
    """A worker could not do what it was asked, or has ended.

    Args:
        message: why, without the stage's name.
        memory: whether memory ran out.
        unavailable: whether what the stage asks does not answer, or takes no more at once.
    """

    def __init__(self, message: str, *, memory: bool = False, unavailable: bool = False) -> None:
        super().__init__(message)
        self.memory, self.unavailable = memory, unavailable

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """Return the error that a worker reports."""
        return cls(failure.message, memory=failure.memory, unavailable=failure.unavailable)


_FRAME = re.compile(r".+:\d+ in \S+: ")


def blame(error: WorkerFailed, declared: str, what: str) -> str:
    """One line on a stage that failed: where the user's own code raised comes first, if it did.

    Args:
        error: what the worker said.
        declared: ``file:line`` of the stage.
        what: the stage, and perhaps what it could not do.
    """
    return f"{error}; {what}, declared at {declared}" if _FRAME.match(str(error)) else f"{declared}: {what}: {error}"


class WorkerProcess:
    """A process that holds one stage, kept to cores and threads from its very start.

    Args:
        topology: the topology file.
        stage: the stage's name.
        confinement: what it may touch, as a replica of that stage may, and the cores that it may use.
        start_timeout_s: longest it may take to build the stage.
        audit: watches it rather than confining it; None to confine it.
        build_only: whether nothing will be asked of it beyond being built.
        devices: UUIDs of the GPUs that it may use.
    """

    def __init__(
        self,
        topology: Path,
        stage: str,
        confinement: Confinement,
        *,
        start_timeout_s: float,
        audit: Audit | None = None,
        build_only: bool = False,
        devices: Sequence[str] = (),
    ) -> None:
        self._confinement = confinement if audit is None else audit.confinement
        self._audit = audit
        self._begin = Begin(str(topology), stage, self._confinement.encoded(), build_only)
        self._devices = devices
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._launch: Launch | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self.start_up_s = 0.0
        """From asking for the process to the stage being built."""

    async def __aenter__(self) -> Self:
        began_s = time.perf_counter()
        cores = self._confinement.cores
        pinned = cores_for(max(1.0, cores), os.sched_getaffinity(0), ())
        files = () if self._audit is None else self._audit.files
        launch = self._launch = Launch(
            MODULE, self._confinement, cores=cores, pinned=pinned, files=files, devices=self._devices
        )
        self._process = await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
            env=launch.environment,
            pass_fds=launch.files,
            start_new_session=True,
        )
        launch.started(self._process.pid)
        if self._audit is not None:
            self._audit.watch(self._process.pid)
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self.ask(self._begin, StageBuilt)
        except TimeoutError:
            await self._end()
            raise WorkerFailed(
                f"was not built within {self._start_timeout_s:g} s; if it needs longer, set INFERLINE_START_TIMEOUT_S, "
                "on a GPU INFERLINE_GPU_START_TIMEOUT_S"
            ) from None
        except BaseException:
            await self._end()
            raise
        self.start_up_s = time.perf_counter() - began_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process is None or self._process.returncode is not None

    async def close(self) -> None:
        """End the process before its time."""
        await self._end()

    async def ask(self, request: Request, answer: type[_A]) -> _A:
        """Send a request and wait for its answer.

        Raises:
            WorkerFailed: it could not be done, or the process has ended.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(framed(request))
            await self._process.stdin.drain()
            length = length_of(await self._process.stdout.readexactly(LENGTH_BYTES))
            found = decode_answer(await self._process.stdout.readexactly(length)) if length <= ANSWER_BYTES else None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._ended() from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = None
        if isinstance(found, Failure):
            raise WorkerFailed.of(found)
        if not isinstance(found, answer):  # code of the stage has written to the worker's answers
            await self._end()
            raise WorkerFailed(f"its process did not answer {type(request).__name__} as a worker does")
        return found

    async def _ended(self) -> WorkerFailed:
        assert self._process is not None
        code = await self._process.wait()
        if code == -9:  # what the kernel does when memory runs out
            return WorkerFailed("its process was killed, as the system does when memory runs out", memory=True)
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return WorkerFailed(f"its process ended with exit code {code}: {lines[-1] if lines else 'it wrote nothing'}")

    async def _end(self) -> None:
        if self._log.closed:
            return
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # it holds nothing that could be lost
            await self._process.communicate()
        if self._launch is not None:
            self._launch.close()
            self._launch = None
            if self._audit is not None:
                self._audit.close()
        self._log.close()
