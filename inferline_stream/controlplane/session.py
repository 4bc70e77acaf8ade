"""One run of a pipeline, from topics to report: start replicas, lead them, feed the source, drain, account."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.actuators.local import LocalActuator
from inferline_stream.baselines.coarse import peak_cost_per_hour
from inferline_stream.controlplane.controller import Controller, Host
from inferline_stream.controlplane.keeping import nested
from inferline_stream.controlplane.leadership import Leadership
from inferline_stream.controlplane.ledger import Bounds, bounds_now, read_ledger
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.recovery import Found, find
from inferline_stream.controlplane.report import RunReport, run_report
from inferline_stream.controlplane.running import Running, drained, lags
from inferline_stream.controlplane.scaling import local_stock, replicas_of_plan
from inferline_stream.controlplane.serving import served
from inferline_stream.controlplane.waiting import until
from inferline_stream.dataplane.control import LeadershipLost, OffsetReader
from inferline_stream.dataplane.protocol import ReplicaSpec
from inferline_stream.dataplane.topics import REPLICATION, commit_start_offsets, create_topics, topics_of
from inferline_stream.errors import InferlineError, StageFailed
from inferline_stream.observability.state import DecisionRecord, PipelineState
from inferline_stream.pipeline.emulation import emulated_s
from inferline_stream.pipeline.hardware import Catalogue, catalogue
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.trace import Trace
from inferline_stream.settings import Settings
from inferline_stream.tuner.policy import POLICIES, Policy, TunerState, initial_state

logger = logging.getLogger(__name__)

_SHOW_S = 0.5
_HOPELESS_RESTARTS = 3
"""So many deaths of a stage none of whose replicas was ever ready: it cannot start."""


class Feed(Protocol):
    """Whatever writes events into the source topic for the length of a run."""

    async def ready(self) -> Any:
        """Wait until it could begin."""

    def start(self) -> None:
        """Begin, now."""

    def stop(self) -> None:
        """Write nothing more."""

    async def finished(self) -> Any:
        """Wait for its end; what it tells has an ``lateness_p99_s``."""


FeedTo = Callable[[str, str], AbstractAsyncContextManager[Feed]]
"""(bootstrap servers, topic) → what feeds it."""


class Watcher(Protocol):
    """Whoever shows a run to people."""

    def step(self, text: str) -> None:
        """The run has come to its next step."""

    def note(self, text: str) -> None:
        """Something to keep on the screen: an address, a warning."""

    def decided(self, record: DecisionRecord) -> None:
        """A decision, as it is made."""

    def now(self, state: PipelineState) -> None:
        """The newest picture, about twice a second."""


class Quiet:
    """Shows nothing."""

    def step(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def decided(self, record: DecisionRecord) -> None:
        """Nothing."""

    def now(self, state: PipelineState) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's inputs.

    Args:
        pipeline: what runs.
        topology: its file, which every replica loads.
        bootstrap_servers: of a Kafka that answers.
        plan: replicas to begin with, batch limits, hardware.
        measured: profiles.
        log_folder: where replicas' output goes.
        prefix: before every topic and group.
        feed: writes the source topic; None if somebody else does.
        replication: copies of each topic that has to be created.
        start: where groups without an offset start.
        policy: the Tuner's step.
        advisory: decide without acting.
        delivery: how results get into the sink.
        duration_s: stop after so long; None runs to the end of the feed, or until told to stop.
        page_port: of the live page; 0 for any free one, None for no page.
        metrics_port: of `/metrics`; likewise.
        faust: host the control loop's agents and timer in a Faust app as well.
        settings: periods and time limits.
        sample: the arrivals that the plan was made for, for what others would have bought for them.
    """

    pipeline: Pipeline
    topology: Path
    bootstrap_servers: str
    plan: Plan
    measured: PipelineProfile
    log_folder: Path
    prefix: str = ""
    feed: FeedTo | None = None
    replication: int = REPLICATION
    start: str = "committed"
    policy: Policy = POLICIES["default"]
    advisory: bool = False
    delivery: Literal["at_least_once", "exactly_once"] = "at_least_once"
    duration_s: float | None = None
    page_port: int | None = None
    metrics_port: int | None = None
    faust: bool = True
    settings: Settings = field(default_factory=Settings)
    sample: Trace | None = None

    @property
    def kinds(self) -> Catalogue:
        """Hardware kinds known to the pipeline."""
        return catalogue(self.pipeline.hardware)

    def spec(self, stage: str, hardware: str) -> ReplicaSpec:
        """What a new replica is told."""
        kind = self.kinds[hardware]
        limits = {a.hardware: a.max_batch_size for a in self.plan.allocations[stage]}
        return ReplicaSpec(
            replica="",
            stage=stage,
            topology=str(self.topology.resolve()),
            prefix=self.prefix,
            bootstrap_servers=self.bootstrap_servers,
            hardware=kind,
            max_batch_size=limits.get(hardware, 1),
            delivery=self.delivery,
            emulated_s=emulated_s(self.pipeline.stage(stage), hardware) if kind.emulated else None,
            settings={
                name: getattr(self.settings, name)
                for name in self.settings.__dataclass_fields__
                if getattr(self.settings, name) != getattr(Settings(), name)
            },
        )


