"""One run of a pipeline, from topics to report: start its processes, feed the source, drain, account."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from inferline_stream.actuators.actuator import Actuator, ProcessTerms
from inferline_stream.actuators.core_times import taken_s
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.baselines.coarse import peak_cost_per_hour
from inferline_stream.controlplane.controller import Controller
from inferline_stream.controlplane.core_use import CoreUse
from inferline_stream.controlplane.leader_loop import leading_meanwhile
from inferline_stream.controlplane.leadership import Leadership
from inferline_stream.controlplane.observe.end_offsets import LedgerBegin
from inferline_stream.controlplane.observe.event_class import further_classes
from inferline_stream.controlplane.observe.event_ledger import ledger_begin
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered, recover
from inferline_stream.controlplane.pipeline_context import PipelineContext, input_partitions, lags
from inferline_stream.controlplane.replica_counts import copied, replicas_of_plan
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.slot_grants import Grant
from inferline_stream.dataplane.start_offsets import commit_start_offsets, has_read
from inferline_stream.errors import InferlineError, UsageError
from inferline_stream.isolation import limits
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import ready_topics, topics_of
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.version import DRAIN_FIRST, incompatibilities, structure_of
from inferline_stream.planner.plan_document import misfit
from inferline_stream.runs.http_endpoints import served
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.runs.report import RunReport

logger = logging.getLogger(__name__)

_FORSAKEN_S = 5.0
"""How long processes go on that no other controller can find, as those of a run with an embedded broker."""


@asynccontextmanager
async def open_run(run: Run, actuator: Actuator | None = None) -> AsyncIterator[LiveRun]:
    """Topics, leadership, control loop and processes of one run; all of it ends with the block.

    Args:
        run: what runs, and how.
        actuator: starts and stops replicas and dispatchers; by default processes of this machine.

    Raises:
        Unreachable: Kafka does not answer.
        UsageError: a port is taken.
    """
    context = PipelineContext(run.pipeline, KafkaCluster(run.bootstrap_servers), run.settings, run.records)
    await _ready_topics(run)
    async with contextlib.AsyncExitStack() as stack:
        offsets = await stack.enter_async_context(Offsets(run.bootstrap_servers))
        every = await input_partitions(offsets, context)
        partitions = every[""]
        controller_name = f"{run.pipeline.name}-{secrets.token_hex(4)}"
        leadership = await stack.enter_async_context(
            Leadership(run.bootstrap_servers, context.names, controller_name, context.decoder)
        )
        if actuator is None:
            actuator, core_use = await stack.enter_async_context(_local(run, leadership.term)), _core_use(run)
        else:
            run, core_use = replace(run, cores=math.inf), CoreUse()
        found = await recover(run.bootstrap_servers, context.names, context.decoder)
        await leading_meanwhile(actuator.know(run.replica_specs), leadership.heartbeat)
        await _refuse_other_structure(run, found, leadership.log.grants, offsets, context)
        since = await _begun(run, found, context, offsets, partitions)
        plan, wanted = _going_on(run, found)
        view = PipelineView(context, plan, run.measured, partitions, further_classes(context, every))
        view.core_use = core_use
        if run.sample is not None:
            view.coarse_peak_per_hour = peak_cost_per_hour(view.shape, run.measured, plan, run.kinds, run.sample)
        controller = Controller(run, view, actuator, leadership, found, wanted)
        run.newest_state.read = lambda: controller.state
        stack.enter_context(served(lambda: controller.state, context, run.endpoints, run.display.note, run.what_if))
        if found.wanted is None:  # nothing runs yet
            controller.decider.awaits_feed = run.feed is not None
            await controller.decider.foresee(run.arrivals, await lags(offsets, context, partitions))
        run.display.step("starting replicas")
        control = asyncio.create_task(controller.lead())
        stack.push_async_callback(_ended, control)
        try:
            yield LiveRun(run, context, controller, offsets, since, control)
        finally:
            if not control.done():  # it leads still: let the next one begin at once
                with contextlib.suppress(InferlineError):
                    await controller.decider.close(hands_over=run.hands_over)
                    await leadership.resign()


async def _ready_topics(run: Run) -> None:
    create = run.records.create_topics
    run.display.step("creating topics" if create else "verifying topics")
    topics = topics_of(run.pipeline, run.records.prefix)
    for note in await ready_topics(run.bootstrap_servers, topics, create=create, replication=run.replication):
        run.display.note(note)


def _local(run: Run, term: int) -> LocalActuator:
    orphan_s = run.settings.orphan_s if run.supervisor_folder is not None else _FORSAKEN_S
    terms = ProcessTerms(str(run.log_folder.absolute()), run.identity, run.settings.drain_timeout_s, orphan_s=orphan_s)
    return LocalActuator(terms, run.supervisor_folder, term)


def _core_use(run: Run) -> CoreUse:
    """What shows whether others take the cores; nothing where this process has a part of the machine's only."""
    machine = os.sched_getaffinity(0)
    if limits.cores_here() == len(machine) and not math.isinf(run.cores):
        return CoreUse(len(machine), partial(taken_s, machine))
    return CoreUse()


