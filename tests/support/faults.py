"""Faults that strike a running pipeline: processes killed and frozen, Kafka away or slow, a full disk, poison.

A `Scene` is a pipeline on emulated hardware with two controllers (one leads, one stands by), a file that its sink
topic is written to, and a Kafka of its own. `FAULTS` strike it; each returns when it ended, from where recovery counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer

from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.end_offsets import LedgerBegin
from inferline_stream.controlplane.observe.event_ledger import EventLedger, ledger_begin, read_ledger
from inferline_stream.controlplane.pipeline_context import PipelineContext, lags
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.testing.local_kafka import LocalKafka
from tests.support.controller_process import Condition, Controlled

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
CALM_S = 45.0
"""Longest wait until a pipeline has recovered, before the next fault strikes all the same."""


class LineProcess:
    """A child process that answers line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, *arguments: str, line: bytes = b"") -> LineProcess:
        """Start ``python -m module`` and send it a first line."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        if line:
            process.stdin.write(line + b"\n")
        return cls(process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.returncode is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def hear(self, timeout_s: float | None) -> bytes:
        """Its next line, without the line break; empty once it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout_s):
            return (await self._process.stdout.readline()).rstrip(b"\n")

    async def says(self, expected: bytes, timeout_s: float) -> None:
        """Wait for a line that is known beforehand."""
        if (heard := await self.hear(timeout_s)) != expected:
            raise RuntimeError(f"process {self.pid} said {heard.decode()!r} instead of {expected.decode()!r}")

    def nudge(self) -> None:
        """Send an empty line."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def ask(self, timeout_s: float) -> bytes:
        """Its answer to an empty line."""
        self.nudge()
        return await self.hear(timeout_s)

    async def ends(self, timeout_s: float | None) -> int:
        """Wait until it has ended by itself; returns its exit code."""
        async with asyncio.timeout(timeout_s):
            return await self._process.wait()

    async def end(self, timeout_s: float = 60.0) -> int:
        """SIGTERM, then SIGKILL where that does not help; returns its exit code."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._process.wait()
        except TimeoutError:
            logger.warning("process %d does not end by itself", self.pid)
            self.signal(signal.SIGKILL)
            return await self._process.wait()


class Controller:
    """A controller's process, and what it has said so far: whether it leads shows only there."""

    def __init__(self, line: LineProcess) -> None:
        self.line = line
        self.said: set[bytes] = set()
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._heard = asyncio.Event()
        self._hearing = asyncio.create_task(self._hear())

    @classmethod
    async def start(cls, controlled: Controlled) -> Controller:
        """Start one beside those that are there."""
        line = await LineProcess.start("tests.support.controller_process", line=msgspec.json.encode(controlled))
        started = cls(line)
        await started.says(b"started", 60.0)
        return started

    @property
    def leads(self) -> bool:
        """Whether it leads, as far as it knows; one that was deposed ends."""
        return b"leads" in self.said and not self.line.ended

    async def says(self, word: bytes, timeout_s: float) -> None:
        """Wait until it has said this."""
        async with asyncio.timeout(timeout_s):
            while word not in self.said:
                if self.line.ended:
                    raise RuntimeError(f"controller {self.line.pid} has ended before it said {word.decode()!r}")
                self._heard.clear()
                await self._heard.wait()

    async def condition(self) -> Condition:
        """How it sees the pipeline."""
        while not self._answers.empty():  # of a question that nobody waited for
            self._answers.get_nowait()
        self.line.nudge()
        async with asyncio.timeout(30.0):
            return msgspec.json.decode(await self._answers.get(), type=Condition)

    async def _hear(self) -> None:
        while heard := await self.line.hear(None):
            if heard.startswith(b"{"):
                self._answers.put_nowait(heard)
            else:
                self.said.add(heard)
            self._heard.set()
        await self.line.ends(None)
        self._heard.set()
        self._answers.put_nowait(b"")  # who asked waits in vain