@dataclass(slots=True)
class Session:
    """A run under way. Made by `session`."""

    run: Run
    running: Running
    controller: Controller
    offsets: OffsetReader
    since: Bounds
    control: asyncio.Task[None]
    watcher: Watcher
    replicas_most: dict[str, int] = field(default_factory=dict)
    started_s: float = field(default_factory=time.time)
    lateness_p99_s: float | None = None

    async def ready(self) -> None:
        """Wait until every replica of the plan is ready.

        Raises:
            StageFailed: a stage cannot start, or takes longer than `Settings.start_timeout_s`.
        """
        deadline_s = time.monotonic() + self.run.settings.start_timeout_s
        while not self._all_ready():
            self._alive()
            for stage in self.running_stages():
                died = self.controller.picture.restarts[stage]
                if died >= _HOPELESS_RESTARTS and not self.replicas_most.get(stage):
                    why = next((text for text in reversed(self.controller.exits) if text.startswith(f"{stage}-")), "")
                    raise StageFailed(f"stage {stage!r} cannot start: {why}")
            if time.monotonic() > deadline_s:
                raise StageFailed(
                    f"replicas were not ready within {self.run.settings.start_timeout_s:g} s; "
                    f"see what they wrote in {self.run.log_folder}"
                )
            await asyncio.sleep(0.05)

    def running_stages(self) -> tuple[str, ...]:
        """Stages in topological order."""
        return self.controller.picture.shape.stages

    def _all_ready(self) -> bool:
        state = self.controller.state
        return state is not None and all(kind.ready >= kind.wanted for stage in state.stages for kind in stage.replicas)

    def _alive(self) -> None:
        """Raise what ended the control loop, if it has ended."""
        if self.control.done():
            error = self.control.exception()
            raise _only(error) if error else LeadershipLost("the control loop has ended")

    async def follow(self, stop: asyncio.Event) -> None:
        """Show the newest picture until told to stop, or the control loop ends.

        Raises:
            LeadershipLost: another controller leads now.
        """
        while not stop.is_set():
            self._alive()
            self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SHOW_S):
                    await stop.wait()

    def look(self) -> None:
        """Show the newest picture once."""
        if (state := self.controller.state) is not None:
            for stage in state.stages:
                ready = sum(kind.ready for kind in stage.replicas)
                self.replicas_most[stage.name] = max(self.replicas_most.get(stage.name, 0), ready)
            self.watcher.now(state)

    async def fed(self, stop: asyncio.Event) -> None:
        """Let the feed write from now to its end, or until told to stop; without one, wait until told."""
        async with contextlib.AsyncExitStack() as stack:
            feed = None
            if self.run.feed is not None:
                self.watcher.step("loading the trace")
                feed = await stack.enter_async_context(self.run.feed(self.run.bootstrap_servers, self.running.source))
                await feed.ready()
                feed.start()
                self.watcher.step("replaying")
            self.started_s = time.time()
            ending = [asyncio.create_task(stop.wait())]
            if feed is not None:
                ending.append(asyncio.create_task(feed.finished()))
            showing = asyncio.create_task(self.follow(stop))
            try:
                await asyncio.wait([*ending, showing], timeout=self.run.duration_s, return_when="FIRST_COMPLETED")
                if showing.done() and not stop.is_set():
                    showing.result()
                if feed is not None:
                    feed.stop()
                    self.lateness_p99_s = (await feed.finished()).lateness_p99_s
            finally:
                for task in (*ending, showing):
                    task.cancel()
                await asyncio.gather(*ending, showing, return_exceptions=True)

    async def drain(self) -> dict[str, int]:
        """Wait until everything that was in the source topic has gone through, then let every replica leave.

        Returns:
            Records left uncommitted, by consumer group.
        """
        self.controller.held = True  # falling traffic at the end is no reason to scale
        self.watcher.step("draining")
        end = (await self.offsets.ends({self.running.source: len(self.since.source)}))[self.running.source]
        partitions = self.controller.picture.partitions
        left, moved_s = None, time.monotonic()
        while not await drained(self.offsets, self.running, partitions, end):
            self._alive()
            self.look()
            now = await lags(self.offsets, self.running, partitions)
            if now != left:
                left, moved_s = now, time.monotonic()
            elif time.monotonic() - moved_s > self.run.settings.drain_timeout_s:
                waited_s = self.run.settings.drain_timeout_s
                logger.error(
                    "nothing has moved for %g s, events are left behind: %s", waited_s, self.controller.dealing.stuck()
                )
                break
            await asyncio.sleep(0.1)
        if self.run.feed is None:  # others may go on writing: what came after is left for the next run
            await self.controller.retire(self.running.entries, self.run.settings.drain_timeout_s)
            rest = {stage: n for stage, n in partitions.items() if stage not in self.running.entries}
            await until(
                lambda: drained(self.offsets, self.running, rest, ()), self.run.settings.drain_timeout_s, every_s=0.1
            )
        await self.controller.retire(frozenset(partitions), self.run.settings.drain_timeout_s)
        return await lags(self.offsets, self.running, partitions)

    async def report(self, lag: dict[str, int]) -> RunReport:
        """Account for every event and put the report together."""
        self.watcher.step("accounting for every event")
        state = self.controller.state
        assert state is not None, "a drained run has been looked at"
        ended_s = time.time()
        ledger = await read_ledger(
            self.offsets,
            self.running,
            self.since,
            self.controller.picture.partitions,
            to_committed=self.run.feed is None,
        )
        return run_report(
            ledger,
            state,
            started_s=self.started_s,
            duration_s=ended_s - self.started_s,
            replicas_most=self.replicas_most,
            lag=lag,
            exits=self.controller.exits,
            emulated=any(
                self.run.kinds[a.hardware].emulated for kinds in self.run.plan.allocations.values() for a in kinds
            ),
            advisory=self.run.advisory,
            lateness_p99_s=self.lateness_p99_s,
        )


