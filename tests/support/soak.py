"""A pipeline under load for long, scaled up and down all the time: does every process stay as it was?

`soak` is a context in which each process of a run, the controller's own included, is looked at every second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient

from inferline_stream.actuators.local import LocalActuator
from inferline_stream.runs.live_run import LiveRun

LOOK_S = 1.0
CONTROLLER, SUPERVISOR = "controller", "supervisor"


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """A process at one moment."""

    time_s: float
    """Seconds since the epoch."""
    memory_mb: float
    """Anonymous memory that is resident: the heap, not the files that are mapped."""
    descriptors: int
    tasks: int | None = None
    """Of its event loop, where that is known."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run holds at one moment, replicas aside, whose number changes."""

    descriptors: int
    """Of the controller, the supervisor and every dispatcher."""
    groups: frozenset[str]
    """Consumer groups of its Kafka."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What a process had more at the end than in the second quarter of its time, when it was warm."""

    warm_mb: float
    """Its memory then."""
    memory_mb: float
    descriptors: float
    tasks: float | None


@asynccontextmanager
async def soak(under_way: LiveRun) -> AsyncIterator[dict[str, list[ProcessSample]]]:
    """Look at every process until the block ends; by name, what was seen."""
    looks: dict[str, list[ProcessSample]] = {}
    looking = asyncio.create_task(_watch(under_way, looks))
    try:
        yield looks
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking


async def counts(under_way: LiveRun) -> Counts:
    """Count what a run holds now."""
    actuator = under_way.controller.actuator
    assert isinstance(actuator, LocalActuator)
    pids = [os.getpid(), actuator.supervisor_pid, *(each.pid for each in await actuator.dispatchers())]
    admin = AIOKafkaAdminClient(bootstrap_servers=under_way.run.bootstrap_servers)
    descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    await admin.start()
    try:
        groups = await admin.list_consumer_groups()
    finally:
        await admin.close()
    own = under_way.context.names.group("")  # other tests use the same cluster
    return Counts(descriptors, frozenset(name for name, *_ in groups if name.startswith(own)))


def growth(looks: list[ProcessSample]) -> Growth | None:
    """From the second quarter to the last one, medians of each; None where there are too few looks to tell."""
    quarter = len(looks) // 4
    if quarter < 5:
        return None
    warm, last = looks[quarter : 2 * quarter], looks[-quarter:]

    def more(of: Callable[[ProcessSample], float]) -> float:
        return statistics.median(map(of, last)) - statistics.median(map(of, warm))

    known = all(look.tasks is not None for look in looks)
    return Growth(
        warm_mb=statistics.median(look.memory_mb for look in warm),
        memory_mb=more(lambda look: look.memory_mb),
        descriptors=more(lambda look: look.descriptors),
        tasks=more(lambda look: look.tasks or 0) if known else None,
    )


async def _watch(under_way: LiveRun, looks: dict[str, list[ProcessSample]]) -> None:
    while True:
        looks.setdefault(CONTROLLER, []).append(_look("self", len(asyncio.all_tasks())))
        actuator = under_way.controller.actuator
        replicas, dispatchers = await actuator.observe(), await actuator.dispatchers()
        processes = [(r.replica, r.pid) for r in replicas] + [(d.dispatcher, d.pid) for d in dispatchers]
        if isinstance(actuator, LocalActuator):
            processes.append((SUPERVISOR, actuator.supervisor_pid))
        for name, pid in processes:
            if pid is not None:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):  # it has just ended
                    looks.setdefault(name, []).append(_look(str(pid)))
        await asyncio.sleep(LOOK_S)


def _look(process: str, tasks: int | None = None) -> ProcessSample:
    folder = Path("/proc") / process
    status = (folder / "status").read_text()
    kilobytes = int(status[status.index("RssAnon:") :].split(maxsplit=2)[1])
    return ProcessSample(time.time(), kilobytes / 1024, len(os.listdir(folder / "fd")), tasks)
