"""The control loop of consumer groups that run already: looks in, numbers of workers out.

As in `controller`, each input and each output is a task of its own, and all share one `PipelineView`. Deciding begins
once the throughput of every group is known: until then groups are watched, and their numbers left alone. The same holds
while something is seen on which nothing can be decided.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.apply.group_fleet import GroupFleet
from inferline_stream.controlplane.decide.decider import Decider
from inferline_stream.controlplane.leader_loop import LeaderLoop
from inferline_stream.controlplane.leadership import HEARTBEAT_S, Leadership
from inferline_stream.controlplane.observe.group_collector import GroupCollector, Looks
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.replica_counts import copied
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.errors import Infeasible, InvalidInput, Unreachable
from inferline_stream.kafka.topic_follower import TopicFollower
from inferline_stream.observability.pipeline_state import PipelineState
from inferline_stream.pipeline.consumer_group import FaustApp, KedaScaler
from inferline_stream.pipeline.group_model import group_model
from inferline_stream.pipeline.group_profile import GroupProfile, Learned
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.decision import Action, Decision, Reason
from inferline_stream.tuner.group_plan import LEAST_TRAFFIC_S
from inferline_stream.tuner.group_replan import GroupPlanning, begun, due_after_s, planned
from inferline_stream.tuner.tuner_state import TunerState

logger = logging.getLogger(__name__)

_MOVED = 0.1
"""A throughput that has moved by this share is said."""

_LEARN_S = 5.0
"""How soon what is learned is looked at again where no plan can be made of it: of a busy group that takes 0.2 s."""

_TELL_S = 60.0
_SILENT_S = 5.0
"""An outage that is shorter is none to report of."""

_LOOK_S, _KEEP_S, _PLAN_S = 0.5, 0.1, 1.0

MakeRun = Callable[[Plan, PipelineProfile, Trace, TunerState], Run]
"""(plan, profiles, the traffic that it was made for, where the policy begins) → what the run is."""


@dataclass(slots=True)
class GroupController:
    """Leads one pipeline of groups.

    Args:
        context: the pipeline on its Kafka.
        make_run: what the decider is given, once there is a plan.
        watch: opens what looks at the groups.
        collector: takes looks in.
        fleet: has workers follow.
        leadership: entered; writes decisions.
        found: what earlier terms have left.
        seen: called with a group, its lag and its members, about twice a second.
        loop: whose lease the fleet acts by.
    """

    context: PipelineContext
    make_run: MakeRun
    watch: Callable[[], AbstractAsyncContextManager[Looks]]
    collector: GroupCollector
    fleet: GroupFleet
    leadership: Leadership
    found: Recovered
    loop: LeaderLoop
    seen: Callable[[str, int, int], None] = lambda group, lag, members: None
    step_text: Callable[[str], None] = lambda text: None
    """Shows people what the run waits for."""
    view: PipelineView | None = None
    decider: Decider | None = None
    state: PipelineState | None = None
    """Newest state for metrics and tables."""
    planning: GroupPlanning | None = None
    """In force."""
    begun: tuple[float, dict[str, dict[str, int]]] = (0.0, {})
    """When the first plan came into force, on the event loop's clock, and the members of each group then, by kind."""
    most: Counter[str] = field(default_factory=Counter)
    """Most members of each group since then."""
    _asked_s: dict[str, dict[int, float]] = field(default_factory=dict)
    """By group, numbers of members that were asked for and have not joined, since when, on the event loop's clock."""
    _learned: tuple[GroupProfile, ...] = ()
    """That the plan which was said last was made from."""
    _partitions: dict[str, int] = field(default_factory=dict)
    """Of each group's topic, when a plan was last tried."""
    _due_s: float = 0.0
    _said_s: float = float("-inf")
    _trouble: dict[str, str] = field(default_factory=dict)
    """As last decided on."""

    async def lead(self) -> None:
        """Control until cancelled.

        Raises:
            LeadershipLost: another controller leads now.
        """
        for group in self.context.pipeline.groups:
            if isinstance(group.workers, FaustApp):  # nobody else starts them
                before = (self.found.wanted or {}).get(group.name)
                self.fleet.wanted[group.name] = dict(before or {group.hardware: 1})
                self.fleet.decided.add(group.name)
        self.fleet.changed()
        self._said_s = asyncio.get_running_loop().time() + _SILENT_S - _TELL_S  # nothing is seen before the first looks
        async with AsyncExitStack() as stack:
            follow = self.context.kafka.follow(self.context.names.control, {0: self.found.control_offset})
            control = await stack.enter_async_context(follow)
            async with asyncio.TaskGroup() as tasks:
                for period_s, step in (
                    (HEARTBEAT_S, self.loop.heartbeat),
                    (0.0, self._watch),
                    (0.0, lambda: self._obey(control)),
                    (_PLAN_S, self._plan),
                    (self.context.settings.tuner_step_s, self._decide),
                    (_LOOK_S, self._look),
                    (_KEEP_S, self._keep),
                ):
                    tasks.create_task(self.loop.every(period_s, step))
                for name in self.fleet.workers:
                    tasks.create_task(self.loop.every(0.0, partial(self.fleet.step, name)))

    async def _watch(self) -> None:
        try:
            async with self.watch() as looks:
                await self.collector.follow(looks)
        except Unreachable as error:  # it may be a right that is missing, or a topic that is no more
            newest_s = self.collector.growth.newest_s
            if newest_s is None or asyncio.get_running_loop().time() - newest_s > _SILENT_S:
                names = [group.name for group in self.context.pipeline.groups]
                self.collector.trouble = dict.fromkeys(names, f"nothing is seen of it: {error}")
            raise

    async def _obey(self, control: TopicFollower) -> None:
        if self.decider is None:  # what people set meanwhile is read then
            await asyncio.sleep(_LOOK_S)
            return
        self.decider.obey(await control.read(1.0))

    # -- plans ---------------------------------------------------------------------------------------

    async def _plan(self) -> None:
        """Plan once everything is known that a plan is made from, and again and again for the last hour's traffic."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._due_s and self._partitions == self.collector.partitions:
            return
        if self.collector.trouble or not self.collector.growth.total:
            self._say(now_s, _reasons(self.collector.trouble) or "no record has come yet")
            return
        self._due_s, self._partitions = now_s + _LEARN_S, self.collector.partitions
        learned = list(map(self._as_started, self.collector.profiles()))
        if unknown := [profile.group for profile in learned if profile.throughput is None]:
            self._say(now_s, f"the throughput of {', '.join(unknown)} is not known yet")
            return
        sample = self.collector.sample(now_s)
        seen_s = 0.0 if sample is None else sample.duration_s
        if sample is None or (seen_s < LEAST_TRAFFIC_S and self.decider is None):
            self._say(now_s, f"{math.floor(seen_s)} of {LEAST_TRAFFIC_S:.0f} s of traffic were seen")
            return
        try:
            model = group_model(self.context.pipeline, learned)
            shortest_s = self.context.settings.shortest_window_s
            found = await asyncio.to_thread(planned, model, sample, shortest_window_s=shortest_s)
        except (Infeasible, InvalidInput) as error:
            self._due_s = now_s + _TELL_S
            self._say(now_s, str(error))
            if self.decider is not None and self.decider.plan_feasible:
                self.decider.plan_feasible = False
                self._hold(Reason.PLAN_INFEASIBLE, str(error))
            return
        self._due_s = now_s + due_after_s(seen_s)
        if self.decider is None:
            self._begin(found, learned)
        else:
            self._adopt(found, learned)

    def _as_started(self, profile: GroupProfile) -> GroupProfile:
        """The profile with the time from asking for a member to its joining, where that was seen.

        What it takes from there to its first commit is the pause of that rebalance, which is learned apart.
        """
        kinds = () if self.view is None else self.view.start_ups.by_stage().get(profile.group, {}).values()
        return replace(profile, start_up_s=Learned(next(iter(kinds)), 0.0, 1)) if kinds else profile

    def _begin(self, found: GroupPlanning, learned: Sequence[GroupProfile]) -> None:
        """Show and decide from now on."""
        members, self.planning = self.collector.members, found
        held = {
            group.name: self.fleet.wanted.get(group.name) or {group.hardware: max(1, members[group.name])}
            for group in self.context.pipeline.groups
        }
        view = PipelineView(self.context, found.plan, found.model.measured, found.model.partitions)
        self.begun = asyncio.get_running_loop().time(), copied(held)
        self.fleet.wanted.update(copied(held))
        for group in self.context.pipeline.groups:
            if isinstance(group.workers, KedaScaler):  # it asks us, decided or not
                self.fleet.decided.add(group.name)
        self.collector.show_in(view)
        self._learned, words = tuple(learned), _words(learned, found.sample)
        run = self.make_run(found.plan, found.model.measured, found.sample, begun(found.state, held))
        self.decider = Decider(run, view, self.leadership, self.found, self.fleet, lambda time_s, figures: None)
        self.view = view
        self.decider.follow_people()
        self.decider.begin(words)
        self.fleet.changed()
        self.step_text("scaling")
        logger.info("planned for %s", words)

    def _adopt(self, found: GroupPlanning, learned: Sequence[GroupProfile]) -> None:
        """Another plan comes into force; the policy brings its numbers about. It is said where it is another."""
        assert self.decider is not None, "there is a plan"
        assert self.view is not None, "there is a plan"
        before, self.planning = self.view.plan, found
        self.view.adopt(found.plan, found.model.measured)
        self.decider.memory.take_over(found.state)
        feasible, self.decider.plan_feasible = self.decider.plan_feasible, True
        if feasible and found.plan.allocations == before.allocations and not _moved(self._learned, learned):
            return
        cheaper = found.plan.cost_per_hour < before.cost_per_hour
        self._learned = tuple(learned)
        reason, detail = Reason.PLAN_SAVES if cheaper else Reason.PLAN_MISSES_SLO, _words(learned, found.sample)
        self.decider.keep_plan(time.time(), str(reason), detail)
        self.decider.decided(Decision(copied(self.fleet.wanted), Action.REPLAN, reason, detail))

    def _say(self, now_s: float, why: str) -> None:
        """Say now and then why nothing is decided yet."""
        if self.decider is None and now_s - self._said_s >= _TELL_S:
            self._said_s = now_s
            self.step_text(f"watching: {why}")
            logger.info("groups are watched, and left as they are: %s", why)

    # -- decisions -----------------------------------------------------------------------------------

    async def _decide(self) -> None:
        """One step of the policy, unless something is seen on which nothing can be decided."""
        if self.decider is None:
            return
        trouble = dict(self.collector.trouble)
        if trouble != self._trouble:
            if trouble:
                self._hold(Reason.INPUT_STALE, _reasons(trouble))
            else:
                self._hold(Reason.INPUT_RESTORED, "every group can be decided on again")
                self.decider.memory.again(copied(self.fleet.wanted))
            self._trouble = trouble
        if not trouble:
            await self.decider.step()

    def _hold(self, reason: Reason, detail: str) -> None:
        assert self.decider is not None, "there is a plan"
        self.decider.decided(Decision(copied(self.fleet.wanted), Action.HOLD, reason, detail))

    async def _keep(self) -> None:
        """Write down plans and decisions."""
        if self.decider is not None and (waiting := self.decider.book.waiting()):
            await self.leadership.write_records(waiting)
            self.decider.book.written(len(waiting))

    async def _look(self) -> None:
        """Make one consistent state for metrics and tables."""
        if self.decider is None or self.view is None:
            return
        now_s = asyncio.get_running_loop().time()
        self.decider.follow_people()
        for name, figures in self.view.reports.groups.items():
            trouble = "; ".join(filter(None, (of.get(name) for of in (self.collector.trouble, self.fleet.trouble))))
            self.view.reports.groups[name] = replace(figures, trouble=trouble)
            self.seen(name, sum(self.view.offsets[name].lags()), figures.members)
        self.view.held(now_s, self._members())
        self.most |= Counter(self.collector.members)
        self._note_start_ups(now_s)
        events = sum(self.view.latencies.histogram().counts)
        self.view.events_out = events
        self.view.budget = self.decider.slo.look(time.time(), events, self.view.latencies.late())
        state = self.view.state(now_s, time.time(), self.fleet.wanted)
        self.state = replace(
            state,
            paused=self.decider.paused,
            term=self.leadership.term,
            plan_feasible=self.decider.plan_feasible,
            failures=self.loop.failures,
            unreadable=dict(self.context.decoder.counts),
        )

    def _note_start_ups(self, now_s: float) -> None:
        """Note how long members take to join once they are asked for: what Kafka shows of them begins there."""
        assert self.view is not None, "there is a plan"
        for name, members in self.collector.members.items():
            if name not in self.fleet.workers or name not in self.fleet.decided:
                continue  # nobody was asked
            ((hardware, wanted),) = self.fleet.wanted[name].items()
            asked_s = {wanted: now_s} | self._asked_s.get(name, {})
            for count in [count for count in self._asked_s.get(name, {}) if count <= members]:
                self.view.start_ups.started(name, hardware, now_s - asked_s[count])
            self._asked_s[name] = {count: at_s for count, at_s in asked_s.items() if members < count <= wanted}

    def _members(self) -> Sequence[ObservedReplica]:
        """The members of every group, which cost what their hardware costs."""
        hardware = {group.name: group.hardware for group in self.context.pipeline.groups}
        return [
            ObservedReplica(f"{name}-{number}", name, hardware[name], "running", None, 0.0, 0)
            for name, members in self.collector.members.items()
            for number in range(members)
        ]


def _moved(before: Sequence[GroupProfile], now: Sequence[GroupProfile]) -> bool:
    """Whether what was learned is another: a plan made from it is said although its numbers are the same."""
    for old, new in zip(before, now, strict=True):
        if old.partitions != new.partitions:
            return True
        if old.throughput is not None and new.throughput is not None:
            ratio = new.throughput.value / old.throughput.value
            if not 1 - _MOVED <= ratio <= 1 + _MOVED and abs(ratio - 1) > 2 * new.throughput.error:
                return True
    return False


def _reasons(trouble: Mapping[str, str]) -> str:
    """Why nothing can be decided, in words; the same of several groups once."""
    return "; ".join(dict.fromkeys(trouble.values()))


def _words(learned: Sequence[GroupProfile], sample: Trace) -> str:
    """What the plan was made from, in words."""
    known = [
        f"{each.group} {each.throughput.value:.3g}/s a worker (± {each.throughput.error:.0%}, {each.source})"
        for each in learned
        if each.throughput is not None
    ]
    return f"{', '.join(known)}, at {sample.arrival_rate:.3g} events/s"
