"""A replica: the process that runs one stage's code on the batches that its dispatcher sends.

It has one thread, and nothing else in it has to run while the stage does: a stage that holds the interpreter for long
is only late. A stage that is asynchronous runs on an event loop, on which several batches may wait at once.

Its channel to the supervisor (SOCK_SEQPACKET) brings the `ReplicaSpec` first, then connections to dispatchers, one
after another; ``{"type":"leave"}`` or the channel's end ends the process. In a container the spec and the frames come
over standard input, and results go to standard output.

Exit codes: 0 left in good order; 3 the topology or the stage cannot be loaded, or the isolation does not hold; 69 a
server that the stage asks as it is built does not answer; 70 the stage broke its contract.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO, cast

import msgspec

from inferline_stream.dataplane.frames import (
    MANY_BYTES,
    Answer,
    Batch,
    Broken,
    Failed,
    FrameError,
    Leave,
    Many,
    Ready,
    Results,
    Returned,
    Sleep,
    answer_bytes,
    encode_frame,
    to_replica,
)
from inferline_stream.dataplane.process_specs import ReplicaSpec, decode_replica_spec
from inferline_stream.dataplane.replica.cuda_use import cuda_lack
from inferline_stream.dataplane.replica.dispatcher_link import DispatcherLink, StandardStreams
from inferline_stream.dataplane.replica.stage_call import (
    DeviceOutOfMemory,
    OutOfMemory,
    Settled,
    StageCall,
    built,
    new_event_loop,
)
from inferline_stream.dataplane.replica.stage_code import StageCode, code_alone
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InferlineError, ServerUnavailable, StageFailed
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.isolation.refusals import Refusals
from inferline_stream.isolation.seal import seal
from inferline_stream.observability.plain_logs import log_to_stderr_plainly
from inferline_stream.pipeline.topology import is_asynchronous

logger = logging.getLogger(__name__)

EXIT_USAGE = 2
EXIT_CANNOT_LOAD = 3
EXIT_UNAVAILABLE = 69
EXIT_STAGE_FAILED = 70
LEAVE = b'{"type":"leave"}'
"""Supervisor to replica: end once no batch is in hand."""

BUILT = b'{"type":"built"}'
"""Replica to supervisor: what it loads as it starts is loaded."""

MAX_DATAGRAM_BYTES = 65536
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """A stage that is loaded.

    Args:
        process: runs a batch; of one that is asynchronous, gives an awaitable.
        loop: that an asynchronous one runs on; None otherwise.
        code: compares its results; None of one that is only checked.
        sleep: puts the server that it asks to sleep; None where there is none that can.
    """

    process: Callable[[Batch], Settled | Awaitable[Settled]]
    loop: asyncio.AbstractEventLoop | None
    code: StageCode | None = None
    sleep: Callable[[], Coroutine[Any, Any, None]] | None = None


def main(channel: socket.socket | None, code: StageCode | None = None) -> int:
    """Run a replica to its end; returns the process's exit code.

    Args:
        channel: to the supervisor; None for a replica that is served over standard input and output.
        code: of the stage, if the process was forked from one that has loaded it.
    """
    streams = StandardStreams() if channel is None else None
    sys.stdout, sys.stderr = _log_stream(sys.stdout), _log_stream(sys.stderr)
    log_to_stderr_plainly()
    line = channel.recv(MAX_DATAGRAM_BYTES) if channel is not None else streams.read_line() if streams else b""
    if not line.strip():
        sys.stderr.write("a replica is started with its ReplicaSpec as JSON, and none came\n")
        return EXIT_USAGE
    spec, started_s = decode_replica_spec(line), _started_s()
    try:
        stage, held = _load(spec, code, (channel or streams or sys.stdin).fileno())
    except InferlineError as error:
        _last_words(error)
        return EXIT_UNAVAILABLE if isinstance(error.__cause__, ServerUnavailable) else EXIT_CANNOT_LOAD
    falls_back = stage.code is not None and stage.code.fallback is not None
    ready = Ready(spec.replica, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s, held, falls_back)
    logger.info("replica %s is ready after %.2f s", spec.replica, ready.start_up_s)
    if channel is not None:
        with contextlib.suppress(OSError):  # its end is seen in time
            channel.send(BUILT)
    return _Server(stage, ready, channel, streams).run()


class _LossyFile(io.FileIO):
    """Drops what its file does not take: a log on a full disk, or at its limit of size, must fail no event."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _log_stream(of: TextIO) -> TextIO:
    file = io.BufferedWriter(_LossyFile(of.fileno(), "wb", closefd=False))
    # With PYTHONUNBUFFERED, as in images, nothing may wait for the end of a process either, which may come at once.
    by_line = of.line_buffering or getattr(of, "write_through", False)
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=bool(by_line))


