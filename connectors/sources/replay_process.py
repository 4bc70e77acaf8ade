"""Start a trace replay as a process of its own, and hear how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from inferline_stream.connectors.sources.trace_replay import (
    ReplayProgress,
    ReplayReady,
    ReplayReport,
    ReplaySpec,
    decode_line,
)
from inferline_stream.errors import InferlineError, InvalidInput, Unreachable, UsageError

_ERRORS = {error.exit_code: error for error in (UsageError, InvalidInput, Unreachable)}
_KILL_AFTER_S = 5.0


class TraceReplay:
    """A replay process: loads and connects when entered, sends once started.

        async with TraceReplay(spec) as replay:
            await replay.ready()
            replay.start()
            report = await replay.finished()

    Leaving the block stops it. It also stops by itself when this process is gone.
    """

    def __init__(self, spec: ReplaySpec) -> None:
        self.sent = 0
        """Events sent, as of the last second."""
        self.acknowledged = 0
        """Events in Kafka, as of the last second."""
        self._spec = spec
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[ReplayReady] = asyncio.get_running_loop().create_future()
        self._finished: asyncio.Future[ReplayReport] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferline_stream.connectors.sources.trace_replay", *_options(self._spec), "--hold",
            stdin=PIPE, stdout=PIPE, stderr=DEVNULL,  # its errors come as lines
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reading is not None
        self.stop()
        try:
            async with asyncio.timeout(_KILL_AFTER_S):
                await asyncio.shield(self._reading)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its last lines are on their way
                self._process.kill()
        finally:
            await self._reading
        for outcome in (self._ready, self._finished):
            if outcome.done() and not outcome.cancelled():
                outcome.exception()  # somebody has seen it, or nobody wanted to

    async def ready(self) -> ReplayReady:
        """Wait until it has loaded the files and reached Kafka.

        Raises:
            InvalidInput: arrivals or events are wrong.
            Unreachable: Kafka does not answer, or has no such topic.
        """
        return await asyncio.shield(self._ready)

    def start(self) -> None:
        """Let the first event leave, now."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(b"start\n")

    def stop(self) -> None:
        """Send nothing more; the report still comes. Asking twice changes nothing."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def finished(self) -> ReplayReport:
        """Wait for the trace's end; may be cancelled and called again.

        Raises:
            Unreachable: the process ended without a report.
        """
        return await asyncio.shield(self._finished)

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            reported = decode_line(line)
            if isinstance(reported, ReplayReady):
                self._ready.set_result(reported)
            elif isinstance(reported, ReplayProgress):
                self.sent, self.acknowledged = reported.sent, reported.acknowledged
            elif isinstance(reported, ReplayReport):
                self.sent, self.acknowledged = reported.sent, reported.acknowledged
                self._finished.set_result(reported)
            else:
                self._fail(_ERRORS.get(reported.exit_code, Unreachable)(reported.message))
        self._fail(Unreachable(f"the trace replay ended with status {await self._process.wait()} before its report"))

    def _fail(self, error: InferlineError) -> None:
        for outcome in (self._ready, self._finished):
            if not outcome.done():
                outcome.set_exception(error)


def replayed(
    arrivals: Path, events: Path, **how: Any
) -> Callable[[str, str], AbstractAsyncContextManager[TraceReplay]]:
    """What feeds a topic with these files, given bootstrap servers and topic.

    Args:
        arrivals: CSV file.
        events: JSONL file whose lines are sent in turn.
        how: further fields of `ReplaySpec`.
    """
    how |= {"arrivals": str(arrivals.resolve()), "events": str(events.resolve())}
    return lambda servers, topic: TraceReplay(ReplaySpec(bootstrap_servers=servers, topic=topic, **how))


@dataclass(frozen=True, slots=True)
class TogetherReport:
    """What the replays of several topics came to: their worst lateness, and the sums."""

    lateness_p99_s: float
    sent: int
    acknowledged: int
    last_error: str


class Together:
    """Trace replays of several topics that begin at once."""

    def __init__(self, replays: Sequence[AbstractAsyncContextManager[TraceReplay]]) -> None:
        self._replays = replays
        self._stack = contextlib.AsyncExitStack()
        self._entered: list[TraceReplay] = []

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._entered = [await stack.enter_async_context(replay) for replay in self._replays]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def ready(self) -> None:
        """Wait until each has loaded the files and reached Kafka."""
        await asyncio.gather(*(replay.ready() for replay in self._entered))

    def start(self) -> None:
        """Begin, now."""
        for replay in self._entered:
            replay.start()

    def stop(self) -> None:
        """Write nothing more."""
        for replay in self._entered:
            replay.stop()

    async def finished(self) -> TogetherReport:
        """Wait for the end of all."""
        found = await asyncio.gather(*(replay.finished() for replay in self._entered))
        return TogetherReport(
            max(each.lateness_p99_s for each in found),
            sum(each.sent for each in found),
            sum(each.acknowledged for each in found),
            next((each.last_error for each in found if each.last_error), ""),
        )


def together(
    feeds: Mapping[str, Callable[[str, str], AbstractAsyncContextManager[TraceReplay]]],
) -> Callable[[str, str], AbstractAsyncContextManager[TraceReplay | Together]]:
    """Return what feeds several topics at once, given bootstrap servers and the full name of the first.

    Args:
        feeds: by topic, without the prefix that all have alike.
    """
    (first, only), *others = feeds.items()
    if not others:
        return only

    def feed(servers: str, topic: str) -> Together:
        prefix = topic.removesuffix(first)
        return Together([to(servers, prefix + name) for name, to in feeds.items()])

    return feed


def _options(spec: ReplaySpec) -> list[str]:
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items() if value is not None]