@dataclass(slots=True)
class Scene:
    """A pipeline that faults strike.

    Args:
        kafka: its own.
        controlled: the pipeline, and how it runs.
        context: its names.
        since: where it began.
        sink: writes the sink topic to `file`.
        file: what a user has of it.
        rng: chooses victims.
        long_s: how long something stays frozen or away: beyond the lease and beyond what counts as death.
        branch: a stage that a join waits for.
        poison: an event that its stage does not survive.
    """

    kafka: LocalKafka
    controlled: Controlled
    context: PipelineContext
    since: LedgerBegin
    partitions: dict[str, int]
    controllers: list[Controller]
    """One leads and one stands by, unless a fault has ended them."""
    sink: LineProcess
    file: Path
    rng: random.Random
    long_s: float
    branch: str
    poison: bytes
    restarts: int = 0
    """Of the process that writes the file."""
    notes: list[str] = field(default_factory=list)
    """What went otherwise than it should."""
    killed: list[int] = field(default_factory=list)
    """Processes of replicas, dispatchers and supervisors; none is killed again while it is reaped."""

    @property
    def leader(self) -> Controller:
        """The controller that leads: of several that believe it the newest, which has deposed the others."""
        found = [each for each in self.controllers if each.leads]
        if not found:
            raise RuntimeError("no controller leads")
        return found[-1]

    async def condition(self) -> Condition:
        """How the leading controller sees it; one that was deposed meanwhile ends without an answer."""
        async with asyncio.timeout(CALM_S):
            while True:
                try:
                    return await self.leader.condition()
                except (msgspec.DecodeError, RuntimeError):
                    await asyncio.sleep(0.1)

    async def victim(self, stage: str | None = None) -> int:
        """Return the process of some replica."""
        running = (await self.condition()).replicas
        return self._alive([pid for _, name, pid in running if stage is None or name == stage])

    async def dispatcher(self) -> int:
        """Return the process of some dispatcher."""
        return self._alive([pid for _, _, pid in (await self.condition()).dispatchers])

    def _alive(self, pids: list[int]) -> int:
        return self.rng.choice([pid for pid in pids if pid not in self.killed])

    def kill(self, pid: int) -> float:
        """SIGKILL; return when that was."""
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)
        return time.time()

    async def take_over(self, deposed: Controller) -> float:
        """Wait until another controller leads, and has its replicas; have a standby. Returns since when it leads."""

        async def leads() -> bool:
            return any(each.leads for each in self.controllers if each is not deposed)

        if not await until(leads, CALM_S, 0.01):
            raise RuntimeError(f"nobody leads in place of controller {deposed.line.pid}")
        leads_s = time.time()
        await self.staffed()
        return leads_s

    async def staffed(self) -> None:
        """See to it that a controller leads and has its replicas, and that another one stands by."""
        self.controllers = [each for each in self.controllers if not each.line.ended]

        async def leads() -> bool:
            if not any(not each.line.ended for each in self.controllers):  # both, where they have met
                self.controllers.append(await Controller.start(self.controlled))
            return any(each.leads for each in self.controllers)

        await until(leads, CALM_S, 0.1)
        await self.leader.says(b"ready", CALM_S)
        if all(each.leads or each.line.ended for each in self.controllers):
            self.controllers.append(await Controller.start(self.controlled))

    async def calm(self) -> bool:
        """Wait until every replica is back and nothing lags behind; whether that came to be."""

        async def recovered() -> bool:
            seen = await self.condition()
            return seen.complete and seen.lag_s is not None and seen.lag_s < 1.0

        await asyncio.sleep(0.6)  # a controller's picture is made twice a second
        return await until(recovered, CALM_S, 0.2)

    async def strike(self, kind: str, times: int = 1) -> tuple[float, float]:
        """Strike so many times in a row and wait for calm; return when it began and ended, seconds since the epoch."""
        try:
            await self.staffed()  # one may have been starting while Kafka was away
        except (TimeoutError, RuntimeError) as error:
            self.notes.append(f"before {kind}: {error!r}")
        began_s = time.time()
        try:
            for _ in range(times):
                ended_s = await FAULTS[kind](self)
            if not await self.calm():
                self.notes.append(f"{kind}: not calm within {CALM_S:g} s")
        except (TimeoutError, RuntimeError, ProcessLookupError, IndexError, msgspec.DecodeError) as error:
            self.notes.append(f"{kind}: {error!r}")
            ended_s = time.time()
            await self._undo()
        if self.sink.ended:
            self.restarts += 1
            self.sink = await _sink(self.context, self.file)
        return began_s, ended_s

    async def _undo(self) -> None:
        """A round has misbehaved: whatever is still frozen goes on."""
        self.kafka.resume()
        for controller in self.controllers:
            controller.line.signal(signal.SIGCONT)

    async def drained(self, offsets: Offsets) -> bool:
        """Wait until no stage has anything left to do, or nothing moves any more."""
        before, moved_s = -1, time.monotonic()
        while left := sum((await lags(offsets, self.context, self.partitions)).values()):
            if left != before:
                before, moved_s = left, time.monotonic()
            elif time.monotonic() - moved_s > CALM_S:
                return False
            await asyncio.sleep(0.2)
        return True

    async def ledger(self, offsets: Offsets) -> EventLedger:
        """What became of every event."""
        return await read_ledger(offsets, self.context, self.since)

    async def file_differs(self, offsets: Offsets) -> Counter[str]:
        """Events that the file lacks (negative) or holds more than once (positive), once it has caught up."""
        (sink,) = self.context.sinks.values()
        partitions = await offsets.partitions(sink)
        ends = dict(enumerate((await offsets.ends({sink: partitions}))[sink]))
        wanted: set[str] = set()
        async with TopicFollower(self.context.kafka.bootstrap_servers, sink) as follower:
            async for record in follower.until(ends):
                wanted.add(dict(record.headers)[EVENT_ID].decode())

        def held() -> Counter[str]:
            return Counter(json.loads(line)["event_id"] for line in self.file.read_text().splitlines())

        async def complete() -> bool:
            return held().keys() >= wanted

        await until(complete, CALM_S, 0.2)
        differs = held()
        differs.subtract(wanted)
        return Counter({name: count for name, count in differs.items() if count})