def _load(spec: ReplicaSpec, code: StageCode | None, keep: int) -> tuple[_Stage, Enforced]:
    """Load the stage and seal the process."""
    if spec.purpose == "check":
        (run, other), emulated = code_alone(load_topology(spec.topology), spec.stage, spec.topology), None
    else:
        weighs = spec.purpose == "profile"
        code = code or StageCode(load_topology(spec.topology), spec.stage, spec.topology, weighs=weighs)
        run, other, emulated = code.run, code.fallback, code.emulated
    confinement = confined(spec.isolation, spec.topology, spec.hardware)
    refusals = Refusals(confinement)
    loop = new_event_loop() if is_asynchronous(run) else None

    def ready(version: Callable[..., Any], emulated_s: Mapping[int, float] | None) -> StageCall:
        build = partial(StageCall, refusals.guarded(version), spec.hardware, emulated_s, emulated)
        return build() if loop is None else loop.run_until_complete(built(build))

    call = ready(run, spec.emulated_s)
    fallback = call if other is None else ready(other, spec.fallback_s)
    if spec.hardware.gpus and not spec.hardware.emulated and (lack := cuda_lack(sys.modules)):
        raise StageFailed(
            f"hardware {spec.hardware.name!r} has a GPU, and the stage cannot use it: {lack}. Install what has CUDA "
            "for this machine's driver, see docs/how-to/gpu.md, or name a kind without a GPU"
        )
    gc.collect()
    gc.freeze()  # what was loaded stays: the collector need not look at it again
    held = seal(confinement, keep=(keep,))
    refusals.sealed = held.sealed
    sleep = call.sleep if code is not None and code.sleeps else None
    return _Stage(partial(_process, code, (call, fallback)), loop, code, sleep), held


def _process(
    code: StageCode | None, versions: tuple[StageCall, StageCall], batch: Batch
) -> Settled | Awaitable[Settled]:
    assert code is not None, "one that is checked is given no batch"
    call, profiling = versions[batch.version], batch.profiling
    if profiling is not None and profiling.weighs:
        return code.weigh(batch.inputs, emulated=profiling.weighs == "emulated")
    if profiling is not None and profiling.sleeps_s:
        call = call.lasting(profiling.sleeps_s)
    if code.waits:
        return code.process_awaited(call.awaited, batch.inputs, version=batch.version)
    return code.process(call, batch.inputs, version=batch.version)


