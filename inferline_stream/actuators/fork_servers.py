"""Starts processes that fork replicas and dispatchers, and asks them for some: see `dataplane.fork_server`."""

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
import time
from collections.abc import Collection
from typing import IO, Any

import msgspec

import inferline_stream
from inferline_stream.dataplane.fork_server import DISPATCHERS, MAX_DATAGRAM_BYTES
from inferline_stream.dataplane.process_specs import ReplicaSpec, encode_spec
from inferline_stream.isolation import limits
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.launch import Launch

logger = logging.getLogger(__name__)

FORK_SERVER_MODULE = "inferline_stream.dataplane.fork_server"

_ANSWER_S = 2.0
"""A fork server does nothing but fork; one that takes longer is given up."""


class Forked:
    """A process that a fork server forked: what `subprocess.Popen` is for one that was started."""

    def __init__(self, server: _ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    def wait(self) -> int:
        """Return its exit code, once it has ended; negative for a signal."""
        return self._server.code_of(self.pid)


class ForkServers:
    """One fork server per stage and hardware kind that asks for it, and one for dispatchers.

    Each is started with the first process that it could have forked, and is ready for later ones. Must be used and
    closed within one event loop.
    """

    def __init__(self) -> None:
        self._servers: dict[tuple[str, str], _ForkServer] = {}
        self._replaced: list[_ForkServer] = []

    def fork_replica(
        self, spec: ReplicaSpec, launch: Launch, channel: int, log: IO[bytes], cores: Collection[int]
    ) -> Forked | None:
        """Fork a replica; None where its stage does not ask for that, or its fork server is not ready.

        Replicas on a GPU are never forked: a driver's state does not survive one.

        Args:
            spec: of the replica.
            launch: what would start it otherwise.
            channel: its end of the channel to the supervisor.
            log: takes what it prints.
            cores: the only ones that it may run on; empty for all.
        """
        isolation = spec.isolation
        if not (isolation.level == "sandbox" and isolation.forked) or launch.confinement.gpu:
            return None
        kind = encode_spec(msgspec.structs.replace(spec, replica=""))
        return self._fork((spec.stage, spec.hardware.name), kind, launch, [channel, log.fileno()], cores)

    def fork_dispatcher(self, launch: Launch, channel: int, log: IO[bytes]) -> Forked | None:
        """Fork a dispatcher; None while the fork server is not ready."""
        files = [channel, log.fileno(), *launch.files]
        return self._fork(("", launch.confinement.encoded()), DISPATCHERS, launch, files, ())

    def refused(self, stage: str, hardware: str) -> bool:
        """Return whether a stage's fork server has failed, so that its replicas start by themselves."""
        server = self._servers.get((stage, hardware))
        return server is not None and server.broken

    def ready(self, stage: str, hardware: str) -> bool:
        """Return whether the next replica will be forked."""
        server = self._servers.get((stage, hardware))
        return server is not None and server.ready

    def close(self) -> None:
        """End the fork servers; what they have forked ends with them."""
        for server in (*self._servers.values(), *self._replaced):
            server.close()
        self._servers.clear()
        self._replaced.clear()

    def _fork(
        self, key: tuple[str, str], kind: bytes, launch: Launch, files: list[int], cores: Collection[int]
    ) -> Forked | None:
        for idle in [server for server in self._replaced if not server.children]:
            self._replaced.remove(idle)
            idle.close()
        server = self._servers.get(key)
        # Its children live on, and it must outlive them.
        if server is not None and (server.kind, server.release) != (kind, _installed_release()):
            self._replaced.append(self._servers.pop(key))
            server = None
        if server is None:
            self._servers[key] = _ForkServer(key[0] or "dispatchers", kind, launch.confinement)
            return None
        return server.fork(launch, files, cores) if server.ready else None


def _installed_release() -> tuple[int, int]:
    """Return what differs once another release of this package was installed: a fork server has imported one."""
    found = os.stat(inferline_stream.__file__)
    return found.st_ino, found.st_mtime_ns


class _ForkServer:
    def __init__(self, name: str, kind: bytes, confinement: Confinement) -> None:
        self.ready = self.broken = False
        self.kind = kind
        self.release = _installed_release()
        self.children: set[int] = set()
        self._name = name
        self._codes: dict[int, int] = {}
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_ANSWER_S)
        self._launch = Launch(
            FORK_SERVER_MODULE, confinement, cores=max(1.0, confinement.cores), forks=True, devices=()
        )
        self._process = subprocess.Popen(
            [*self._launch.command, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._launch.environment,
            pass_fds=(*self._launch.files, theirs.fileno()),
            start_new_session=True,
        )
        theirs.close()
        self._launch.started(self._process.pid)
        asyncio.get_running_loop().add_reader(self._channel, self._heard)
        with contextlib.suppress(OSError):  # it has ended already, which is noticed at its channel
            self._channel.send(kind)

    def fork(self, launch: Launch, files: list[int], cores: Collection[int]) -> Forked | None:
        request = {
            "cores": sorted(cores),
            "confinement": self._launch.confinement.encoded(),
            "until_s": time.monotonic() + _ANSWER_S / 2,
        }
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], files)
            while (pid := self._hear().get("pid")) is None:
                pass
        except OSError as error:
            self._give_up(str(error))
            return None
        self.children.add(pid)
        limits.join_groups(launch.confinement, pid)
        return Forked(self, pid)

    def code_of(self, pid: int) -> int:
        self.children.discard(pid)
        try:
            while pid not in self._codes:
                self._hear()
        except OSError:  # the fork server is gone, and its children have nobody who could report their codes
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
            return  # the answer was taken already
        try:
            self._hear()
        except OSError as error:
            self._give_up(str(error))

    def _hear(self) -> dict[str, Any]:
        """Take the next message, and remember what it says."""
        data = self._channel.recv(MAX_DATAGRAM_BYTES)
        if not data:
            raise ConnectionError("it has ended")
        message: dict[str, Any] = json.loads(data)
        if "ended" in message:
            self._codes[message["ended"]] = message["code"]
        elif "refused" in message:
            raise ConnectionError(message["refused"])
        elif not message:
            self.ready = True
            logger.info("%s: processes are forked from now on", self._name)
        return message

    def _give_up(self, why: str) -> None:
        """From now on processes start by themselves."""
        self.ready, self.broken = False, True
        asyncio.get_running_loop().remove_reader(self._channel)
        logger.warning("%s: processes start by themselves, not by a fork: %s", self._name, why)
