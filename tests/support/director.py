"""A controller by hand: starts the pools of a topology and writes their grants, for tests and measurements."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from inferline_stream.actuators.actuator import DispatcherExit, ReplicaExit
from inferline_stream.actuators.children import Children
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.dataplane.process_specs import DISPATCHER_MODULE, Delivery, DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus, decode_report
from inferline_stream.dataplane.routes import every_route
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan, encode_control, grant_key
from inferline_stream.dataplane.start_offsets import commit_start_offsets
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.kafka.connection import client_options, closed
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import create_topics, topics_of
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.kafka.topic_state import topic_states
from inferline_stream.pipeline.emulation import emulated_s
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.names import Names, event_id_prefix


class Director:
    """Directs the pools of one topology; leaves no process behind.

    Args:
        bootstrap_servers: of a Kafka.
        topology: the topology file.
        prefix: of topics and groups; a random one by default, so that several can share a Kafka.
        partitions: of each stage's input topic.
        settings: fields of `Settings` for every dispatcher.
        start: where entry stages begin to read; None commits no offsets at all.
        delivery: how results get into the sink.
        max_batch_size: batch limit of every stage, until `grant` says another one.
        samples: by stage, an event that it is known to process.
        live_since_s: see `DispatcherSpec`.
        tracing: see `DispatcherSpec`.
        dispatcher_module: see `Supervisor`.
        actuator: starts and stops processes, given the pipeline's names; by default a `Supervisor`.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topology: Path,
        *,
        prefix: str | None = None,
        partitions: Mapping[str, int] | None = None,
        settings: Mapping[str, float] | None = None,
        start: str | None = "earliest",
        delivery: Delivery = "at_least_once",
        max_batch_size: int = 16,
        samples: Mapping[str, StageInput] | None = None,
        live_since_s: float = 0.0,
        tracing: str = "",
        dispatcher_module: str = DISPATCHER_MODULE,
        actuator: Callable[[Names], AbstractAsyncContextManager[Any]] | None = None,
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.topology = topology
        self.prefix = f"{secrets.token_hex(4)}-" if prefix is None else prefix
        self.pipeline = load_topology(topology)
        self.names = Names(self.pipeline.name, self.prefix)
        self.routes = every_route(self.pipeline, self.prefix)
        self._topic_partitions = dict(partitions or {})
        self._settings = dict(settings or {})
        self._start = start
        self._delivery: Delivery = delivery
        self._max_batch_size = max_batch_size
        self._samples = dict(samples or {})
        self._live_since_s, self._tracing = live_since_s, tracing
        self._dispatcher_module = dispatcher_module
        self._actuator = actuator
        self._hardware = catalogue(self.pipeline.hardware)
        self._term = time.time_ns() // 1000  # above that of a director before on the same topics
        self._number = 0
        self._grants: dict[tuple[str, int], Grant] = {}
        self._dispatchers: dict[str, list[DispatcherSpec]] = {}
        self._replicas: dict[tuple[str, str], int] = {}
        self._stack = contextlib.AsyncExitStack()
        self._changed = asyncio.Event()
        self.reports: dict[str, PoolReport] = {}
        """The newest report of each dispatcher."""
        self.history: list[PoolReport] = []
        self.exits: list[ReplicaExit | DispatcherExit] = []
        self.partitions: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            topics = topics_of(self.pipeline, self.prefix, self._topic_partitions)
            await create_topics(self.bootstrap_servers, topics)
            if self._start is not None:
                await commit_start_offsets(self.bootstrap_servers, self.pipeline, self.prefix, self._start)
            options = client_options(self.bootstrap_servers)
            self.producer = await stack.enter_async_context(
                AIOKafkaProducer(**options, acks="all", enable_idempotence=True)
            )
            for stage, routes in self.routes.items():
                self.partitions[stage] = len(await self.producer.partitions_for(routes.input_topic))
            self.logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferline-logs-")))
            supervisor: AbstractAsyncContextManager[Any] = (
                Supervisor(partial(Children, self.logs, dispatcher_module=self._dispatcher_module))
                if self._actuator is None
                else self._actuator(self.names)
            )
            self.supervisor = await stack.enter_async_context(supervisor)
            await self.supervisor.know(
                {
                    (stage.name, kind): self._replica_spec(stage.name, kind)
                    for stage in self.pipeline.stages
                    for kind in stage.hardware
                }
            )
            for work in (self._follow, self._mourn):
                stack.push_async_callback(_cancelled, asyncio.create_task(work()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _replica_spec(self, stage: str, kind: str) -> ReplicaSpec:
        declared = self.pipeline.stage(stage)
        hardware = self._hardware[kind]
        return ReplicaSpec(
            "",
            stage,
            str(self.topology.resolve()),
            hardware,
            emulated_s(declared.emulated, kind) if hardware.emulated else None,
            declared.confined,
        )

    # Pools

    async def start(self, *stages: str, replicas: int = 1, slots: int = 1) -> None:
        """Start the pools of these stages, by default all, and wait until their replicas are ready."""
        named = stages or tuple(self.routes)
        for stage in named:
            await self.dispatch(stage, slots, wait=False)
            await self.supervisor.scale(stage, self._kind(stage), replicas)
            self._replicas[stage, self._kind(stage)] = replicas
        await self.until(lambda: all(self._is_up(stage) for stage in named), f"{named} are up", 60.0)

    async def scale(self, stage: str, replicas: int, hardware: str = "", *, wait: bool = True) -> None:
        """Have so many replicas of a stage; wait until they are ready, or gone."""
        kind = hardware or self._kind(stage)
        await self.supervisor.scale(stage, kind, replicas)
        self._replicas[stage, kind] = replicas
        if wait:
            await self.until(lambda: self._is_up(stage), f"{stage} has {replicas} replicas", 60.0)

    async def dispatch(self, stage: str, slots: int = 1, *, wait: bool = True, silent: bool = False) -> list[str]:
        """Let new dispatchers serve a stage; returns their names once they do and the ones before are gone.

        Args:
            stage: the stage.
            slots: so many.
            wait: for the new ones to serve.
            silent: the ones before do not answer, and nobody waits for them or stops them.
        """
        before = [spec.dispatcher for spec in self._dispatchers.get(stage, [])]
        specs = [self._dispatcher_spec(stage, slot) for slot in range(slots)]
        self._dispatchers[stage] = [*self._dispatchers.get(stage, []), *specs]
        await self.supervisor.dispatch(stage, self._dispatchers[stage])
        if before:
            await self.until(lambda: all(self.phase(s.dispatcher) == "standby" for s in specs), "the next ones wait")
        for slot in range(max(slots, len(before))):
            name = specs[slot].dispatcher if slot < slots else ""
            await self.grant(stage, slot, slots=slots, dispatcher=name, begins=not before)
        if before:
            if not silent:
                await self.until(lambda: all(self._is_gone(name) for name in before), f"{before} are gone")
            for slot, spec in enumerate(specs):
                await self.grant(stage, slot, slots=slots, dispatcher=spec.dispatcher, begins=True)
        self._dispatchers[stage] = specs
        if not silent:
            await self.supervisor.dispatch(stage, specs)
        names = [spec.dispatcher for spec in specs]
        if wait:
            await self.until(lambda: all(self.phase(name) == "serving" for name in names), f"{names} serve", 30.0)
        return names

    async def grant(self, stage: str, slot: int = 0, *, hold_s: float | None = None, **changes: Any) -> int:
        """Write a grant of a slot: the one before, with changes; returns its number.

        Changes are fields of `Grant`, or of the `HardwarePlan` of every kind.
        """
        self._number += 1
        kinds = self.pipeline.stage(stage).hardware
        known = self._grants.get((stage, slot))
        fields: dict[str, Any] = {
            "slots": 1,
            "dispatcher": "",
            "plan": StagePlan({kind: self._plan_of(stage, kind) for kind in kinds}, sample=self._samples.get(stage)),
        }
        if known is not None:
            fields = {name: getattr(known, name) for name in known.__struct_fields__}
        of_kind = {name: changes.pop(name) for name in HardwarePlan.__struct_fields__ if name in changes}
        plan = fields["plan"]
        hardware = {kind: msgspec.structs.replace(each, **of_kind) for kind, each in plan.hardware.items()}
        plan = msgspec.structs.replace(plan, hardware=hardware, hold_s=plan.hold_s if hold_s is None else hold_s)
        fields |= {"stage": stage, "slot": slot, "term": self._term, "number": self._number, "plan": plan, **changes}
        grant = self._grants[stage, slot] = Grant(**fields)
        key = grant_key(stage, slot).encode()
        await self.producer.send_and_wait(self.names.assignments, encode_control(grant), key=key, partition=0)
        return grant.number

    def _plan_of(self, stage: str, kind: str) -> HardwarePlan:
        declared = self.pipeline.stage(stage)
        times_s = dict(emulated_s(declared.emulated, kind)) if self._hardware[kind].emulated else {}
        return HardwarePlan(self._max_batch_size, times_s, declared.most_at_once)

    def _dispatcher_spec(self, stage: str, slot: int) -> DispatcherSpec:
        return DispatcherSpec(
            f"{stage}-{slot}-{secrets.token_hex(4)}",
            slot,
            self.routes[stage],
            self.bootstrap_servers,
            self._delivery,
            self._tracing,
            self._settings,
            self._live_since_s,
        )

    def _kind(self, stage: str) -> str:
        return self.pipeline.stage(stage).hardware[0]

    def _is_up(self, stage: str) -> bool:
        names = [spec.dispatcher for spec in self._dispatchers[stage]]
        wanted = sum(count for (name, _), count in self._replicas.items() if name == stage)
        return all(self.phase(name) == "serving" for name in names) and len(self.ready(stage)) == wanted

    def _is_gone(self, dispatcher: str) -> bool:
        ended = any(
            isinstance(e, DispatcherExit) and e.dispatcher == dispatcher and not e.restarted for e in self.exits
        )
        return ended or self.phase(dispatcher) in ("gone", "failed")

    # What is there

    def report(self, stage: str) -> PoolReport:
        """Return the newest report of a stage with one slot."""
        return self.reports[self.dispatcher(stage)]

    def dispatcher(self, stage: str, slot: int = 0) -> str:
        """Return the name of the dispatcher that serves a slot."""
        return self._dispatchers[stage][slot].dispatcher

    def phase(self, dispatcher: str) -> str:
        """Return the phase that a dispatcher last reported, empty before the first report."""
        report = self.reports.get(dispatcher)
        return report.phase if report else ""

    def ready(self, stage: str) -> list[ReplicaStatus]:
        """Return a stage's ready replicas, as its dispatchers reported them."""
        newest = [self.reports.get(spec.dispatcher) for spec in self._dispatchers.get(stage, [])]
        return [r for report in newest if report is not None for r in report.replicas if r.phase == "ready"]

    def total(self, stage: str, counter: str) -> Any:
        """Return the sum of a counter over every dispatcher process that a stage has had."""
        newest = {(r.dispatcher, r.incarnation): r for r in self.history if r.stage == stage}
        return sum(getattr(report.counts, counter) for report in newest.values())

    async def pid(self, name: str) -> int:
        """Return the process of a replica or a dispatcher."""
        found = (await self.pids()).get(name)
        assert found is not None, f"{name} does not run"
        return found

    async def pids(self) -> dict[str, int]:
        """Return the processes of all dispatchers and replicas, by name."""
        replicas = [(child.replica, child.pid) for child in await self.supervisor.observe()]
        dispatchers = [(child.dispatcher, child.pid) for child in await self.supervisor.dispatchers()]
        return {name: pid for name, pid in (*dispatchers, *replicas) if pid is not None}

    async def warm(self) -> None:
        """Wait until processes are forked from now on, where their stage asks for that."""
        children = self.supervisor._children
        assert isinstance(children, Children)
        servers = children._fork_servers._servers.values()
        await self.until(lambda: all(server.ready or server.broken for server in servers), "fork servers are ready", 60)

    def ready_s(self, replica: str) -> float:
        """Return when a replica was ready; see `ready_logged_s`."""
        return ready_logged_s(self.logs / f"{replica}.log")

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a replica or a dispatcher a signal; returns its pid."""
        pid = await self.pid(name)
        os.kill(pid, number)
        return pid

    async def until(self, holds: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until something holds, looking again after each report and each exit."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"waited {timeout_s:g} s in vain until {what}; exits: {self.exits[-5:]}; last reports: {self.reports}"
            ) from None

    async def until_finished(self, stage: str, events: int, timeout_s: float = 60.0) -> None:
        """Wait until a stage has finished so many events in all."""
        what = f"{stage} has finished {events} events"
        await self.until(lambda: self.total(stage, "events") >= events, what, timeout_s)

    async def lag(self) -> int:
        """Return how many records some stage's group has not committed."""
        total = 0
        async with Offsets(self.bootstrap_servers) as offsets:
            for stage, routes in self.routes.items():
                topic, count = routes.input_topic, self.partitions[stage]
                committed = await offsets.committed(routes.group, topic, count)
                ends = (await offsets.ends({topic: count}))[topic]
                total += sum(end - max(0, done.offset) for end, done in zip(ends, committed, strict=True))
        return total

    async def caught_up(self, timeout_s: float = 60.0) -> None:
        """Wait until no stage has a record to do."""
        lag = -1
        try:
            async with asyncio.timeout(timeout_s):
                while lag := await self.lag():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(
                f"{lag} records are left after {timeout_s:g} s; exits: {self.exits[-5:]}; last reports: {self.reports}"
            ) from None

    async def put(self, values: list[bytes], keys: list[bytes | None] | None = None) -> list[str]:
        """Send to the source topic, by default with seven keys in turn; returns the event ids."""
        topic = self.names.topic(self.pipeline.source.name)
        sent = [
            await self.producer.send(topic, value, key=keys[i] if keys else b"%d" % (i % 7))
            for i, value in enumerate(values)
        ]
        states = await topic_states(self.producer.client, [topic])
        prefix = event_id_prefix(topic, states[topic].id)
        return [f"{prefix}/{r.partition}/{r.offset}" for r in await asyncio.gather(*sent)]

    async def results(self, stage: str = "") -> list[Record]:
        """Return every record of the sink topic, or of the one that a stage feeds, as it stands now."""
        sinks = self.pipeline.sinks
        return await self.read(self.names.topic((sinks[stage] if stage else [*sinks.values()][-1]).name))

    async def letters(self, stage: str) -> list[Record]:
        """Return every dead letter of a stage's input."""
        return await self.read(self.names.dead_letters(self.routes[stage].input_topic))

    async def read(self, topic: str) -> list[Record]:
        """Return every record of a topic, as it stands now."""
        async with TopicFollower(self.bootstrap_servers, topic) as follower:
            return await follower.read_to(await follower.end())

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            self.names.stage_stats,
            **client_options(self.bootstrap_servers),
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )
        try:
            await consumer.start()
            async for record in consumer:
                report = decode_report(record.value)
                self.reports[report.dispatcher] = report
                self.history.append(report)
                self._changed.set()
        finally:
            await closed(consumer)  # also where it was cancelled before it had begun

    async def _mourn(self) -> None:
        while True:
            self.exits.append(await self.supervisor.next_exit())
            self._changed.set()


def ready_logged_s(log: Path) -> float:
    """Return when a replica wrote to its log that it is ready, in seconds since the epoch, to the millisecond."""
    (line,) = (line for line in log.read_text(encoding="utf-8").splitlines() if " is ready after " in line)
    at, milliseconds = line[:23].split(",")
    return time.mktime(time.strptime(at, "%Y-%m-%d %H:%M:%S")) + int(milliseconds) / 1e3


def event_id(record: Any) -> str:
    """Return the id of the event that a record belongs to."""
    return str(dict(record.headers)["__inferline.event_id"].decode())


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
