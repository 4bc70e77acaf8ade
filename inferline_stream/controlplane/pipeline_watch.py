"""Watches a running pipeline through Kafka alone, from anywhere, whether or not its controller lives."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from inferline_stream.controlplane.leadership import AssignmentLog, read_log
from inferline_stream.controlplane.observe.collector import Collector
from inferline_stream.controlplane.observe.event_class import further_classes
from inferline_stream.controlplane.observe.group_collector import GroupCollector
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import recover, refuse_unknown
from inferline_stream.controlplane.pipeline_context import PipelineContext, input_partitions
from inferline_stream.controlplane.records.control_records import (
    PLAN_KEY,
    WANTED_KEY,
    CalendarRecord,
    Overrides,
    SloRecord,
    decode_override,
    decode_stored,
)
from inferline_stream.controlplane.records.record_writers import ArrivalLog
from inferline_stream.controlplane.replica_counts import replicas_of_plan
from inferline_stream.controlplane.run_options import RecordOptions
from inferline_stream.dataplane.reports import decode_report
from inferline_stream.errors import Unreachable, UsageError
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.group_watch import GroupWatch
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.pipeline_state import DecisionRecord, PipelineState, StoredPlan
from inferline_stream.pipeline.hardware import dollars_per_hour
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, independent_paths
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.settings import Settings
from inferline_stream.tuner.observation import RECENT_S
from inferline_stream.tuner.plan_basis import Replicas

_LOOK_S = 0.25


@dataclass(slots=True)
class Observer:
    """What can be known of a pipeline from its topics. Made by `watch_pipeline`.

    Totals of stages count from when the dispatchers that live now began, events in and out and rates from when this
    began to look: `look` for a while before believing them.
    """

    view: PipelineView
    sample: Callable[[bool], Awaitable[None]]
    """Takes end offsets and committed ones into the view; given True, end offsets of all topics, which rates need."""
    reports: TopicFollower | None
    decisions: TopicFollower
    control: TopicFollower
    assignments: TopicFollower
    overrides: Overrides
    wanted: Replicas
    _leader: list[Record] = field(default_factory=list)
    _began_ms: float = field(default_factory=lambda: time.time() * 1e3)

    async def look(self, seconds: float) -> PipelineState:
        """Follow for so long, and tell how it stands then.

        Raises:
            Unreachable: Kafka does not answer.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        while True:
            began_s = loop.time()
            last = began_s >= end_s
            await self.sample(last)
            decoder = self.view.context.decoder
            for stored in decoder.decoded_by_key(await self.decisions.read(0.0), decode_stored):
                self._decided(stored.key, stored.value)
            for change in decoder.decoded_by_key(await self.control.read(0.0), decode_override):
                self.overrides = self.overrides.with_record(change.key, change.value)
            self._leader += await self.assignments.read(0.0)
            await self._hear()
            if last:
                return self._state()
            await asyncio.sleep(max(0.0, _LOOK_S - (loop.time() - began_s)))

    async def _hear(self) -> None:
        """Take in reports at the times they were made, and look at the view of each of the last seconds."""
        shift_s = asyncio.get_running_loop().time() - time.time()
        records = [] if self.reports is None else await self.reports.read(0.05)
        records = sorted(records, key=lambda record: record.time_ms)
        looked_s = None
        for entry in self.view.context.decoder.decoded(records, decode_report):
            if entry.value is None or entry.value.stage not in self.view.offsets:
                continue
            heard_s = entry.record.time_ms / 1e3 + shift_s
            if self.view.reports.add(entry.value, heard_s) and entry.record.time_ms < self._began_ms:
                self.view.reports.had_before(entry.value)
            if looked_s is None or heard_s - looked_s >= 1.0:
                looked_s = heard_s
                self._state_at(heard_s)
        now_s = asyncio.get_running_loop().time()
        for name, last_s in self.view.reports.living().items():
            if now_s - last_s > self.view.context.settings.dead_after_s:
                self.view.reports.lose(name)

    def _decided(self, key: str, stored: StoredPlan | DecisionRecord | SloRecord | CalendarRecord | None) -> None:
        if isinstance(stored, StoredPlan):
            if key != PLAN_KEY:
                self.view.plans.append(stored)
                return
            _of_these_stages(stored.plan, self.view.shape)
            self.view.adopt(stored.plan, self.view.measured)
        elif isinstance(stored, SloRecord):
            self.view.budget = stored.budget
        elif isinstance(stored, CalendarRecord):
            self.view.hours = stored.hours
        elif stored is not None:
            if key == WANTED_KEY:
                self.wanted = stored.replicas
            else:
                self.view.decided(stored)

    def leader(self) -> AssignmentLog:
        """What the controller last wrote, and how long ago."""
        log = read_log(self._leader, time.time(), self.view.context.decoder)
        self._leader = self._leader[-1000:]
        return log

    def _state(self) -> PipelineState:
        state, log = self._state_at(asyncio.get_running_loop().time()), self.leader()
        ages = dict(state.input_age_s)
        if log.heartbeat_age_s < float("inf"):
            ages["controller"] = log.heartbeat_age_s
        if log.heartbeat is None:
            return replace(state, input_age_s=ages)
        return replace(state, input_age_s=ages, term=log.heartbeat.term, devices=log.heartbeat.devices)

    def _state_at(self, now_s: float) -> PipelineState:
        view = self.view
        seen, kinds = view.reports.groups, {group.name: group.hardware for group in view.context.pipeline.groups}
        # Of groups that nobody decides on, the members that there are.
        there: Replicas = {name: {kinds[name]: figures.members} for name, figures in seen.items()}
        state = view.state(now_s, time.time(), self.wanted or there)
        ready = Counter[str]()
        for stage in state.stages:
            for counts in stage.replicas:
                ready[counts.hardware] += counts.ready
        return replace(
            state,
            paused=self.overrides.paused(state.time_s),
            slo_wanted_s=self.overrides.slo_s(state.time_s) or view.context.pipeline.slo_s,
            cost_per_hour=dollars_per_hour(ready, view.catalogue),
            unreadable=dict(self.view.context.decoder.counts),
        )


