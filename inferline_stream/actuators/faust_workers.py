"""Workers of a Faust app as processes of this host: started, kept and stopped; what they report of their throughput."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Self

import msgspec

from inferline_stream.actuators.child_logs import ChildLogs
from inferline_stream.pipeline.group_profile import Learned

logger = logging.getLogger(__name__)

STOP_S = 30.0
"""A worker that has not ended so long after SIGTERM is killed: Faust finishes what its agents have in hand first."""

_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0
_REPORTS_KEPT = 300
"""Of all workers, one a second each: throughput is of the last minutes."""

_FEWEST_EVENTS, _FEWEST_REPORTS = 100, 5
"""From which a throughput, and its error, are known."""


class WorkerReport(msgspec.Struct, frozen=True):
    """What a worker has done since it started."""

    events: int
    """Records of the topic that events enter by, finished by its agents."""
    busy_s: float
    """Time in which any agent had an event in hand."""


class FaustWorkers:
    """Processes of `faust_worker`; a `GroupWorkers`. Those that end by themselves are started again.

    Args:
        app: ``module:attribute``.
        folder: that it is imported from.
        group: declared name, for logs and folders.
        topic: that events enter by; throughput is of its events.
        logs: folder of what workers print.
        data: folder of their tables, one for each worker.
        stop_s: longest that a worker may take to end.
        module: that a worker's process runs.
    """

    def __init__(
        self,
        app: str,
        folder: Path,
        group: str,
        topic: str,
        *,
        logs: Path,
        data: Path,
        stop_s: float = STOP_S,
        module: str = "inferline_stream.actuators.faust_worker",
    ) -> None:
        self._app, self._folder, self._group, self._topic, self._data = app, folder, group, topic, data
        self._stop_s, self._module = stop_s, module
        self._logs = ChildLogs(logs)
        self._kept: dict[int, tuple[asyncio.Task[None], asyncio.Event]] = {}
        """By number: what keeps a worker, and what asks it to stop."""
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._wanted: int | None = None
        self._reports: deque[WorkerReport] = deque(maxlen=_REPORTS_KEPT)
        """What was done between two reports of a worker."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for kept in self._kept.values():
            kept[1].set()
        await asyncio.gather(*(kept[0] for kept in self._kept.values()), return_exceptions=True)
        self._logs.close()

    async def wanted(self) -> int | None:
        """Return how many were asked for; see `GroupWorkers.wanted`."""
        return self._wanted

    @property
    def running(self) -> int:
        """Processes that there are."""
        return len(self._processes)

    async def scale(self, workers: int) -> None:
        """Start or stop processes, those started last first; see `GroupWorkers.scale`."""
        self._wanted = workers
        self._kept = {number: kept for number, kept in self._kept.items() if not kept[0].done()}
        for number, (_, stop) in self._kept.items():
            if number >= workers:
                stop.set()
        for number in range(workers):
            if number not in self._kept or self._kept[number][1].is_set():
                leaving = self._kept[number][0] if number in self._kept else None
                stop = asyncio.Event()
                self._kept[number] = asyncio.create_task(self._keep(number, stop, leaving)), stop

    def throughput(self) -> Learned | None:
        """Return events per second of one busy worker over the last minutes; None while too few were seen.

        Its error is that of a ratio of sums: the root of Σ (events − throughput · busy)² over all reports, relative to
        the sum of events.
        """
        seen = [report for report in self._reports if report.busy_s]
        events, busy_s = sum(report.events for report in seen), sum(report.busy_s for report in seen)
        if len(seen) < _FEWEST_REPORTS or events < _FEWEST_EVENTS or busy_s <= 0:
            return None
        rate = events / busy_s
        error = math.sqrt(sum((report.events - rate * report.busy_s) ** 2 for report in seen)) / events
        return Learned(rate, error, len(seen))

    async def _keep(self, number: int, stop: asyncio.Event, leaving: asyncio.Task[None] | None) -> None:
        """Run a worker until it is asked to stop, again whenever it ends, once the one before it has left."""
        if leaving is not None:
            await asyncio.wait({leaving})
        retry_s, loop = _FIRST_RETRY_S, asyncio.get_running_loop()
        while not stop.is_set():
            began_s = loop.time()
            try:
                why = await self._run(number, stop)
            except OSError as error:
                why = f"it cannot be started: {error.strerror}"
            if stop.is_set():
                return
            if loop.time() - began_s > _LONGEST_RETRY_S:
                retry_s = _FIRST_RETRY_S
            logger.warning("worker %d of %s: %s; again in %g s", number, self._group, why, retry_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry_s):
                    await stop.wait()
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def _run(self, number: int, stop: asyncio.Event) -> str:
        """Run a worker's process to its end; return why it ended."""
        name = f"{self._group}-{number}"
        log, data = self._logs.of(name), self._data / name
        data.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        try:
            with log.path.open("ab") as output:
                words = [self._app, str(data), str(writing), self._topic]
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", self._module, *words,
                    cwd=self._folder, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                    pass_fds=(writing,), start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._processes[number] = process
        self._logs.started(log)
        following = asyncio.create_task(self._follow(reading))
        ending = asyncio.create_task(process.wait())
        asked = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ending, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                process.send_signal(signal.SIGTERM)
                await asyncio.wait({ending}, timeout=self._stop_s)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            code = await process.wait()
            del self._processes[number]
            for task in (following, ending, asked):
                task.cancel()
            await asyncio.gather(following, ending, asked, return_exceptions=True)
            self._logs.ended(log, self._group, code)
        return f"ended with {code}: {log.tail() or 'it printed nothing'}"

    async def _follow(self, reading: int) -> None:
        """Take up what a worker reports, until it ends."""
        stream = asyncio.StreamReader()
        protocol, file = asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb", 0)
        pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, file)
        before = WorkerReport(0, 0.0)
        try:
            while line := await stream.readline():
                with contextlib.suppress(msgspec.DecodeError):  # the app has the descriptor, too
                    report = msgspec.json.decode(line, type=WorkerReport)
                    self._reports.append(WorkerReport(report.events - before.events, report.busy_s - before.busy_s))
                    before = report
        finally:
            pipe.close()
