"""What is decided: by the policy, by planning runs, by people. Reported at once, and written down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from inferline_stream.actuators.actuator import node_notice
from inferline_stream.controlplane.apply.fleet import Fleet
from inferline_stream.controlplane.apply.group_fleet import GroupFleet
from inferline_stream.controlplane.decide.background_tables import BackgroundTables
from inferline_stream.controlplane.decide.replan import ReplanResult
from inferline_stream.controlplane.leadership import Leadership
from inferline_stream.controlplane.loop_steps import until
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.observe.slo_window import SloWindow
from inferline_stream.controlplane.observe.time_ahead import TimeAhead
from inferline_stream.controlplane.records.control_records import PLANS_KEPT, Override, Overrides, decode_override
from inferline_stream.controlplane.records.record_writers import DecisionLog
from inferline_stream.controlplane.replica_counts import copied, going_over, stock_of_cores, stock_of_gpus, within
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.kafka.records import Record
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.spot import is_spot
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.version import structure_of
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.replay.live_observations import Figures, figures_of
from inferline_stream.tuner.calendar import Calendar
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.error_budget import ErrorBudget
from inferline_stream.tuner.group_replan import begun, taken_over
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.policy import POLICIES, Policy, TunerState, foreseen, initial_state
from inferline_stream.tuner.spot_losses import AWAY_S
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.tuner_state import staffed

logger = logging.getLogger(__name__)

_APART_S = 86_400.0
"""Records whose timestamps are further from this clock than this have none that says when they were written."""

_NOTICE_S = 120.0
"""Of a node that the platform takes, where nothing declares how long before that is known."""

_DECISIONS_KEPT = 5_000
"""Decisions that a run's record holds: a day of one each 20 s."""


