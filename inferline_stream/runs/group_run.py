"""One run on consumer groups that run already: lead, watch, decide, until stopped; what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from inferline_stream.actuators.group_workers import GroupWorkers
from inferline_stream.controlplane.apply.group_fleet import GroupFleet
from inferline_stream.controlplane.group_controller import GroupController
from inferline_stream.controlplane.leader_loop import LeaderLoop, raise_end
from inferline_stream.controlplane.leadership import Leadership
from inferline_stream.controlplane.observe.group_collector import GroupCollector
from inferline_stream.controlplane.observe.recovery import recover
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.run_inputs import Run, RunDisplay
from inferline_stream.controlplane.run_options import Endpoints, RecordOptions
from inferline_stream.errors import InferlineError
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.group_watch import GroupWatch
from inferline_stream.kafka.pipeline_topics import ready_topics, topics_of
from inferline_stream.observability.pipeline_state import DecisionLine
from inferline_stream.pipeline.group_profile import GroupProfile, Learned
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace
from inferline_stream.runs.archive import EventTimes, GroupsRecord, RunRecord, record_of, written_down
from inferline_stream.runs.http_endpoints import served
from inferline_stream.runs.report import RunReport
from inferline_stream.settings import Settings
from inferline_stream.tuner.group_policy import group_step
from inferline_stream.tuner.group_replan import RECENT_S
from inferline_stream.tuner.tuner_state import TunerState

_SHOW_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRun:
    """A run's inputs; those not said here are as of `Run`.

    Args:
        pipeline: of groups.
        workers: who changes the number of a group's workers, by declared name; a group without is only advised.
        metric: returns the throughput that a group's workers report, where they do.
        seen: called with a group, its lag and its members, about twice a second.
    """

    pipeline: Pipeline
    topology: Path
    bootstrap_servers: str
    workers: Mapping[str, GroupWorkers]
    log_folder: Path
    metric: Callable[[str], Learned | None] = lambda group: None
    seen: Callable[[str, int, int], None] = lambda group, lag, members: None
    records: RecordOptions = field(default_factory=RecordOptions)
    display: RunDisplay = field(default_factory=RunDisplay)
    endpoints: Endpoints = field(default_factory=lambda: Endpoints(ui=False, metrics_port=None))
    settings: Settings = field(default_factory=Settings)
    advisory: bool = False
    duration_s: float | None = None
    run_folder: Path | None = None

    def decided_by(self, plan: Plan, measured: PipelineProfile, sample: Trace, state: TunerState) -> Run:
        """What the decider is given, once there is a plan."""
        return Run(
            pipeline=self.pipeline,
            topology=self.topology,
            bootstrap_servers=self.bootstrap_servers,
            plan=plan,
            measured=measured,
            log_folder=self.log_folder,
            records=self.records,
            display=self.display,
            policy=group_step,
            policy_state=state,
            advisory=self.advisory or not self.workers,
            settings=self.settings,
            sample=sample,
            cores=math.inf,
        )


class GroupReport(msgspec.Struct, frozen=True):
    """What came of a run on groups."""

    pipeline: str
    duration_s: float
    events_in: int
    """Records that came to the first groups' topic."""
    events_out: int
    """Events that the last groups have committed since the first plan: latencies are of these."""
    p99_s: float | None
    """End to end, each group's from append to commit, summed as if they were independent; null without any."""
    miss_rate: float | None
    """Share of them above the SLO of their time; null without any."""
    cost: float
    """Dollars: members held times the price of their hardware; since the first plan."""
    groups: list[GroupProfile]
    """What was learned of each."""
    members: dict[str, int]
    """Of each group, in the end."""
    wanted: dict[str, int]
    """Workers of each group, as last decided; empty where nothing was."""
    lags: dict[str, int]
    decisions: list[DecisionLine]