class _Server:
    """Answers batches, from one dispatcher at a time."""

    def __init__(self, stage: _Stage, ready: Ready, channel: socket.socket | None, link: DispatcherLink | None) -> None:
        self._stage = stage
        self._loop = stage.loop
        self._ready = ready
        self._channel = channel
        self._link: DispatcherLink | None = None
        self._frames = to_replica()
        self._poll = select.poll()
        self._under_way: set[asyncio.Task[None]] = set()
        self._last: asyncio.Future[list[BaseException | None]] | None = None
        self._ended: asyncio.Future[int] | None = None if self._loop is None else self._loop.create_future()
        if channel is not None:
            self._watch(channel)
        if link is not None:
            self._connect(link)

    def run(self) -> int:
        """Serve until asked to leave; returns the exit code."""
        if self._loop is not None and self._ended is not None:
            return self._loop.run_until_complete(self._ended)
        while True:
            if self._channel is None and self._link is None:
                return 0  # standard input has ended
            for file, _ in self._poll.poll():
                if self._channel is not None and file == self._channel.fileno():
                    code = self._hear(self._channel)
                elif self._link is not None and file == self._link.fileno():
                    code = self._receive(self._link)
                else:
                    continue  # replaced since the poll
                if code is not None:
                    return code

    def _watch(self, link: DispatcherLink) -> None:
        if self._loop is None:
            self._poll.register(link, select.POLLIN)
        else:
            self._loop.add_reader(link.fileno(), self._readable, link)

    def _unwatch(self, link: DispatcherLink) -> None:
        if self._loop is None:
            self._poll.unregister(link)
        else:
            self._loop.remove_reader(link.fileno())

    def _readable(self, link: DispatcherLink) -> None:
        """Take what has come, on the event loop."""
        code = self._hear(self._channel) if link is self._channel else self._receive(link)
        if code is None and self._channel is None and self._link is None:
            code = 0  # standard input has ended
        if code is None or self._loop is None:
            return
        if link is self._channel:
            self._unwatch(link)
        if self._under_way:
            self._last = asyncio.gather(*self._under_way, return_exceptions=True)
            self._last.add_done_callback(lambda _: self._end(code))
        else:
            self._end(code)

    def _end(self, code: int) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(code)

    def _hear(self, channel: socket.socket) -> int | None:
        """Take one message of the supervisor's."""
        try:
            data, files, _, _ = socket.recv_fds(channel, MAX_DATAGRAM_BYTES, 1)
        except ConnectionError:
            data, files = b"", []
        if files:
            self._connect(socket.socket(fileno=files[0]))
            return None
        return 0 if not data or json.loads(data).get("type") == "leave" else None

    def _connect(self, link: DispatcherLink) -> None:
        """Serve another dispatcher from now on."""
        self._disconnect()
        self._link, self._frames = link, to_replica()
        self._watch(link)
        self._send(encode_frame(self._ready))

    def _disconnect(self) -> None:
        if self._link is not None:
            self._unwatch(self._link)
            self._link.close()
            self._link = None

    def _receive(self, link: DispatcherLink) -> int | None:
        try:
            data = link.recv(_CHUNK_BYTES)
            if not data:
                raise ConnectionError("the dispatcher is gone")
            for frame in self._frames.feed(data):
                if isinstance(frame, Sleep):
                    self._sleep()
                    continue
                code = 0 if isinstance(frame, Leave) else self._run(frame)
                if code is not None:
                    return code
                if self._link is not link:
                    break
        except (OSError, FrameError) as error:
            logger.info("the connection to the dispatcher ended: %s", error)
            self._disconnect()
        return None

    def _sleep(self) -> None:
        if self._loop is not None and self._stage.sleep is not None:
            self._begun(self._stage.sleep())

    def _begun(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None, "what runs beside others is asynchronous"
        self._under_way.add(task := self._loop.create_task(work))
        task.add_done_callback(self._under_way.discard)

    def _run(self, batch: Batch) -> int | None:
        """Run a batch, or begin to."""
        began_s = time.perf_counter()
        if self._loop is not None and not (batch.profiling and batch.profiling.weighs):
            self._begun(self._run_awaited(batch, began_s))
            return None
        try:
            settled = self._stage.process(batch)
        except (StageFailed, ServerUnavailable) as error:
            return self._unsettled(batch, error)
        self._send(_answer(batch, cast("Settled", settled), began_s))
        return None

    async def _run_awaited(self, batch: Batch, began_s: float) -> None:
        try:
            settled = await cast("Awaitable[Settled]", self._stage.process(batch))
            self._send(_answer(batch, settled, began_s))
        except (StageFailed, ServerUnavailable) as error:
            code = self._unsettled(batch, error)
            if code is not None:
                self._end(code)
        except BaseException as error:  # the user's code has cancelled its own task, or ended the process
            what = f"the stage raised {type(error).__qualname__} outside of its own handling: {error!a}"
            self._end(self._unsettled(batch, StageFailed(what)) or EXIT_STAGE_FAILED)

    def _unsettled(self, batch: Batch, error: StageFailed | ServerUnavailable) -> int | None:
        """Say why a batch has no results; returns the exit code where the process ends of it."""
        if isinstance(error, ServerUnavailable):
            self._send(encode_frame(Returned(batch.epoch, batch.batch, str(error), error.wait_s, error.busy)))
            return None
        _last_words(error)
        memory, device = isinstance(error, OutOfMemory), isinstance(error, DeviceOutOfMemory)
        self._send(encode_frame(Broken(batch.epoch, batch.batch, str(error), memory, device)))
        return EXIT_STAGE_FAILED

    def _send(self, frame: bytearray) -> None:
        """Send a frame; a dispatcher that is gone does not get it, and the next one asks again."""
        if self._link is None:
            return
        try:
            self._link.sendall(frame)
        except OSError as error:
            logger.info("the dispatcher is gone: %s", error)
            self._disconnect()


def _answer(batch: Batch, settled: Settled, began_s: float) -> bytearray:
    """Return the frame of a batch's results. One that is too long for the dispatcher leaves out what no topic takes."""
    outcomes, calls, too_large = settled
    busy_s = time.perf_counter() - began_s
    results = Results(batch.epoch, batch.batch, outcomes, calls, busy_s, too_large)
    frame = encode_frame(results)
    many = any(isinstance(outcome, Many) for outcome in outcomes)
    if len(frame) <= answer_bytes(len(outcomes), batch.result_bytes, many=many):
        return frame
    taken = [_taken(outcome, batch.result_bytes) for outcome in outcomes]
    return encode_frame(msgspec.structs.replace(results, outcomes=taken))


def _taken(outcome: Answer, most_bytes: int) -> Answer:
    if isinstance(outcome, Failed):
        return outcome
    if isinstance(outcome, Many):
        size_bytes, what = sum(len(result.value) for result in outcome.results), "the results have"
        most_bytes *= MANY_BYTES
    else:
        size_bytes, what = len(outcome.value), "the result has"
    if size_bytes <= most_bytes:
        return outcome
    return Failed("Oversize", f"{what} {size_bytes} bytes, {most_bytes} are taken", "")


def _last_words(error: Exception) -> None:
    """Say why the process ends, in the last line of its log, which the supervisor passes on."""
    sys.stderr.write(f"{error}\n")
    sys.stderr.flush()


def _started_s() -> float:
    """Return when this process was made, or forked, in seconds since the machine's start."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            started = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return started / os.sysconf("SC_CLK_TCK")