@asynccontextmanager
async def session(run: Run, watcher: Watcher, actuator: Actuator | None = None) -> AsyncIterator[Session]:
    """Topics, leadership, control loop and replicas of one run; all of it ends with the block.

    Args:
        run: what runs, and how.
        watcher: who shows it.
        actuator: makes replicas; by default processes of this machine.

    Raises:
        Unreachable: Kafka does not answer.
        UsageError: a port is taken.
    """
    pipeline, shape = run.pipeline, shape_of(run.pipeline)
    names = Names(pipeline.name, run.prefix)
    running = Running(
        names=names,
        source=names.topic(pipeline.source.name),
        sink=names.topic(pipeline.sink.name),
        entries=frozenset(shape.stages[s] for s in shape.entries()),
        bootstrap_servers=run.bootstrap_servers,
        settings=run.settings,
        advisory=run.advisory,
        delivery=run.delivery,
    )
    watcher.step("creating topics")
    topics = topics_of(pipeline, run.prefix, run.plan.partitions)
    for warning in await create_topics(run.bootstrap_servers, topics, replication=run.replication):
        watcher.note(warning)
    await commit_start_offsets(run.bootstrap_servers, pipeline, run.prefix, run.start)
    async with contextlib.AsyncExitStack() as stack:
        offsets = await stack.enter_async_context(OffsetReader(run.bootstrap_servers))
        partitions = {stage: await offsets.partitions(running.topic(stage)) for stage in shape.stages}
        since = await bounds_now(offsets, running, partitions)
        controller_name = f"{pipeline.name}-{secrets.token_hex(4)}"
        leadership = await stack.enter_async_context(Leadership(run.bootstrap_servers, names, controller_name))
        stock: dict[str, int] = {}
        if actuator is None:
            actuator = await stack.enter_async_context(LocalActuator(run.spec, run.log_folder))
            stock = local_stock(run.plan.allocations, run.kinds, len(os.sched_getaffinity(0)))
        found = await find(running)
        plan, wanted = _going_on(run, found)

        def resume(plan: Plan, held: Mapping[str, Mapping[str, int]]) -> TunerState:
            return initial_state(
                plan,
                run.measured,
                run.kinds,
                objective=pipeline.objective,
                shortest_window_s=5 * run.settings.arrivals_sample_s,
                held=held,
            )

        tuner = resume(plan, nested(wanted))
        picture = Picture(
            pipeline.name, shape, plan, run.measured, run.kinds, pipeline.objective, partitions, tuner.windows_s
        )
        if run.sample is not None:
            picture.coarse_peak_per_hour = peak_cost_per_hour(shape, run.measured, plan, run.kinds, run.sample)
        controller = Controller(
            running,
            picture,
            actuator,
            leadership,
            run.policy,
            tuner,
            found,
            resume,
            told=watcher.decided,
            wanted=wanted,
            stock=stock,
            host=(lambda: _faust_app(run, names, leadership.term)) if run.faust else None,
        )
        stack.enter_context(
            served(
                lambda: controller.state,
                shape,
                page_port=run.page_port,
                metrics_port=run.metrics_port,
                note=watcher.note,
            )
        )
        watcher.step("starting replicas")
        control = asyncio.create_task(controller.run())
        stack.push_async_callback(_ended, control)
        try:
            yield Session(run, running, controller, offsets, since, control, watcher)
        finally:
            if not control.done():  # it leads still: let the next one begin at once
                with contextlib.suppress(InferlineError):
                    await controller.close_book()
                    await leadership.resign()


