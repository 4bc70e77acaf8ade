"""The control loop: reports and arrivals in, decisions and assignments out.

Everything runs on one event loop. Scaling never waits for a report, nor an assignment for a decision, nor either of
them for what is written down: each input and each output is a task of its own, and all share one `Picture`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from inferline_stream.actuators.actuator import Actuator
from inferline_stream.controlplane.dealing import Dealing
from inferline_stream.controlplane.fleet import Fleet
from inferline_stream.controlplane.keeping import Book, Ticks, flat, nested
from inferline_stream.controlplane.leadership import HEARTBEAT_S, Leadership
from inferline_stream.controlplane.overrides import Overrides
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.planning import LOOK_S, Planning
from inferline_stream.controlplane.records import StoredDecision, StoredPlan, decode_override
from inferline_stream.controlplane.recovery import Found, find_arrivals
from inferline_stream.controlplane.replanning import Proposal
from inferline_stream.controlplane.reports import RECENT_S
from inferline_stream.controlplane.running import Running
from inferline_stream.controlplane.scaling import going_over, replicas_of_plan
from inferline_stream.controlplane.tuning import Tuning, windows_of
from inferline_stream.controlplane.waiting import until
from inferline_stream.controlplane.warming import Warming
from inferline_stream.controlplane.watching import LAGS_S, Watching
from inferline_stream.dataplane.control import LeadershipLost, OffsetReader, TopicFollower, delete_groups
from inferline_stream.dataplane.producing import RecordProducer
from inferline_stream.dataplane.protocol import ReplicaReport
from inferline_stream.errors import Unreachable
from inferline_stream.observability.state import DecisionRecord, PipelineState
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.version import Structure
from inferline_stream.planner.document import plan_to_bytes
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.policy import Policy

logger = logging.getLogger(__name__)

_KEEP_S = 0.1
_TIMER_SILENT_S = 0.3
"""The Faust app's timer is taken for gone after so long: the loop's own goes on."""

_HOST_AGAIN_S = 30.0
_TIDY_S = 60.0
"""How often consumer groups of ended terms are looked for: a dead controller stays a member of its own for a while."""

_STATE_S = 0.5
_LIMITS = {Reason.PARTITIONS_EXHAUSTED: "partitions", Reason.STOCK_EXHAUSTED: "stock"}
"""What the Tuner tells when a stage needs more than it may have, as metrics call it."""


Host = Callable[..., AbstractAsyncContextManager[Any]]
"""Makes a `controlplane.app.ControlApp`, given what takes its records and its timer's step."""