@asynccontextmanager
async def scene(
    kafka: LocalKafka, controlled: Controlled, *, seed: int, long_s: float, branch: str, poison: bytes
) -> AsyncIterator[Scene]:
    """A pipeline in full swing, except that nobody feeds it yet.

    Args:
        kafka: only for this.
        controlled: the pipeline; its topics may exist already.
        seed: of the choice of victims.
        long_s: see `Scene`.
        branch: see `Scene`.
        poison: see `Scene`.
    """
    run = controlled.run(Path(controlled.folder))
    context = PipelineContext(run.pipeline, KafkaCluster(run.bootstrap_servers), run.settings, run.records)
    shape = context.shape
    async with contextlib.AsyncExitStack() as stack:
        leader = await Controller.start(controlled)
        stack.push_async_callback(leader.line.end, 5.0)
        await leader.says(b"leads", run.settings.start_timeout_s)
        await leader.says(b"ready", run.settings.start_timeout_s)
        async with Offsets(run.bootstrap_servers) as offsets:
            partitions = {stage: await offsets.partitions(context.topic(stage)) for stage in shape.stages}
            since = await ledger_begin(offsets, context)
        file = Path(controlled.folder) / "out.jsonl"
        struck = Scene(
            kafka, controlled, context, since, partitions, [leader, await Controller.start(controlled)],
            await _sink(context, file), file,
            random.Random(seed), long_s, branch, poison,
        )  # fmt: skip
        try:
            yield struck
        finally:
            for each in sorted(struck.controllers, key=lambda each: each.leads):  # nobody takes over
                await each.line.end(30.0)
            await struck.sink.end(30.0)


async def _sink(context: PipelineContext, file: Path) -> LineProcess:
    # Not isolated: it is one process then, whose limits can be set from outside.
    (sink,) = context.sinks.values()
    return await LineProcess.start(
        "inferline_stream.connectors.sinks.jsonl",
        *("--bootstrap-servers", context.kafka.bootstrap_servers, "--topic", sink, "--path", str(file)),
        *("--isolation", "none"),
    )


# The faults


async def kill_replica(scene: Scene) -> float:
    """SIGKILL of some replica."""
    return scene.kill(await scene.victim())


async def kill_join_partner(scene: Scene) -> float:
    """SIGKILL of a replica of a stage for whose results a join waits."""
    return scene.kill(await scene.victim(scene.branch))


async def freeze_replica(scene: Scene) -> float:
    """A replica stands still for longer than its batch may take, and wakes if nobody has killed it."""
    return await _frozen(scene, await scene.victim())


async def kill_dispatcher(scene: Scene) -> float:
    """SIGKILL of some dispatcher; the supervisor starts it again, and replicas live on."""
    return scene.kill(await scene.dispatcher())


