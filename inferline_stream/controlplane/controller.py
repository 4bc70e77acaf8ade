"""The control loop: reports and arrivals in, decisions and assignments out.

Everything runs on one event loop. Scaling never waits for a report, nor an assignment for a decision: each
input and each output is a task of its own, and all of them share one `Picture`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.actuators.actuator import Actuator, ObservedReplica
from inferline_stream.controlplane import assigning
from inferline_stream.controlplane.assigning import Assigning, SeenReplica, StageWanted
from inferline_stream.controlplane.leadership import HEARTBEAT_S, Leadership
from inferline_stream.controlplane.liveness import Liveness
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.reports import RECENT_S
from inferline_stream.controlplane.running import Running
from inferline_stream.controlplane.scaling import leaving, replicas_of_plan
from inferline_stream.controlplane.waiting import until
from inferline_stream.dataplane.control import LeadershipLost, OffsetReader, TopicFollower
from inferline_stream.dataplane.protocol import decode_report
from inferline_stream.errors import Unreachable
from inferline_stream.observability.state import DecisionRecord, PipelineState
from inferline_stream.tuner.decision import Action, Decision
from inferline_stream.tuner.observation import Limits, Observation
from inferline_stream.tuner.policy import TunerState

logger = logging.getLogger(__name__)

Policy = Callable[[TunerState, Observation], tuple[TunerState, Decision | None]]

_LAGS_S = 0.25
"""How often committed offsets are read: one small request per stage."""

_TOPICS_EVERY = 5
"""Every so many samples of the source's end offsets, those of all other topics are read with them."""

_STATE_S = 0.5
_REBALANCE_S = 5.0
_ANSWERED_S = 0.5
"""Kafka counts as answering for this long after an answer."""


