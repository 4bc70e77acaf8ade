"""A run under way: replicas getting ready, traffic, draining, and what it came to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from inferline_stream.controlplane.controller import Controller
from inferline_stream.controlplane.leader_loop import raise_end
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.end_offsets import LedgerBegin
from inferline_stream.controlplane.observe.event_ledger import read_ledger
from inferline_stream.controlplane.observe.observation_log import read_observation_log
from inferline_stream.controlplane.pipeline_context import PipelineContext, drained, lags
from inferline_stream.controlplane.run_inputs import FeedReport, Run
from inferline_stream.errors import StageFailed, Unreachable
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.replay.live_observations import LiveObservations
from inferline_stream.runs.archive import EventTimes, record_of, written_down
from inferline_stream.runs.report import RunReport, counted_ledger, run_report

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHOW_S = 0.5
_BEFORE_S = 3600.0
"""A time that is longer before a run than this is not believed to be an arrival's."""
_HOPELESS_RESTARTS = 3
"""So many deaths of a stage none of whose replicas was ever ready: it cannot start."""


async def _answered(question: Callable[[], Awaitable[T]]) -> T | None:
    """Return Kafka's answer, or None where it gives none: the control loop logs that."""
    try:
        return await question()
    except Unreachable:
        return None


async def _holds(question: Callable[[], Awaitable[bool]]) -> bool:
    """Whether Kafka answers yes."""
    return await _answered(question) or False