async def run_to_report(run: Run, watcher: Watcher, stop: asyncio.Event, actuator: Actuator | None = None) -> RunReport:
    """A whole run: start, feed, drain, report.

    Args:
        run: what runs, and how.
        watcher: who shows it.
        stop: set it to end the run early; it drains all the same.
        actuator: makes replicas; by default processes of this machine.

    Raises:
        StageFailed: a stage cannot start.
        LeadershipLost: another controller leads now.
        Unreachable: Kafka does not answer.
    """
    async with session(run, watcher, actuator) as under_way:
        await under_way.ready()
        await under_way.fed(stop)
        lag = await under_way.drain()
        return await under_way.report(lag)


def _faust_app(run: Run, names: Names, term: int) -> Host:
    """Imports Faust, which takes a while: called in a thread."""
    from inferline_stream.controlplane.app import ControlApp

    folder, every_s = run.log_folder / "faust", run.settings.tuner_step_s
    return partial(ControlApp, run.bootstrap_servers, names, term, folder=folder, tune_every_s=every_s)


def _going_on(run: Run, found: Found) -> tuple[Plan, dict[tuple[str, str], int]]:
    """Plan and replicas to begin with: those of a controller that fell silent, else the run's own plan."""
    plan = found.its_plan()
    known = set(run.measured.profiles)
    if (
        found.wanted is None
        or plan is None
        or plan.slo_s != run.plan.slo_s
        or plan.allocations.keys() != run.plan.allocations.keys()
        or not known >= found.wanted.keys()
        or not known >= {(stage, a.hardware) for stage, kinds in plan.allocations.items() for a in kinds}
    ):
        return run.plan, replicas_of_plan(run.plan.allocations)
    logger.info("going on with the plan and the replicas of the controller before")
    return plan, dict(found.wanted)


async def _ended(control: asyncio.Task[None]) -> None:
    control.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await control


def _only(error: BaseException) -> BaseException:
    """What a task group of one cause was wrapped around."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