@dataclass(slots=True)
class Controller:
    """Leads one pipeline.

    Args:
        running: names and settings.
        picture: what is known; filled here, read by whoever shows it.
        actuator: makes replicas.
        leadership: entered; writes assignments.
        policy: the Tuner's step.
        tuner: its state.
        told: called with every decision, at once.
    """

    running: Running
    picture: Picture
    actuator: Actuator
    leadership: Leadership
    policy: Policy
    tuner: TunerState
    told: Callable[[DecisionRecord], None] = lambda record: None
    wanted: dict[tuple[str, str], int] = field(default_factory=dict)
    """Replicas asked of the actuator."""
    failures: int = 0
    """Steps of the loop that raised something unforeseen; each was logged."""
    paused: bool = False
    limits: dict[str, Limits] = field(default_factory=dict)
    stock: dict[str, int] = field(default_factory=dict)
    state: PipelineState | None = None
    """Newest picture for metrics and tables."""
    exits: list[str] = field(default_factory=list)
    """Replicas that ended unexpectedly, in words."""
    _assigning: Assigning = field(init=False)
    _liveness: Liveness = field(init=False)
    _ended: set[str] = field(default_factory=set)
    _draining: set[str] = field(default_factory=set)
    _asked_s: dict[str, float] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _answered_s: float = -1.0
    _samples: int = 0
    _first_ends: dict[str, int] = field(default_factory=dict)
    _rebalanced_s: float = 0.0
    _decides_from_s: float | None = None

    def __post_init__(self) -> None:
        self._assigning = assigning.recovered(
            self.leadership.term, self.leadership.log.assignments, self.picture.partitions
        )
        self._liveness = Liveness(self.running.settings.dead_after_s)

    async def run(self) -> None:
        """Control until cancelled.

        Raises:
            LeadershipLost: another controller leads now.
        """
        settings = self.running.settings
        await self._scale(replicas_of_plan(self.picture.plan.allocations) if not self.wanted else dict(self.wanted))
        async with (
            OffsetReader(self.running.bootstrap_servers) as offsets,
            TopicFollower(
                self.running.bootstrap_servers,
                self.running.names.stage_stats,
                time.time() - RECENT_S,
                committed_only=False,
            ) as reports,
        ):
            topics = {
                **{self.running.topic(stage): n for stage, n in self.picture.partitions.items()},
                self.running.sink: await offsets.partitions(self.running.sink),
                self.running.names.completed: await offsets.partitions(self.running.names.completed),
            }
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._every(settings.arrivals_sample_s, lambda: self._sample(offsets, topics)))
                tasks.create_task(self._every(_LAGS_S, lambda: self._lags(offsets)))
                tasks.create_task(self._every(0.0, lambda: self._hear(reports)))
                tasks.create_task(self._every(0.0, self._mourn))
                tasks.create_task(self._every(0.0, self._assign))
                tasks.create_task(self._every(HEARTBEAT_S, self.leadership.heartbeat))
                tasks.create_task(self._every(settings.tuner_step_s, self._tune))
                tasks.create_task(self._every(_STATE_S, self._look))

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

    async def _sample(self, offsets: OffsetReader, topics: Mapping[str, int]) -> None:
        everything = self._samples % _TOPICS_EVERY == 0
        self._samples += 1
        wanted = topics if everything else {self.running.source: topics[self.running.source]}
        ends = await offsets.ends(wanted)
        now_s = asyncio.get_running_loop().time()
        self._answered_s = now_s
        self.picture.arrivals(now_s, ends[self.running.source])
        if everything:
            for stage, history in self.picture.offsets.items():
                history.reached(now_s, ends[self.running.topic(stage)])
            sink, completed = self.running.sink, self.running.names.completed
            self.picture.counts.events_out = self._since_start(sink, ends[sink])
            self.picture.counts.completed = self._since_start(completed, ends[completed])

    def _since_start(self, topic: str, ends: Sequence[int]) -> int:
        total = sum(ends)
        return total - self._first_ends.setdefault(topic, total)

    async def _lags(self, offsets: OffsetReader) -> None:
        for stage, history in self.picture.offsets.items():
            committed = await offsets.committed(
                self.running.names.group(stage), self.running.topic(stage), self.picture.partitions[stage]
            )
            history.committed(asyncio.get_running_loop().time(), committed)

    async def _hear(self, reports: TopicFollower) -> None:
        for record in await reports.read(1.0):
            if not record.value:
                continue
            report = decode_report(record.value)
            if report.stage not in self.picture.offsets:
                continue
            now_s = asyncio.get_running_loop().time()
            if report.replica not in self._ended:
                self._liveness.heard(report.replica)
            changed = self.picture.reports.add(report, now_s)
            if report.phase in ("gone", "failed"):
                self._end(report.replica)
                if report.phase == "failed":
                    logger.warning("replica %s failed: %s", report.replica, report.reason)
            if report.phase == "ready" and report.replica not in self._reported:
                self._reported.add(report.replica)
                started_s = self._asked_s.get(report.replica)
                start_up_s = report.start_up_s if started_s is None else now_s - started_s
                self.picture.reports.started(report.stage, report.hardware, start_up_s)
            if changed:
                self._wake.set()

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
        if replica not in self._ended:
            self._ended.add(replica)
            self._liveness.forget(replica)
            self.picture.reports.end(replica)
            self._wake.set()

    # -- what goes out -------------------------------------------------------------------------------

    async def _assign(self) -> None:
        """Deal partitions at once when something changed, and look for silent replicas in between."""
        try:
            async with asyncio.timeout(0.1):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        self._liveness.advance(now_s, answered=now_s - self._answered_s < _ANSWERED_S)
        for replica in self._liveness.fell_silent():
            logger.warning("replica %s has been silent for %g s", replica, self.running.settings.dead_after_s)
            self.exits.append(f"{replica}: silent for {self.running.settings.dead_after_s:g} s")
            await self._replace(replica)
        state, deal = assigning.step(
            self._assigning,
            self._seen(),
            self._stages_wanted(now_s),
            ended=frozenset(self._ended),
            silent=frozenset(self._liveness.silent),
            draining=frozenset(self._draining),
        )
        if deal.assignments or deal.forgotten:
            try:
                await self.leadership.write(deal.assignments, deal.forgotten)
            except Unreachable:
                self._wake.set()  # nothing was written: deal again from the same memory
                raise
        self._assigning = state

    def _seen(self) -> dict[str, SeenReplica]:
        return {
            name: SeenReplica(name, r.stage, r.hardware, r.phase, r.sequence, frozenset(r.held))
            for name, told in self.picture.reports.replicas.items()
            if name not in self._ended
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

    async def _tune(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self.paused or not self._begun(now_s):
            return
        seen = self.picture.observation(now_s, self.wanted, self.limits, self.stock)
        self.tuner, decision = self.policy(self.tuner, seen)
        if decision is not None:
            await self._apply(decision)

    def _begun(self, now_s: float) -> bool:
        """Whether there is something to decide on: the first replicas take a while to start, and nobody doubts that."""
        if self._decides_from_s is None:
            self._decides_from_s = now_s + self.running.settings.start_timeout_s
        if now_s < self._decides_from_s:
            seen = {
                told.newest.stage for told in self.picture.reports.replicas.values() if told.newest.phase == "ready"
            }
            if self.picture.growth.newest_s is None or seen < self.picture.offsets.keys():
                return False
            self._decides_from_s = now_s
        return True

    async def _apply(self, decision: Decision) -> None:
        acts = decision.action is not Action.HOLD and not self.running.advisory
        record = DecisionRecord(
            time.time(),
            str(decision.action),
            str(decision.reason),
            decision.detail,
            {stage: sum(kinds.values()) for stage, kinds in decision.replicas.items()},
            applied=acts,
        )
        self.picture.decided(record)
        logger.info("%s (%s): %s", record.action, record.reason, record.detail)
        self.told(record)
        if acts:
            await self._scale({(s, kind): n for s, kinds in decision.replicas.items() for kind, n in kinds.items()})

    async def _scale(self, wanted: Mapping[tuple[str, str], int]) -> None:
        """Ask the actuator for these replicas; it is told only what changed."""
        for key in {**self.wanted, **wanted}:
            count = wanted.get(key, 0)
            if self.wanted.get(key) == count:
                continue
            stage, hardware = key
            own = [r for r in await self.actuator.observe() if (r.stage, r.hardware) == key]
            victims = leaving(own, count, self._partitions_told(), self._draining)
            self._draining |= set(victims)
            await self.actuator.scale(stage, hardware, count, victims)
            self.wanted[key] = count
        self._remember(await self.actuator.observe())
        self._wake.set()

    async def _replace(self, replica: str) -> None:
        """Another process in place of one that is silent: asked of whoever made it, if that was this actuator."""
        for r in await self.actuator.observe():
            if r.replica == replica and r.state != "retiring":
                count = self.wanted.get((r.stage, r.hardware), 1)
                await self.actuator.scale(r.stage, r.hardware, count - 1, (replica,))
                await self.actuator.scale(r.stage, r.hardware, count)

    def _partitions_told(self) -> dict[str, int]:
        return {replica: len(told.assignment.partitions) for replica, told in self._assigning.told.items()}

    def _remember(self, replicas: Sequence[ObservedReplica]) -> None:
        for r in replicas:
            if r.state != "waiting":
                self._asked_s[r.replica] = r.started_s

    async def _look(self) -> None:
        """One consistent picture for metrics and tables."""
        now_s = asyncio.get_running_loop().time()
        replicas = await self.actuator.observe()
        self._remember(replicas)
        self.picture.held(now_s, replicas)
        self.state = self.picture.state(
            now_s,
            time.time(),
            self.wanted,
            envelope=self.picture.traffic.envelope(now_s),
            paused=self.paused,
            term=self.leadership.term,
        )

    async def retire(self, stages: Collection[str], deadline_s: float) -> None:
        """Every replica of these stages releases what it holds and leaves; those still there at the deadline are ended.

        The loop must still be running: it writes the assignments that tell them.
        """
        self.paused = True
        stages_replicas = {name for name, told in self.picture.reports.replicas.items() if told.newest.stage in stages}
        self._draining |= {name for name in stages_replicas if name not in self._ended}
        self._draining |= {r.replica for r in await self.actuator.observe() if r.stage in stages}
        await self._scale({key: 0 if key[0] in stages else count for key, count in self.wanted.items()})

        async def gone() -> bool:
            return not any(r.stage in stages for r in await self.actuator.observe())

        async def forgotten() -> bool:
            told = self._assigning.told.values()
            return not any(t.assignment.stage in stages and t.assignment.replica in self._ended for t in told)

        if not await until(gone, deadline_s, 0.02) and set(stages) >= self.picture.offsets.keys():
            await self.actuator.drain(0.0)
        await until(forgotten, 2.0)  # their records in the compacted topic go with them
