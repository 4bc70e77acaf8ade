"""Asks pre-imported parents for replicas: see `dataplane.parent`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
from collections.abc import Collection
from typing import IO, Any

from inferline_stream.dataplane.protocol import ReplicaSpec, encode
from inferline_stream.isolation import limits
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.launch import Launch

logger = logging.getLogger(__name__)

PARENT_MODULE = "inferline_stream.dataplane.parent"

_ANSWER_S = 2.0
"""A parent does nothing but fork; one that takes longer is not to be waited for."""


class Forked:
    """A replica that its parent forked: what `subprocess.Popen` is for one that was started."""

    def __init__(self, parent: _Parent, pid: int, stdin: IO[bytes]) -> None:
        self._parent = parent
        self.pid = pid
        self.stdin = stdin

    def wait(self) -> int:
        """Its exit code, once it has ended; negative for a signal."""
        return self._parent.code_of(self.pid)


class Parents:
    """One parent per stage and kind of hardware, started with the first replica and ready for later ones.

    Must be used and closed within one event loop.
    """

    def __init__(self) -> None:
        self._parents: dict[tuple[str, str], _Parent] = {}

    def fork(
        self, spec: ReplicaSpec, launch: Launch, log: IO[bytes], cores: Collection[int], *, rehearsal: bool = False
    ) -> Forked | None:
        """Fork a replica; None where its stage does not ask for that, or no parent is ready yet, or any more.

        Args:
            spec: of the replica.
            launch: what would start it otherwise, and answers its questions.
            log: takes what it prints.
            cores: the only ones that it may run on; empty for all.
            rehearsal: whether it is to build and seal its stage, say `dataplane.parent.READY` and end.
        """
        isolation = spec.isolation
        if not (isolation.level == "sandbox" and isolation.forked) or launch.confinement.gpu:
            return None
        key = (spec.stage, spec.hardware.name)
        parent = self._parents.get(key)
        if parent is None:
            self._parents[key] = _Parent(spec, launch.confinement)
            return None
        return parent.fork(launch, log, cores, rehearsal=rehearsal) if parent.ready else None

    def ready(self, stage: str, hardware: str) -> bool:
        """Whether the next replica will be forked."""
        parent = self._parents.get((stage, hardware))
        return parent is not None and parent.ready

    def refused(self, stage: str, hardware: str) -> bool:
        """Whether there is a parent, and replicas start by themselves all the same."""
        parent = self._parents.get((stage, hardware))
        return parent is not None and parent.broken

    def close(self) -> None:
        """End the parents; replicas that are left are told to leave."""
        for parent in self._parents.values():
            parent.close()
        self._parents.clear()


class _Parent:
    def __init__(self, spec: ReplicaSpec, confinement: Confinement) -> None:
        self.ready = self.broken = False
        self._stage = spec.stage
        self._codes: dict[int, int] = {}
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_ANSWER_S)
        self._launch = Launch(
            PARENT_MODULE, confinement, cores=spec.hardware.cores, files=(theirs.fileno(),), forks=True
        )
        self._process = subprocess.Popen(
            [*self._launch.command, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._launch.environment,
            pass_fds=self._launch.files,
            start_new_session=True,
        )
        theirs.close()
        self._launch.started(self._process.pid)
        asyncio.get_running_loop().add_reader(self._channel, self._heard)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(encode(spec) + b"\n")
            self._process.stdin.close()

    def fork(self, launch: Launch, log: IO[bytes], cores: Collection[int], *, rehearsal: bool) -> Forked | None:
        reading, writing = os.pipe()
        told = {"cores": sorted(cores), "confinement": self._launch.confinement.encoded(), "rehearsal": rehearsal}
        try:
            files = [reading, log.fileno(), *launch.files]
            socket.send_fds(self._channel, [json.dumps(told).encode()], files)
            while (pid := self._hear().get("pid")) is None:
                pass
        except OSError as error:
            self._broken(str(error))
            os.close(writing)
            return None
        finally:
            os.close(reading)
        limits.join_groups(launch.confinement, pid)
        return Forked(self, pid, os.fdopen(writing, "wb"))

    def code_of(self, pid: int) -> int:
        try:
            while pid not in self._codes:
                self._hear()
        except OSError:  # the parent is gone, and its children have nobody who could tell
            return -signal.SIGKILL
        return self._codes.pop(pid)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._launch.close()

    def _heard(self) -> None:
        if not select.select([self._channel], [], [], 0)[0]:
            return  # whoever waited for the answer has taken it
        try:
            self._hear()
        except OSError as error:
            self._broken(str(error))

    def _hear(self) -> dict[str, Any]:
        """The next thing it tells, which is remembered."""
        data = self._channel.recv(65536)
        if not data:
            raise ConnectionError("it has ended")
        told: dict[str, Any] = json.loads(data)
        if "ended" in told:
            self._codes[told["ended"]] = told["code"]
        elif "refused" in told:
            raise ConnectionError(told["refused"])
        elif not told:
            self.ready = True
            logger.info("stage %s: replicas are forked from now on", self._stage)
        return told

    def _broken(self, why: str) -> None:
        """From now on replicas start by themselves."""
        self.ready, self.broken = False, True
        asyncio.get_running_loop().remove_reader(self._channel)
        logger.warning("stage %s: replicas start by themselves, not from a parent: %s", self._stage, why)
