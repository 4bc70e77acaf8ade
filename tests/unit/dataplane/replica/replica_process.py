"""A real replica process with the test at both its ends: as supervisor and as dispatcher."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inferline_stream.dataplane.frames import Batch, Results, ToDispatcher, ToReplica, encode_frame, to_dispatcher
from inferline_stream.dataplane.process_specs import ReplicaSpec, encode_spec
from inferline_stream.isolation import bootstrap
from inferline_stream.isolation.confinement import confined
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation

DEADLINE_S = 20.0
CORE, NONE = Hardware("cpu-1", 0.1, cores=1), Isolation("none")
MODULE = "inferline_stream.dataplane.replica"


class Dispatcher:
    """One end of a replica's connection."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.socket.settimeout(DEADLINE_S)
        self._buffer = to_dispatcher()
        self._frames: list[ToDispatcher] = []

    def send(self, frame: ToReplica) -> None:
        self.socket.sendall(encode_frame(frame))

    def receive(self) -> ToDispatcher | None:
        """The next frame; None at the end."""
        while not self._frames:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._frames += self._buffer.feed(data)
        return self._frames.pop(0)

    def results(self, batch: Batch) -> Results:
        """What the replica makes of a batch."""
        self.send(batch)
        results = self.receive()
        assert isinstance(results, Results), results
        return results


class ReplicaProcess:
    """A replica, started as the supervisor starts one."""

    def __init__(self, topology: Path, stage: str, hardware: Hardware, isolation: Isolation, log: int) -> None:
        self.dispatchers: list[Dispatcher] = []
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        confinement = confined(isolation, topology, hardware) if isolation.sandboxed else None
        self.process = subprocess.Popen(
            [*bootstrap.command(MODULE, confinement=confinement), str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=bootstrap.environment(1, confinement, os.environ),
        )
        theirs.close()
        self.channel.send(encode_spec(ReplicaSpec("r-1", stage, str(topology), hardware, isolation=isolation)))

    def attach(self) -> Dispatcher:
        """Hand the replica a fresh connection."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self.channel, [b"{}"], [theirs.fileno()])
        theirs.close()
        self.dispatchers.append(Dispatcher(ours))
        return self.dispatchers[-1]

    def wait(self) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        said, _ = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, said.decode()


@contextmanager
def replica(
    folder: Path,
    code: str,
    stage: str = "work",
    hardware: Hardware = CORE,
    isolation: Isolation = NONE,
    *,
    log: int = subprocess.PIPE,
) -> Iterator[ReplicaProcess]:
    """Run a replica of a topology's stage."""
    folder.chmod(0o755)
    topology = folder / "topology.py"
    topology.write_text(code)
    running = ReplicaProcess(topology, stage, hardware, isolation, log)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
        running.channel.close()
        for dispatcher in running.dispatchers:
            dispatcher.socket.close()
