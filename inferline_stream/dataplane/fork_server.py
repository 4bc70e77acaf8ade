"""A process that has imported what its children need, and forks them: they start in a fraction of the time.

It serves one stage's replicas, for which it has imported the topology, or dispatchers, for which it has imported their
modules and nothing of any user's. It imports and nothing else: no event loop, no thread and no model is made before the
fork, since none survives one. It is confined as its children are, and each of them is confined again.

Its last argument is the descriptor of a channel (SOCK_SEQPACKET). The first datagram is a stage's `ReplicaSpec`, or
`DISPATCHERS`; the answer is ``{}``, or ``{"refused": why}``. Each later one asks for a child and carries its channel,
its log and, for a dispatcher, its name service, or asks for the exit code of one that has ended; see
`actuators.fork_servers`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from inferline_stream.dataplane.process_specs import ReplicaSpec, decode_replica_spec
from inferline_stream.dataplane.replica import replica
from inferline_stream.dataplane.replica.stage_call import StageCall, built, new_event_loop
from inferline_stream.dataplane.replica.stage_code import StageCode
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InferlineError
from inferline_stream.isolation import kernel_calls, seal
from inferline_stream.isolation.confinement import decoded

DISPATCHERS = b"dispatchers"
"""In place of a spec: serve dispatchers."""

MAX_DATAGRAM_BYTES = 65536
_FILES = 3
_FIRST_OWN = 3

Live = Callable[[socket.socket, socket.socket | None], int]
"""A child's life: its channel and its name service in, its exit code out."""


def main() -> int:
    """Import, then fork on request until the channel ends; returns the exit code."""
    channel = socket.socket(fileno=int(sys.argv[-1]))
    asked = channel.recv(MAX_DATAGRAM_BYTES)
    try:
        live = _dispatchers() if asked == DISPATCHERS else _replicas(decode_replica_spec(asked))
    except InferlineError as error:
        return _refuse(channel, str(error))
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return _refuse(channel, f"importing its code started {threads - 1} threads, which no fork would have")
    gc.collect()
    gc.freeze()  # pages that the collector does not touch stay shared
    channel.send(b"{}")
    return _serve(channel, live)


def _refuse(channel: socket.socket, why: str) -> int:
    channel.send(json.dumps({"refused": why}).encode())
    return 1


def _dispatchers() -> Live:
    process: Any = importlib.import_module("inferline_stream.dataplane.dispatcher.process")

    def live(channel: socket.socket, names: socket.socket | None) -> int:
        code: int = process.main(channel, names)
        return code

    return live


def _replicas(spec: ReplicaSpec) -> Live:
    """Raises: InvalidTopology: as `load_topology` and `StageCode` do."""
    code = StageCode(load_topology(spec.topology), spec.stage, spec.topology)
    for name in _learned(spec, code):
        with contextlib.suppress(Exception):  # the replica reports it
            importlib.import_module(name)
    return lambda channel, _: replica.main(channel, code)


def _learned(spec: ReplicaSpec, code: StageCode) -> list[str]:
    """Return the modules that building the stage imports, by building it in a process that is thrown away."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            known = set(sys.modules)
            build = partial(StageCall, code.run, spec.hardware)
            if code.waits:
                new_event_loop().run_until_complete(built(build))
            else:
                build()
            os.write(writing, json.dumps([name for name in sys.modules if name not in known]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    try:
        names: list[str] = json.loads(said)
    except ValueError:  # it could not be built: its replica reports why
        return []
    return names


def _serve(channel: socket.socket, live: Live) -> int:
    # A child that has ended keeps its number until its end is asked for: before that, nobody else can have it.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        data, files, _, _ = socket.recv_fds(channel, MAX_DATAGRAM_BYTES, _FILES)
        if not data:
            return 0
        request = json.loads(data)
        if "ended" in request:
            _report_end(channel, request["ended"])
            continue
        # Nobody waits for a late child: another process has its channel by then, and would share it.
        child = _forked() if time.monotonic() < request["until_s"] else None
        if child == 0:
            _become(request, files, live)
        for number in files:
            os.close(number)
        # Each request has its answer: the next one's would be taken for this one's.
        channel.send(json.dumps({"not_forked": True} if child is None else {"pid": child}).encode())


def _forked() -> int | None:
    """Fork; None where the kernel lacks memory or numbers for a process. This one's end would be its children's."""
    try:
        return os.fork()
    except OSError:
        return None


def _report_end(channel: socket.socket, process: int) -> None:
    with contextlib.suppress(ChildProcessError):
        _, status = os.waitpid(process, 0)
        channel.send(json.dumps({"ended": process, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(request: dict[str, Any], files: list[int], live: Live) -> None:
    """Be a replica or a dispatcher to its end, in a process that was just forked."""
    code = 70
    try:
        kernel_calls.prctl(kernel_calls.SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        own, log, *names = (os.dup(number) for number in files)
        for at, number in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(number, at)
        kept = [own, *names]
        for file in map(int, os.listdir("/proc/self/fd")):
            if file >= _FIRST_OWN and file not in kept:
                with contextlib.suppress(OSError):
                    os.close(file)
        if request["cores"]:
            os.sched_setaffinity(0, request["cores"])
        if "numpy" in sys.modules:
            importlib.import_module("numpy.random").seed()  # else every replica would draw the same numbers
        seal.confine_fork(decoded(request["confinement"]))
        code = live(socket.socket(fileno=own), socket.socket(fileno=names[0]) if names else None)
        logging.shutdown()
        sys.stdout.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
