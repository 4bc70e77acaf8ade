"""The replicas of a pipeline: what is wanted is asked of the actuator, step by step, from what is there now."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.actuators.actuator import Actuator, ObservedReplica, Way
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.rolling import Member, next_change, set_aside
from inferline_stream.controlplane.waiting import until

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
"""How often the actuator is asked what there is, when nothing tells of a change."""


@dataclass(slots=True)
class Fleet:
    """Brings about the replicas wanted.

    Args:
        actuator: makes replicas.
        picture: knows which are ready; told which stand by.
        partitions: how many each replica is to hold.
        wanted: replicas that are to work, by stage and hardware kind.
        standby: replicas that are to stand by, by stage.
    """

    actuator: Actuator
    picture: Picture
    partitions: Callable[[], Mapping[str, int]]
    wanted: dict[tuple[str, str], int]
    standby: Mapping[str, int] = field(default_factory=dict)
    newest_code_s: float = float("-inf")
    """Replicas started before this time run older code. On the event loop's clock."""
    draining: set[str] = field(default_factory=set)
    """Replicas that were asked to leave."""
    started_s: dict[str, float] = field(default_factory=dict)
    """When each replica was asked for, on the event loop's clock."""
    ways: dict[str, Way] = field(default_factory=dict)
    """How each replica came to run, where something tells."""
    pending: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Replicas that were asked for and have no place, by stage and hardware kind."""
    _asked: dict[tuple[str, str], int] = field(default_factory=dict)
    """Replicas that the actuator was asked for last, by stage and hardware kind."""
    _retired: set[str] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def want(self, wanted: Mapping[tuple[str, str], int]) -> None:
        """These replicas from now on; what can be done at once is done when this returns."""
        self.wanted.clear()
        self.wanted.update(wanted)
        await self.reconcile()

    def changed(self) -> None:
        """A replica became ready or ended, or what is wanted has changed."""
        self._wake.set()

    async def step(self) -> None:
        """Wait for a change, or a while, and take the next step."""
        try:
            async with asyncio.timeout(_LOOK_S):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        await self.reconcile()

    async def reconcile(self) -> None:
        """Take the next step of every stage towards what is wanted."""
        async with self._one_at_a_time:
            observed = await self.actuator.observe()
            self._remember(observed)
            for stage in self.picture.shape.stages:
                await self._reconcile(stage, [r for r in observed if r.stage == stage], self._room(observed))

    async def _reconcile(self, stage: str, observed: Sequence[ObservedReplica], room: Mapping[str, int]) -> None:
        own = [r for r in observed if r.state != "retiring" and r.replica not in self.draining]
        wanted = self._of_stage(stage)
        kinds = {*wanted, *(r.hardware for r in own)}
        if any(r.older for r in own):
            await self._ask_for_more(stage, wanted)
            return
        change = next_change(
            wanted,
            [self._member(r) for r in own],
            {kind: self.picture.planned_throughput(stage, kind) for kind in kinds},
            standbys=self.picture.standbys.get(stage, frozenset()),
            room=room,
        )
        self.draining |= set(change.leaving)
        for kind, count in change.counts.items():
            leaving = [r.replica for r in own if r.hardware == kind and r.replica in change.leaving]
            staying = sum(r.hardware == kind for r in own) - len(leaving)
            if leaving:
                await self._ask(stage, kind, staying, leaving)
            if count != staying or (stage, kind) not in self._asked:  # those there may be an earlier controller's
                await self._ask(stage, kind, count)
        if change.leaving or change.counts != {kind: sum(r.hardware == kind for r in own) for kind in change.counts}:
            logger.info("stage %s: %s leave, %s asked for", stage, change.leaving or "none", dict(change.counts))
            self._remember(await self.actuator.observe())

    async def _ask_for_more(self, stage: str, wanted: Mapping[str, int]) -> None:
        """While others replace this stage's replicas, nobody is told to leave: there are more only until they have."""
        for kind, count in wanted.items():
            if count > self._asked.get((stage, kind), 0):
                await self._ask(stage, kind, count)

    async def _ask(self, stage: str, kind: str, count: int, leaving: Collection[str] = ()) -> None:
        await self.actuator.scale(stage, kind, count, leaving)
        self._asked[stage, kind] = count

    def _of_stage(self, stage: str) -> dict[str, int]:
        """Replicas by hardware kind, standbys included: those are of the fastest kind, which can stand in for any."""
        if stage in self._retired:
            return {}
        wanted = {kind: count for (name, kind), count in self.wanted.items() if name == stage and count > 0}
        standby = self.standby.get(stage, 0)
        if standby and wanted:
            fastest = max(wanted, key=lambda kind: self.picture.planned_throughput(stage, kind))
            wanted[fastest] += standby
        return wanted

    def _member(self, r: ObservedReplica) -> Member:
        reports = self.picture.reports
        return Member(
            r.replica,
            r.hardware,
            r.started_s,
            ready=r.state == "running" and reports.is_ready(r.replica),
            fresh=r.state == "waiting" or r.started_s >= self.newest_code_s,
            waiting=r.state == "waiting",
            partitions=self.partitions().get(r.replica, 0),
        )

    def _room(self, observed: Sequence[ObservedReplica]) -> dict[str, int]:
        """What the stock of each kind has left; one that is leaving still takes its place."""
        there = [r.hardware for r in observed if r.state != "waiting"]
        return {
            name: kind.stock - there.count(name)
            for name, kind in self.picture.catalogue.items()
            if kind.stock is not None
        }

    def awaited(self, stage: str) -> bool:
        """Whether replicas of a stage that are wanted are not ready yet."""
        reports = self.picture.reports
        there = [n for n, told in reports.replicas.items() if told.newest.stage == stage and n not in self.draining]
        return sum(map(reports.is_ready, there)) < sum(self._of_stage(stage).values())

    def set_aside(self) -> frozenset[str]:
        """Replicas that stand by now: READY, and without partitions."""
        partitions, aside = self.partitions(), {}
        for stage, standby in self.standby.items():
            ready = [
                Member(name, told.newest.hardware, self.started_s.get(name, 0.0), partitions=partitions.get(name, 0))
                for name, told in self.picture.reports.replicas.items()
                if told.newest.stage == stage and self.picture.reports.is_ready(name) and name not in self.draining
            ]
            active = sum(count for (name, _), count in self.wanted.items() if name == stage)
            aside[stage] = set_aside(ready, active, standby)
        self.picture.standbys = aside
        return frozenset().union(*aside.values())

    async def replace(self, replica: str) -> None:
        """Another one in place of one that is silent: asked of whoever made it, if that was this actuator."""
        async with self._one_at_a_time:
            observed = await self.actuator.observe()
            for r in observed:
                if r.replica == replica and r.state != "retiring":
                    self.draining.add(replica)
                    alike = [o for o in observed if (o.stage, o.hardware) == (r.stage, r.hardware)]
                    count = sum(o.state != "retiring" for o in alike)
                    count = min(count, self._asked.get((r.stage, r.hardware), count))
                    await self._ask(r.stage, r.hardware, count - 1, (replica,))
        self.changed()

    def _remember(self, replicas: Sequence[ObservedReplica]) -> None:
        self.pending = Counter((r.stage, r.hardware) for r in replicas if r.state == "running" and r.pending)
        for r in replicas:
            if r.state != "waiting":
                self.started_s[r.replica] = r.started_s
                self.ways[r.replica] = r.way

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """What there is."""
        replicas = await self.actuator.observe()
        self._remember(replicas)
        return replicas

    async def retire(self, stages: Collection[str], deadline_s: float) -> None:
        """Every replica of these stages leaves; where that is all of them, those still there at the deadline are ended.

        Somebody must go on writing the assignments that tell them.
        """
        self._retired |= set(stages)
        reports = self.picture.reports.replicas
        self.draining |= {name for name, told in reports.items() if told.newest.stage in stages and not told.ended}
        async with self._one_at_a_time:
            observed = [r for r in await self.actuator.observe() if r.stage in stages]
            self.draining |= {r.replica for r in observed if r.state != "retiring"}
            for stage, kind in {(r.stage, r.hardware) for r in observed}:
                await self._ask(stage, kind, 0)

        async def gone() -> bool:
            return not any(r.stage in stages for r in await self.actuator.observe())

        if not await until(gone, deadline_s, 0.02) and self._retired >= set(self.picture.shape.stages):
            await self.actuator.drain(0.0)
