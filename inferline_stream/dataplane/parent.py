"""A parent that has imported a stage's code and forks its replicas: they start in a fraction of the time.

It imports and nothing else: no event loop, no thread and no model is made before the fork, since none survives one. It
is confined as its replicas are, and each of them is again. Standard input holds the spec of a replica to come; its
second argument is a socket that whoever started it asks for replicas on, see `actuators.parents`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from inferline_stream.dataplane import bound_replica
from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.protocol import ReplicaSpec, decode_spec
from inferline_stream.dataplane.worker import StageCall
from inferline_stream.errors import InferlineError
from inferline_stream.isolation import kernel, sealing
from inferline_stream.isolation.confinement import Confinement, decoded
from inferline_stream.pipeline.topology import Pipeline

READY = b"ready\n"
"""What a rehearsal says at its end."""

_LONGEST = 65536
_FILES = 3


def main() -> int:
    """Import, then fork whenever asked, until whoever asks is gone; returns the exit code."""
    spec = decode_spec(sys.stdin.buffer.readline())
    channel = socket.socket(fileno=int(sys.argv[2]))
    try:
        pipeline = load_topology(spec.topology)
    except InferlineError as error:
        return _refused(channel, str(error))
    for name in _learned(spec, pipeline):
        with contextlib.suppress(Exception):  # the replica will tell
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return _refused(channel, f"importing its code started {threads - 1} threads, which no fork would have")
    gc.collect()
    gc.freeze()  # pages that the collector does not touch stay shared
    channel.send(b"{}")
    return _serve(channel, pipeline)


def _refused(channel: socket.socket, why: str) -> int:
    channel.send(json.dumps({"refused": why}).encode())
    return 1


def _learned(spec: ReplicaSpec, pipeline: Pipeline) -> list[str]:
    """Modules that building the stage imports, by building it in a process that is thrown away."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            known = set(sys.modules)
            StageCall(pipeline.stage(spec.stage).run, spec.hardware)
            os.write(writing, json.dumps([name for name in sys.modules if name not in known]).encode()[:_LONGEST])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        said = told.read()
    os.waitpid(child, 0)
    try:
        names: list[str] = json.loads(said)
    except ValueError:  # it could not be built: its replica will tell why
        return []
    return names


def _serve(channel: socket.socket, pipeline: Pipeline) -> int:
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    waiting = select.poll()
    for file in (channel.fileno(), woken):
        waiting.register(file, select.POLLIN)
    while True:
        for file, _ in waiting.poll():
            if file == woken:
                os.read(woken, 4096)
                _tell_ends(channel)
                continue
            data, files, _, _ = socket.recv_fds(channel, _LONGEST, _FILES)
            if not data:
                return 0
            child = os.fork()
            if child == 0:
                _become(json.loads(data), files, pipeline, (channel.fileno(), woken, wakes))
            for number in files:
                os.close(number)
            channel.send(json.dumps({"pid": child}).encode())


def _tell_ends(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            channel.send(json.dumps({"ended": process, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(told: dict[str, Any], files: list[int], pipeline: Pipeline, others: tuple[int, ...]) -> None:
    """Be a replica to its end, in a process that was just forked."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kernel.prctl(kernel.SET_PDEATHSIG, signal.SIGTERM)
        os.setsid()
        for number in others:
            os.close(number)
        for at, number in ((0, files[0]), (1, files[1]), (2, files[1])):
            os.dup2(number, at)
        if told["cores"]:
            os.sched_setaffinity(0, told["cores"])
        if "numpy" in sys.modules:
            importlib.import_module("numpy.random").seed()  # else every replica would draw the same numbers
        confinement = decoded(told["confinement"])
        sealing.confine_fork(confinement)
        channel = socket.socket(fileno=files[2])
        code = _rehearse(pipeline, confinement) if told["rehearsal"] else bound_replica.main(pipeline, channel)
        logging.shutdown()
    finally:
        os._exit(code)


def _rehearse(pipeline: Pipeline, confinement: Confinement) -> int:
    """Get as far as a replica gets without Kafka, say so, and end: so is its start-up time known beforehand."""
    spec = decode_spec(sys.stdin.buffer.readline())
    with ThreadPoolExecutor(1, thread_name_prefix="stage") as worker:
        worker.submit(StageCall, pipeline.stage(spec.stage).run, spec.hardware).result()
        sealing.seal(confinement)
    os.write(1, READY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
