"""Replay a trace: real arrivals, real events, into a topic, at exactly the trace's times.

    python -m inferline_stream.connectors.sources.trace_replay --bootstrap-servers 127.0.0.1:9092 \
        --topic posts --arrivals live.csv --events posts.jsonl --speed-up 10

**Open loop.** Arrivals do not depend on how the pipeline is doing: the process computes the instant of
every event before the first leaves, and never waits for an acknowledgement. If Kafka is slow, records
queue in this process with the timestamps they were created with. A load generator that waited
would send less exactly when the pipeline is slow, and hide the latency that it is there to show
(coordinated omission). It is a process of its own, so that no other work delays it.

**A record's timestamp is the instant at which the event was created here**, read from the clock right
before it is handed to the client, not the instant at which the trace wanted it. End-to-end latency
counts from that timestamp, so it is the pipeline's own: were it the scheduled instant, every
hiccup of this process would count as the pipeline's. The price is that the arrivals sent may differ from
the trace, so the difference, the *lateness* of every event, is measured and reported apart
(P50, P99, largest): a reader sees whether the run offered the trace that it claims. An event that
is late is still sent; none is left out.

Standard output carries one JSON object a line: ``ready`` when everything is loaded and connected,
``progress`` each second, and at the end ``report``, or ``failed`` with the message. The process ends early,
with its report, on SIGINT, on SIGTERM, or, with ``--hold``, when its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import selectors
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import msgspec
import numpy as np

from inferline_stream.connectors.sealed_connector import done_in_time, stopping
from inferline_stream.dataplane.sample_files import keyed, read_arrivals, read_events
from inferline_stream.dataplane.until_first import until_first
from inferline_stream.errors import InferlineError, InvalidFile, UsageError
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.pipeline.trace import Seconds

_LEAVE_S = 5.0


class ReplaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to replay and where to. Its fields are the command's options."""

    bootstrap_servers: str
    topic: str
    """The topic as Kafka knows it; it must exist."""
    arrivals: str
    """CSV file of timestamps or counts; gzipped if it ends in ``.gz``."""
    events: str
    """JSONL file; its lines are sent in turn, byte for byte, from the first again after the last."""
    speed_up: float = 1.0
    """Seconds of the trace per second."""
    start_s: float = 0.0
    """Where in the trace to begin, in seconds of the trace."""
    duration_s: float | None = None
    """How much of the trace to replay, in seconds of the trace; None for all of it."""
    key_field: str | None = None
    """Field of each event whose value becomes the record's key; without it records have none."""


class ReplayReady(msgspec.Struct, frozen=True, tag="ready", tag_field="kind"):
    """Everything is loaded and connected."""

    events: int
    duration_s: float
    """From the first event to the last, sped up."""


class ReplayProgress(msgspec.Struct, frozen=True, tag="progress", tag_field="kind"):
    """How far it is."""

    sent: int
    acknowledged: int


class ReplayReport(msgspec.Struct, frozen=True, tag="report", tag_field="kind"):
    """What was sent, and how exactly."""

    events: int
    """Events of the trace."""
    sent: int
    """Events handed to the Kafka client."""
    acknowledged: int
    """Events that are in Kafka, each once."""
    failed: int
    duration_s: float
    """From the first event to the last one sent."""
    lateness_p50_s: float
    lateness_p99_s: float
    lateness_max_s: float
    first_sent_s: float
    """Seconds since the epoch; 0 if nothing was sent."""
    last_sent_s: float
    stopped: bool
    """Whether it was stopped before the trace's end."""
    last_error: str = ""


class ReplayFailed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """It ended without a report."""

    exit_code: int
    message: str


Line = ReplayReady | ReplayProgress | ReplayReport | ReplayFailed
decode_line = msgspec.json.Decoder(Line).decode


def due_times(spec: ReplaySpec) -> Seconds:
    """When each event is due: seconds from the replay's start, float64, shape (events,).

    Raises:
        InvalidFile: the file is wrong, or the window holds no arrival.
        UsageError: a speed-up that is not above 0.
    """
    if not spec.speed_up > 0:
        raise UsageError(f"--speed-up {spec.speed_up}: must be above 0, e.g. 10 for ten times as fast")
    end_s = np.inf if spec.duration_s is None else spec.start_s + spec.duration_s
    trace = read_arrivals(spec.arrivals).window(spec.start_s, end_s)
    if not len(trace):
        raise InvalidFile(f"{spec.arrivals}: no arrivals between {spec.start_s} s and {end_s} s of the trace")
    return trace.sped_up(spec.speed_up).arrivals_s