def _fewer_on_spot(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    return any(is_spot(kind) and count > after.get(kind, 0) for kind, count in before.items())


@dataclass(slots=True)
class PolicyMemory:
    """The policy's memory for the plan in force: made again for a new plan, and after people held decisions.

    Args:
        policy: its step.
        view: whose plan, profiles, prices and windows it knows.
        held: replicas wanted at the start, by stage and hardware kind.
        fresh: its state for the plan in force, where the policy has one of its own kind.
    """

    policy: Policy
    view: PipelineView
    held: Mapping[str, Mapping[str, int]]
    fresh: TunerState | None = None
    state: TunerState = field(init=False)
    _stepped: TunerState | None = None
    _table: tuple[Plan, Staffing] | None = None
    """The table that it decides by, and the plan that it was made for."""

    def __post_init__(self) -> None:
        self.again(self.held)

    def again(self, held: Mapping[str, Mapping[str, int]]) -> None:
        """Begin again from the plan in force and these replicas.

        What was remembered of loads, and of what came of them, is of the plan before. What people have seen is still
        true.
        """
        view, before = self.view, self._stepped
        if self.fresh is not None:
            self.state = begun(self.fresh, copied(held))
            return
        plan, table = self._table or (None, None)
        state = initial_state(
            view.plan,
            view.measured,
            view.catalogue,
            objective=view.context.pipeline.objective,
            shortest_window_s=view.context.settings.shortest_window_s,
            held=held,
            staffing=table if plan is view.plan else None,
        )
        if before is not None:
            state = structs.replace(
                state, outgrown_s=before.outgrown_s, leapt_s=before.leapt_s, reported=before.reported
            )
            state = structs.replace(
                state,
                used_s=before.used_s,
                woken_s=before.woken_s,
                noticed=before.noticed,
                away_until_s=before.away_until_s,
            )
        self.state = state

    def take_over(self, fresh: TunerState) -> None:
        """Decide by this state's plan from now on, and go on from what is remembered: members of groups stay."""
        self.fresh, self.state = fresh, taken_over(self.state, fresh)

    def staff(self, table: Staffing) -> None:
        """Decide by this table from now on; it was made for the plan in force."""
        self._table = self.view.plan, table
        self.state = staffed(self.state, table)

    def step(self, seen: Observation) -> Decision | None:
        """One step of the policy."""
        self.state, decision = self.policy(self.state, seen)
        self._stepped = self.state
        return decision


@dataclass(slots=True)
class Decider:
    """Decides, and has the fleet follow.

    Args:
        run: what runs, and how.
        view: what is known.
        leadership: whose term it is.
        found: what earlier terms have left.
        fleet: brings about what is decided.
        asked: called whenever the policy is asked: seconds since the epoch, and what it sees.
    """

    run: Run
    view: PipelineView
    leadership: Leadership
    found: Recovered
    fleet: Fleet | GroupFleet
    asked: Callable[[float, Figures], None]
    room: Mapping[str, int] = field(default_factory=dict)
    """Most replicas of a hardware kind that there are places for now."""
    held: bool = False
    """Decisions are held because the run ends."""
    awaits_feed: bool = False
    """The run's feed has not begun: that nothing comes is no history of its traffic."""
    plan_feasible: bool = True
    """False while the newest planning run found no plan that meets the SLO."""
    overrides: Overrides = field(init=False)
    memory: PolicyMemory = field(init=False)
    tables: BackgroundTables = field(init=False)
    book: DecisionLog = field(init=False)
    slo: SloWindow = field(init=False)
    ahead: TimeAhead = field(init=False)
    began_with: Calendar = field(init=False)
    """What was known of the time ahead at the beginning of this term."""
    first_plan: StoredPlan | None = None
    """The plan that this term began with, as written down."""
    plans: deque[StoredPlan] = field(default_factory=lambda: deque(maxlen=PLANS_KEPT))
    """The newest that came into force in this term."""
    decisions: deque[DecisionRecord] = field(default_factory=lambda: deque(maxlen=_DECISIONS_KEPT))
    """The newest decisions of this term, as written down."""
    began_s: float | None = None
    """When the policy was first asked, a feed not awaited, in seconds since the epoch; and how long arrivals had been
    watched by then."""
    watched_s: float = 0.0
    _decides_from_s: float | None = None
    _was_paused: bool = False
    _crowded: bool = False
    _going_s: dict[str, float] = field(default_factory=dict)
    """By node of which the platform gives a notice, when it is taken, on the event loop's clock."""
    _code_s: float = 0.0

    def __post_init__(self) -> None:
        # One that begins has its own code, whatever a run before had.
        self.overrides = self.found.overrides if self.found.wanted is not None else self.found.overrides.without_code()
        policy = self.run.policy
        self.memory = PolicyMemory(policy, self.view, copied(self.fleet.wanted), self.run.policy_state)
        self.view.asleep = self.memory.state.sleeping
        sample = self.run.sample if policy is POLICIES["default"] else None  # others decide by no table
        self.tables = BackgroundTables(self.view, self.memory.staff, sample)
        self.book = DecisionLog(self.view.context.names.decisions, self.found.number)
        pipeline, settings = self.view.context.pipeline, self.view.context.settings
        unspent = ErrorBudget(pipeline.objective, pipeline.slo_window_s)
        self.slo = SloWindow(unspent, self.book, self.found.slo, settings.dead_after_s)
        now_s = time.time()
        self.ahead = TimeAhead(self.book, self.found.calendar, pipeline.scheduled(self.overrides.windows(now_s)))
        self.began_with = self.ahead.calendar(now_s, self.memory.state.basis)
        for stored in self.found.plans:
            self.view.plans.append(stored)

    def obey(self, records: Iterable[Record]) -> None:
        """Take up records of the control topic, their times by the clock here."""
        for entry in self.view.context.decoder.decoded_by_key(records, decode_override):
            late_s = time.time() - entry.record.time_ms / 1e3  # mostly, how far two clocks are apart
            override = entry.value.heard(late_s) if entry.value is not None and abs(late_s) < _APART_S else entry.value
            self._set_by_people(entry.key, override)

    def _set_by_people(self, key: str, override: Override | None) -> None:
        self.overrides = self.overrides.with_record(key, override)
        logger.info("override %s: %s", key, override or "not set")
        self.follow_people()
        if override is not None and override.kind in ("limits", "scale"):
            self._warn_of_none(override)
        if override is not None and override.kind == "notice" and override.subject.startswith(node_notice("")):
            self._say_of_node(override.subject)
        elif override is not None and override.kind == "notice":
            of = {stage: n for stage, kinds in self.fleet.wanted.items() if (n := kinds.get(override.subject))}
            if not of:
                logger.warning("notice of %s: there is no replica of it, so nothing is replaced", override.subject)
        if override is not None and override.kind == "code":
            detail = f"given by {override.who or 'somebody'}: every replica is replaced, one after another"
            if stop_first := self._stops_first():
                detail += f"; no place is spare for {stop_first}: each stops before the next one starts"
            replicas = copied(self.fleet.wanted)
            self._decided(Decision(replicas, Action.REPLACE, Reason.NEW_CODE, detail), time.time())

    def _stops_first(self) -> str:
        """Which stages have no spare place, in words, with the time that each of their replicas takes to start."""
        found = []
        for stage, kind in self.fleet.crowded().items() if isinstance(self.fleet, Fleet) else ():
            found.append(f"stage {stage!r} on {kind} (about {self._start_up_s(stage, kind):.0f} s)")
        return ", ".join(found)

    def _start_up_s(self, stage: str, kind: str) -> float:
        profile = self.view.measured.profiles.get((stage, kind))
        return self.view.start_ups.next_s(stage, kind) or (profile.start_up_s if profile else 0.0)

    def _warn_of_none(self, override: Override) -> None:
        """A stage held at none serves nothing; one that may have none is late by the time that its first one takes."""
        stage, plan = override.subject, self.view.plan
        if override.kind == "scale" and override.value == 0:
            logger.warning("stage %r is held at no replica: its events wait until `resume` or its time is over", stage)
        if override.kind == "scale" or override.minimum != 0 or stage not in plan.allocations:
            return
        start_up_s = min(self._start_up_s(stage, a.hardware) for a in plan.allocations[stage])
        if start_up_s > plan.slo_s:
            logger.warning(
                "stage %r may have no replica: an event then waits %.1f s for one to start, the SLO is %g s",
                stage, start_up_s, plan.slo_s,
            )  # fmt: skip

    def follow_people(self) -> None:
        """Take up what people have set now; what they set for a while lapses by this, too."""
        now_s, loop_s = time.time(), asyncio.get_running_loop().time()
        self.view.prices(self.overrides.prices(now_s))
        notices = self._notices(now_s, loop_s)
        self.view.noticed = frozenset(notices)
        self.ahead.schedule = self.view.context.pipeline.scheduled(self.overrides.windows(now_s))
        self.ahead.look(now_s, self.memory.state.basis)
        if isinstance(self.fleet, Fleet):
            self.fleet.standby = {**self.run.standby, **self.overrides.standby(now_s)}
            self.fleet.taken_s = notices
            self._follow_code(self.fleet, loop_s - now_s)

    def _notices(self, now_s: float, loop_s: float) -> dict[str, float]:
        """When each spot kind and node of which there is a notice is taken, on the event loop's clock.

        Args:
            now_s: seconds since the epoch.
            loop_s: the same on the event loop's clock.
        """
        found = {of: loop_s + until_s - now_s for of, until_s in self.overrides.notices(now_s).items()}
        going = self.view.going
        for of in going - self._going_s.keys():
            lent = [kind.spot.notice_s for kind in self.view.catalogue.values() if is_spot(kind.name) and kind.spot]
            self._going_s[of] = loop_s + min(lent, default=_NOTICE_S)
            self._say_of_node(of)
        self._going_s = {of: taken_s for of, taken_s in self._going_s.items() if of in going}
        return self._going_s | found

    def _say_of_node(self, of: str) -> None:
        """Report which replicas a notice of a node is about."""
        on = self.view.on_node(of)
        if not on:
            logger.warning("notice of %s: no replica is on it, so nothing is replaced", of)
            return
        words = ", ".join(f"{count} of {stage} ({kind})" for (stage, kind), count in sorted(on.items()))
        detail = f"{of} will be taken: {words}; others are asked for now"
        self.decided(Decision(copied(self.fleet.wanted), Action.REPLACE, Reason.SPOT_LOST, detail))

    def _follow_code(self, fleet: Fleet, ahead_s: float) -> None:
        """Have replicas start with the code that people have given.

        Args:
            fleet: of the stages' replicas.
            ahead_s: what the event loop's clock is ahead of the one of records.
        """
        code_s = self.overrides.code_s
        if code_s is not None and code_s > self._code_s:
            self._code_s = code_s
            # By the clock of the one who gave it; one that is ahead of ours means now.
            fleet.newest_code_s = ahead_s + min(code_s, time.time())
            fleet.changed()

    async def step(self) -> None:
        """One step of the policy, unless people hold decisions, or there is nothing yet to decide on."""
        loop_s, now_s = asyncio.get_running_loop().time(), time.time()
        self.ahead.count(now_s, self.view.growth.total)
        if self.held or not self._begun(loop_s):
            return
        if (paused := self.paused) and not self.memory.state.sleeping and not self.view.noticed:
            self._was_paused = True
            return
        if self._was_paused:  # what happened meanwhile is no history to decide on
            self._was_paused = False
            self.memory.again(copied(self.fleet.wanted))
            self.memory.state = structs.replace(self.memory.state, used_s={})
        crowded = self.view.core_use.crowded
        if bool(crowded) != self._crowded:
            self._crowded = bool(crowded)
            detail = crowded or "replicas have the cores again that they were planned with"
            replicas = copied(self.fleet.wanted)
            self._decided(Decision(replicas, Action.HOLD, Reason.OVERSUBSCRIBED, detail), now_s)
        if self.awaits_feed:
            self.view.growth.watched_since_s = loop_s
        seen = self._seen(loop_s, now_s)
        if self.began_s is None and not self.awaits_feed:
            self.began_s, self.watched_s = now_s, seen.watched_s
        self.asked(now_s, figures_of(seen))
        decision = self.memory.step(seen)
        self.view.asleep = self.memory.state.sleeping
        if decision is not None and paused:
            await self._wake_alone(decision)
        elif decision is not None:
            await self._apply(decision, seen.envelope)

    async def _wake_alone(self, decision: Decision) -> None:
        """Of a decision in a pause, in which records keep flowing: what sleeps wakes, what is taken is replaced."""
        if decision.reason in (Reason.WOKEN, Reason.SPOT_LOST):
            without = {
                stage
                for stage, kinds in self.fleet.wanted.items()
                if not any(kinds.values()) or _fewer_on_spot(kinds, decision.replicas[stage])
            }
            woken = {stage: kinds for stage, kinds in decision.replicas.items() if stage in without}
            await self._apply(replace(decision, replicas={**copied(self.fleet.wanted), **woken}))
        self.memory.state = structs.replace(self.memory.state, wanted=copied(self.fleet.wanted))

    def _seen(self, loop_s: float, now_s: float) -> Observation:
        """What the policy sees, with the replicas that there are places for."""
        limits = self.overrides.limits(now_s)
        # No replica is added to cores that are not there, but those without which events would wait for good.
        held = {**self.fleet.wanted, **self._awaited(limits)}
        carried = stock_of_cores(held, self.view.catalogue, 0.0 if self._crowded else self.run.cores)
        carried = within(carried, stock_of_gpus(self.fleet.wanted, self.view.catalogue), self.view.catalogue)
        stock = {**within(carried, self.room, self.view.catalogue), **self.overrides.stock(now_s)}
        seen = self.view.observation(loop_s, self.fleet.wanted, limits, stock)
        away_until_s = {kind: loop_s + until_s - now_s for kind, until_s in self._away_until_s(now_s).items()}
        return structs.replace(
            seen, calendar=self.ahead.calendar(now_s, self.memory.state.basis), away_until_s=away_until_s
        )

    def _awaited(self, limits: Mapping[str, Limits]) -> dict[str, dict[str, int]]:
        """The plan's replicas of stages that have none, and may have some, while events wait at them."""
        plan = self.view.plan
        return {
            stage: {a.hardware: a.replicas for a in plan.allocations[stage]}
            for stage in self.resting
            if any(self.view.offsets[stage].lags()) and limits.get(stage, Limits()).maximum != 0
        }

    def _away_until_s(self, now_s: float) -> dict[str, float]:
        """By spot kind with a notice, when it may be asked for again, in seconds since the epoch."""
        return {kind: taken_s + AWAY_S for kind, taken_s in self.overrides.notices(now_s - AWAY_S).items()}

    async def foresee(self, arrivals: Trace | None, waiting: Mapping[str, int]) -> None:
        """Decide before the first replica starts, on what is known to come: a feed's arrivals, records that wait.

        Args:
            arrivals: from the feed's beginning; None where nobody knows them.
            waiting: records not committed, by consumer group.
        """
        if self.paused:
            return
        seen = self._seen(asyncio.get_running_loop().time(), time.time())
        stages = {
            name: structs.replace(stage, partition_lags=(waiting[self.view.context.names.group(name)],))
            for name, stage in seen.stages.items()
        }
        decision = foreseen(self.run.policy, self.memory.state, structs.replace(seen, stages=stages), arrivals)
        if decision is not None:
            await self._apply(decision)
            self.memory.again(copied(self.fleet.wanted))

    @property
    def resting(self) -> frozenset[str]:
        """Stages of which no replica is wanted: they sleep, or people hold them at none."""
        return frozenset(stage for stage, kinds in self.fleet.wanted.items() if not any(kinds.values()))

    @property
    def paused(self) -> bool:
        """Whether people hold decisions."""
        return self.overrides.paused(time.time())

    def _begun(self, now_s: float) -> bool:
        """Whether there is something to decide on: the first replicas take a while to start, and nobody doubts that."""
        if self._decides_from_s is None:
            on_gpus = any(self.view.catalogue[kind].gpus for kinds in self.fleet.wanted.values() for kind in kinds)
            self._decides_from_s = now_s + self.view.context.settings.start_limit_s(gpu=on_gpus)
        if now_s < self._decides_from_s:
            seen = self.view.reports.ready_stages()
            if self.view.growth.newest_s is None or seen | self.resting < self.view.offsets.keys():
                return False
            self._decides_from_s = now_s
        return True

    async def _apply(self, decision: Decision, envelope: Sequence[int] = ()) -> None:
        time_s = time.time()
        try:
            if self._applies(decision):
                await self.fleet.want(decision.replicas)
        finally:  # it holds, too, where what runs replicas does not answer: the fleet goes on until it does
            self._decided(decision, time_s, envelope)

    def _applies(self, decision: Decision) -> bool:
        return decision.action is not Action.HOLD and not self.run.advisory

    async def propose(self, proposal: ReplanResult, measured: PipelineProfile) -> None:
        """Take up what a planning run came to, unless people hold decisions, or the run ends."""
        if self.held or self.paused or proposal.reason is None or self._crowded:
            self.plan_feasible = self.plan_feasible or proposal.plan is not None or proposal.reason is None
            return
        replicas = copied(self.fleet.wanted)
        if proposal.plan is None:
            if self.plan_feasible:
                self.plan_feasible = False
                self._decided(Decision(replicas, Action.HOLD, proposal.reason, proposal.detail), time.time())
            return
        self.plan_feasible = True
        time_s = time.time()
        over = going_over(self.fleet.wanted, proposal.plan, self._away_until_s(time_s))
        resting = self.resting  # what has no replica goes on so, until an event or people wake it
        replicas = {stage: dict.fromkeys(kinds, 0) if stage in resting else kinds for stage, kinds in over.items()}
        decision = Decision(replicas, Action.REPLAN, proposal.reason, proposal.detail)
        if self._applies(decision):
            self.view.adopt(proposal.plan, measured)
            self.memory.again(replicas)
            self.tables.planned(proposal.trace if self.tables.sample is not None else None)
            self.keep_plan(time_s, str(decision.reason), decision.detail)
        await self._apply(decision)

    def decided(self, decision: Decision) -> None:
        """Report a decision that is not the policy's, and that was made now."""
        self._decided(decision, time.time())

    def _decided(self, decision: Decision, time_s: float, envelope: Sequence[int] = ()) -> None:
        """Report a decision that was made at a time, in seconds since the epoch, and have it written down."""
        self.book.number += 1
        now_s, wanted = asyncio.get_running_loop().time(), self.fleet.wanted
        ready = {
            stage: sum(self.view.working(stage, kind, count) for kind, count in wanted.get(stage, {}).items())
            for stage in self.view.offsets
        }
        record = DecisionRecord(
            number=self.book.number,
            controller=self.leadership.controller,
            term=self.leadership.term,
            time_s=time_s,
            action=str(decision.action),
            reason=str(decision.reason),
            detail=decision.detail,
            replicas=copied(decision.replicas),
            applied=self._applies(decision),
            arrival_rate=self.view.traffic.arrival_rate(now_s),
            envelope=[int(n) for n in envelope],
            lags={stage: sum(history.lags()) for stage, history in self.view.offsets.items()},
            ready=ready,
        )
        self.view.decided(record)
        fields = {"action": record.action, "reason": record.reason, "replicas": record.by_stage}
        logger.info("%s (%s): %s", record.action, record.reason, record.detail, extra=fields)
        self.run.display.decided(record)
        self.decisions.append(record)
        self.book.decision(record)

    def begin(self, detail: str = "") -> None:
        """Write down the plan and the replicas that this term begins with: it may fall silent before it decides."""
        time_s, reason = time.time(), "initial" if self.found.wanted is None else "taken_over"
        self.keep_plan(time_s, reason, detail)
        number, by, term = self.book.number, self.leadership.controller, self.leadership.term
        replicas = copied(self.fleet.wanted)
        self.book.wanted(DecisionRecord(number, by, term, time_s, "hold", reason, detail, replicas, applied=True))

    def keep_plan(self, time_s: float, reason: str, detail: str) -> None:
        """Write down the plan in force."""
        controller, term, document = self.leadership.controller, self.leadership.term, PlanDocument(plan=self.view.plan)
        number = 1 + max((p.number for p in self.view.plans), default=0)
        structure = structure_of(self.run.pipeline)
        topology = str(self.run.topology.resolve())
        stored = StoredPlan(controller, term, time_s, reason, detail, document, number, structure, topology)
        self.plans.append(stored)
        self.first_plan = self.first_plan or self.plans[-1]
        self.view.plans.append(self.plans[-1])
        self.book.plan(self.plans[-1])

    async def close(self, *, hands_over: bool = False) -> None:
        """The run ends in order: write down that no successor goes on from here, unless one does."""
        self.slo.write()
        if not hands_over:
            self.book.close()

        async def written() -> bool:
            return not self.book.waiting()

        await until(written, 2.0)
