"""Keeps every slot served: writes grants, asks for dispatchers, and hears their reports, exits and silence."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from inferline_stream.actuators.actuator import Actuator, DispatcherExit, ObservedDispatcher
from inferline_stream.controlplane.apply import slots
from inferline_stream.controlplane.apply.slots import KnownDispatchers, SlotOrders, SlotTable, StageSlots
from inferline_stream.controlplane.leadership import Leadership
from inferline_stream.controlplane.loop_steps import woken
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.dataplane.process_specs import DispatcherSpec
from inferline_stream.dataplane.reports import DispatcherPhase, PoolReport
from inferline_stream.dataplane.slot_grants import HardwarePlan, StagePlan
from inferline_stream.errors import Unreachable
from inferline_stream.pipeline.event_classes import numbered
from inferline_stream.pipeline.plan import hold_of

logger = logging.getLogger(__name__)

_STEP_S = 0.1

_ANSWERED_S = 0.5
"""Kafka counts as answering for this long after an answer."""

_SETTLED_S = 0.3
"""So long after a grant was written, every report from before it has been read."""

_REMEMBERED_S = 60.0
"""How long a dispatcher that has ended is remembered: its last report may be read after its exit."""

SpecOf = Callable[[str], DispatcherSpec]
"""Stage → what its dispatchers are started with, but for their names and slots."""

_LONGEST_STEP_S = 0.5

_DEAF_S = 1.5
"""Dispatchers report twice a second each: if none of several has for so long, we are likely deaf."""

DEAF_AT_MOST_S = 15.0
"""Longest that the silence of all of them counts as our own deafness."""

MOST_PATIENT = 16.0
"""At most so many times `dead_after_s` counts as death in a slot whose dispatchers fell silent one after another."""

CALM_S = 60.0
"""A slot whose dispatcher was heard for so long begins with the shortest silence again: there was progress."""


@dataclass(slots=True)
class Silence:
    """Distinguishes the silence of dispatchers from our own blindness.

    A report cannot arrive while Kafka is away or while this process is stopped. The clock that measures silence
    therefore advances only in steps in which Kafka answered us, never by more than half a second at once, and for a
    while not at all when all of several dispatchers are silent. That errs on the late side, which is safe.

    Where a host leaves its dispatchers hardly any CPU time, the next one is as silent as the one before, and has to
    read everything again. So a slot whose dispatcher falls silent soon after the last one did has twice the time.

    Args:
        dead_after_s: silence after which a dispatcher serves no more, longer than its lease.
    """

    dead_after_s: float
    clock_s: float = 0.0
    silent: set[str] = field(default_factory=set)
    _time_s: float | None = None
    _heard_s: dict[str, float] = field(default_factory=dict)
    _anybody_s: float | None = None
    _patience_s: dict[str, float] = field(default_factory=dict)
    """By slot, the silence that its next dispatcher may fall into."""
    _calm_since_s: dict[str, float] = field(default_factory=dict)
    """When the dispatcher was first heard after that."""

    def advance(self, time_s: float, *, answered: bool) -> None:
        """Let time pass up to ``time_s``; ``answered``: Kafka has answered since the last call."""
        if self._anybody_s is None:
            self._anybody_s = time_s
        deaf = len(self._heard_s.keys() - self.silent) > 1 and _DEAF_S < time_s - self._anybody_s < DEAF_AT_MOST_S
        if self._time_s is not None and answered and not deaf:
            self.clock_s += min(max(0.0, time_s - self._time_s), _LONGEST_STEP_S)
        self._time_s = time_s

    def heard(self, dispatcher: str) -> None:
        """One of its reports has arrived just now."""
        self._heard_s[dispatcher] = self.clock_s
        self._anybody_s = None
        self.silent.discard(dispatcher)
        self._calm_since_s.setdefault(_slot_of(dispatcher), self.clock_s)

    def expect(self, dispatchers: Iterable[str]) -> None:
        """These may serve; the silence of one that was never heard counts from now on."""
        for dispatcher in dispatchers:
            self._heard_s.setdefault(dispatcher, self.clock_s)

    def forget(self, dispatcher: str) -> None:
        """Its process has ended."""
        self._heard_s.pop(dispatcher, None)
        self.silent.discard(dispatcher)

    def patience_s(self, dispatcher: str) -> float:
        """Return the silence after which a dispatcher counts as dead."""
        slot = _slot_of(dispatcher)
        patience_s = self._patience_s.get(slot, self.dead_after_s)
        calm_s = self.clock_s - self._calm_since_s.get(slot, self.clock_s)
        return patience_s if calm_s < CALM_S else self.dead_after_s

    def fell_silent(self) -> dict[str, float]:
        """Return the dispatchers that have become silent since the last call, and for how long each was."""
        limits_s = {d: self.patience_s(d) for d in self._heard_s.keys() - self.silent}
        new = {d: limit_s for d, limit_s in limits_s.items() if self.clock_s - self._heard_s[d] > limit_s}
        for dispatcher, limit_s in new.items():
            slot = _slot_of(dispatcher)
            self._patience_s[slot] = min(2.0 * limit_s, MOST_PATIENT * self.dead_after_s)
            self._calm_since_s.pop(slot, None)
        self.silent |= new.keys()
        return new


def _slot_of(dispatcher: str) -> str:
    """Return what the names of all dispatchers of a slot begin with; see `slots.step`."""
    return dispatcher.rpartition("-")[0]


@dataclass(slots=True)
class SlotKeeper:
    """Keeps every slot served.

    Args:
        view: plan, profiles, samples and partitions.
        leadership: writes.
        actuator: runs dispatchers.
        spec: of a stage's new dispatchers.
        outdated: whether to replace a dispatcher because newer code was given.
        leads: whether this controller is sure to lead; while it is not, nothing is asked of the actuator.
    """

    view: PipelineView
    leadership: Leadership
    actuator: Actuator
    spec: SpecOf
    outdated: Callable[[ObservedDispatcher], bool] = lambda dispatcher: False
    leads: Callable[[], bool] = lambda: True
    table: SlotTable = field(init=False)
    silence: Silence = field(init=False)
    _phases: dict[str, tuple[DispatcherPhase, int]] = field(default_factory=dict)
    """Phase of each dispatcher, and number of the newest grant that it has read."""
    _ended: dict[str, float] = field(default_factory=dict)
    """When each dispatcher ended, on the event loop's clock."""
    _unclean: set[str] = field(default_factory=set)
    """Those of them that may have left a transaction open."""
    _retired: set[str] = field(default_factory=set)
    _drains: bool = False
    """Whether the run ends."""
    _settled_parts: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """What the grants of each join say is settled."""
    _asked: dict[str, Mapping[str, int]] = field(default_factory=dict)
    _renewals: int = 0
    _settled: int = 0
    _written_s: float = 0.0
    """When the newest grant was written, on the clock of `silence`."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.silence = Silence(self.view.context.settings.dead_after_s)
        self.table = slots.recovered(self.leadership.term, self.leadership.log.grants)
        self.silence.expect(self.table.holders)

    # -- what comes in -------------------------------------------------------------------------------

    def heard(self, report: PoolReport) -> None:
        """Take in a report that is newer than those before."""
        name = report.dispatcher
        if name in self._ended:
            return
        if report.phase == "gone":
            self._end(name)
            return
        self.silence.heard(name)
        if report.phase in ("serving", "draining"):
            self.table = slots.met(self.table, name, report.stage, report.slot)
        now = (report.phase, report.number)
        if self._phases.get(name) != now:
            self._phases[name] = now
            self._wake.set()

    def exited(self, exit_: DispatcherExit) -> None:
        """Take in the end of a dispatcher's process."""
        self.silence.forget(exit_.dispatcher)
        self._phases.pop(exit_.dispatcher, None)
        if not exit_.restarted and exit_.dispatcher not in self._ended:
            if exit_.exit_code:
                self._unclean.add(exit_.dispatcher)
            self._end(exit_.dispatcher)

    def _end(self, dispatcher: str) -> None:
        self._ended[dispatcher] = asyncio.get_running_loop().time()
        self.silence.forget(dispatcher)
        self._phases.pop(dispatcher, None)
        self._wake.set()

    # -- what goes out -------------------------------------------------------------------------------

    async def step(self, answered_s: float) -> None:
        """Wait for a change, or a moment, and do what has become necessary.

        Args:
            answered_s: when Kafka last answered, on the event loop's clock.
        """
        await woken(self._wake, _STEP_S)
        now_s = asyncio.get_running_loop().time()
        self.silence.advance(now_s, answered=now_s - answered_s < _ANSWERED_S)
        self._ended = {d: at for d, at in self._ended.items() if now_s - at < _REMEMBERED_S or d in self.table.holders}
        self._unclean &= self._ended.keys()
        if not self.leads():
            return
        if self.leadership.renewals != self._renewals:
            self._renewals, self._settled, self._written_s = self.leadership.renewals, 0, self.silence.clock_s
            self.table = slots.recovered(self.leadership.term, self.leadership.log.grants, self.table)
        there = [d for d in await self.actuator.dispatchers() if d.state == "running"]
        ours = frozenset(d.dispatcher for d in there)
        self.silence.expect(self.table.holders.keys() - ours - self._ended.keys())  # one may never have been started
        await self._replace_silent(ours)
        if self.silence.clock_s - self._written_s >= _SETTLED_S:
            self._settled = self.table.number
        wanted = self.wanted()
        await self._fence(wanted, ours)
        seen = KnownDispatchers(
            ours=ours,
            ended=frozenset(self._ended),
            silent=frozenset(self.silence.silent),
            standing_by=frozenset(d for d, (phase, _) in self._phases.items() if phase == "standby"),
            idle={d: number for d, (phase, number) in self._phases.items() if phase in ("starting", "standby")},
            outdated=frozenset(d.dispatcher for d in there if self.outdated(d)),
            settled=self._settled,
        )
        table, orders = slots.step(self.table, wanted, seen, secrets.token_hex(4))
        await self._write(orders)
        self.table = table
        await self._dispatch(orders)

    async def _replace_silent(self, ours: Collection[str]) -> None:
        for dispatcher, silent_s in sorted(self.silence.fell_silent().items()):
            self.view.reports.fell_silent(dispatcher)
            if dispatcher in ours:
                logger.warning("dispatcher %s was silent for %g s: replaced", dispatcher, silent_s)
                await self.actuator.replace_dispatcher(dispatcher)
            elif dispatcher in self.table.holders:
                logger.warning("dispatcher %s was silent for %g s: its slot moves", dispatcher, silent_s)
                self._unclean.add(dispatcher)

    async def _fence(self, wanted: Mapping[str, StageSlots], ours: Collection[str]) -> None:
        """End what a dead dispatcher may have left open, where no successor with its transactional id does so."""
        if self.view.context.records.delivery != "exactly_once":
            return
        for name, holder in self.table.holders.items():
            dead = name in self._ended or (name in self.silence.silent and name not in ours)
            unclean = name in self._unclean or name.startswith("?")
            slots_now = wanted[holder.stage].slots if holder.stage in wanted else 0
            if dead and unclean and slots_now not in (0, holder.slots):
                at = f"{holder.stage}-{holder.slot}"
                await self.view.context.kafka.fence(self.view.context.names.transactional_id(at))
                self._unclean.discard(name)

    async def _write(self, orders: SlotOrders) -> None:
        if orders.grants or orders.forgotten:
            for grant in orders.grants:
                logger.info(
                    "slot %s/%d of %d: %s%s", grant.stage, grant.slot, grant.slots, grant.dispatcher or "nobody",
                    "" if grant.begins else ", not yet",
                )  # fmt: skip
            try:
                await self.leadership.write(orders.grants, orders.forgotten)
            except Unreachable:
                self._wake.set()  # nothing was written: decide again from the same memory
                raise
            self._written_s = self.silence.clock_s
            self._wake.set()

    async def _dispatch(self, orders: SlotOrders) -> None:
        """Have the actuator run what the grants name; a grant is written first, so that its dispatcher finds it."""
        for stage, dispatchers in orders.dispatchers.items():
            if self._asked.get(stage) != dispatchers:
                spec = self.spec(stage)
                specs = [msgspec.structs.replace(spec, dispatcher=d, slot=slot) for d, slot in dispatchers.items()]
                await self.actuator.dispatch(stage, specs)
                self._asked[stage] = dispatchers

    def wanted(self) -> dict[str, StageSlots]:
        """Return what the grants of each stage should say now."""
        view, found = self.view, {}
        rests_s = view.rests_s()
        for number, joins in enumerate((view.settling, *(of_class.settling for of_class in view.others.values()))):
            for stage, settling in joins.items():
                if view.reports.join_overdue(stage):  # a grant for each round would be one a second
                    places = numbered(number, settling.settled)
                    parts = dict(zip(places, settling.settled.values(), strict=True))
                    self._settled_parts[stage] = self._settled_parts.get(stage, {}) | parts
        for stage, partitions in view.partitions.items():
            found[stage] = StageSlots(
                slots=0 if stage in self._retired else min(view.plan.slots.get(stage, 1), partitions),
                plan=self._plan_of(stage, rests_s[stage]),
                settled=self._settled_parts.get(stage, {}),
                background_waits=view.background_waits(stage) or (self._drains and stage in view.context.entries),
            )
        return found

    def _plan_of(self, stage: str, rest_s: float) -> StagePlan:
        view, hardware, share = self.view, {}, 0.0
        allocations, profiles = view.plan.allocations[stage], view.measured.profiles
        for kind in sorted({k for name, k in profiles if name == stage} | {a.hardware for a in allocations}):
            planned = view.allocation(stage, kind)
            limit, concurrency = planned.max_batch_size, planned.concurrency
            profile = profiles.get((stage, kind))
            if profile is None:
                hardware[kind] = HardwarePlan(limit, concurrency=concurrency)
                continue
            sizes = profile.batch_sizes
            times_s = {size: profile.service_time_s(size) for size in sizes}
            slowed = {each.concurrency: dict(zip(sizes, each.factors, strict=True)) for each in profile.contention}
            fallback_s = {entry.batch_size: entry.mean_s for entry in profile.fallback}
            hardware[kind] = HardwarePlan(limit, times_s, concurrency, slowed, fallback_s)
            share = profile.fallback_share if profile.fallback else 0.0
        sample = view.samples.get(stage)
        server = view.context.pipeline.stage(stage).server
        idle = view.plan.idle.get(stage) if server is not None and server.sleep else None
        after_s = 0.0 if idle is None else idle.after_s
        return StagePlan(hardware, hold_of(allocations), sample, rest_s, share, after_s)

    # -- the end -------------------------------------------------------------------------------------

    def leave_background(self) -> None:
        """Have the first stages take in no more background events."""
        self._drains = True
        self._wake.set()

    def retire(self, stages: Collection[str]) -> None:
        """Take back every slot of these stages: their dispatchers finish what replicas have in hand and end."""
        self._retired |= set(stages)
        self._wake.set()

    async def retired(self, stages: Collection[str]) -> bool:
        """Whether no dispatcher of these stages may serve, and none of their grants is left in the log."""
        return not any(h.stage in stages for h in self.table.holders.values()) and not self.table.grants.keys() & stages

    def stuck(self) -> str:
        """Return the partitions with lag and who should work on them, in words."""
        found = []
        for stage, history in self.view.offsets.items():
            grants = self.table.grants.get(stage, {})
            for partition, lag in enumerate(history.lags()):
                if not lag:
                    continue
                grant = next((g for g in grants.values() if g.slots and partition % g.slots == g.slot), None)
                where = f"{self.view.context.topic(stage)}/{partition} lags {lag}, "
                where += "no slot" if grant is None else grant.dispatcher or "nobody"
                if grant is not None and (report := self.view.reports.newest(grant.dispatcher)) is not None:
                    at = report.halted.get(partition) or f"at {report.held.get(partition, 'none')}"
                    where += f" ({report.phase}, {at}, {report.queued} queued{report.reason and ', ' + report.reason})"
                found.append(where)
        return "; ".join(found)