@asynccontextmanager
async def watch_pipeline(
    pipeline: Pipeline, bootstrap_servers: str, prefix: str, settings: Settings
) -> AsyncIterator[Observer]:
    """Follow a pipeline's topics; nothing is written and no group joined.

    Raises:
        Unreachable: Kafka does not answer, or no such pipeline has run there.
    """
    context = PipelineContext(pipeline, KafkaCluster(bootstrap_servers), settings, RecordOptions(prefix=prefix))
    shape, names = context.shape, context.names
    async with Offsets(bootstrap_servers, settings.connect_timeout_s) as offsets:
        await refuse_unknown(bootstrap_servers, names, offsets)
        found = await recover(bootstrap_servers, names, context.decoder)
        newest = found.plan or next(reversed(found.plans), None)  # after an orderly end, the last that was in force
        plan = None if newest is None else newest.plan
        if plan is None:
            then = "`run` prints what it waits for" if pipeline.groups else "try again in a moment"
            raise Unreachable(f"pipeline {pipeline.name!r} has not written down a plan yet; {then}")
        _of_these_stages(plan, shape)
        partitions = await input_partitions(offsets, context)
        measured = PipelineProfile({}, independent_paths(shape, {}), 0.0)
        view = PipelineView(context, plan, measured, partitions[""], further_classes(context, partitions))
        for stored in found.plans:
            view.plans.append(stored)
        view.budget = None if found.slo is None else found.slo.at(time.time())
        for decision in found.decisions:
            view.decided(decision)
        async with (
            AsyncExitStack() as stack,
            TopicFollower(bootstrap_servers, names.decisions, "latest") as decisions,
            TopicFollower(bootstrap_servers, names.control, {0: found.control_offset}) as control,
            TopicFollower(bootstrap_servers, names.assignments) as assignments,
        ):
            leader = await assignments.read_to(await assignments.end())
            wanted = found.wanted or ({} if pipeline.groups else replicas_of_plan(plan.allocations))
            if pipeline.groups:  # nobody reports of those
                sample, reports = await _group_samples(stack, view, bootstrap_servers), None
            else:
                since_s, stats = time.time() - RECENT_S, names.stage_stats
                reports = await stack.enter_async_context(
                    TopicFollower(bootstrap_servers, stats, since_s, committed_only=False)
                )
                sample = await _samples(stack, view, offsets)
            yield Observer(view, sample, reports, decisions, control, assignments, found.overrides, wanted, leader)


async def _samples(stack: AsyncExitStack, view: PipelineView, offsets: Offsets) -> Callable[[bool], Awaitable[None]]:
    context = view.context
    collector = Collector(view, offsets, ArrivalLog(context.names, context.source), lambda report: None)
    await collector.begin(stack)

    async def sample(everything: bool) -> None:
        if collector.stamps is not None:
            await collector.stamped()
        await collector.sample(everything=everything)
        await collector.lags()

    return sample


async def _group_samples(
    stack: AsyncExitStack, view: PipelineView, bootstrap_servers: str
) -> Callable[[bool], Awaitable[None]]:
    """Have looks at consumer groups taken in until the stack is closed."""
    collector, groups = GroupCollector(view.context), view.reports.groups
    collector.show_in(view)
    watch = await stack.enter_async_context(GroupWatch(bootstrap_servers, view.context.pipeline.groups))
    following = asyncio.create_task(collector.follow(watch))

    async def end() -> None:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    async def sample(_: bool) -> None:
        if following.done():
            following.result()
        groups.update({name: replace(of, trouble=collector.trouble.get(name, "")) for name, of in groups.items()})
        view.events_out = sum(view.latencies.histogram().counts)

    stack.push_async_callback(end)
    return sample


def _of_these_stages(plan: Plan, shape: Shape) -> None:
    """Refuse a plan that another topology was run with.

    Raises:
        UsageError: for such a plan.
    """
    if plan.allocations.keys() != set(shape.stages):
        raise UsageError(
            f"the pipeline {plan.pipeline!r} that runs there has the stages {', '.join(plan.allocations)}, this "
            f"topology has {', '.join(shape.stages)}: give the topology that runs"
        )