@dataclass(slots=True)
class Controller:
    """Leads one pipeline.

    Args:
        running: names and settings.
        picture: what is known; filled here, read by whoever shows it.
        actuator: makes replicas.
        leadership: entered; writes assignments.
        policy: the Tuner's step.
        found: what earlier terms have left.
        told: called with every decision, at once.
        wanted: replicas to ask for first; by default the plan's. The newest are kept here.
        standby: replicas that stand by, by stage, where people have not set another number.
        max_batch_sizes: that stages declare. Given, the plan is looked at again now and then.
        sample: traffic that the plan was made for. Given, replicas are decided on by a table simulated from it.
        host: loads and returns what makes the Faust app of this term; called in a thread. None runs without one.
    """

    running: Running
    picture: Picture
    actuator: Actuator
    leadership: Leadership
    policy: Policy
    found: Found
    told: Callable[[DecisionRecord], None] = lambda record: None
    wanted: dict[tuple[str, str], int] = field(default_factory=dict)
    standby: Mapping[str, int] = field(default_factory=dict)
    max_batch_sizes: Mapping[str, int] | None = None
    sample: Trace | None = None
    host: Callable[[], Host] | None = None
    structure: Structure | None = None
    """Of the pipeline, for whoever asks whether another topology can go on from here."""
    stock: dict[str, int] = field(default_factory=dict)
    """Most replicas of a hardware kind, where this place has fewer than the catalogue says."""
    plan_feasible: bool = True
    """False while the newest planning run found no plan that meets the SLO."""
    failures: int = 0
    """Steps of the loop that raised something unforeseen; each was logged."""
    held: bool = False
    """Decisions are held because the run ends."""
    overrides: Overrides = field(init=False)
    state: PipelineState | None = None
    """Newest picture for metrics and tables."""
    exits: list[str] = field(default_factory=list)
    """Replicas that ended unexpectedly, in words."""
    watching: Watching | None = None
    fleet: Fleet = field(init=False)
    dealing: Dealing = field(init=False)
    tuning: Tuning = field(init=False)
    warming: Warming = field(init=False)
    plans: list[StoredPlan] = field(default_factory=list)
    """Every plan that came into force, as written down."""
    stored: list[StoredDecision] = field(default_factory=list)
    """Every decision, as written down."""
    _book: Book = field(init=False)
    _ticks: Ticks = field(init=False)
    _reported: set[str] = field(default_factory=set)
    _decides_from_s: float | None = None
    _was_paused: bool = False
    _code_s: float = 0.0
    _timer_s: float = float("-inf")

    def __post_init__(self) -> None:
        if not self.wanted:
            self.wanted.update(replicas_of_plan(self.picture.plan.allocations))
        self.dealing = Dealing(self.running, self.picture, self.leadership, self._fell_silent)
        self.fleet = Fleet(self.actuator, self.picture, self.dealing.partitions, self.wanted, self.standby)
        self.tuning = Tuning(self.policy, self.picture, self.running.settings, nested(self.wanted))
        self.warming = Warming(self.picture, self.tuning, self.sample)
        self._book = Book(self.running.names.decisions, self.found.number)
        self._ticks = Ticks(self.running.names, self.running.source)
        self.overrides = self.found.overrides

    async def run(self) -> None:
        """Control until cancelled.

        Raises:
            LeadershipLost: another controller leads now.
        """
        running, settings = self.running, self.running.settings
        self._follow_people()
        await self.fleet.reconcile()
        self._keep_plan(time.time(), "initial", "")
        servers, names = running.bootstrap_servers, running.names
        async with (
            OffsetReader(servers) as offsets,
            TopicFollower(servers, names.stage_stats, time.time() - RECENT_S, committed_only=False) as reports,
            TopicFollower(servers, names.control, {0: self.found.control_offset}) as control,
            RecordProducer(servers) as arrivals,
        ):
            watching = Watching(running, self.picture, offsets, self._ticks, self._heard)
            await watching.begin()
            times = await find_arrivals(running, offsets, watching.source_partitions, self.picture.growth)
            if times.size:
                self.picture.arrived(times)
            self.watching = watching
            planning = Planning(
                running, self.picture, lambda: self.overrides, self.max_batch_sizes or {}, self._propose
            )
            async with asyncio.TaskGroup() as tasks:
                for period_s, step in (
                    (settings.arrivals_sample_s, watching.sample),
                    (LAGS_S, watching.lags),
                    (0.0, lambda: watching.hear(reports)),
                    (0.0, self._mourn),
                    (0.0, self._deal),
                    (0.0, self.fleet.step),
                    (0.0, lambda: self._obey(control)),
                    (HEARTBEAT_S, self._beat),
                    (settings.tuner_step_s, self._tune),
                    (_STATE_S, self._look),
                    (_KEEP_S, lambda: self._keep(arrivals)),
                    (_HOST_AGAIN_S, self._host),
                    (_TIDY_S, self._tidy),
                    (0.0, self.warming.step),
                    (LOOK_S, planning.step if self.max_batch_sizes else _never),
                ):
                    tasks.create_task(self._every(period_s, step))

    async def _every(self, period_s: float, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat a step for good. What it raises is logged and counted, and the loop goes on."""
        loop = asyncio.get_running_loop()
        due_s, quiet = loop.time(), True
        while True:
            try:
                await step()
                quiet = True
            except LeadershipLost:
                raise
            except Unreachable as error:
                if quiet:
                    logger.warning("%s", error)
                quiet = False
                await asyncio.sleep(0.1)
            except Exception:
                self.failures += 1
                logger.exception("a step of the control loop failed")
                await asyncio.sleep(0.5)
            due_s = max(due_s + period_s, loop.time() - period_s)
            await asyncio.sleep(max(0.0, due_s - loop.time()))

    # -- what comes in -------------------------------------------------------------------------------

    def _heard(self, report: ReplicaReport, changed: bool) -> None:
        if report.replica not in self.dealing.ended:
            self.dealing.liveness.heard(report.replica)
        if report.phase in ("gone", "failed"):
            self._end(report.replica)
            if report.phase == "failed":
                logger.warning("replica %s failed: %s", report.replica, report.reason)
        if report.phase == "ready" and report.replica not in self._reported:
            self._reported.add(report.replica)
            asked_s = self.fleet.started_s.get(report.replica)
            now_s = asyncio.get_running_loop().time()
            start_up_s = report.start_up_s if asked_s is None else now_s - asked_s
            self.picture.reports.started(report.stage, report.hardware, start_up_s)
            self.fleet.changed()
        if changed:
            self.dealing.changed()

    async def _mourn(self) -> None:
        """Wait for the next replica that ends, and let its partitions go to the living at once."""
        exit_ = await self.actuator.next_exit()
        self._end(exit_.replica)
        if not exit_.expected:
            self.picture.restarts[exit_.stage] += 1
            again = "not started again" if exit_.restart_in_s is None else f"again in {exit_.restart_in_s:g} s"
            self.exits.append(f"{exit_.replica}: {exit_.reason}; {again}")
            logger.warning("replica %s ended: %s; %s", exit_.replica, exit_.reason, again)

    def _end(self, replica: str) -> None:
        if replica not in self.dealing.ended:
            self.picture.reports.end(replica)
            self.dealing.end(replica)
            self.fleet.changed()

    async def _fell_silent(self, replica: str) -> None:
        silence_s = self.running.settings.dead_after_s
        logger.warning("replica %s has been silent for %g s", replica, silence_s)
        self.exits.append(f"{replica}: silent for {silence_s:g} s")
        await self.fleet.replace(replica)

    async def _obey(self, control: TopicFollower) -> None:
        for record in await control.read(1.0):
            override = decode_override(record.value) if record.value else None
            key = (record.key or b"").decode()
            self.overrides = self.overrides.with_record(key, override)
            logger.info("override %s: %s", key, override or "taken back")
            self._follow_people()
            if override is not None and override.kind == "code":
                detail = f"given by {override.who or 'somebody'}: every replica is replaced, one after another"
                record_ = self._record(Action.REPLACE, Reason.NEW_CODE, detail, nested(self.wanted))
                self.decided(record_, nested(self.wanted))

    def _follow_people(self) -> None:
        """Take up what people have set now; what they set for a while lapses by this, too."""
        now_s, loop_s = time.time(), asyncio.get_running_loop().time()
        self.picture.prices(self.overrides.prices(now_s))
        self.fleet.standby = {**self.standby, **self.overrides.standby(now_s)}
        code_s = self.overrides.code_s
        if code_s is not None and code_s > self._code_s:
            self._code_s = code_s
            # By the clock of whoever gave it; one that is ahead of ours means now.
            self.fleet.newest_code_s = loop_s - max(0.0, now_s - code_s)
            self.fleet.changed()

    # -- what goes out -------------------------------------------------------------------------------

    async def _beat(self) -> None:
        lags = {stage: list(history.lags()) for stage, history in self.picture.offsets.items()}
        await self.leadership.heartbeat(lags)

    async def _deal(self) -> None:
        await self.dealing.step(self.fleet, self.watching.answered_s if self.watching is not None else -1.0)

    async def _tune(self) -> None:
        """Tune, unless the Faust app's timer does."""
        if not self.tuned_by_timer:
            await self._tune_once()

    @property
    def tuned_by_timer(self) -> bool:
        """Whether the Faust app's timer drives the Tuner at present."""
        return asyncio.get_running_loop().time() - self._timer_s < _TIMER_SILENT_S

    async def _tune_by_timer(self) -> None:
        self._timer_s = asyncio.get_running_loop().time()
        try:
            await self._tune_once()
        except Exception:  # what a step raises must not end the app
            self.failures += 1
            logger.exception("a step of the Tuner failed")

    async def _host(self) -> None:
        """Run the Faust app beside the loop, which goes on without it."""
        if self.host is None or self.watching is None:
            await asyncio.Event().wait()
            return
        app = await asyncio.to_thread(self.host)
        async with app(
            report=self.watching.report_by_agent,
            arrivals=self.watching.arrivals,
            tune=self._tune_by_timer,
        ):
            await asyncio.Event().wait()

    async def _tidy(self) -> None:
        """Delete the consumer groups of ended terms."""
        groups = self.running.names.control_groups
        await delete_groups(self.running.bootstrap_servers, groups, keep=f"{groups}{self.leadership.term}")

    async def _tune_once(self) -> None:
        loop_s, now_s = asyncio.get_running_loop().time(), time.time()
        if self.held or not self._begun(loop_s):
            return
        if self.paused:
            self._was_paused = True
            return
        if self._was_paused:  # what happened meanwhile is no history to decide on
            self._was_paused = False
            self.tuning.again(nested(self.wanted))
        stock = {**self.stock, **self.overrides.stock(now_s)}
        seen = self.picture.observation(loop_s, self.wanted, self.overrides.limits(now_s), stock)
        decision = self.tuning.step(seen)
        if decision is not None:
            await self._apply(decision, seen.envelope)

    @property
    def paused(self) -> bool:
        """Whether people hold decisions."""
        return self.overrides.paused(time.time())

    def _begun(self, now_s: float) -> bool:
        """Whether there is something to decide on: the first replicas take a while to start, and nobody doubts that."""
        if self._decides_from_s is None:
            self._decides_from_s = now_s + self.running.settings.start_timeout_s
        if now_s < self._decides_from_s:
            replicas = self.picture.reports.replicas.values()
            seen = {told.newest.stage for told in replicas if told.newest.phase == "ready"}
            if self.picture.growth.newest_s is None or seen < self.picture.offsets.keys():
                return False
            self._decides_from_s = now_s
        return True

    async def _apply(self, decision: Decision, envelope: Sequence[int]) -> None:
        record = self._record(decision.action, decision.reason, decision.detail, decision.replicas)
        if record.applied:
            await self.fleet.want(flat(decision.replicas))
        self.decided(record, decision.replicas, envelope)

    def _record(
        self, action: Action, reason: Reason, detail: str, replicas: Mapping[str, Mapping[str, int]]
    ) -> DecisionRecord:
        return DecisionRecord(
            time.time(),
            str(action),
            str(reason),
            detail,
            {stage: sum(kinds.values()) for stage, kinds in replicas.items()},
            applied=action is not Action.HOLD and not self.running.advisory,
        )

    async def _propose(self, proposal: Proposal, measured: PipelineProfile) -> None:
        """Take up what a planning run came to, unless people hold decisions, or the run ends."""
        if self.held or self.paused or proposal.reason is None:
            self.plan_feasible = self.plan_feasible or proposal.plan is not None or proposal.reason is None
            return
        replicas = nested(self.wanted)
        if proposal.plan is None:
            if self.plan_feasible:
                self.plan_feasible = False
                self.decided(self._record(Action.HOLD, proposal.reason, proposal.detail, replicas), replicas)
            return
        self.plan_feasible = True
        replicas = going_over(self.wanted, proposal.plan)
        record = self._record(Action.REPLAN, proposal.reason, proposal.detail, replicas)
        if record.applied:
            self.picture.adopt(proposal.plan, measured, windows_of(proposal.plan, self.running.settings))
            self.tuning.again(replicas)
            self.warming.planned(proposal.trace if self.sample is not None else None)
            await self.fleet.want(flat(replicas))
            self._keep_plan(record.time_s, record.reason, record.detail)
        self.decided(record, replicas)

    def decided(
        self, record: DecisionRecord, replicas: Mapping[str, Mapping[str, int]], envelope: Sequence[int] = ()
    ) -> None:
        """Tell of a decision, and have it written down."""
        self.picture.decided(record)
        logger.info("%s (%s): %s", record.action, record.reason, record.detail)
        self.told(record)
        self._book.number += 1
        now_s = asyncio.get_running_loop().time()
        self.stored.append(
            StoredDecision(
                number=self._book.number,
                controller=self.leadership.controller,
                term=self.leadership.term,
                time_s=record.time_s,
                action=record.action,
                reason=record.reason,
                detail=record.detail,
                replicas={stage: dict(kinds) for stage, kinds in replicas.items()},
                applied=record.applied,
                arrival_rate=self.picture.traffic.arrival_rate(now_s),
                envelope=[int(n) for n in envelope],
                lags={stage: sum(history.lags()) for stage, history in self.picture.offsets.items()},
                ready={
                    stage: sum(self.picture.working(stage, kind) for s, kind in self.wanted if s == stage)
                    for stage in self.picture.offsets
                },
            )
        )
        self._book.decision(self.stored[-1])

    def _keep_plan(self, time_s: float, reason: str, detail: str) -> None:
        plan = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(plan_to_bytes(self.picture.plan))))
        controller, term = self.leadership.controller, self.leadership.term
        number = 1 + max((p.number for p in (*self.found.plans, *self.plans)), default=0)
        self.plans.append(StoredPlan(controller, term, time_s, reason, detail, plan, number, self.structure))
        self._book.plan(self.plans[-1])

    async def _keep(self, arrivals: RecordProducer) -> None:
        """Write down ticks, plans and decisions."""
        if (ticks := self._ticks.take()) is not None and ticks.value is not None:
            await arrivals.send(ticks.topic, ticks.value, key=ticks.key.encode())
        if waiting := self._book.waiting():
            await self.leadership.write_records(waiting)
            self._book.written(len(waiting))

    async def _look(self) -> None:
        """One consistent picture for metrics and tables."""
        now_s = asyncio.get_running_loop().time()
        self._follow_people()
        self.picture.held(now_s, await self.fleet.observe())
        state = self.picture.state(
            now_s,
            time.time(),
            self.wanted,
            envelope=self.picture.traffic.envelope(now_s),
            paused=self.paused,
            term=self.leadership.term,
            limits={stage: _LIMITS[reason] for reason, stage in self.tuning.state.told if reason in _LIMITS},
        )
        self.state = replace(
            state,
            plan_feasible=self.plan_feasible,
            handover_budget_left=self.tuning.state.handover_budget_left,
            failures=self.failures,
        )

    async def retire(self, stages: Collection[str], deadline_s: float) -> None:
        """Every replica of these stages releases what it holds and leaves; those still there at the deadline are ended.

        The loop must still be running: it writes the assignments that tell them.
        """
        self.held = True
        await self.fleet.retire(stages, deadline_s)
        await until(lambda: self.dealing.forgotten(stages), 2.0)  # their records in the compacted topic go with them

    async def close_book(self) -> None:
        """The run ends in order: write down that no successor is to go on from here."""
        self._book.close()

        async def written() -> bool:
            return not self._book.waiting()

        await until(written, 2.0)


async def _never() -> None:
    await asyncio.Event().wait()
