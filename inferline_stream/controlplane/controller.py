"""The control loop: reports and arrivals in, decisions and grants out.

Everything runs on one event loop. Scaling never waits for a report, nor a grant for a decision, nor either of them for
what is written down: each input and each output is a task of its own, and all share one `PipelineView`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from inferline_stream.actuators.actuator import Actuator, DispatcherExit, ObservedDispatcher
from inferline_stream.controlplane.apply.fleet import Fleet
from inferline_stream.controlplane.apply.slot_keeper import SlotKeeper
from inferline_stream.controlplane.decide.decider import Decider
from inferline_stream.controlplane.decide.replan_clock import LOOK_S, ReplanClock
from inferline_stream.controlplane.leader_loop import LeaderLoop, leading_meanwhile
from inferline_stream.controlplane.leadership import HEARTBEAT_S, Leadership
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.collector import LAGS_S, LETTERS_S, Collector
from inferline_stream.controlplane.observe.notice_watch import LOOK_S as NOTICES_S
from inferline_stream.controlplane.observe.notice_watch import NoticeWatch
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.records.control_records import Override, encode
from inferline_stream.controlplane.records.record_writers import ArrivalLog
from inferline_stream.controlplane.replica_counts import replicas_of_plan
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.observation import RECENT_S

logger = logging.getLogger(__name__)

_KEEP_S = 0.1
_STATE_S = 0.5
_EXITS_KEPT = 300
_ROOM_S = 2.0
"""How often the actuator is asked how many replicas there are places for."""

_LIMITS = {Reason.STOCK_EXHAUSTED: "stock", Reason.SERVER_LIMIT: "server"}
"""What the Tuner says when a stage needs more than it may have, as metrics call it."""


@dataclass(slots=True)
class Controller:
    """Leads one pipeline.

    Args:
        run: what runs, and how.
        view: what is known; filled here, read by what shows it.
        actuator: starts and stops replicas and dispatchers.
        leadership: entered; writes grants.
        found: what earlier terms have left.
        wanted: replicas to ask for first; by default the plan's. The newest are kept here.
    """

    run: Run
    view: PipelineView
    actuator: Actuator
    leadership: Leadership
    found: Recovered
    wanted: dict[str, dict[str, int]] = field(default_factory=dict)
    state: PipelineState | None = None
    """Newest state for metrics and tables."""
    exits: deque[str] = field(default_factory=lambda: deque(maxlen=_EXITS_KEPT))
    """Replicas and dispatchers that ended unexpectedly, in words; the newest few hundred."""
    collector: Collector | None = None
    loop: LeaderLoop = field(init=False)
    fleet: Fleet = field(init=False)
    slots: SlotKeeper = field(init=False)
    decider: Decider = field(init=False)
    ticks: ArrivalLog = field(init=False)
    """At its end with what the arrivals topic lacks, because the next sample would have brought it there."""
    _began_s: float = math.inf
    """When this term began, on the event loop's clock."""
    _started: set[str] = field(default_factory=set)
    """Replicas whose start-up time is known."""
    _troubles: dict[str, str] = field(default_factory=dict)
    """What each dispatcher last said is wrong."""

    def __post_init__(self) -> None:
        if not self.wanted:
            self.wanted.update(replicas_of_plan(self.view.plan.allocations))
        run, context, view = self.run, self.view.context, self.view
        self.loop = LeaderLoop(self.leadership)
        self.fleet = Fleet(self.actuator, view, self.wanted, run.standby, run.cores, leads=self.loop.leads)
        self.slots = SlotKeeper(
            view,
            self.leadership,
            self.actuator,
            run.dispatcher_spec,
            self._outdated,
            self.loop.leads,
        )
        self.ticks = ArrivalLog(context.names, context.source)
        self.decider = Decider(run, view, self.leadership, self.found, self.fleet, self.ticks.asked)

    async def lead(self) -> None:
        """Control until cancelled.

        Raises:
            LeadershipLost: another controller leads now.
        """
        context, settings = self.view.context, self.view.context.settings
        self._began_s = asyncio.get_running_loop().time()
        self.decider.follow_people()
        await self._heartbeat()
        await leading_meanwhile(self.fleet.reconcile(), self._heartbeat)
        self.decider.begin()
        kafka, names = context.kafka, context.names
        async with (
            kafka.offsets() as offsets,
            kafka.follow(names.stage_stats, time.time() - RECENT_S, committed_only=False) as reports,
            kafka.follow(names.control, {0: self.found.control_offset}) as control,
            kafka.producer() as arrivals,
            AsyncExitStack() as stack,
        ):
            collector = Collector(self.view, offsets, self.ticks, self._heard)
            await collector.begin(stack)
            self.collector = collector
            decider = self.decider
            planning = ReplanClock(self.view, lambda: decider.overrides, decider.propose, self.run.cores)
            notices = NoticeWatch(self.view.catalogue, self._noticed)
            async with asyncio.TaskGroup() as tasks:
                for period_s, step in (
                    (settings.arrivals_sample_s, collector.sample),
                    (0.0, collector.stamped if collector.stamps is not None else _never),
                    (LAGS_S, collector.lags),
                    (LETTERS_S, collector.letters),
                    (0.0, lambda: collector.hear(reports)),
                    (0.0, self._mourn),
                    (0.0, lambda: self.slots.step(collector.answered_s)),
                    (0.0, self.fleet.step),
                    (0.0, lambda: self._obey(control)),
                    (HEARTBEAT_S, self._heartbeat),
                    (settings.tuner_step_s, self.decider.step),
                    (_ROOM_S, self._room),
                    (_STATE_S, self._look),
                    (_KEEP_S, lambda: self._keep(arrivals)),
                    (_STATE_S, self.decider.tables.step),
                    (LOOK_S, planning.step if self.run.replans else _never),
                    (NOTICES_S, notices.step if notices.looks else _never),
                ):
                    tasks.create_task(self.loop.every(period_s, step))

    async def _heartbeat(self) -> None:
        """Say with a heartbeat what dispatchers have to know; errors as in `Leadership.write`."""
        if self.view.context.pipeline.order == "deadline":
            self.leadership.rest_s, self.leadership.longer_s = self.view.news(asyncio.get_running_loop().time())
            self.leadership.served = self.view.served()
        await self.loop.heartbeat()

    # -- what comes in -------------------------------------------------------------------------------

    def _heard(self, report: PoolReport) -> None:
        self.slots.heard(report)
        name, trouble = report.dispatcher, report.reason or "; ".join(sorted(set(report.halted.values())))
        if trouble and report.phase != "gone" and trouble != self._troubles.get(name):
            logger.error("dispatcher %s: %s", name, trouble)
        if report.phase in ("gone", "failed"):
            self._troubles.pop(name, None)
        else:
            self._troubles[name] = trouble
        now_s = asyncio.get_running_loop().time()
        for replica in report.replicas:
            if replica.phase == "ready" and replica.replica not in self._started:
                self._started.add(replica.replica)
                asked_s, way = self.fleet.started_s.get(replica.replica), self.fleet.ways.get(replica.replica, "")
                if asked_s is None or asked_s >= self._began_s:  # of an earlier controller's, nobody knows here
                    start_up_s = replica.start_up_s if asked_s is None else now_s - asked_s
                    self.view.start_ups.started(report.stage, replica.hardware, start_up_s, way)
                self.fleet.changed()

    async def _mourn(self) -> None:
        """Wait for the next process that ends."""
        exit_ = await self.actuator.next_exit()
        if isinstance(exit_, DispatcherExit):
            name, again = exit_.dispatcher, "started again" if exit_.restarted else "not started again"
            self.view.reports.end(name)
            self.slots.exited(exit_)
            self._troubles.pop(name, None)
        else:
            name, in_s = exit_.replica, exit_.restart_in_s
            again = "not started again" if in_s is None else f"again in {in_s:g} s"
            self.view.reports.replica_ended(name)
            self._started.discard(name)
            self.fleet.changed()
        if not exit_.expected:
            if not isinstance(exit_, DispatcherExit):
                self.view.restarts[exit_.stage] += 1
            self.exits.append(f"{name}: {exit_.reason}; {again}")
            logger.warning("%s ended: %s; %s", name, exit_.reason, again)

    def _outdated(self, dispatcher: ObservedDispatcher) -> bool:
        """Whether to replace a dispatcher: newer code was given, and every replica of its stage runs it."""
        return dispatcher.started_s < self.fleet.newest_code_s and dispatcher.stage not in self.fleet.older

    async def _noticed(self, notice: Override) -> None:
        """Have a notice written down, by which it is obeyed, here and by a controller that takes over."""
        logger.warning("notice of %s by %s: it is taken in %.0f s", notice.subject, notice.who, notice.value)
        record = Record.keyed(self.view.context.names.control, notice.key, encode(notice))
        await self.leadership.write_records([record])

    async def _obey(self, control: TopicFollower) -> None:
        self.decider.obey(await control.read(1.0))

    # -- what goes out -------------------------------------------------------------------------------

    async def _room(self) -> None:
        """What the places that replicas run at have left, and how their devices stand."""
        self.leadership.devices = await self.actuator.devices()
        room = await self.actuator.capacity()
        if room != self.decider.room:
            logger.info("places for replicas: %s", ", ".join(f"{k} {n}" for k, n in room.items()) or "no limit")
        self.decider.room = room

    async def _keep(self, arrivals: RecordProducer) -> None:
        """Write down ticks, plans and decisions."""
        if (ticks := self.ticks.take()) is not None and ticks.value is not None:
            await arrivals.send(ticks.topic, ticks.value, key=ticks.key)
        book = self.decider.book
        if waiting := book.waiting():
            await self.leadership.write_records(waiting)
            book.written(len(waiting))

    async def _look(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self.decider.follow_people()
        self.view.held(now_s, await self.fleet.observe())
        # A report that was sent before a replica's end may be read after it, and would have it remembered for good.
        self._started &= self.fleet.started_s.keys() | self.view.reports.names()
        self.look()

    def look(self) -> None:
        """Make one consistent state for metrics, tables and the report."""
        state = self.view.state(
            asyncio.get_running_loop().time(),
            time.time(),
            self.wanted,
            slots={stage: len(held) for stage, held in self.slots.table.grants.items()},
            limits={
                stage: _LIMITS[reason] for reason, stage in self.decider.memory.state.reported if reason in _LIMITS
            },
        )
        budget = self.decider.slo.look(state.time_s, state.slo_events, state.slo_missed)
        self.view.budget, self.view.hours = budget, self.decider.ahead.hours
        self.state = replace(
            state,
            budget_left=budget.left,
            paused=self.decider.paused,
            slo_wanted_s=self.decider.overrides.slo_s(state.time_s) or self.view.context.pipeline.slo_s,
            term=self.leadership.term,
            plan_feasible=self.decider.plan_feasible,
            failures=self.loop.failures,
            unreadable=dict(self.view.context.decoder.counts),
            devices=self.leadership.devices,
        )

    async def retire(self, stages: Collection[str], deadline_s: float) -> None:
        """Every dispatcher of these stages finishes what replicas have in hand and leaves, then every replica does.

        The loop must still be running: it writes the grants that say so.
        """
        self.decider.held = True
        began_s = time.monotonic()
        self.slots.retire(stages)
        await until(lambda: self.slots.retired(stages), deadline_s, 0.02)
        await self.fleet.retire(stages)
        left_s = deadline_s - (time.monotonic() - began_s)
        gone = await until(lambda: self.fleet.gone(stages), left_s, 0.02)
        if not gone and set(stages) >= set(self.view.shape.stages) and self.loop.leads():
            await self.actuator.drain(0.0)


async def _never() -> None:
    await asyncio.Event().wait()
