"""What dispatchers reported, summed: totals since the start, and how each stage did over the last seconds."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import zip_longest

from inferline_stream.controlplane.observe.live_profile import expected_service_s, slowdowns
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.observability.latency_histogram import LatencyHistogram, latency_bounds_s
from inferline_stream.observability.pipeline_state import IsolationState, NodeState, StageState
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.deadline_order import Stay
from inferline_stream.pipeline.fallback import FEWEST_DEGRADED, Served, padded
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Scope, Shape
from inferline_stream.tuner.observation import RECENT_S

_FEWEST_EVENTS = 100
"""A visit ratio from fewer events would be noise."""

_FEWEST_BATCHES = 10
"""A service time from fewer batches would be noise."""

_LATE_S = 30.0
"""A dispatcher's last report may be read so long after its exit."""

_REATTACH_S = 2.0
"""So long after a dispatcher began to serve, replicas that were ready before it count as ready though it does not say
so yet: their models are loaded, and they are about to be attached to it."""

_MOVED_S = 5.0
"""So long after a dispatcher began to serve, replicas that went to others while none served its slot have come back."""


@dataclass(slots=True)
class DispatcherReports:
    """The reports of one incarnation of a dispatcher."""

    newest: PoolReport
    heard_s: float
    """When the newest was read, on the controller's clock."""
    serving_s: float | None = None
    """When it first reported that it serves."""
    recent: deque[tuple[float, PoolReport]] = field(default_factory=deque)
    ended: bool = False
    silent: bool = False
    """Whether it has been silent for so long that it counts as dead, until it is heard again. Where its host is gone,
    nothing else shows its end."""

    @property
    def living(self) -> bool:
        """Whether what it last said still counts."""
        return not (self.ended or self.silent)

    def between(self, since_s: float) -> tuple[float, PoolReport, PoolReport] | None:
        """Seconds between, the oldest report kept that is not older than ``since_s``, and the newest; None without."""
        first = next(((at, report) for at, report in self.recent if at >= since_s), None)
        return None if first is None or not self.living else (self.recent[-1][0] - first[0], first[1], self.newest)


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """What is seen of a consumer group that runs already.

    Args:
        members: now.
        seen_s: when that was looked at last, on the event loop's clock.
        visit_ratio: recent visits per event; None where too few events were seen.
        trouble: why its number of members is left alone, in words; empty where it is not.
    """

    members: int
    seen_s: float
    visit_ratio: float | None = None
    trouble: str = ""


