"""Looks at consumer groups that run already: into what is learned of them, and into the `PipelineView`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from inferline_stream.calculus.envelope_state import Times
from inferline_stream.controlplane.observe.group_latencies import GroupLatencies
from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.pool_reports import GroupFigures
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.kafka.offset_metadata import Committed
from inferline_stream.pipeline.consumer_group import ConsumerGroup, FaustApp
from inferline_stream.pipeline.group_look import GroupLook
from inferline_stream.pipeline.group_profile import GroupProfile, Learned
from inferline_stream.pipeline.trace import Trace
from inferline_stream.profiler.group_learner import GroupLearner
from inferline_stream.tuner.group_replan import RECENT_S

_LAGS_S = 0.25
_RATIOS_S = 10.0
"""How often lags and visit ratios go into the view."""

_FEWEST_EVENTS = 100


class Looks(Protocol):
    """Looks at groups; see `kafka.group_watch.GroupWatch`."""

    def looks(self) -> AsyncIterator[Mapping[str, GroupLook]]:
        """Yield looks at every group, by its declared name.

        Raises:
            Unreachable: Kafka does not answer.
        """

    def other_topics(self, group: str) -> frozenset[str]:
        """Return further topics that a group, by its id, has committed offsets of."""


@dataclass(slots=True)
class _Seen:
    """One group: what it has committed, its members, and what came of its topic since a while."""

    committed: dict[int, int] = field(default_factory=dict)
    members: int = 0
    ends: tuple[int, ...] = ()
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=30))

    @property
    def appended(self) -> int:
        """Records of its topic, by the newest end offsets."""
        return sum(self.ends)


@dataclass(slots=True)
class GroupCollector:
    """Takes looks in.

    Args:
        context: the pipeline, of groups.
        metric: returns the throughput that a group's workers report, where they do.
    """

    context: PipelineContext
    metric: Callable[[str], Learned | None] = lambda group: None
    view: PipelineView | None = None
    """Shown to people and to the policy, once there is a plan."""
    learners: dict[str, GroupLearner] = field(init=False)
    latencies: GroupLatencies = field(init=False)
    growth: LogGrowth = field(default_factory=LogGrowth)
    trouble: dict[str, str] = field(default_factory=dict)
    """By group, why nothing can be decided on it, in words; those without are left out."""
    _seen: dict[str, _Seen] = field(init=False)
    _arrivals: deque[Times] = field(default_factory=deque)
    _due_s: float = 0.0
    _marked_s: float = 0.0

    def __post_init__(self) -> None:
        names = [group.name for group in self.context.pipeline.groups]
        self.learners = {name: GroupLearner(name) for name in names}
        self.latencies = GroupLatencies(self.context.pipeline.groups, self.context.pipeline.slo_s)
        self._seen = {name: _Seen() for name in names}

    async def follow(self, watch: Looks) -> None:
        """Take in looks until Kafka goes away.

        Raises:
            Unreachable: it does not answer.
        """
        loop = asyncio.get_running_loop()
        ahead_s = time.time() - loop.time()
        async for looks in watch.looks():
            self.take(looks, ahead_s)
            found = {group.name: self._why(group, watch) for group in self.context.pipeline.groups}
            self.trouble = {name: why for name, why in found.items() if why}

    def take(self, looks: Mapping[str, GroupLook], ahead_s: float) -> None:
        """Take in one look at every group.

        Args:
            looks: by declared name.
            ahead_s: what their clock is ahead of the event loop's.
        """
        entry = self.context.pipeline.groups[self._entry].name
        now_s = looks[entry].at_s - ahead_s
        for name, look in looks.items():
            self.learners[name].take(look)
            seen = self._seen[name]
            seen.ends = look.ends
            for commit in look.commits:
                seen.committed[commit.partition] = commit.offset
            if look.assignments:
                seen.members = len(look.assignments[-1].owners)
        times = self.growth.sample(now_s, looks[entry].ends)
        if times.size:
            self._arrivals.append(times)
            while self._arrivals and self._arrivals[0][-1] < now_s - RECENT_S:  # after an outage, all of them may be
                self._arrivals.popleft()
        if self.view is not None:
            self.view.arrived(times)
        if now_s >= self._due_s:
            self._due_s = now_s + _LAGS_S
            self._show(now_s)

    @property
    def _entry(self) -> int:
        return next(at for at, group in enumerate(self.context.pipeline.groups) if not group.after)

    def show_in(self, view: PipelineView) -> None:
        """Go on in a view, which knows the arrivals so far from now on."""
        view.growth = self.growth
        for learner in self.learners.values():
            learner.fresh_latencies_s()  # what was before is not of this term
        view.arrived(self.arrivals_s())
        self.view = view

    def _show(self, now_s: float) -> None:
        if now_s >= self._marked_s + _RATIOS_S:
            self._marked_s = now_s
            for seen in self._seen.values():
                seen.marks.append((now_s, seen.appended))
        if self.view is None:
            return
        fresh = {name: learner.fresh_latencies_s() for name, learner in self.learners.items()}
        for name, counts in self.latencies.take(now_s, fresh):
            self.view.reports.committed(name, counts)
        for name, seen in self._seen.items():
            history = self.view.offsets[name]
            self.view.grow(name, len(seen.ends))
            history.reached(now_s, seen.ends)
            history.committed(now_s, [Committed(seen.committed.get(p, -1)) for p in range(len(history.ends))])
            before = self.view.reports.groups.get(name)
            trouble = "" if before is None else before.trouble
            self.view.reports.groups[name] = GroupFigures(seen.members, now_s, self._visit_ratio(name), trouble)

    def _visit_ratio(self, name: str) -> float | None:
        """Records of its topic per event that enters, over the last minutes."""
        seen, entry = self._seen[name], self._seen[self.context.pipeline.groups[self._entry].name]
        if not seen.marks or not entry.marks:
            return None
        entered = entry.appended - entry.marks[0][1]
        return (seen.appended - seen.marks[0][1]) / entered if entered >= _FEWEST_EVENTS else None

    def _why(self, group: ConsumerGroup, watch: Looks) -> str:
        """Why nothing can be decided on a group, in words; empty where it can."""
        seen, others = self._seen[group.name], sorted(watch.other_topics(group.group))
        if isinstance(group.workers, FaustApp):  # nobody else starts them, and they report what all agents do
            return ""
        if others:
            return (
                f"group {group.group!r} reads {', '.join(others)} beside {group.topic}: its members are shared by all, "
                "so give each topic a group of its own"
            )
        if not seen.members and not seen.committed:
            return f"group {group.group!r} has no member and has committed nothing of {group.topic}: is that its id?"
        return ""

    @property
    def members(self) -> dict[str, int]:
        """Of each group, now."""
        return {name: seen.members for name, seen in self._seen.items()}

    @property
    def partitions(self) -> dict[str, int]:
        """Of each group's topic, now."""
        return {name: len(seen.ends) for name, seen in self._seen.items()}

    def profiles(self) -> list[GroupProfile]:
        """Return what is learned of every group by now; a figure of a group's workers themselves goes first."""
        entered = self.growth.total
        found = [learner.profile(entered) for learner in self.learners.values()]
        return [profile.reporting(self.metric(profile.group)) for profile in found]

    def arrivals_s(self) -> Times:
        """When events entered within the last hour and a little, on the event loop's clock."""
        return np.concatenate([*self._arrivals, np.empty(0)])

    def sample(self, now_s: float) -> Trace | None:
        """Return the arrivals of the last hour, from their beginning; None before the first."""
        times = self.arrivals_s()
        times = times[times > now_s - RECENT_S]
        return Trace(times - times[0]) if times.size else None
