"""A controller by hand: starts replica processes and writes their assignments, for tests and measurements."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from inferline_stream.dataplane.connecting import closed
from inferline_stream.dataplane.loading import load_topology
from inferline_stream.dataplane.protocol import (
    Assignment,
    KafkaClient,
    ReplicaReport,
    ReplicaSpec,
    decode_report,
    encode,
)
from inferline_stream.dataplane.starting import commit_start_offsets
from inferline_stream.dataplane.topics import create_topics, topics_of
from inferline_stream.dataplane.wiring import input_topic
from inferline_stream.isolation.confinement import confined
from inferline_stream.isolation.launch import Launch
from inferline_stream.pipeline.emulation import emulated_s
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.isolation import isolation_of
from inferline_stream.pipeline.names import Names

TERM = 1
"""Of the one controller there is."""


class Director:
    """Directs replicas of one topology; leaves no process behind.

    Args:
        bootstrap_servers: of a Kafka.
        topology: the topology file.
        prefix: of topics and groups; a random one by default, so that several can share a Kafka.
        partitions: of each stage's input topic.
        settings: fields of `Settings` for every replica.
        start: where entry stages begin to read; None commits no offsets at all.
    """

    kafka_client: KafkaClient = "aiokafka"
    """Of every replica that is started."""

    def __init__(
        self,
        bootstrap_servers: str,
        topology: Path,
        *,
        prefix: str | None = None,
        partitions: Mapping[str, int] | None = None,
        settings: Mapping[str, float] | None = None,
        start: str | None = "earliest",
        **spec: Any,
    ) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.topology = topology
        self.prefix = f"{secrets.token_hex(4)}-" if prefix is None else prefix
        self.pipeline = load_topology(topology)
        self.names = Names(self.pipeline.name, self.prefix)
        self._partitions = dict(partitions or {})
        self._settings = dict(settings or {})
        self._start = start
        self._spec = spec
        self._hardware = catalogue(self.pipeline.hardware)
        self._sequence = 0
        self._stack = contextlib.AsyncExitStack()
        self._launches: list[Launch] = []
        self._changed = asyncio.Event()
        self.reports: dict[str, ReplicaReport] = {}
        self.history: list[ReplicaReport] = []
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.assigned: dict[str, Assignment] = {}
        self.partitions: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await create_topics(self.bootstrap_servers, topics_of(self.pipeline, self.prefix, self._partitions))
            if self._start is not None:
                await commit_start_offsets(self.bootstrap_servers, self.pipeline, self.prefix, self._start)
            self.producer = await stack.enter_async_context(
                AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers, acks="all", enable_idempotence=True)
            )
            for stage in self.pipeline.stages:
                topic = input_topic(self.pipeline, self.names, stage.name)
                self.partitions[stage.name] = len(await self.producer.partitions_for(topic))
            following = asyncio.create_task(self._follow())
            stack.push_async_callback(_cancelled, following)
            stack.push_async_callback(self._kill_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def start(self, stage: str, hardware: str | None = None, *, ready: bool = True, **spec: Any) -> str:
        """Start a replica; returns its name once it is ready."""
        kind = self._hardware[hardware or self.pipeline.stage(stage).hardware[0]]
        replica = f"{stage}-{kind.name}-{secrets.token_hex(4)}"
        declared = emulated_s(self.pipeline.stage(stage), kind.name) if kind.emulated else None
        isolation = isolation_of(self.pipeline.stage(stage).isolation)
        told = ReplicaSpec(
            replica=replica,
            stage=stage,
            topology=str(self.topology),
            prefix=self.prefix,
            bootstrap_servers=self.bootstrap_servers,
            kafka_client=self.kafka_client,
            hardware=kind,
            emulated_s=declared,
            settings=self._settings,
            **{"max_batch_size": 16, "isolation": isolation, **self._spec, **spec},
        )
        confinement = confined(told.isolation, told.topology, kind, told.bootstrap_servers)
        launch = Launch("inferline_stream.dataplane.bound_replica", confinement, cores=kind.cores)
        self._launches.append(launch)
        process = await asyncio.create_subprocess_exec(
            *launch.command, stdin=asyncio.subprocess.PIPE, env=launch.environment, pass_fds=launch.files
        )
        launch.started(process.pid)
        assert process.stdin is not None
        process.stdin.write(encode(told) + b"\n")
        self.processes[replica] = process
        if ready:
            await self.until(lambda: self.phase(replica) == "ready", f"{replica} is ready", 60.0)
        return replica

    async def start_all(self, **spec: Any) -> dict[str, str]:
        """One replica per stage, which holds all its partitions; replica by stage."""
        names = await asyncio.gather(*(self.start(stage.name, **spec) for stage in self.pipeline.stages))
        replicas = {stage.name: name for stage, name in zip(self.pipeline.stages, names, strict=True)}
        for stage, replica in replicas.items():
            await self.assign(replica, range(self.partitions[stage]))
        return replicas

    async def assign(self, replica: str, partitions: Sequence[int] | range, **fields: Any) -> int:
        """Write an assignment; returns its sequence."""
        self._sequence += 1
        stage = self._stage_of(replica)
        told = Assignment(
            replica,
            stage,
            TERM,
            self._sequence,
            tuple(partitions),
            **{"max_batch_size": 16, **self._spec_batch(), **fields},
        )
        self.assigned[replica] = told
        await self.producer.send_and_wait(self.names.assignments, encode(told), key=replica.encode(), partition=0)
        return self._sequence

    async def share(self, replicas: Sequence[str], **fields: Any) -> None:
        """Share a stage's partitions evenly among replicas; each waits for the owner before to let its own go.

        Returns once every replica has taken up its share.
        """
        stage = self._stage_of(replicas[0])
        wanted = {
            replica: {p for p in range(self.partitions[stage]) if p % len(replicas) == at}
            for at, replica in enumerate(replicas)
        }
        holders = {r: set(a.partitions) for r, a in self.assigned.items() if a.stage == stage and a.partitions}
        heirs = {p: replica for replica, partitions in wanted.items() for p in partitions}
        taken: dict[int, tuple[int, int]] = {}
        for replica, held in holders.items():
            keep = held & wanted.get(replica, set())
            if keep != held:
                lost = {p: heirs[p] for p in held - keep}
                sequence = await self.assign(replica, sorted(keep), **{**fields, "heirs": lost})
                taken |= dict.fromkeys(held - keep, (TERM, sequence))
        for replica, partitions in wanted.items():
            if set(self.assigned[replica].partitions if replica in self.assigned else ()) != partitions:
                awaits = {p: taken[p] for p in partitions if p in taken}
                await self.assign(replica, sorted(partitions), **{**fields, "awaits": awaits})
        await self.until(
            lambda: all(self._holds(replica, partitions) for replica, partitions in wanted.items()),
            f"{', '.join(replicas)} hold their shares",
        )

    async def drain(self, *replicas: str) -> None:
        """Ask replicas to leave, and wait until they have."""
        for replica in replicas:
            await self.assign(replica, (), drain=True)
        for replica in replicas:
            await asyncio.wait_for(self.processes[replica].wait(), 15)

    def phase(self, replica: str) -> str:
        """Phase that the replica last reported; raises if it has died in the meantime."""
        report = self.reports.get(replica)
        code = self.processes[replica].returncode
        if code not in (None, 0) and (report is None or report.phase != "failed"):
            raise AssertionError(f"{replica} ended with {code}")
        return report.phase if report else ""

    def kill(self, replica: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a replica a signal."""
        self.processes[replica].send_signal(number)

    async def until(self, holds: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
        """Wait until something holds, looking again after each report."""
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await self._change()
        except TimeoutError:
            raise AssertionError(f"waited {timeout_s:g} s in vain until {what}; last reports: {self.reports}") from None

    async def lag(self) -> int:
        """Records that some stage's group has not committed."""
        total = 0
        for stage in self.pipeline.stages:
            topic = input_topic(self.pipeline, self.names, stage.name)
            consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap_servers, group_id=self.names.group(stage.name))
            async with consumer:
                partitions = [TopicPartition(topic, p) for p in range(self.partitions[stage.name])]
                ends = await consumer.end_offsets(partitions)
                for partition in partitions:
                    total += ends[partition] - (await consumer.committed(partition) or 0)
        return total

    async def caught_up(self, timeout_s: float = 20.0) -> None:
        """Wait until no stage has a record to do, in topological order of their own accord."""
        async with asyncio.timeout(timeout_s):
            while await self.lag():  # noqa: ASYNC110  Kafka tells nobody that a group has caught up
                await asyncio.sleep(0.05)

    async def read(self, topic: str, *, isolation: str = "read_committed") -> list[Any]:
        """Every record of a topic, as it stands now."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap_servers, isolation_level=isolation, auto_offset_reset="earliest"
        )
        async with consumer:
            partitions = [TopicPartition(topic, p) for p in await self.producer.partitions_for(topic)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            await consumer.seek_to_beginning()
            records: list[Any] = []
            while any([await consumer.position(p) < ends[p] for p in partitions]):
                for found in (await consumer.getmany(timeout_ms=200)).values():
                    records.extend(found)
        return records

    def _stage_of(self, replica: str) -> str:
        return next(stage.name for stage in self.pipeline.stages if replica.startswith(f"{stage.name}-"))

    def _spec_batch(self) -> dict[str, Any]:
        return {name: self._spec[name] for name in ("max_batch_size", "max_wait_s") if name in self._spec}

    def _holds(self, replica: str, partitions: set[int]) -> bool:
        report = self.reports.get(replica)
        return report is not None and {p for p, offset in report.held.items() if offset >= 0} >= partitions

    async def _change(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):  # a process may have died
                await self._changed.wait()

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            self.names.stage_stats,
            bootstrap_servers=self.bootstrap_servers,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=20,
        )
        try:
            await consumer.start()
            async for record in consumer:
                report = decode_report(record.value)
                self.reports[report.replica] = report
                self.history.append(report)
                self._changed.set()
        finally:
            await closed(consumer)  # also where it was cancelled before it had begun

    async def _kill_all(self) -> None:
        for process in self.processes.values():
            if process.returncode is None:
                process.kill()
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*(process.wait() for process in self.processes.values()))
        for launch in self._launches:
            launch.close()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