async def pace(due_s: Seconds, offer: Callable[[int], None], lateness_s: list[float]) -> None:
    """Call ``offer(i)`` at each due time, counted from now; never early, and never held up by anyone.

    Args:
        due_s: seconds from now, ascending.
        offer: takes the event's number; must not block.
        lateness_s: gets one entry per event, how much after its due time it was offered.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    sent = 0
    while sent < len(due_s):
        await asyncio.sleep(max(0.0, start + due_s[sent] - clock()))
        now = clock()
        # All that are due by now leave together, so that falling behind for a moment is made good at once.
        for _ in range(int(np.searchsorted(due_s, now - start, side="right")) - sent):
            lateness_s.append(clock() - start - float(due_s[sent]))
            offer(sent)
            sent += 1


class _Outbox:
    """Events that were created and have not yet been handed to the client, in order."""

    def __init__(self, producer: RecordProducer, topic: str, events: Sequence[tuple[bytes, bytes | None]]) -> None:
        self.first_sent_s = 0.0
        self.last_sent_s = 0.0
        self._producer = producer
        self._topic = topic
        self._events = events
        self._waiting: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    def offer(self, number: int) -> None:
        self.last_sent_s = time.time()
        self.first_sent_s = self.first_sent_s or self.last_sent_s
        # Kafka's timestamps are whole milliseconds; rounding up would date events into the future.
        self._waiting.put_nowait((number % len(self._events), int(self.last_sent_s * 1e3)))

    async def forward(self) -> None:
        while True:
            number, timestamp_ms = await self._waiting.get()
            value, key = self._events[number]
            await self._producer.send(self._topic, value, key=key, timestamp_ms=timestamp_ms)
            self._waiting.task_done()

    async def emptied(self) -> None:
        await self._waiting.join()


async def replay(spec: ReplaySpec, tell: Callable[[Line], None], hold: bool = False) -> ReplayReport:
    """Replay one trace; returns once every event has been acknowledged or has failed, however long Kafka is away.

    Once stopped, it sends nothing more, and gives Kafka a few seconds to acknowledge what was sent.

    Args:
        spec: what and where to.
        tell: called with `ReplayReady` and `ReplayProgress`.
        hold: wait for a line on standard input before the first event; stop when standard input closes.

    Raises:
        InvalidFile: arrivals or events are wrong.
        Unreachable: Kafka does not answer, or has no such topic.
    """
    due_s = due_times(spec)
    events = [(e, keyed(e, spec.key_field) if spec.key_field else None) for e in read_events(spec.events)]
    lateness_s: list[float] = []
    stop = stopping()
    async with RecordProducer(spec.bootstrap_servers, spec.topic) as producer:
        outbox = _Outbox(producer, spec.topic, events)
        begin = asyncio.Event()
        if hold:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _read_standard_input, begin, stop)
        else:
            begin.set()
        tell(ReplayReady(events=len(due_s), duration_s=float(due_s[-1] - due_s[0])))
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(outbox.forward()),
                tasks.create_task(_tell_progress(tell, lateness_s, producer)),
            ]
            await until_first(_after(begin, pace(due_s, outbox.offer, lateness_s)), stop.wait())
            delivering = tasks.create_task(_delivered(outbox, producer))
            if not await done_in_time(delivering, stop, _LEAVE_S):
                producer.last_error = producer.last_error or "stopped, and Kafka had not acknowledged everything"
            for task in background:
                task.cancel()
        return _report(due_s, lateness_s, outbox, producer)


async def _delivered(outbox: _Outbox, producer: RecordProducer) -> None:
    await outbox.emptied()
    await producer.flush()


def _report(due_s: Seconds, lateness_s: list[float], outbox: _Outbox, producer: RecordProducer) -> ReplayReport:
    p50_s, p99_s, max_s = np.quantile(lateness_s, (0.5, 0.99, 1.0)).tolist() if lateness_s else (0.0, 0.0, 0.0)
    return ReplayReport(
        events=len(due_s),
        sent=len(lateness_s),
        acknowledged=producer.acknowledged,
        failed=producer.failed,
        duration_s=outbox.last_sent_s - outbox.first_sent_s,
        lateness_p50_s=p50_s,
        lateness_p99_s=p99_s,
        lateness_max_s=max_s,
        first_sent_s=outbox.first_sent_s,
        last_sent_s=outbox.last_sent_s,
        stopped=len(lateness_s) < len(due_s),
        last_error=producer.last_error,
    )


def _read_standard_input(begin: asyncio.Event, stop: asyncio.Event) -> None:
    if os.read(sys.stdin.fileno(), 4096):
        begin.set()
    else:
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


async def _after(begin: asyncio.Event, then: Coroutine[object, object, None]) -> None:
    await begin.wait()
    await then


async def _tell_progress(tell: Callable[[Line], None], lateness_s: list[float], producer: RecordProducer) -> None:
    while True:
        await asyncio.sleep(1.0)
        tell(ReplayProgress(sent=len(lateness_s), acknowledged=producer.acknowledged))


def _precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are good to microseconds: epoll's, the usual ones, round up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def _parsed(arguments: Sequence[str] | None) -> tuple[ReplaySpec, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m inferline_stream.connectors.sources.trace_replay",
        description="Replay a trace of arrivals into a topic, open loop.",
    )
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", required=True, help="must exist")
    parser.add_argument("--arrivals", required=True, metavar="CSV", help="timestamps or counts; .gz too")
    parser.add_argument("--events", required=True, metavar="JSONL", help="sent in turn, byte for byte")
    parser.add_argument("--speed-up", type=float, default=1.0, help="seconds of the trace per second (default 1)")
    parser.add_argument("--start-s", type=float, default=0.0, help="where in the trace to begin, in its seconds")
    parser.add_argument("--duration-s", type=float, default=None, help="how much of the trace, in its seconds")
    parser.add_argument("--key-field", default=None, help="field of each event that becomes the record's key")
    parser.add_argument("--hold", action="store_true", help="begin at a line on standard input, stop when it closes")
    options = vars(parser.parse_args(arguments))
    hold = bool(options.pop("hold"))
    return msgspec.convert(options, ReplaySpec), hold


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or that of the error."""
    spec, hold = _parsed(arguments)

    def tell(line: Line) -> None:
        with contextlib.suppress(BrokenPipeError):  # its starter has gone; it still stops in order
            sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
            sys.stdout.buffer.flush()

    try:
        with asyncio.Runner(loop_factory=_precise_loop) as runner:
            tell(runner.run(replay(spec, tell, hold)))
    except InferlineError as error:
        tell(ReplayFailed(exit_code=error.exit_code, message=str(error)))
        sys.stderr.write(f"{Path(__file__).stem}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
