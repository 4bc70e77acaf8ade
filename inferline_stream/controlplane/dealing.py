"""Deals partitions: at once when a replica came, went or released one, and every 0.1 s to see who has fallen silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from inferline_stream.controlplane import assigning
from inferline_stream.controlplane.assigning import Assigning, SeenReplica, StageWanted
from inferline_stream.controlplane.fleet import Fleet
from inferline_stream.controlplane.leadership import Leadership
from inferline_stream.controlplane.liveness import Liveness
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.reports import RECENT_S
from inferline_stream.controlplane.running import Running
from inferline_stream.dataplane.control import fence
from inferline_stream.errors import Unreachable

logger = logging.getLogger(__name__)

_REBALANCE_S = 5.0

TOGETHER_S = 0.1
"""Longest that a new replica waits for others that are to be ready about now, so that a partition moves once, to where
it stays, and not on with each of them."""

TELL_AGAIN_S = 10.0
"""How often it is told that Kafka still does not answer, or does not let a dead replica be fenced."""


@dataclass(slots=True)
class Dealing:
    """Who holds which partition; writes the leader's assignments.

    Args:
        running: names and settings.
        picture: replicas' reports and partitions' rates.
        leadership: writes.
        silent: called with a replica that has fallen silent, once.
    """

    running: Running
    picture: Picture
    leadership: Leadership
    silent: Callable[[str], Awaitable[None]]
    ended: set[str] = field(default_factory=set)
    """Replicas that are gone."""
    liveness: Liveness = field(init=False)
    _assigning: Assigning = field(init=False)
    _fencing: set[str] = field(default_factory=set)
    _fenced: set[str] = field(default_factory=set)
    _to_fence: asyncio.Event = field(default_factory=asyncio.Event)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _ready_s: dict[str, float] = field(default_factory=dict)
    _rebalanced_s: float = 0.0
    _renewals: int = 0

    def __post_init__(self) -> None:
        self.liveness = Liveness(self.running.settings.dead_after_s)
        self._recover()

    def _recover(self) -> None:
        """What was told last is what the log says."""
        self._assigning = assigning.recovered(
            self.leadership.term, self.leadership.log.assignments, self.picture.partitions
        )
        # Their last reports may be too old to be read, and nobody would wait for the dead to let go.
        may_hold = {replica for replica, told in self._assigning.told.items() if told.may_hold}
        self.liveness.expect(may_hold - self.ended)

    def changed(self) -> None:
        """Deal at once."""
        self._wake.set()

    def end(self, replica: str) -> None:
        """This replica is gone: its partitions go to the living."""
        self.ended.add(replica)
        self._ready_s.pop(replica, None)
        self.liveness.forget(replica)
        self._wake.set()

    def partitions(self) -> dict[str, int]:
        """How many partitions each replica is to hold."""
        return {replica: len(told.assignment.partitions) for replica, told in self._assigning.told.items()}

    async def step(self, fleet: Fleet, answered_s: float) -> None:
        """Wait for a change, or a moment, and deal.

        Args:
            fleet: knows who is to leave and who stands by.
            answered_s: when Kafka last answered, on the event loop's clock.
        """
        quiet = False
        try:
            async with asyncio.timeout(0.1):
                await self._wake.wait()
        except TimeoutError:
            quiet = True
        self._wake.clear()
        now_s = asyncio.get_running_loop().time()
        self.liveness.advance(now_s, answered=now_s - answered_s < _ANSWERED_S)
        for replica in self.liveness.fell_silent():
            await self.silent(replica)
        if self.leadership.renewals != self._renewals:
            self._renewals = self.leadership.renewals
            self._recover()
        self._bury()
        unfenced = self._unfenced()
        if unfenced - self._fencing:
            self._to_fence.set()
        ended, silent = frozenset(self.ended - unfenced), frozenset(self.liveness.silent - unfenced)
        early = self._early(fleet, now_s)
        state, deal = assigning.step(
            self._assigning,
            self._seen(unfenced),
            self._stages_wanted(now_s),
            ended=ended,
            silent=silent,
            draining=frozenset(fleet.draining),
            aside=fleet.set_aside() | early,
            patient=not quiet,
        )
        if deal.assignments or deal.forgotten:
            try:
                await self.leadership.write(deal.assignments, deal.forgotten)
            except Unreachable:
                self._wake.set()  # nothing was written: deal again from the same memory
                raise
        self._assigning = state

    def _early(self, fleet: Fleet, now_s: float) -> frozenset[str]:
        """New replicas that wait for others, where all of their stage's partitions are worked on meanwhile."""
        early, dealt = set(), self.partitions()
        for name, told in self.picture.reports.replicas.items():
            stage = told.newest.stage
            if told.newest.phase != "ready" or name in self.ended or dealt.get(name):
                continue
            if name not in self._ready_s:
                self._ready_s[name] = now_s
                asyncio.get_running_loop().call_later(TOGETHER_S, self._wake.set)
            if now_s < self._ready_s[name] + TOGETHER_S and self._worked_on(stage) and fleet.awaited(stage):
                early.add(name)
        return frozenset(early)

    def _worked_on(self, stage: str) -> bool:
        """Whether every partition of a stage has an owner that lives."""
        owners = self._assigning.owners.get(stage, {})
        dead = self.ended.union(self.liveness.silent)
        return len(owners) == self.picture.partitions[stage] and dead.isdisjoint(owners.values())

    def _bury(self) -> None:
        """A replica that was told something and has no record left ended in an earlier term: reports outlive it."""
        for name, told in self.picture.reports.replicas.items():
            if told.newest.sequence and name not in self._assigning.told and name not in self.ended:
                logger.info("replica %s ended before this controller led", name)
                self.end(name)
                self.picture.reports.end(name)

    def _unfenced(self) -> set[str]:
        """In exactly-once mode a dead replica's last transaction must have ended before another goes on from there.

        Until then, it may hold what it held, but nobody waits for anything else because of it.
        """
        if self.running.delivery != "exactly_once":
            return set()
        return ((self.ended | self.liveness.silent) & self._assigning.told.keys()) - self._fenced

    async def fence(self) -> None:
        """Fence the dead for ever, each on its own: a transaction that does not end holds up nobody else's."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._to_fence.wait()
                self._to_fence.clear()
                for replica in self._unfenced() - self._fencing:
                    self._fencing.add(replica)
                    tasks.create_task(self._fence(replica))

    async def _fence(self, replica: str) -> None:
        transactional_id, quiet_s = self.running.names.transactional_id(replica), 0.0
        began_s = asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    await fence(self.running.bootstrap_servers, transactional_id)
                    break
                except Unreachable as error:
                    waited_s = asyncio.get_running_loop().time() - began_s
                    if waited_s >= quiet_s:
                        logger.warning(
                            "replica %s is dead and not fenced yet, after %.0f s: %s", replica, waited_s, error
                        )
                        quiet_s = waited_s + TELL_AGAIN_S
                await asyncio.sleep(0.1)
            self._fenced.add(replica)
        finally:
            self._fencing.discard(replica)
        self._wake.set()

    def _seen(self, unfenced: Collection[str]) -> dict[str, SeenReplica]:
        return {
            name: SeenReplica(
                name,
                r.stage,
                r.hardware,
                r.phase,
                r.sequence,
                frozenset(r.held),
                frozenset(p for p, offset in r.held.items() if offset >= 0),
            )
            for name, told in self.picture.reports.replicas.items()
            if name not in self.ended and name not in unfenced
            for r in (told.newest,)
        }

    def _stages_wanted(self, now_s: float) -> dict[str, StageWanted]:
        picture = self.picture
        rebalance = now_s - self._rebalanced_s > _REBALANCE_S
        if rebalance:
            self._rebalanced_s = now_s
        kinds = {stage: {a.hardware for a in picture.plan.allocations[stage]} for stage in picture.offsets}
        for told in picture.reports.replicas.values():
            kinds[told.newest.stage].add(told.newest.hardware)
        return {
            stage: StageWanted(
                history.rates(now_s, RECENT_S),
                {kind: picture.planned_throughput(stage, kind) for kind in kinds[stage]},
                {kind: picture.batch_limit(stage, kind) for kind in kinds[stage]},
                rebalance=rebalance,
            )
            for stage, history in picture.offsets.items()
        }

    async def forgotten(self, stages: Collection[str]) -> bool:
        """Whether nobody of these stages that is gone has a record left in the compacted topic."""
        told = self._assigning.told.values()
        return not any(t.assignment.stage in stages and t.assignment.replica in self.ended for t in told)

    def stuck(self) -> str:
        """Partitions with lag and who is to work on them, in words."""
        now_s, found = asyncio.get_running_loop().time(), []
        for stage, history in self.picture.offsets.items():
            for partition, lag in enumerate(history.lags()):
                if not lag:
                    continue
                owner = self._assigning.owners.get(stage, {}).get(partition, "nobody")
                told, heard = self._assigning.told.get(owner), self.picture.reports.replicas.get(owner)
                granted = told is not None and partition in told.assignment.partitions
                where = f"{self.running.topic(stage)}/{partition} lags {lag}, owner {owner}"
                where += "" if granted else ", not granted yet"
                if heard is not None:
                    report = heard.newest
                    where += f" ({report.phase}, applied {report.sequence}, at {report.held.get(partition, 'none')}"
                    where += (
                        f", heard {now_s - heard.heard_s:.1f} s ago{', ' + report.reason if report.reason else ''})"
                    )
                found.append(where)
        return "; ".join(found)


_ANSWERED_S = 0.5
"""Kafka counts as answering for this long after an answer."""