async def run_groups(run: GroupRun, stop: asyncio.Event) -> GroupReport:
    """Lead until stopped; the groups go on with the workers that they have then.

    Args:
        run: what is led, and how.
        stop: set it to end the run.

    Raises:
        LeadershipLost: another controller leads now.
        Unreachable: Kafka does not answer.
        UsageError: a port is taken.
    """
    context = PipelineContext(run.pipeline, KafkaCluster(run.bootstrap_servers), run.settings, run.records)
    create, topics = run.records.create_topics, topics_of(run.pipeline, run.records.prefix)
    for note in await ready_topics(run.bootstrap_servers, topics, create=create):
        run.display.note(note)
    name = f"{run.pipeline.name}-{secrets.token_hex(4)}"
    async with Leadership(run.bootstrap_servers, context.names, name, context.decoder) as leadership:
        loop = LeaderLoop(leadership)
        controller = GroupController(
            context,
            run.decided_by,
            lambda: GroupWatch(run.bootstrap_servers, run.pipeline.groups),
            GroupCollector(context, run.metric),
            GroupFleet(run.workers, {}, loop.leads),
            leadership,
            await recover(run.bootstrap_servers, context.names, context.decoder),
            loop,
            seen=run.seen,
            step_text=run.display.step,
        )
        began_s = time.time()
        with served(lambda: controller.state, context, run.endpoints, run.display.note):
            leading = asyncio.create_task(controller.lead())
            try:
                await _shown(run, controller, leading, stop)
                if controller.decider is not None:
                    await controller.decider.close()
                with contextlib.suppress(InferlineError):
                    await leadership.resign()  # the next one begins at once
            finally:
                leading.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await leading
    report = report_of(controller, began_s)
    if run.run_folder is not None and controller.decider is not None:
        record, events = recorded(controller, report)
        run.display.note(written_down(run.run_folder, record, events, None))
    return report


async def _shown(run: GroupRun, controller: GroupController, leading: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Show the newest picture until stopped, or for as long as the run may take."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(run.duration_s):
            while not stop.is_set():
                raise_end(leading)
                if controller.state is not None:
                    run.display.now(controller.state)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SHOW_S):
                        await stop.wait()


def report_of(controller: GroupController, began_s: float) -> GroupReport:
    """Return what has come of a run that began at that time, in seconds since the epoch."""
    collector, view, decider = controller.collector, controller.view, controller.decider
    latency = None if view is None else view.latencies.histogram()
    events = 0 if latency is None else sum(latency.counts)
    return GroupReport(
        pipeline=controller.context.pipeline.name,
        duration_s=time.time() - began_s,
        events_in=collector.growth.total,
        events_out=events,
        p99_s=None if latency is None else latency.quantile_s(0.99),
        miss_rate=None if view is None or not events else view.latencies.late() / events,
        cost=0.0 if view is None else view.cost,
        groups=collector.profiles(),
        members=collector.members,
        wanted={} if decider is None else {group: sum(n.values()) for group, n in controller.fleet.wanted.items()},
        lags={} if view is None else {group: sum(history.lags()) for group, history in view.offsets.items()},
        decisions=[] if decider is None else [each.line(each.time_s - began_s) for each in decider.decisions],
    )


def recorded(controller: GroupController, report: GroupReport) -> tuple[RunRecord, EventTimes]:
    """Return what is written down of a run that has planned; of a long one, the arrivals of the last half hour.

    Args:
        controller: that has led it, still on its event loop.
        report: of the run.
    """
    decider, found, begun = controller.decider, controller.planning, controller.begun
    assert decider is not None, "it has planned"
    assert found is not None, "it has planned"
    assert decider.first_plan is not None, "it has planned"
    now_s, (since_s, members) = asyncio.get_running_loop().time(), begun
    ahead_s, latency = time.time() - now_s, decider.view.latencies.histogram()
    if since_s < now_s - RECENT_S:  # what came before is kept no longer
        since_s = now_s - RECENT_S / 2
        before_s = since_s + ahead_s
        applied = (d.replicas for d in reversed(decider.decisions) if d.applied and d.time_s < before_s)
        members = next(applied, members)
    came_s = controller.collector.arrivals_s()
    sample_s, arrivals_s = np.split(came_s, [int(np.searchsorted(came_s, since_s))])
    first_s = float(arrivals_s[0]) if arrivals_s.size else since_s
    sample_s = sample_s - sample_s[0] if sample_s.size else sample_s
    of_run = RunReport(
        pipeline=report.pipeline,
        lost=0,
        duplicated=0,
        events_in=report.events_in,
        events_out=report.events_out,
        slo_miss_rate=report.miss_rate,
        cost=report.cost,
        decisions=report.decisions,
        slo_s=found.model.slo_s,
        p50_s=latency.quantile_s(0.5),
        p95_s=latency.quantile_s(0.95),
        p99_s=report.p99_s,
        completed={},
        duration_s=now_s - begun[0],
        predicted_p99_s=decider.first_plan.plan.predicted_p99_s,
        replicas_most=dict(controller.most),
        lag=report.lags,
        exits=[],
        lost_ids=[],
        emulated=False,
        advisory=decider.run.advisory,
        verified=report.events_in if since_s == begun[0] else arrivals_s.size,
    )
    groups = GroupsRecord(dict(found.model.sharing), members)
    record = record_of(of_run, decider, begun[0] + ahead_s, found.model.measured, groups)
    return record, EventTimes(arrivals_s - first_s, np.empty(0), np.empty(0), sample_s, first_s + ahead_s)