async def freeze_dispatcher(scene: Scene) -> float:
    """A dispatcher stands still for longer than its lease, and wakes as a zombie if nobody has killed it."""
    return await _frozen(scene, await scene.dispatcher())


async def kill_supervisor(scene: Scene) -> float:
    """SIGKILL of the supervisor; every dispatcher and replica ends with it, and the controller starts another."""
    pid = (await scene.condition()).supervisor
    assert pid is not None
    return scene.kill(pid)


async def stop_supervisor(scene: Scene) -> float:
    """SIGTERM: the supervisor drains and ends, and the controller, which did not ask for that, starts another."""
    pid = (await scene.condition()).supervisor
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    return time.time()


async def kill_controller(scene: Scene) -> float:
    """SIGKILL of the leading controller; dispatchers and replicas live on. Ends once another leads."""
    killed = scene.leader
    killed.line.signal(signal.SIGKILL)
    return await scene.take_over(killed)


async def freeze_controller(scene: Scene) -> float:
    """The leading controller stands still; another takes over; the first wakes and finds itself deposed."""
    frozen = scene.leader
    frozen.line.signal(signal.SIGSTOP)
    try:
        ended_s = await scene.take_over(frozen)
    finally:
        frozen.line.signal(signal.SIGCONT)
    if not await frozen.line.ends(CALM_S):  # not asked to: one that still led would drain the pipeline
        raise RuntimeError("a controller that was deposed left as if nothing had happened")
    return ended_s


async def restart_broker(scene: Scene) -> float:
    """Kafka stops in good order and starts again."""
    await asyncio.to_thread(scene.kafka.restart)
    return time.time()


async def kill_broker(scene: Scene) -> float:
    """Kafka is killed and starts again."""
    await asyncio.to_thread(scene.kafka.restart, kill=True)
    return time.time()


async def unreachable_broker(scene: Scene) -> float:
    """Kafka answers nothing; connections stay open."""
    scene.kafka.suspend()
    await asyncio.sleep(scene.long_s)
    scene.kafka.resume()
    return time.time()


async def slow_broker(scene: Scene) -> float:
    """Kafka gets a fifth of the time."""
    until_s = time.monotonic() + scene.long_s / 2
    while time.monotonic() < until_s:
        scene.kafka.suspend()
        await asyncio.sleep(0.08)
        scene.kafka.resume()
        await asyncio.sleep(0.02)
    return time.time()


async def full_disk(scene: Scene) -> float:
    """The file that the sink topic is written to cannot grow."""
    _, hard = resource.prlimit(scene.sink.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(scene.sink.pid, resource.RLIMIT_FSIZE, (scene.file.stat().st_size + 100, hard))
    await asyncio.sleep(scene.long_s / 3)
    resource.prlimit(scene.sink.pid, resource.RLIMIT_FSIZE, (hard, hard))
    return time.time()


async def poison(scene: Scene) -> float:
    """An event that kills its replica, until it is recognised and ends as a dead letter."""
    letters = scene.context.names.dead_letters(scene.context.source)
    async with Offsets(scene.kafka.bootstrap_servers) as offsets:
        before = await offsets.ends({letters: 1})
        async with AIOKafkaProducer(bootstrap_servers=scene.kafka.bootstrap_servers, acks="all") as producer:
            await producer.send_and_wait(scene.context.source, scene.poison, key=b"poison")

        async def recognised() -> bool:
            return await offsets.ends({letters: 1}) != before

        if not await until(recognised, CALM_S, 0.05):
            raise RuntimeError("poison was not recognised")
    return time.time()


async def _frozen(scene: Scene, pid: int) -> float:
    _send(pid, signal.SIGSTOP)
    await asyncio.sleep(scene.long_s)
    _send(pid, signal.SIGCONT)
    return time.time()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


FAULTS: dict[str, Callable[[Scene], Awaitable[float]]] = {
    fault.__name__: fault
    for fault in (
        kill_replica,
        kill_join_partner,
        freeze_replica,
        kill_dispatcher,
        freeze_dispatcher,
        kill_supervisor,
        stop_supervisor,
        kill_controller,
        freeze_controller,
        restart_broker,
        kill_broker,
        unreachable_broker,
        slow_broker,
        full_disk,
        poison,
    )
}