class PoolReports:
    """Reports of every dispatcher of a pipeline.

    Counters in a report grow from the start of its dispatcher's process, so a lost or repeated report does no harm; an
    older one that comes late is recognised by its number. What has ended is kept as sums alone.
    """

    def __init__(self, shape: Shape, measured: PipelineProfile) -> None:
        self._shape = shape
        self.measured = measured
        """Profiles that measured times are compared with."""
        self._reported: defaultdict[str, dict[str, DispatcherReports]] = defaultdict(dict)
        """By stage and dispatcher."""
        self._recents: tuple[float, dict[str, StageCounts]] = 0.0, {}
        """What stages have counted lately, and at which time that was asked: a step of the loop asks several times."""
        self._past: dict[str, StageCounts] = {stage: StageCounts() for stage in shape.stages}
        """Sums of ended incarnations, by stage."""
        self._past_background: dict[tuple[str, str], StageCounts] = {}
        """The same of background events, by stage and class."""
        self._past_latencies: dict[tuple[str, str], list[int]] = {}
        """Events by bucket, by stage and live class."""
        self._earlier: dict[tuple[str, int], int] = {}
        """Results that a dispatcher had reported before anyone looked here, by its name and incarnation."""
        self._heard_past_s: dict[str, float] = {}
        self._served: dict[str, dict[int, Served]] = {}
        """What slots of stages with a fallback have served in the last hour, by stage and slot."""
        self.groups: dict[str, GroupFigures] = {}
        """Of stages that are consumer groups which run already: nobody reports of those."""
        self._pools: defaultdict[str, dict[int, dict[str, ReplicaStatus]]] = defaultdict(dict)
        """Replicas by stage, slot and name, as the slot's last serving dispatcher reported them."""

    # -- what comes in -------------------------------------------------------------------------------

    def add(self, report: PoolReport, heard_s: float) -> bool:
        """Take one report in; return whether it is newer than those before."""
        known = self._reported[report.stage].get(report.dispatcher)
        if known is not None and (report.incarnation, report.report) <= (known.newest.incarnation, known.newest.report):
            return False
        if known is not None and report.incarnation > known.newest.incarnation:
            self._fold(known)
            known = None
        if known is None:
            self._reported[report.stage][report.dispatcher] = known = DispatcherReports(report, heard_s)
            self._forget_late(heard_s)
        self._recents[1].pop(report.stage, None)
        known.newest, known.heard_s, known.silent = report, heard_s, False
        known.recent.append((heard_s, report))
        while known.recent[0][0] < heard_s - RECENT_S:
            known.recent.popleft()
        if report.served:
            self._served.setdefault(report.stage, {})[report.slot] = report.served
        known.ended = known.ended or report.phase in ("gone", "failed")
        if report.phase in ("serving", "draining"):
            if known.serving_s is None:
                known.serving_s = heard_s
            self._listed(report, young=heard_s - known.serving_s < _REATTACH_S)
        return True

    def had_before(self, report: PoolReport) -> None:
        """Take note that what a report counts came before anyone looked here."""
        self._earlier[report.dispatcher, report.incarnation] = sum(report.counts.latency_buckets)

    @property
    def earlier_results(self) -> int:
        """Results of live events, among those in the totals, that came before anyone looked here."""
        return sum(self._earlier.values())

    def _listed(self, report: PoolReport, *, young: bool) -> None:
        """Take in the replicas that a serving dispatcher lists."""
        pools, now = self._pools[report.stage], {replica.replica: replica for replica in report.replicas}
        before = pools.get(report.slot, {})
        for others in pools.values():
            for name in now.keys() & others.keys() if others is not before else ():
                before = {**before, name: others.pop(name)}
        if young:
            for name, was in before.items():
                if was.phase == "ready" and (name not in now or now[name].phase == "starting"):
                    now[name] = was
        pools[report.slot] = now

    def committed(self, group: str, counts: StageCounts) -> None:
        """A consumer group has committed events that took so long from end to end, as far as can be estimated."""
        self._past[group].add(counts)

    def end(self, dispatcher: str) -> None:
        """Its process is gone: its totals stay, its recent figures go."""
        if (known := self._found(dispatcher)) is not None:
            known.ended = True
            self._forget_recent(known)

    def fell_silent(self, dispatcher: str) -> None:
        """It counts as dead, and its totals alone count, until it is heard again."""
        if (known := self._found(dispatcher)) is not None:
            known.silent = True
            self._forget_recent(known)

    def _forget_recent(self, known: DispatcherReports) -> None:
        known.recent.clear()
        self._recents[1].pop(known.newest.stage, None)

    def lose(self, dispatcher: str) -> None:
        """It is gone, and nothing else shows whether its replicas live."""
        if (known := self._found(dispatcher)) is not None:
            self.end(dispatcher)
            self._pools[known.newest.stage].pop(known.newest.slot, None)

    def replica_ended(self, replica: str) -> None:
        """A replica's process is gone."""
        for pools in self._pools.values():
            for pool in pools.values():
                pool.pop(replica, None)

    def _fold(self, known: DispatcherReports) -> None:
        """Keep of one that is no longer reported its sums alone."""
        stage = known.newest.stage
        del self._reported[stage][known.newest.dispatcher]
        self._past.setdefault(stage, StageCounts()).add(known.newest.counts)
        for of, counts in known.newest.background.items():
            self._past_background.setdefault((stage, of), StageCounts()).add(counts)
        for of, buckets in known.newest.latencies.items():
            before = self._past_latencies.get((stage, of), ())
            self._past_latencies[stage, of] = [a + b for a, b in zip_longest(before, buckets, fillvalue=0)]
        self._heard_past_s[stage] = max(known.heard_s, self._heard_past_s.get(stage, known.heard_s))

    def _forget_late(self, now_s: float) -> None:
        """Keep of dispatchers that ended long ago their sums alone."""
        for known in [known for held in self._reported.values() for known in held.values()]:
            if known.ended and known.heard_s < now_s - _LATE_S:
                self._fold(known)

    # -- replicas and dispatchers --------------------------------------------------------------------

    def newest(self, dispatcher: str) -> PoolReport | None:
        """The newest report of a dispatcher."""
        known = self._found(dispatcher)
        return None if known is None else known.newest

    def _found(self, dispatcher: str) -> DispatcherReports | None:
        return next((held[dispatcher] for held in self._reported.values() if dispatcher in held), None)

    def living(self) -> dict[str, float]:
        """When each dispatcher that neither has ended nor counts as dead was last heard."""
        every = (known for held in self._reported.values() for known in held.items())
        return {name: known.heard_s for name, known in every if known.living}

    def replicas(self, stage: str) -> Iterator[ReplicaStatus]:
        """Replicas of a stage, as last reported."""
        for pool in self._pools[stage].values():
            yield from pool.values()

    def slots(self, stage: str) -> dict[str, int]:
        """Slot of each replica of a stage, as last reported."""
        return {name: slot for slot, pool in self._pools[stage].items() for name in pool}

    def join_overdue(self, stage: str) -> bool:
        """Whether parts have waited in a join for so long that it would give them up."""
        return any(known.newest.join_overdue and known.living for known in self._of(stage))

    def join_waits(self, stage: str) -> bool:
        """Whether parts may wait in a join: some are known to, or a partition is halted, or nothing was reported."""
        known = [each.newest for each in self._of(stage) if each.living]
        return not known or any(report.join_events or report.halted for report in known)

    def attached(self, stage: str, slots: int, now_s: float) -> bool:
        """Whether a dispatcher of each of so many slots has served for so long that its replicas are attached to it."""
        serve = {
            known.newest.slot
            for known in self._of(stage)
            if known.newest.phase == "serving" and known.living
            if known.serving_s is not None and now_s - known.serving_s >= _MOVED_S
        }
        return serve.issuperset(range(slots))

    def names(self) -> Set[str]:
        """Replicas of all stages, as last reported."""
        return {name for pools in self._pools.values() for pool in pools.values() for name in pool}

    def ready_names(self, stage: str) -> Set[str]:
        """Replicas of a stage that work, or could at once."""
        return {r.replica for r in self.replicas(stage) if r.phase == "ready"}

    def ready(self, stage: str, hardware: str) -> int:
        """Ready replicas of a stage on a hardware kind; one in quarantine does not serve other events."""
        if stage in self.groups:
            return self.groups[stage].members
        return sum(r.hardware == hardware and r.phase == "ready" and not r.quarantined for r in self.replicas(stage))

    def ready_stages(self) -> Set[str]:
        """Stages with a ready replica."""
        ready = {stage for stage in self._shape.stages if any(r.phase == "ready" for r in self.replicas(stage))}
        return ready | self.groups.keys()

    def isolation(self, stage: str) -> IsolationState | None:
        """What restricts the ready replicas of a stage; None if there is none."""
        held = [r.isolation for r in self.replicas(stage) if r.phase == "ready" and r.isolation is not None]
        if not held:
            return None
        ports = [own.ports for own in held if own.ports is not None]
        calls = [own.system_calls for own in held if own.system_calls is not None]
        return IsolationState(
            level=held[0].level,
            replicas=len(held),
            sealed=sum(own.sealed for own in held),
            landlock=min(own.landlock for own in held),
            ports=tuple(sorted({port for each in ports for port in each})) if len(ports) == len(held) else None,
            system_calls=max(calls) if len(calls) == len(held) else None,
            limits={
                name: max(own.limits[name] for own in held)
                for name in held[0].limits
                if all(name in own.limits for own in held)
            },
            missing=tuple(sorted({lack for own in held for lack in own.missing})),
        )

    def served(self, stage: str, slots: int) -> list[Served] | None:
        """What each of so many slots of a stage has served in the last hour; None where none has reported it.

        Where there were others before, each of them gets an equal part of all.
        """
        known = self._served.get(stage)
        if not known:
            return None
        if known.keys() == set(range(slots)):
            return [known[slot] for slot in range(slots)]
        bins = zip(*(padded(served) for served in known.values()), strict=True)
        part = [(sum(n for n, _ in each) // slots, sum(n for _, n in each) // slots) for each in bins]
        self._served[stage] = dict.fromkeys(range(slots), part)
        return [part] * slots

    # -- figures -------------------------------------------------------------------------------------

    def _of(self, stage: str) -> Collection[DispatcherReports]:
        return self._reported[stage].values()

    def total(self, stage: str) -> StageCounts:
        """A stage's counters since the start of the run."""
        found = StageCounts().add(self._past[stage])
        for known in self._of(stage):
            found.add(known.newest.counts)
        return found

    def background(self, stage: str, of: str) -> StageCounts:
        """What was counted of a class of background events in a stage, since the start of the run."""
        found = StageCounts().add(self._past_background.get((stage, of), StageCounts()))
        for known in self._of(stage):
            found.add(known.newest.background.get(of, StageCounts()))
        return found

    def latencies(self, stage: str, of: str) -> list[int]:
        """Events of a live class by bucket of their latency, since the start of the run."""
        every = [self._past_latencies.get((stage, of), []), *(k.newest.latencies.get(of, []) for k in self._of(stage))]
        return list(map(sum, zip_longest(*every, fillvalue=0)))

    def background_enough(self, stage: str) -> bool:
        """Whether a dispatcher of a stage has background events enough waiting."""
        return any(known.newest.background_enough for known in self._of(stage) if known.living)

    def totals(self, before: Mapping[str, StageCounts] | None = None) -> dict[str, StageCounts]:
        """Every stage's counters since the start of the run, or since the totals of before."""
        known = before or {}
        return {stage: self.total(stage).add(known.get(stage, StageCounts()), -1) for stage in self._shape.stages}

    def _recent(self, stage: str, now_s: float) -> StageCounts:
        if self._recents[0] != now_s:
            self._recents = now_s, {}
        if (found := self._recents[1].get(stage)) is None:
            self._recents[1][stage] = found = StageCounts()
            for known in self._of(stage):
                if (pair := known.between(now_s - RECENT_S)) is not None:
                    found.add(pair[2].counts).add(pair[1].counts, -1)
        return found

    def stage(self, name: str, now_s: float, waited_s: Callable[[str, str], float] = lambda *_: 0.0) -> StageState:
        """What reports say of one stage now.

        Args:
            name: the stage.
            now_s: now.
            waited_s: of a stage and a hardware kind, how long its replicas waited for a core lately.
        """
        if (group := self.groups.get(name)) is not None:
            return StageState(name, trouble=group.trouble, heard_s=group.seen_s)
        known = self._of(name)
        living = [k.newest for k in known if k.living]
        recent = self._recent(name, now_s)
        slowed = slowdowns(self.measured, {name: recent}, _FEWEST_BATCHES, waited_s)
        pairs = [pair for k in known if (pair := k.between(now_s - RECENT_S)) is not None and pair[0] > 0]
        loads = [(last.counts.cpu_s - first.counts.cpu_s) / seconds for seconds, first, last in pairs]
        records = sum((last.counts.records - first.counts.records) / seconds for seconds, first, last in pairs)
        heard = [k.heard_s for k in known if k.living] or [max(k.heard_s for k in known)] if known else []
        batches = recent.batches
        return StageState(
            name,
            arrival_rate=records,
            wait_s=recent.wait_s / recent.events if recent.events else None,
            service_time_s=recent.service_s / batches if batches else None,
            predicted_service_s=self._predicted_s(name, recent),
            slowdown={kind: factor for (_, kind), factor in slowed.items()},
            mean_batch_size=recent.called / batches if batches else None,
            degraded_share=_degraded_share(recent),
            utilization=recent.busy_s / recent.replica_s if recent.replica_s > 0 else None,
            dispatcher_utilization=max(loads, default=None),
            clock_lead_s=max((r.clock_lead_s for r in living), default=0.0),
            clock_lag_s=max((r.clock_lag_s for r in living), default=0.0),
            queued=sum(r.queued for r in living),
            hopeless=sum(sum(r.hopeless.values()) for r in living),
            oldest_wait_s=max((r.oldest_wait_s for r in living), default=0.0),
            suspects=sum(r.suspects for r in living),
            quarantined=sum(r.quarantined for r in self.replicas(name)),
            join_events=sum(r.join_events for r in living),
            join_bytes=sum(r.join_bytes for r in living),
            halted={partition: why for r in living for partition, why in r.halted.items()},
            trouble="; ".join(sorted({r.reason for r in living if r.reason})),
            many=self._shape.stages.index(name) in self._shape.many,
            nodes=self._nodes(name, living),
            heard_s=min(heard, default=self._heard_past_s.get(name)),
        )

    def _nodes(self, stage: str, living: Sequence[PoolReport]) -> dict[str, NodeState]:
        dispatchers = Counter(report.node for report in living if report.node and report.phase == "serving")
        replicas = Counter(r.node for r in self.replicas(stage) if r.node and r.phase == "ready")
        return {node: NodeState(dispatchers[node], replicas[node]) for node in sorted({*dispatchers, *replicas})}

    def late_by_partition(self, stage: str) -> tuple[set[int], Counter[int]]:
        """Partitions held by a waiting event that can no longer be on time; such events that are no backlog yet."""
        held, hidden = set[int](), Counter[int]()
        for known in self._of(stage):
            if known.living:
                held.update(known.newest.waited_for)
                hidden.update(known.newest.hidden)
        return held, hidden

    def stays_s(self, now_s: float) -> dict[str, float | None]:
        """How long events that can be on time lately stayed at each stage, as far as that is known."""
        return {stage: self.stay_s(stage, now_s) for stage in self._shape.stages}

    def stay_s(self, stage: str, now_s: float) -> float | None:
        """The same of one stage."""
        stay = Stay()
        for known in self._of(stage):
            if known.newest.stay is not None and known.living:
                sum_s, events, last_s = known.newest.stay
                stay = stay.merged(Stay(sum_s, events, known.heard_s + last_s))
        return stay.at(now_s) if stay.events > 0 else None

    def _predicted_s(self, stage: str, recent: StageCounts) -> float | None:
        expected_s = 0.0
        for hardware, sizes in recent.batch_stats.items():
            profile = self.measured.profiles.get((stage, hardware))
            if profile is None:
                return None
            expected_s += expected_service_s(profile, sizes)
        return expected_s / recent.batches if recent.batches >= _FEWEST_BATCHES else None

    def visit_ratios(self, now_s: float, entered: Mapping[str, float] | None = None) -> dict[str, float | None]:
        """Recent visits per event to each stage, along the branches taken; None where too few events were seen.

        Args:
            now_s: now.
            entered: by entry stage, the share of the events that entered there lately; by default all did.

        A join gets every event that reaches any of its parents or is skipped on the way, so its own
        share of served events is its ratio; any other stage is visited by the share of its parent's
        results that took the edge. Results that are gathered are one event again, as they were before they were many.
        """
        if self.groups:
            return {name: group.visit_ratio for name, group in self.groups.items()}
        scopes = self._shape.scopes()
        recent = {name: self._recent(name, now_s) for name in self._shape.stages}
        ratios: dict[str, float | None] = {}
        for position, name in enumerate(self._shape.stages):
            arrows = self._shape.parents(position)
            if not arrows:
                ratios[name] = 1.0 if entered is None else entered.get(name)
            elif self._shape.gathers(position):
                ratios[name] = ratios[self._shape.stages[self._shape.gathered_by(position)]]
            elif len(arrows) > 1:
                left, own = recent[name].events, recent[name]
                each = self._results(scopes[position], ratios, recent)
                if entered is not None and not scopes[position]:
                    each = self._reaching(position, entered) if entered else None
                known = each is not None and left >= _FEWEST_EVENTS
                ratios[name] = min(1.0, own.served / left) * (each or 0.0) if known else None
            else:
                parent = self._shape.stages[self._shape.arrows[arrows[0]].parent]
                left, above = recent[parent].served, ratios[parent]
                took = recent[parent].edges_taken.get(name, 0)
                ratios[name] = above * took / left if above is not None and left >= _FEWEST_EVENTS else None
        return ratios

    def _reaching(self, position: int, entered: Mapping[str, float]) -> float:
        """Return the share of the events whose source leads to a stage."""
        shape = self._shape
        leads = (each[0] for source, each in enumerate(shape.sources) if position in shape.reached(source))
        return sum(entered[shape.stages[entry]] for entry in leads)

    def _results(
        self, scope: Scope, ratios: Mapping[str, float | None], recent: Mapping[str, StageCounts]
    ) -> float | None:
        """Return how many events of a scope an event of the source becomes; None where too few were seen."""
        if not scope:
            return 1.0
        many = self._shape.stages[scope[-1]]
        above, served = ratios[many], recent[many].served
        return above * recent[many].results / served if above is not None and served >= _FEWEST_EVENTS else None


def _degraded_share(recent: StageCounts) -> float:
    return recent.degraded / recent.served if recent.degraded >= FEWEST_DEGRADED else 0.0


@dataclass(slots=True)
class Latencies:
    """End-to-end latencies of records in sinks, as stages reported: since the start, recent, and late by the SLO then.

    Args:
        reports: of its dispatchers.
        finals: the stages that report them.
        declared_slo_s: dispatchers count latencies by the SLO that the topology declares.
        slo_s: in force.
        of: the live class, by topic; without one, those of all, each less what its class's SLO is longer.
    """

    reports: PoolReports
    finals: tuple[str, ...]
    declared_slo_s: float
    slo_s: float
    of: str = ""
    _late_before: int = 0
    """Events that were late by the SLO of their time, before the SLO in force; and what is above its SLO of them."""
    _above_before: int = 0
    _looks: deque[tuple[float, tuple[int, ...]]] = field(default_factory=deque)

    def histogram(self) -> LatencyHistogram:
        """Since the start, with the SLO in force among the bounds."""
        bounds, totals = latency_bounds_s(self.declared_slo_s), [self.reports.total(each) for each in self.finals]
        of_finals = [self.reports.latencies(each, self.of) for each in self.finals] if self.of else None
        buckets = of_finals or [total.latency_buckets for total in totals]
        counts = [sum(found) for found in zip_longest(*buckets, [0] * (len(bounds) + 1), fillvalue=0)]
        sum_s = 0.0 if self.of else sum(total.latency_sum_s for total in totals)
        return LatencyHistogram(bounds, tuple(counts[: len(bounds) + 1]), sum_s).with_bound(self.slo_s)

    def late(self) -> int:
        """Events since the start that were late by the SLO of their time."""
        return self._late_before + self._above() - self._above_before

    def judge_by(self, slo_s: float) -> None:
        """This SLO is in force from now on."""
        late, self.slo_s = self.late(), slo_s
        self._late_before, self._above_before = late, self._above()
        self._looks.clear()  # counted by other bounds

    def recent(self, now_s: float) -> LatencyHistogram:
        """Of about the last `RECENT_S`, given a look now and then; its sum is not known."""
        latency = self.histogram()
        self._looks.append((now_s, latency.counts))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - RECENT_S:
            self._looks.popleft()
        before = self._looks[0][1] if len(self._looks) > 1 else (0,) * len(latency.counts)
        return LatencyHistogram(
            latency.bounds_s, tuple(max(0, a - b) for a, b in zip(latency.counts, before, strict=True)), 0.0
        )

    def _above(self) -> int:
        """Events since the start whose latency is above the SLO in force now, whatever it was then."""
        return self.histogram().above(self.slo_s)
