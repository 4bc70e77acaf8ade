"""What a cluster's network adds to a batch: measured between a dispatcher and a replica that run there as in a run."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from inferline_stream.actuators.actuator import Actuator, DispatcherExit
from inferline_stream.dataplane.grants import Grant, encode_control, grant_key
from inferline_stream.dataplane.process_specs import DispatcherSpec, ReplicaSpec
from inferline_stream.dataplane.reports import PoolReport, decode_report
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.start_offsets import commit_start_offsets
from inferline_stream.errors import StageFailed
from inferline_stream.kafka.controller_client import TopicFollower
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.topics import create_topics, delete_topics, topics_of
from inferline_stream.pipeline.emulation import emulated_s
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.settings import Settings

WARM_UP_BATCHES, BATCHES = 10, 50
"""Of one event each: the first open connections and fill caches."""

_FEWEST_BATCHES = 5
_LONGEST_S = 60.0
"""A stage that takes seconds for an event is measured by fewer of them."""

_EVERY_S = 0.02

MakeActuator = Callable[[Names], AbstractAsyncContextManager[Actuator]]
"""Makes what starts processes in the cluster, for a pipeline of these names; at its end nothing of it is left there."""


async def measure_network(
    pipeline: Pipeline,
    topology: Path,
    events: Sequence[bytes],
    bootstrap_servers: str,
    *,
    actuator: MakeActuator,
    settings: Settings,
) -> float:
    """Return the time that a batch takes in the cluster beyond the replica's own, in seconds; the mean.

    The cheapest kind of an entry stage runs there, with the sample's own events, on topics that are deleted again.

    Args:
        pipeline: a valid pipeline.
        topology: its file, as the actuator's processes find it.
        events: the sample's, as they stand in the source topic.
        bootstrap_servers: of Kafka, as the cluster reaches it.
        actuator: starts the processes.
        settings: time limits.

    Raises:
        StageFailed: the replica was not ready in time, or no batch came back.
        Unreachable: Kafka, or the cluster, does not answer.
    """
    stage, kind = _cheapest(pipeline)
    names = Names(pipeline.name, f"profile-{secrets.token_hex(4)}-")
    topics = topics_of(pipeline, names.prefix, {each.name: 1 for each in pipeline.stages})
    try:
        await create_topics(bootstrap_servers, topics, replication=1, timeout_s=settings.connect_timeout_s)
        await commit_start_offsets(bootstrap_servers, pipeline, names.prefix, "earliest")
        async with (
            RecordProducer(bootstrap_servers, connect_timeout_s=settings.connect_timeout_s) as producer,
            TopicFollower(bootstrap_servers, names.stage_stats, committed_only=False) as reports,
            actuator(names) as started,
        ):
            await started.know({(stage.name, kind.name): _spec(stage, kind, topology)})
            name = f"{stage.name}-0-{secrets.token_hex(4)}"
            routes = routes_of(pipeline, stage.name, names.prefix)
            await started.dispatch(stage.name, [DispatcherSpec(name, 0, routes, bootstrap_servers)])
            await started.scale(stage.name, kind.name, 1)
            grant = Grant(stage.name, 0, 1, name, 1, 1, max_batch_sizes={kind.name: 1})
            key = grant_key(stage.name, 0).encode()
            await producer.send(names.assignments, encode_control(grant), key=key)
            source = names.topic(pipeline.source.name)
            probe = _Probe(started, producer, reports, source, itertools.cycle(events))
            ends = asyncio.create_task(probe.note_ends())
            try:
                return await probe.measured(settings.start_limit_s(gpu=kind.gpus > 0))
            except StageFailed as error:
                raise StageFailed(f"stage {stage.name!r} on {kind.name!r}: {error}: {await probe.why()}") from None
            finally:
                ends.cancel()
                await asyncio.gather(ends, return_exceptions=True)
    finally:
        await delete_topics(bootstrap_servers, [topic.name for topic in topics])


class _Probe:
    """Sends events, and reads from the dispatcher's reports what the network took of their batches."""

    def __init__(
        self, actuator: Actuator, producer: RecordProducer, reports: TopicFollower, source: str, events: Any
    ) -> None:
        self._actuator = actuator
        self._producer = producer
        self._reports = reports
        self._source = source
        self._events = events
        self._newest: PoolReport | None = None
        self._last_end = ""

    async def note_ends(self) -> None:
        """Remember why what runs in the cluster ended, for ever."""
        while True:
            ended = await self._actuator.next_exit()
            if not ended.expected:
                who = "the dispatcher" if isinstance(ended, DispatcherExit) else "the replica"
                self._last_end = f"{who} ended: {ended.reason}"

    async def why(self) -> str:
        """Return what is known of why nothing came back, in words, or where to look."""
        if self._last_end:
            return self._last_end
        pending = next((r.pending for r in await self._actuator.observe() if r.pending), "")
        if pending or self._producer.last_error:
            return pending or f"Kafka takes no event ({self._producer.last_error})"
        return "see the logs of its pods; a slow start needs more than start_timeout_s"

    async def measured(self, start_limit_s: float) -> float:
        await self._until(lambda report: any(r.phase == "ready" for r in report.replicas), start_limit_s, feeds=False)
        before = await self._until(lambda report: report.remote_batches >= WARM_UP_BATCHES, _LONGEST_S)
        enough = before.remote_batches + BATCHES
        after = await self._until(lambda report: report.remote_batches >= enough, _LONGEST_S)
        batches = after.remote_batches - before.remote_batches
        if batches < _FEWEST_BATCHES:
            raise StageFailed(
                f"{batches} events came back from the cluster within {_LONGEST_S:g} s, and {_FEWEST_BATCHES} are needed"
            )
        return (after.network_s - before.network_s) / batches

    async def _until(self, holds: Callable[[PoolReport], bool], limit_s: float, *, feeds: bool = True) -> PoolReport:
        """Send events until a report says so, or the time is up; returns the newest report.

        Raises:
            StageFailed: there is none, or nothing was sent and it does not say so.
        """
        until_s = time.monotonic() + limit_s
        while time.monotonic() < until_s:
            if feeds:
                await self._producer.send(self._source, next(self._events), key=None)
            for record in await self._reports.read(_EVERY_S):
                if record.value:
                    self._newest = decode_report(record.value)
            if self._newest is not None and holds(self._newest):
                return self._newest
        if self._newest is not None and feeds:
            return self._newest
        raise StageFailed(f"nothing was ready in the cluster within {limit_s:g} s")


def _cheapest(pipeline: Pipeline) -> tuple[Stage, Hardware]:
    kinds = catalogue(pipeline.hardware)
    entries = [(stage, kinds[name]) for stage in pipeline.stages if not stage.after for name in stage.hardware]
    return min(entries, key=lambda entry: entry[1].price_per_hour)


def _spec(stage: Stage, kind: Hardware, topology: Path) -> ReplicaSpec:
    emulated = emulated_s(stage.emulated, kind.name) if kind.emulated else None
    return ReplicaSpec("", stage.name, str(topology.resolve()), kind, emulated, stage.confined)
