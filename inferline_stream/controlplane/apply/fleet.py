"""The replicas of a pipeline: what is wanted is asked of the actuator, step by step, from what is there now."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.actuators.actuator import Actuator, ObservedReplica, Way
from inferline_stream.controlplane.apply.rolling_update import StageReplica, next_change
from inferline_stream.controlplane.loop_steps import woken
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.replica_counts import copied, stock_of_gpus, within_cores
from inferline_stream.errors import InferlineError, Unreachable
from inferline_stream.pipeline.hardware import share_gpus
from inferline_stream.pipeline.replica_slots import ReplicaSlots
from inferline_stream.tuner.plan_basis import Replicas

logger = logging.getLogger(__name__)

_DRAIN_S = 5.0
"""So long before a replica is taken it takes no further batch, whether another one is there or not."""

_LOOK_S = 0.5
"""How often the actuator is asked what there is, when nothing reports a change."""


@dataclass(slots=True)
class Fleet:
    """Brings about the replicas wanted.

    Args:
        actuator: starts and retires replicas.
        view: knows which are ready.
        wanted: replicas that should work, by stage and hardware kind.
        standby: replicas beyond those, by stage. They are attached to the dispatcher like all others; since it gives
            work to the lowest numbers first, as many are idle.
        cores: most that all replicas that should work may have together. While one replaces another, both have theirs.
        leads: whether this controller is sure to lead; while it is not, nothing is asked of the actuator.
    """

    actuator: Actuator
    view: PipelineView
    wanted: dict[str, dict[str, int]]
    standby: Mapping[str, int] = field(default_factory=dict)
    cores: float = math.inf
    leads: Callable[[], bool] = lambda: True
    newest_code_s: float = float("-inf")
    """Replicas started before this time run older code. On the event loop's clock."""
    started_s: dict[str, float] = field(default_factory=dict)
    """When each replica was asked for, on the event loop's clock."""
    ways: dict[str, Way] = field(default_factory=dict)
    """How each replica came to run, where that is known."""
    pending: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Replicas that were asked for and have no place, by stage and hardware kind."""
    room: dict[str, int] = field(default_factory=dict)
    """Replicas of each hardware kind that there are places for beyond all that exist; kinds left out have no limit."""
    older: frozenset[str] = frozenset()
    """Stages with a replica that runs older code."""
    taken_s: Mapping[str, float] = field(default_factory=dict)
    """When each spot kind or node is taken away of which there is a notice, on the event loop's clock."""
    _asked: dict[tuple[str, str], int] = field(default_factory=dict)
    """Replicas that the actuator was asked for last, by stage and hardware kind."""
    _spare: dict[str, str] = field(default_factory=dict)
    """By stage, a replica to replace because one of its slots has none."""
    _retired: set[str] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def want(self, wanted: Replicas) -> None:
        """These replicas from now on; what can be done at once is done when this returns."""
        fitting = within_cores(wanted, self.wanted, self.view.catalogue, self.cores)
        if fitting != wanted:
            logger.warning("%s replicas would take more than the %.2f cores there are", copied(wanted), self.cores)
        self.wanted.clear()
        self.wanted.update(fitting)
        await self.reconcile()

    def changed(self) -> None:
        """A replica became ready or ended, or what is wanted has changed."""
        self._wake.set()

    async def step(self) -> None:
        """Wait for a change, or a while, and take the next step."""
        await woken(self._wake, _LOOK_S)
        await self.reconcile()

    async def reconcile(self) -> None:
        """Take the next step of every stage towards what is wanted.

        Raises:
            InferlineError: the replicas of a stage are refused. The others have taken theirs.
            Unreachable: what runs them does not answer.
        """
        async with self._one_at_a_time:
            if not self.leads():
                return
            by_stage: defaultdict[str, list[ObservedReplica]] = defaultdict(list)
            for r in await self.observe():
                by_stage[r.stage].append(r)
            freeing = {r.hardware for held in by_stage.values() for r in held if r.state == "retiring"}
            refused: InferlineError | None = None
            for stage in self.view.shape.stages:
                try:
                    await self._reconcile(stage, by_stage[stage], freeing)
                except Unreachable:
                    raise
                except InferlineError as error:  # such as where something else scales that stage, too
                    refused = refused or error
            if refused is not None:
                raise refused

    async def _reconcile(self, stage: str, observed: Sequence[ObservedReplica], freeing: Collection[str]) -> None:
        wanted = self._of_stage(stage)
        present = [r for r in observed if r.state != "retiring"]
        # Those of a kind that is noticed and wanted nevertheless are of after it.
        noticed = self.taken_s.keys() - {kind for kind, count in wanted.items() if count}
        own = [r for r in present if not r.is_noticed(noticed)]
        others = await self._let_go(stage, [r for r in present if r.is_noticed(noticed)], own, wanted)
        kinds = {*wanted, *(r.hardware for r in own)}
        throughputs = {kind: self.view.planned_throughput(stage, kind) for kind in kinds}
        able, slots = self.view.reports.ready_names(stage), self.view.reports.slots(stage)
        self._look_for_spare(stage, [r.replica for r in own], slots)
        change = next_change(
            wanted,
            [self._member(r, r.replica in able, slots.get(r.replica)) for r in own],
            throughputs,
            room=self.room,
            rivals={kind: self._rivals(kind) for kind in kinds},
            freeing=freeing,
        )
        gone = set(change.leaving)
        for kind, count in change.counts.items():
            if kind in self.taken_s and not wanted.get(kind):
                continue
            leaving = [r.replica for r in own if r.hardware == kind and r.replica in gone]
            staying = sum(r.hardware == kind for r in own) - len(leaving)
            if leaving:
                await self._ask(stage, kind, staying + others[kind], leaving)
            if count != staying or (stage, kind) not in self._asked:  # those there may be an earlier controller's
                await self._ask(stage, kind, count + others[kind])
        if change.leaving or change.counts != {kind: sum(r.hardware == kind for r in own) for kind in change.counts}:
            logger.info("stage %s: %s leave, %s asked for", stage, change.leaving or "none", dict(change.counts))
            await self.observe()

    async def _let_go(
        self,
        stage: str,
        noticed: Sequence[ObservedReplica],
        others: Sequence[ObservedReplica],
        wanted: Mapping[str, int],
    ) -> Counter[str]:
        """Drain replicas that will be taken: once others do their work, or shortly before they are taken.

        Returns:
            Those that stay until then, by hardware kind.
        """
        stay = Counter(r.hardware for r in noticed)
        able = self.view.reports.ready_names(stage)
        ready = sum(r.state == "running" and r.replica in able for r in others)
        enough = max(sum(wanted.values()), len(noticed))  # fewer are wanted where there is no place for more
        now_s = asyncio.get_running_loop().time()
        for kind in list(stay):
            left_s = {
                r.replica: min(self.taken_s[of] for of in self.taken_s if r.is_noticed((of,))) - now_s
                for r in noticed
                if r.hardware == kind
            }
            names = [name for name, each_s in left_s.items() if ready >= enough or each_s <= _DRAIN_S]
            if names:
                logger.info("stage %s: %s leave, which will be taken", stage, names)
                stay[kind] -= len(names)
                await self._ask(stage, kind, sum(r.hardware == kind for r in others) + stay[kind], names)
        return stay

    async def _ask(self, stage: str, kind: str, count: int, leaving: Collection[str] = ()) -> None:
        await self.actuator.scale(stage, kind, count, leaving)
        self._asked[stage, kind] = count

    def _of_stage(self, stage: str) -> dict[str, int]:
        """Replicas by hardware kind, standbys included: those are of the fastest kind, which can stand in for any."""
        if stage in self._retired:
            return {}
        wanted = {kind: count for kind, count in self.wanted.get(stage, {}).items() if count > 0}
        standby = self.standby.get(stage, 0)
        if standby and wanted:
            fastest = max(wanted, key=lambda kind: self.view.planned_throughput(stage, kind))
            wanted[fastest] += standby
        elif (left := self.view.stands_by.get(stage)) is not None:  # it sleeps
            wanted[left.hardware] = left.replicas
        return wanted

    def _look_for_spare(self, stage: str, own: Sequence[str], at: Mapping[str, int]) -> None:
        """Where a slot has no replica, and none that starts could fill it, choose one of a fuller slot to replace.

        Args:
            stage: the stage.
            own: its replicas that stay, oldest first.
            at: slot of each that is attached to a dispatcher.
        """
        if self._spare.get(stage) in own:
            return
        self._spare.pop(stage, None)
        slots = min(self.view.plan.slots.get(stage, 1), self.view.partitions[stage])
        now_s = asyncio.get_running_loop().time()
        if slots == 1 or not all(at.get(replica) in range(slots) for replica in own):
            return
        if not self.view.reports.attached(stage, slots, now_s):
            return
        dealt = ReplicaSlots.of_dealt(range(slots), {replica: at[replica] for replica in own})
        if (spare := dealt.to_spare(())) is not None:
            logger.info("stage %s: replica %s is replaced, because a slot has none", stage, spare)
            self._spare[stage] = spare

    def _member(self, r: ObservedReplica, able: bool, slot: int | None) -> StageReplica:
        return StageReplica(
            r.replica,
            r.hardware,
            r.started_s,
            ready=r.state == "running" and able,
            fresh=r.state == "waiting" or (r.started_s >= self.newest_code_s and r.replica != self._spare.get(r.stage)),
            waiting=r.state == "waiting",
            slot=slot,
        )

    def _room(self, observed: Sequence[ObservedReplica]) -> dict[str, int]:
        """What the stock of each kind has left; one that is leaving still takes its place."""
        there = Counter(r.hardware for r in observed if r.state != "waiting")
        stock = {name: kind.stock for name, kind in self.view.catalogue.items() if kind.stock is not None}
        most = stock | stock_of_gpus({"": there}, self.view.catalogue)
        return {name: count - there[name] for name, count in most.items()}

    def _rivals(self, kind: str) -> frozenset[str]:
        """Kinds that take the same places as one, itself included."""
        own = self.view.catalogue[kind]
        if own.gpu_stock is None:
            return frozenset((kind,))
        kinds = (kind for kind in self.view.catalogue.values() if kind.gpu_stock is not None)
        return frozenset(kind.name for kind in kinds if share_gpus(kind.gpu_model, own.gpu_model))

    def crowded(self) -> dict[str, str]:
        """Stages that have a replica in no other place than its own, and its kind: it stops before its successor runs.

        Where a stage has several, the others go on meanwhile.
        """
        held = (
            (stage, kind) for stage, kinds in sorted(self.wanted.items()) for kind in sorted(kinds) if kinds[kind] > 0
        )
        return {stage: kind for stage, kind in held if self.room.get(kind, 1) < 1}

    async def observe(self) -> tuple[ObservedReplica, ...]:
        """Return what there is. What was known of replicas that are gone is forgotten."""
        replicas = await self.actuator.observe()
        there = [r for r in replicas if r.state != "waiting"]
        self.room = self._room(replicas)
        self.pending = Counter((r.stage, r.hardware) for r in replicas if r.state == "running" and r.pending)
        self.started_s = {r.replica: r.started_s for r in there}
        self.ways = {r.replica: r.way for r in there}
        self.older = frozenset(r.stage for r in there if r.started_s < self.newest_code_s)
        return replicas

    async def retire(self, stages: Collection[str]) -> None:
        """Every replica of these stages leaves, once it has finished its batch."""
        self._retired |= set(stages)
        await self.reconcile()

    async def gone(self, stages: Collection[str]) -> bool:
        """Whether no replica of these stages is left."""
        return not any(r.stage in stages for r in await self.actuator.observe())