@dataclass(slots=True)
class LiveRun:
    """A run under way. Made by `lifecycle.open_run`."""

    run: Run
    context: PipelineContext
    controller: Controller
    offsets: Offsets
    since: LedgerBegin
    control: asyncio.Task[None]
    replicas_most: dict[str, int] = field(default_factory=dict)
    started_s: float = field(default_factory=time.time)
    lateness_p99_s: float | None = None
    preparation_cost: float = 0.0
    """What replicas had cost when traffic was let in."""

    async def ready(self) -> None:
        """Wait until every replica of the plan is ready; those that have no place yet are not waited for.

        Raises:
            StageFailed: a stage cannot start, or takes longer than `Settings.start_limit_s`.
        """
        began_s = time.monotonic()
        kinds = self.controller.view.catalogue
        on_gpus = any(kinds[a.hardware].gpus for held in self.run.plan.allocations.values() for a in held)
        limit_s = self.run.settings.start_limit_s(gpu=on_gpus)
        deadline_s = began_s + limit_s
        while not self._all_ready():
            raise_end(self.control)
            self._tell_start(time.monotonic() - began_s)
            for stage in self.context.shape.stages:
                died = self.controller.view.restarts[stage]
                if died >= _HOPELESS_RESTARTS and not self.replicas_most.get(stage):
                    why = next((text for text in reversed(self.controller.exits) if text.startswith(f"{stage}-")), "")
                    raise StageFailed(f"stage {stage!r} cannot start: {why}")
            if self.controller.fleet.pending:  # a node may have to be made, which takes what it takes
                deadline_s = time.monotonic() + limit_s
            if time.monotonic() > deadline_s:
                raise StageFailed(
                    f"replicas were not ready within {limit_s:g} s; see what they wrote in {self.run.log_folder}"
                )
            await asyncio.sleep(0.05)

    def _all_ready(self) -> bool:
        state, pending = self.controller.state, self.controller.fleet.pending
        resting = self.controller.decider.resting
        return state is not None and all(
            (stage.name in resting or any(kind.ready for kind in stage.replicas))
            and all(kind.ready + pending[stage.name, kind.hardware] >= kind.wanted for kind in stage.replicas)
            for stage in state.stages
        )

    def _tell_start(self, elapsed_s: float) -> None:
        """How many replicas are ready, and when the last would be if each took as long as its profile says."""
        if (state := self.controller.state) is None:
            return
        kinds = [(stage.name, kind) for stage in state.stages for kind in stage.replicas]
        profiles = self.run.measured.profiles
        longest_s = max(
            (profiles[stage, kind.hardware].start_up_s for stage, kind in kinds if kind.ready < kind.wanted),
            default=0.0,
        )
        ready = sum(min(kind.ready, kind.wanted) for _, kind in kinds)
        self.run.display.progress(ready, sum(kind.wanted for _, kind in kinds), max(0.0, longest_s - elapsed_s))

    async def follow(self, stop: asyncio.Event) -> None:
        """Show the newest picture until stopped, or the control loop ends.

        Raises:
            LeadershipLost: another controller leads now.
        """
        while not stop.is_set():
            raise_end(self.control)
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
            self.run.display.now(state)

    async def fed(self, stop: asyncio.Event) -> None:
        """Let the feed write from now to its end, or until stopped; without one, wait until stopped."""
        async with contextlib.AsyncExitStack() as stack:
            feed = None
            if self.run.feed is not None:
                self.run.display.step("loading the trace")
                feed = await stack.enter_async_context(self.run.feed(self.run.bootstrap_servers, self.context.source))
                await feed.ready()
                feed.start()
                self.controller.decider.awaits_feed = False
                self.run.display.step("replaying")
            self.started_s = time.time()
            self.preparation_cost = self.controller.view.cost
            ending: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
            if feed is not None:
                ending.append(asyncio.create_task(feed.finished()))
            showing = asyncio.create_task(self.follow(stop))
            try:
                await asyncio.wait([*ending, showing], timeout=self.run.duration_s, return_when="FIRST_COMPLETED")
                if showing.done() and not stop.is_set():
                    showing.result()
                if feed is not None:
                    feed.stop()
                    self._fed(await feed.finished())
            finally:
                for task in (*ending, showing):
                    task.cancel()
                await asyncio.gather(*ending, showing, return_exceptions=True)

    def _fed(self, fed: FeedReport) -> None:
        self.lateness_p99_s = fed.lateness_p99_s
        if fed.last_error:
            self.run.display.note(
                f"{fed.sent - fed.acknowledged} of {fed.sent} events are not in Kafka: {fed.last_error}"
            )

    async def drain(self) -> dict[str, int] | None:
        """Wait until everything that was in the source topic has gone through, then let every replica leave.

        While Kafka does not answer, nothing has moved.

        Returns:
            Records left unfinished, by consumer group; None where Kafka does not say.
        """
        self.controller.decider.held = True  # falling traffic at the end is no reason to scale
        self.controller.slots.leave_background()
        self.run.display.step("draining")
        view = self.controller.view
        partitions, live = (
            view.partitions,
            {"": view.partitions} | {of: each.partitions for of, each in view.live.items()},
        )
        known = {of: len(self.since.of_class(self.since.source, of)) for of in live}
        ends: dict[str, tuple[int, ...]] = {}

        async def empty() -> bool:
            ends.update(ends or await self.offsets.ends(dict(zip(self.context.sources, known.values(), strict=True))))
            of_topics = zip(live.items(), self.context.sources, strict=True)
            return all([await drained(self.offsets, self.context, n, ends[topic], of) for (of, n), topic in of_topics])

        left, moved_s = None, time.monotonic()
        while not await _holds(empty):
            raise_end(self.control)
            self.look()
            now = await _answered(self._live_lags)
            if now is not None and now != left:
                left, moved_s = now, time.monotonic()
            elif time.monotonic() - moved_s > self.run.settings.drain_timeout_s:
                waited_s = self.run.settings.drain_timeout_s
                logger.error(
                    "nothing has moved for %g s, events are left behind: %s", waited_s, self.controller.slots.stuck()
                )
                break
            await asyncio.sleep(0.1)
        others = view.others
        if self.run.feed is None or others:  # others may go on writing: what came after is left for the next run
            await self.controller.retire(self.context.entries, self.run.settings.drain_timeout_s)
            classes = {"": partitions} | {of: each.partitions for of, each in others.items()}
            for of, of_class in classes.items():
                rest = {stage: n for stage, n in of_class.items() if stage not in self.context.entries}
                through = partial(drained, self.offsets, self.context, rest, (), of)
                await until(partial(_holds, through), self.run.settings.drain_timeout_s, every_s=0.1)
        await self.controller.retire(frozenset(partitions), self.run.settings.drain_timeout_s)
        return await _answered(self._live_lags)

    async def _live_lags(self) -> dict[str, int]:
        """Records of live events that are not finished, by consumer group."""
        view = self.controller.view
        found = await lags(self.offsets, self.context, view.partitions)
        for of, each in view.live.items():
            found |= await lags(self.offsets, self.context, each.partitions, of_class=of)
        return found

    async def report(self, lag: dict[str, int] | None) -> RunReport:
        """Account for every event and put the report together; where Kafka does not answer, of what was counted.

        Args:
            lag: left in each consumer group; None where Kafka has not said.
        """
        self.run.display.step("accounting for every event")
        self.controller.look()  # what came last is newer than the last look
        state = self.controller.state
        assert state is not None, "it has just been looked at"
        ended_s = time.time()
        not_read = ""
        try:
            lag = await self._live_lags() if lag is None else lag
            ledger = await read_ledger(
                self.offsets,
                self.context,
                self.since,
                to_committed=self.run.feed is None,
                begin=self.controller.collector.end_offsets.begin if self.controller.collector is not None else None,
            )
        except Unreachable as error:
            logger.error("events cannot be accounted for: %s", error)
            not_read, ledger = str(error), counted_ledger(state)
        report = run_report(
            ledger,
            state,
            not_read=not_read,
            started_s=self.started_s,
            duration_s=ended_s - self.started_s,
            replicas_most=self.replicas_most,
            lag=lag or {},
            exits=list(self.controller.exits),
            emulated=any(
                self.run.kinds[a.hardware].emulated for kinds in self.run.plan.allocations.values() for a in kinds
            ),
            advisory=self.run.advisory,
            preparation_cost=self.preparation_cost,
            lateness_p99_s=self.lateness_p99_s,
            counts_events=self.context.pipeline.source.arrivals != "timestamps",
        )
        if self.run.run_folder is not None:
            events = EventTimes.of(ledger, self.run.sample, self.started_s - _BEFORE_S, ended_s)
            # Observations without every event would be replayed on other traffic than the policy saw.
            observations = None if ledger.began else await _answered(partial(self._observations, events.began_s))
            record = record_of(report, self.controller.decider, self.started_s, self.run.measured)
            self.run.display.note(written_down(self.run.run_folder, record, events, observations))
        return report

    async def _observations(self, origin_s: float) -> LiveObservations | None:
        decider = self.controller.decider
        if decider.began_s is None:
            return None
        log = await read_observation_log(self.context, decider.began_s)
        if (rest := self.controller.ticks.rest()) is not None:
            log.take(rest)
        return log.observations(
            origin_s,
            decider.began_s,
            watched_s=decider.watched_s,
            staffed_s=decider.tables.staffed_s,
            sampled=not self.context.pipeline.counts_records,
        )
