"""One of a supervisor's child processes, watched by pidfd, and what is kept for it until it ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
from dataclasses import dataclass

from inferline_stream.actuators.child_logs import ChildLog
from inferline_stream.actuators.core_times import cpu_s, waited_s
from inferline_stream.actuators.fork_servers import Forked
from inferline_stream.dataplane.replica.replica import LEAVE
from inferline_stream.dataplane.supervisor_messages import Attach, FromSupervisor, encode_attachment
from inferline_stream.isolation.enforced import unsealed
from inferline_stream.isolation.launch import Launch
from inferline_stream.kafka.batch_mark import BatchId
from inferline_stream.pipeline.hardware import Hardware

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Child:
    """A replica's or dispatcher's process, and what belongs to it."""

    name: str
    stage: str
    launch: Launch
    log: ChildLog
    process: subprocess.Popen[bytes] | Forked | None = None
    """None while a fork server is asked for it."""
    pidfd: int = -1
    channel: socket.socket | None = None
    """To the process, SOCK_SEQPACKET."""
    mark: int | None = None
    """Of a dispatcher: where it notes what it takes in."""
    died_at: BatchId | None = None
    """The batch that has ended a dispatcher as it took it in."""
    ran_at_kill_s: float = 0.0
    """Its CPU time when it was killed by us."""
    held: socket.socket | None = None
    """Of a replica that is not sealed yet: its end of a pair with its dispatcher."""
    sealed: bool = False
    """Whether it may have a connection: the kernel shows its seal, or it has none to show."""
    fault: str = ""
    """Why it was killed."""
    due: signal.Signals | None = None
    """What it was sent before there was a process."""
    cores: float = 0.0
    pinned: frozenset[int] = frozenset()
    hardware: Hardware | None = None
    devices: tuple[str, ...] = ()

    @property
    def pid(self) -> int | None:
        """Its process; None while a fork server is asked for it."""
        return None if self.process is None else self.process.pid

    @property
    def forked(self) -> bool:
        """Whether it was forked by a fork server."""
        return isinstance(self.process, Forked)

    @property
    def ran_s(self) -> float:
        """Its CPU time so far, native threads included."""
        return 0.0 if self.process is None else cpu_s(self.process.pid)

    @property
    def waited_s(self) -> float:
        """Time that it could have run and had no core, stops for its share of one left out."""
        return 0.0 if self.process is None else max(0.0, waited_s(self.process.pid) - self.launch.stopped_s)

    def signal(self, number: signal.Signals) -> None:
        """Signal it; never another process that was given the same number."""
        if self.process is None:
            self.due = number if self.due is not signal.SIGKILL else self.due
            return
        if number == signal.SIGKILL:
            self.ran_at_kill_s = self.ran_s
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def send(self, data: bytes, *files: int) -> None:
        """Send a datagram over its channel; a child that has stopped reading is killed."""
        if self.channel is None:
            return
        try:
            socket.send_fds(self.channel, [data], files)
        except BlockingIOError:
            logger.warning("%s does not read its channel: killed", self.name)
            self.signal(signal.SIGKILL)
        except OSError:
            pass  # it has ended, which its pidfd says

    def tell(self, message: FromSupervisor) -> None:
        """Send a dispatcher a message that hands over nothing."""
        self.send(encode_attachment(message))

    def take(self, attach: Attach, replica: socket.socket) -> None:
        """Hand a dispatcher its end of a socket pair to a replica; this closes our copy."""
        with replica:
            self.send(encode_attachment(attach), replica.fileno())

    def connect(self, dispatcher: socket.socket) -> None:
        """Hand a replica its end of a socket pair to a dispatcher, which is its only one from now on.

        One that seals itself gets it after that: no event is in reach of code that is not sealed.
        """
        if not self.sealed:
            self.drop_held()
            self.held = dispatcher
            return
        with dispatcher:
            self.send(b'{"type":"attach"}', dispatcher.fileno())

    def built(self) -> None:
        """It says that it is built and sealed: look, then let it have its connection."""
        assert self.process is not None
        self.launch.ready()
        try:
            lack = unsealed(self.process.pid, self.launch.confinement, forked=self.forked)
        except OSError as error:
            logger.warning("the seal of %s cannot be looked at from outside: %s", self.name, error)
            lack = ""
        if lack:
            self.fault = f"its stage's code did not seal it, although it says so: {lack}"
            self.signal(signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):  # a fork is in its parent's group
                os.killpg(self.process.pid, signal.SIGKILL)
            return
        self.sealed = True
        if self.held is not None:
            held, self.held = self.held, None
            self.connect(held)

    def drop_held(self) -> None:
        """Close the connection that it was to have."""
        if self.held is not None:
            self.held.close()
            self.held = None

    def leave(self) -> None:
        """Have a replica end once it has no batch in hand."""
        self.send(LEAVE)
