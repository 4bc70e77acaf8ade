"""Starts processes that fork replicas and dispatchers, and asks them for some: see `dataplane.fork_server`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import IO

import msgspec

import inferline_stream
from inferline_stream.dataplane.fork_server import DISPATCHERS, MAX_DATAGRAM_BYTES
from inferline_stream.dataplane.process_specs import ReplicaSpec, encode_spec
from inferline_stream.isolation import kernel_calls, limits
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.launch import Launch

logger = logging.getLogger(__name__)

FORK_SERVER_MODULE = "inferline_stream.dataplane.fork_server"

_ANSWER_S = 2.0
"""A fork server does nothing but fork; one that takes longer is given up."""

_LONGEST_REASON = 500


class Forked:
    """A process that a fork server forked: what `subprocess.Popen` is for one that was started.

    Args:
        server: that forked it.
        pid: of the process.
        pidfd: of the same; closed by the one that takes the process.
    """

    def __init__(self, server: _ForkServer, pid: int, pidfd: int) -> None:
        self._server = server
        self.pid = pid
        self.pidfd = pidfd

    def when_reaped(self, ended: Callable[[int], None]) -> None:
        """It has ended: call with its exit code, negative for a signal. That is soon, whatever its fork server does."""
        self._server.when_reaped(self.pid, ended)


Begun = Callable[[Forked | None], None]
"""Takes a process, once it was forked; None where it has to start by itself."""


class ForkServers:
    """One fork server per stage and hardware kind that asks for it, and one for dispatchers.

    Each is started with the first process that it could have forked, and is ready for later ones. Must be used and
    closed within one event loop.
    """

    def __init__(self) -> None:
        self._servers: dict[tuple[str, str], _ForkServer] = {}
        self._replaced: list[_ForkServer] = []

    def fork_replica(
        self, spec: ReplicaSpec, launch: Launch, channel: int, log: IO[bytes], cores: Collection[int], *, begun: Begun
    ) -> bool:
        """Ask for a replica; False where its stage does not ask for that, or its fork server is not ready.

        Replicas on a GPU are never forked: a driver's state does not survive one.

        Args:
            spec: of the replica.
            launch: what would start it otherwise.
            channel: its end of the channel to the supervisor.
            log: takes what it prints.
            cores: the only ones that it may run on; empty for all.
            begun: called once, soon, if this returns True.
        """
        isolation = spec.isolation
        if not (isolation.sandboxed and isolation.forked) or launch.confinement.gpu:
            return False
        kind = encode_spec(msgspec.structs.replace(spec, replica=""))
        return self._fork((spec.stage, spec.hardware.name), kind, launch, [channel, log.fileno()], cores, begun=begun)

    def fork_dispatcher(self, launch: Launch, channel: int, log: IO[bytes], begun: Begun) -> bool:
        """Ask for a dispatcher; False while the fork server is not ready."""
        files = [channel, log.fileno(), *launch.files]
        return self._fork(("", launch.confinement.encoded()), DISPATCHERS, launch, files, (), begun=begun)

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
        self,
        key: tuple[str, str],
        kind: bytes,
        launch: Launch,
        files: list[int],
        cores: Collection[int],
        *,
        begun: Begun,
    ) -> bool:
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
            return False
        return server.ready and server.fork(launch, files, cores, begun)


def _installed_release() -> tuple[int, int]:
    """Return what differs once another release of this package was installed: a fork server has imported one."""
    found = os.stat(inferline_stream.__file__)
    return found.st_ino, found.st_mtime_ns


class _Message(msgspec.Struct, frozen=True):
    """Of a fork server; empty once it is ready."""

    pid: int | None = None
    not_forked: bool = False
    ended: int | None = None
    code: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _Request:
    launch: Launch
    begun: Begun
    limit: asyncio.TimerHandle


class _ForkServer:
    """It has run its stage's code, and is not believed: a process is taken for its child by the kernel's word, and
    nothing waits for it."""

    def __init__(self, name: str, kind: bytes, confinement: Confinement) -> None:
        self.ready = self.broken = False
        self.kind = kind
        self.release = _installed_release()
        self.children: set[int] = set()
        """Those whose ends it has not reported."""
        self._name = name
        self._requests: deque[_Request] = deque()
        self._waiting: dict[int, tuple[Callable[[int], None], asyncio.TimerHandle]] = {}
        self._loop = asyncio.get_running_loop()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
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
        self._loop.add_reader(self._channel, self._heard)
        with contextlib.suppress(OSError):  # it has ended already, which is noticed at its channel
            self._channel.send(kind)

    def fork(self, launch: Launch, files: list[int], cores: Collection[int], begun: Begun) -> bool:
        """Ask for a process; return whether `begun` will be called."""
        request = {
            "cores": sorted(cores),
            "confinement": self._launch.confinement.encoded(),
            "until_s": time.monotonic() + _ANSWER_S / 2,
        }
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], files)
        except OSError as error:
            self._give_up(str(error))
            return False
        limit = self._loop.call_later(_ANSWER_S, self._give_up, f"it did not answer within {_ANSWER_S:g} s")
        self._requests.append(_Request(launch, begun, limit))
        return True

    def when_reaped(self, pid: int, ended: Callable[[int], None]) -> None:
        """See `Forked.when_reaped`."""
        if pid not in self.children:
            ended(-signal.SIGKILL)
            return
        # Without its word nobody knows the code: what it has not reported counts as killed.
        limit = self._loop.call_later(_ANSWER_S, self._overdue, pid)
        self._waiting[pid] = ended, limit
        with contextlib.suppress(OSError):  # it does not read, and then its answer is overdue
            self._channel.send(json.dumps({"ended": pid}).encode())

    def close(self) -> None:
        self._loop.remove_reader(self._channel)
        self._channel.close()
        for _, limit in self._waiting.values():
            limit.cancel()
        while self._requests:
            self._refuse(self._requests.popleft())
        self._process.kill()
        self._process.wait()
        self._launch.close()

    def _heard(self) -> None:
        """Take its next message. One that answers nothing is its last."""
        try:
            data = self._channel.recv(MAX_DATAGRAM_BYTES)
            message = msgspec.json.decode(data, type=_Message) if data else None
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            self._part(str(error))
            return
        if message is None:
            self._part("it has ended")
        elif message.refused:
            self._part(message.refused[:_LONGEST_REASON])
        elif message.ended in self.children:
            self._reaped(message.ended, message.code)
        elif message.pid is not None and (self._requests or self.broken):
            self._answered(message.pid)
        elif message.not_forked and (self._requests or self.broken):
            if self._requests:
                self._refuse(self._requests.popleft())
        elif message == _Message() and not self.ready:
            self.ready = not self.broken
            logger.info("%s: processes are forked from now on", self._name)
        else:
            self._part("it said what nobody had asked for")

    def _answered(self, pid: int) -> None:
        """Take the answer to the oldest request."""
        pidfd = _child_of(self._process.pid, pid)
        if not self._requests:  # too late: another process has its channel by now
            if pidfd is not None:
                self.children.add(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
                self.when_reaped(pid, lambda _: None)
            return
        if pidfd is None:
            self._part(f"process {pid} is none of its children")
            return
        request = self._requests.popleft()
        request.limit.cancel()
        self.children.add(pid)
        limits.join_groups(request.launch.confinement, pid)
        request.begun(Forked(self, pid, pidfd))

    def _reaped(self, pid: int, code: int) -> None:
        self.children.discard(pid)
        if pid in self._waiting:  # else that took too long
            ended, limit = self._waiting.pop(pid)
            limit.cancel()
            ended(code)

    def _overdue(self, pid: int) -> None:
        """A process has ended, and nobody has said how."""
        ended, _ = self._waiting.pop(pid)
        ended(-signal.SIGKILL)

    def _give_up(self, why: str) -> None:
        """From now on processes start by themselves."""
        if not self.broken:
            logger.warning("%s: processes start by themselves, not by a fork: %s", self._name, why)
        self.ready, self.broken = False, True
        while self._requests:
            self._refuse(self._requests.popleft())

    def _refuse(self, request: _Request) -> None:
        request.limit.cancel()
        request.begun(None)

    def _part(self, why: str) -> None:
        """Hear it no more."""
        self._loop.remove_reader(self._channel)
        self._give_up(why)
        self.children.clear()
        for pid in [*self._waiting]:
            self._waiting[pid][1].cancel()
            self._overdue(pid)


def _child_of(parent: int, pid: int) -> int | None:
    """Return a descriptor of a process that is a child of another one, and may have ended; None for other numbers."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    with contextlib.suppress(OSError):
        # Its number is nobody else's until its parent, which waits to be asked, has taken its exit code. Where that
        # parent does not wait, the descriptor is of a process that has ended, whom no signal reaches.
        if kernel_calls.status("PPid", str(pid)) == str(parent):
            return pidfd
    os.close(pidfd)
    return None