async def run_to_report(run: Run, stop: asyncio.Event, actuator: Actuator | None = None) -> RunReport:
    """A whole run: start, feed, drain, report.

    Args:
        run: what runs, and how.
        stop: set it to end the run early; it drains all the same.
        actuator: starts and stops replicas and dispatchers; by default processes of this machine.

    Raises:
        StageFailed: a stage cannot start.
        LeadershipLost: another controller leads now.
        Unreachable: Kafka does not answer.
    """
    async with open_run(run, actuator) as under_way:
        await under_way.ready()
        await under_way.fed(stop)
        lag = await under_way.drain()
        return await under_way.report(lag)


async def run_and_hand_over(run: Run, stop: asyncio.Event, actuator: Actuator) -> None:
    """Lead a pipeline until asked to stop, and leave what it runs to the controller that follows.

    Args:
        run: what runs, and how; it hands over.
        stop: set it to leave.
        actuator: starts processes that outlive it.

    Raises:
        LeadershipLost: another controller leads now.
        Unreachable: Kafka does not answer.
    """
    leads = asyncio.Event()

    async def lead() -> None:
        async with open_run(run, actuator) as under_way:
            leads.set()
            await under_way.fed(stop)

    leading = asyncio.create_task(lead())
    waiting = [asyncio.create_task(event.wait()) for event in (leads, stop)]
    try:
        await asyncio.wait([leading, *waiting], return_when=asyncio.FIRST_COMPLETED)
        if not leads.is_set():  # another one leads still: there is nothing to hand over
            leading.cancel()
            await asyncio.wait([leading])
        if not leading.cancelled():
            await leading
    finally:
        for task in (leading, *waiting):
            task.cancel()
        await asyncio.gather(leading, *waiting, return_exceptions=True)


async def _begun(
    run: Run, found: Recovered, context: PipelineContext, offsets: Offsets, partitions: Mapping[str, int]
) -> LedgerBegin:
    """Commit where groups start that do not know it; returns where the run begins."""
    before = None if found.plan is None else found.plan.structure
    taken_over = found.wanted is not None and run.records.start == "committed"
    if not taken_over:  # only a leader may: the offsets of a running pipeline are its dispatchers'
        exactly_once = run.records.delivery == "exactly_once"
        if before is not None and exactly_once and not context.entries <= has_read(before, run.pipeline):
            await _settle(before.entries, found, context)
        await commit_start_offsets(
            run.bootstrap_servers, run.pipeline, run.records.prefix, run.records.start, before=before
        )
    since = await ledger_begin(offsets, context)
    # What a leader that fell silent has left is live traffic, and late by our doing.
    return replace(since, live=since.source) if taken_over else since


async def _settle(stages: Collection[str], found: Recovered, context: PipelineContext) -> None:
    """End what the first stages of before may have left open: new ones begin where their groups stand."""
    plan = found.its_plan()
    for stage in stages:
        for slot in range(plan.slots.get(stage, 1) if plan is not None else 0):
            await context.kafka.fence(context.names.transactional_id(f"{stage}-{slot}"))


async def _refuse_other_structure(
    run: Run, found: Recovered, grants: Collection[Grant], offsets: Offsets, context: PipelineContext
) -> None:
    """What is under way between stages was made for the stages as they were.

    Raises:
        UsageError: the stages were others, and their topics hold records that were not processed; or a stage is new,
            and grants are left: dispatchers of the stages before it may still be at work.
    """
    before = None if found.plan is None else found.plan.structure
    if before is None or not (reasons := incompatibilities(before, structure_of(run.pipeline))):
        return
    changed = "; ".join(reasons)
    new = {stage.name for stage in run.pipeline.stages} - has_read(before, run.pipeline)
    if new and grants and run.records.start == "committed":
        raise UsageError(
            f"{changed}. The run before did not end in order, and its dispatchers may still be at work, so that it is "
            f"not known where {', '.join(sorted(new))} would begin. Run the pipeline as it was. Then {DRAIN_FIRST}. "
            "Or say with --start where to begin"
        )
    left: dict[str, int] = {}
    for of in ("", *before.others):
        topics = {stage: context.names.stage_topic(stage, of) for stage in before.edges if stage not in before.entries}
        there = await offsets.existing(topics.values())
        inner = {stage: there[topic] for stage, topic in topics.items() if topic in there}
        under_way = await lags(offsets, context, inner, topics.__getitem__, of)
        left |= {group: count for group, count in under_way.items() if count}
    if left:
        where = ", ".join(f"{count} in {group}" for group, count in left.items())
        raise UsageError(f"{changed}. Records are under way: {where}. {DRAIN_FIRST.capitalize()}")


def _going_on(run: Run, found: Recovered) -> tuple[Plan, dict[str, dict[str, int]]]:
    """Plan and replicas to begin with: those of a controller that fell silent, else the run's own plan."""
    plan = found.its_plan()
    known = set(run.measured.profiles)
    if (
        found.wanted is None
        or plan is None
        or plan.slo_s not in (run.plan.slo_s, found.overrides.slo_s(time.time()))
        or (found.plan is not None and found.plan.structure not in (None, structure_of(run.pipeline)))
        or misfit(plan, list(run.plan.allocations), run.measured, run.kinds)
        or not known >= {(stage, kind) for stage, kinds in found.wanted.items() for kind in kinds}
    ):
        return run.plan, replicas_of_plan(run.plan.allocations)
    logger.info("going on with the plan and the replicas of the controller before")
    return plan, copied(found.wanted)


async def _ended(control: asyncio.Task[None]) -> None:
    control.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await control
