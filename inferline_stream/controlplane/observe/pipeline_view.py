"""What the controller knows of a running pipeline, and the two values made from it: observation and state."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from inferline_stream.actuators.actuator import ObservedReplica, node_notice
from inferline_stream.calculus.envelope import LONGEST_WINDOW_S
from inferline_stream.calculus.envelope_state import EnvelopeKernel, Times
from inferline_stream.controlplane.core_use import CoreUse
from inferline_stream.controlplane.observe.class_states import (
    background_busy,
    background_state,
    background_words,
    class_state,
)
from inferline_stream.controlplane.observe.event_class import EventClass
from inferline_stream.controlplane.observe.log_growth import LogGrowth, OffsetHistory
from inferline_stream.controlplane.observe.pool_reports import Latencies, PoolReports
from inferline_stream.controlplane.observe.settled_parts import SettledParts
from inferline_stream.controlplane.observe.start_up_times import StartUpTimes
from inferline_stream.controlplane.pipeline_context import PipelineContext
from inferline_stream.controlplane.replica_counts import cost_per_hour, of_kinds, replicas_of_plan
from inferline_stream.dataplane.frames import StageInput
from inferline_stream.observability.pipeline_state import (
    DecisionRecord,
    EnvelopeWindow,
    PipelineState,
    ReplicaCounts,
    StageState,
    StoredPlan,
)
from inferline_stream.pipeline.deadline_order import rest_s
from inferline_stream.pipeline.event_classes import numbered
from inferline_stream.pipeline.fallback import Served, UsualRest, planned_counts
from inferline_stream.pipeline.hardware import Catalogue, at_prices, catalogue
from inferline_stream.pipeline.plan import Allocation, Plan, hold_of
from inferline_stream.pipeline.plan import cost_per_hour as plan_cost_per_hour
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.standing_by import StandsBy, standing_by
from inferline_stream.planner.plan_document import plan_to_bytes
from inferline_stream.tuner.error_budget import ErrorBudget
from inferline_stream.tuner.hour_ahead import HourAhead
from inferline_stream.tuner.observation import RECENT_S, Limits, Observation, StageObservation, Supply
from inferline_stream.tuner.plan_basis import Replicas
from inferline_stream.tuner.traffic import PEAK_SPAN_S, Traffic

_DECISIONS_KEPT = 300
_PLANS_KEPT = 100
FEWEST_ENTERED = 100
"""Events from which on it is known which share of them each source has: within a tenth, or so."""

STUCK_AFTER_S = 10.0
"""A committed offset that stood still for this long, with lag and with replicas ready, is stuck."""


@dataclass(slots=True)
class PipelineView:
    """Everything seen of a pipeline. Times are on the controller's clock unless said otherwise.

    Args:
        context: the pipeline on its Kafka.
        plan: in force.
        measured: profiles.
        partitions: of each stage's input topic.
        others: the classes of events beside the first one, by topic; all else here is of live events.
    """

    context: PipelineContext
    plan: Plan
    measured: PipelineProfile
    partitions: Mapping[str, int]
    others: Mapping[str, EventClass] = field(default_factory=dict)
    catalogue: Catalogue = field(init=False)
    """Hardware kinds, with prices as people have set them."""
    growth: LogGrowth = field(default_factory=LogGrowth)
    events_out: int = 0
    completed: int = 0
    """Growth of the sinks and of the completed topic since the start of the run."""
    decisions: deque[DecisionRecord] = field(default_factory=lambda: deque(maxlen=_DECISIONS_KEPT))
    plans: deque[StoredPlan] = field(default_factory=lambda: deque(maxlen=_PLANS_KEPT))
    decision_counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0
    rate_per_hour: float = 0.0
    """Dollars per hour of the replicas held now."""
    replica_seconds: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """Held since the start, by stage and hardware kind."""
    coarse_peak_per_hour: float | None = None
    """What InferLine's CG-Peak would cost for the sample that the plan was made for."""
    core_use: CoreUse = field(default_factory=CoreUse)
    start_ups: StartUpTimes = field(default_factory=StartUpTimes)
    budget: ErrorBudget | None = None
    """Of the SLO's window, as last looked at."""
    asleep: frozenset[str] = frozenset()
    """Stages of which no replica is wanted since nothing came."""
    noticed: frozenset[str] = frozenset()
    """Spot kinds and nodes of which there is a notice: their replicas are taken away soon."""
    hours: tuple[HourAhead, ...] = ()
    """That come, as last foreseen."""
    letter_age_shares: Mapping[str, float] = field(default_factory=dict)
    """By stage, see `StageState.letter_age_share`."""
    reports: PoolReports = field(init=False)
    offsets: dict[str, OffsetHistory] = field(init=False)
    settling: dict[str, SettledParts] = field(init=False)
    """Of each join."""
    traffic: Traffic = field(init=False)
    latencies: Latencies = field(init=False)
    """Less what the SLO of an event's class is longer than the pipeline's."""
    latencies_by_class: dict[str, Latencies] = field(init=False)
    """Of each live class, where there are several, by topic: the first class first."""
    stands_by: Mapping[str, StandsBy] = field(init=False)
    """By stage, what is left of it while it sleeps."""
    _declared: Catalogue = field(init=False)
    _kernel: EnvelopeKernel | None = None
    _blocks: deque[Times] = field(default_factory=deque)
    """Arrivals of the last minute."""
    _usual: UsualRest = field(default_factory=UsualRest)
    _held_since_s: float | None = None
    _held: Counter[tuple[str, str]] = field(default_factory=Counter)
    _replicas: Sequence[ObservedReplica] = ()

    def __post_init__(self) -> None:
        self.catalogue = self._declared = catalogue(self.context.pipeline.hardware)
        self.stands_by = standing_by(self.plan, self.measured, self.catalogue)
        self.reports = PoolReports(self.shape, self.measured)
        self.offsets = {stage: OffsetHistory(self.partitions[stage]) for stage in self.shape.stages}
        joins = [self.shape.stages[at] for at in self.shape.joins()]
        self.settling = {join: SettledParts(join, self.shape.upstream([join])[:-1]) for join in joins}
        self.traffic = Traffic(self.windows_s)
        finals, declared_slo_s = tuple(self.context.sinks), self.context.pipeline.slo_s
        if self.context.pipeline.groups:
            finals = tuple(self.shape.stages[s] for s in self.shape.finals())
        self.latencies = Latencies(self.reports, finals, declared_slo_s, self.plan.slo_s)
        longer_s = self.context.live and {self.context.pipeline.source.name: 0.0, **self.context.live}
        self.latencies_by_class = {
            topic: Latencies(
                self.reports, finals, _own_s(declared_slo_s, more_s), _own_s(self.plan.slo_s, more_s), topic
            )
            for topic, more_s in longer_s.items()
        }

    @property
    def shape(self) -> Shape:
        """The DAG."""
        return self.context.shape

    @property
    def backgrounds(self) -> dict[str, EventClass]:
        """The classes of background events."""
        return {topic: of_class for topic, of_class in self.others.items() if of_class.background}

    @property
    def live(self) -> dict[str, EventClass]:
        """Live classes beside the first one."""
        return {topic: of_class for topic, of_class in self.others.items() if not of_class.background}

    @property
    def source_partitions(self) -> tuple[int, ...]:
        """Partitions of each topic that live events arrive on."""
        others = (of_class.partitions[min(self.context.entries_of(of))] for of, of_class in self.live.items())
        return (self.partitions[min(self.context.entries_of())], *others)

    def _histories(self, stage: str) -> list[tuple[int, OffsetHistory]]:
        """Number of each live class, and the offsets of its input topic of a stage."""
        return [(0, self.offsets[stage]), *((each.number, each.offsets[stage]) for each in self.live.values())]

    # -- what comes in -------------------------------------------------------------------------------

    def grow(self, stage: str, partitions: int) -> None:
        """The input topic of a stage has so many partitions; it never loses one."""
        if partitions > self.partitions[stage]:
            self.partitions = {**self.partitions, stage: partitions}
            self.offsets[stage].grow(partitions)

    def arrivals(self, time_s: float, ends: Sequence[int]) -> None:
        """End offsets of the source topic."""
        self.arrived(self.growth.sample(time_s, ends))

    def arrived(self, times: Times) -> None:
        """Arrival times, ascending."""
        if times.size:
            self.traffic.add(times)
            self._blocks.append(times)
            while self._blocks[0][-1] < times[-1] - LONGEST_WINDOW_S:
                self._blocks.popleft()

    def use(self, kernel: EnvelopeKernel) -> None:
        """Count arrivals with this kernel from now on."""
        self._kernel = kernel
        self.traffic.use(kernel)

    def adopt(self, plan: Plan, measured: PipelineProfile) -> None:
        """Another plan is in force; what was seen of traffic stays."""
        self.plan, self.measured = plan, measured
        self.stands_by = standing_by(plan, measured, self.catalogue)
        self.reports.measured = measured
        self.latencies.judge_by(plan.slo_s)
        for topic, latencies in self.latencies_by_class.items():
            latencies.judge_by(_own_s(plan.slo_s, self.context.live.get(topic, 0.0)))
        self.traffic = Traffic(self.windows_s, self._kernel)
        for times in self._blocks:
            self.traffic.add(times)

    def held(self, time_s: float, replicas: Sequence[ObservedReplica]) -> None:
        """Replicas that exist at that time: their price counts until the next call."""
        if self._held_since_s is not None:
            self.cost += self.rate_per_hour * (time_s - self._held_since_s) / 3600
            for key, count in self._held.items():
                self.replica_seconds[key] += count * (time_s - self._held_since_s)
        self._held_since_s, self.rate_per_hour = time_s, cost_per_hour(replicas, self.catalogue)
        for stage in self.asleep & self.stands_by.keys():
            kind, asleep = self.stands_by[stage].hardware, self.stands_by[stage].price_per_hour
            saved = self.catalogue[kind].price_per_hour - asleep
            self.rate_per_hour -= saved * sum((r.stage, r.hardware) == (stage, kind) for r in replicas)
        self._held = Counter((r.stage, r.hardware) for r in replicas if r.state != "waiting")
        self._replicas = replicas
        cores = sum(count * self.catalogue[kind].cores for (_, kind), count in self._held.items())
        self.core_use.add(time_s, replicas, cores)

    @property
    def going(self) -> frozenset[str]:
        """Notices that the platform gives of the nodes that replicas are on."""
        return frozenset(node_notice(r.node) for r in self._replicas if r.going)

    def on_node(self, notice: str) -> Counter[tuple[str, str]]:
        """Replicas that a notice of a node is about, by stage and hardware kind."""
        return Counter((r.stage, r.hardware) for r in self._replicas if r.node and node_notice(r.node) == notice)

    def leaving(self, stage: str, hardware: str) -> int:
        """Replicas that have got a notice."""
        here = (r for r in self._replicas if (r.stage, r.hardware, r.state) == (stage, hardware, "running"))
        return sum(r.is_noticed(self.noticed) for r in here) if self.noticed else 0

    def decided(self, record: DecisionRecord) -> None:
        """A decision was made."""
        self.decisions.append(record)
        self.decision_counts[record.action, record.reason] += 1

    def prices(self, prices: Mapping[str, float]) -> None:
        """Dollars per hour of hardware kinds, where people have set them."""
        self.catalogue = at_prices(self._declared, prices)

    # -- what goes out -------------------------------------------------------------------------------

    @property
    def windows_s(self) -> tuple[float, ...]:
        """Windows of the plan's traffic envelope that live samples of arrivals can fill."""
        return tuple(w for w, _ in self.plan.envelope if w >= self.context.settings.shortest_window_s)

    @property
    def samples(self) -> Mapping[str, StageInput]:
        """One event of each stage that it is known to process, where profiles keep one."""
        return self.measured.samples

    def background_waits(self, stage: str) -> bool:
        """Whether a stage should take in no background events: those after it have enough, or another first stage has
        to catch up."""
        ahead = any(of_class.is_ahead(stage) for of_class in self.backgrounds.values())
        at = self.shape.stages.index(stage)
        children = [self.shape.stages[self.shape.arrows[arrow].child] for arrow in self.shape.children(at)]
        return ahead or any(self.reports.background_enough(child) for child in children)

    def observation(
        self, now_s: float, wanted: Replicas, limits: Mapping[str, Limits], stock: Mapping[str, int]
    ) -> Observation:
        """What the policy sees.

        Args:
            now_s: now.
            wanted: replicas asked of the actuator.
            limits: set by people, by stage.
            stock: most replicas of a hardware kind, where it differs from the catalogue's.
        """
        ratios = self.reports.visit_ratios(now_s, self._entered(now_s) if self.shape.sources else None)
        figures = {stage: self.reports.stage(stage, now_s, self._waited_s) for stage in self.shape.stages}
        newest_s, watched_s = self.growth.newest_s, self.growth.watched_since_s
        return Observation(
            time_s=now_s,
            envelope=self.traffic.envelope(now_s),
            arrival_rate=self.traffic.arrival_rate(now_s),
            peak_rate=self.traffic.peak_rate(now_s),
            stages={
                stage: self._stage_observation(stage, now_s, figures[stage], ratios[stage], wanted)
                for stage in self.shape.stages
            },
            arrivals_age_s=None if newest_s is None else now_s - newest_s,
            watched_s=0.0 if watched_s is None else now_s - watched_s,
            stock=stock,
            limits=limits,
            recent=self.traffic.recent(now_s),
            oversubscribed=self.core_use.crowded,
            background=background_words(self.backgrounds, time.time()),
            background_left=sum(of_class.left for of_class in self.backgrounds.values()),
            late_share=None if self.budget is None else self.budget.share(self.plan.arrival_rate),
        )

    def _entered(self, now_s: float) -> dict[str, float]:
        """By entry stage, the share of the events that entered there lately; empty where too few did to know."""
        for over_s in (RECENT_S, PEAK_SPAN_S):
            came = {
                stage: over_s * sum(sum(offsets.rates(now_s, over_s)) for _, offsets in self._histories(stage))
                for stage in self.context.entries
            }
            total = sum(came[self.shape.stages[entries[0]]] for entries in self.shape.sources)
            if total >= FEWEST_ENTERED:
                return {stage: count / total for stage, count in came.items()}
        return {}

    def _waited_s(self, stage: str, hardware: str) -> float:
        return self.core_use.recent(stage, hardware).waited_s

    def _stage_observation(
        self, stage: str, now_s: float, seen: StageState, ratio: float | None, wanted: Replicas
    ) -> StageObservation:
        histories, supply = self._histories(stage), {}
        for hardware, count in wanted.get(stage, {}).items():
            ready = self.working(stage, hardware, count)
            supply[hardware] = Supply(
                ready,
                max(0, count - ready),
                self._throughput(stage, hardware, seen),
                self.start_ups.next_s(stage, hardware),
                leaving=self.leaving(stage, hardware),
            )
        _, hidden = self.reports.late_by_partition(stage)
        return StageObservation(
            supply=supply,
            age_s=None if seen.heard_s is None else now_s - seen.heard_s,
            visit_ratio=ratio,
            partition_lags=tuple(
                max(0, lag - hidden.get(number, 0))
                for of, offsets in histories
                for number, lag in zip(numbered(of, range(len(offsets.ends))), offsets.lags(), strict=True)
            ),
            partition_idle_s=tuple(self._idle_s(stage, now_s).values()),
            oldest_lag_s=max(offsets.oldest_s(now_s) for _, offsets in histories),
            utilization=seen.utilization,
            background_busy=self._background_busy(stage),
            degraded_share=seen.degraded_share,
        )

    def _idle_s(self, stage: str, now_s: float) -> dict[int, float]:
        """How long each partition has stood still with lag, but for one that waits for an event that is served last.

        Partitions are numbered as dispatchers do.

        That is an excuse only while others are served: a stage that hangs has all its events wait.
        """
        serves = self.reports.stay_s(stage, now_s) is not None
        held = self.reports.late_by_partition(stage)[0] if serves else set[int]()
        return {
            number: 0.0 if number in held else idle_s
            for of, offsets in self._histories(stage)
            for number, idle_s in zip(numbered(of, range(len(offsets.ends))), offsets.idle_s(now_s), strict=True)
        }

    def rests_s(self, now_s: float | None = None) -> dict[str, float]:
        """R of every stage: what events take from there on, by what stages lately took; without a time, at the least.

        See `deadline_order.rest_s`.
        """
        measured, allocations = self.measured, self.plan.allocations
        alone_s = {
            stage: min(
                (known.service_time_s(1) for a in held if (known := measured.profiles.get((stage, a.hardware)))),
                default=0.0,
            )
            for stage, held in allocations.items()
        }
        stays_s = {} if now_s is None else self.reports.stays_s(now_s)
        hop_s = max(0.0, measured.hop_overhead_s)
        return rest_s(self.shape, measured.paths, stays_s, alone_s, hop_s=hop_s, slo_s=self.plan.slo_s)

    def news(self, now_s: float) -> tuple[dict[str, float], dict[str, float]]:
        """Return R of every stage, and how much longer it usually is; see `fallback.UsualRest`."""
        rests_s, stays_s = self.rests_s(now_s), self.reports.stays_s(now_s)
        later = [stage for at, stage in enumerate(self.shape.stages) if self.shape.parents(at)]
        if any(stays_s.get(stage) is not None for stage in later):
            self._usual = self._usual.then(rests_s, now_s)
        return rests_s, self._usual.longer_s(rests_s)

    def _background_busy(self, stage: str) -> float:
        """Return how many replicas of a stage background events have to keep busy, by their rates and due times."""
        alone = min(self.planned_throughput(stage, a.hardware) for a in self.plan.allocations[stage])
        visits = self.plan.visit_ratios.get(stage, 1.0)
        return visits * background_busy(stage, self.backgrounds, self.reports, 1 / alone, time.time())

    def served(self) -> dict[str, list[Served]]:
        """What the slots of stages with a fallback have served in the last hour, or what they begin a run with."""
        found = {}
        for stage, held in self.plan.allocations.items():
            profiles = [self.measured.profiles.get((stage, a.hardware)) for a in held]
            if any(profile is not None and profile.fallback for profile in profiles):
                slots = self.plan.slots.get(stage, 1)
                rate = self.plan.arrival_rate * self.plan.visit_ratios[stage] / slots
                found[stage] = self.reports.served(stage, slots) or [planned_counts(rate)] * slots
        return found

    def working(self, stage: str, hardware: str, wanted: int) -> int:
        """Ready replicas, standbys and those about to leave not counted."""
        return min(wanted, self.reports.ready(stage, hardware))

    def allocation(self, stage: str, hardware: str) -> Allocation:
        """What the plan has of a hardware kind; of another one, what it has of the first, as far as profiled."""
        kinds = self.plan.allocations[stage]
        if (own := {a.hardware: a for a in kinds}.get(hardware)) is not None:
            return own
        first, profile = kinds[0], self.measured.profiles.get((stage, hardware))
        return replace(
            first,
            hardware=hardware,
            max_batch_size=min(first.max_batch_size, profile.batch_sizes[-1]) if profile else first.max_batch_size,
            concurrency=min(first.concurrency, profile.concurrencies[-1] if profile else 1),
        )

    def planned_throughput(self, stage: str, hardware: str) -> float:
        """µ of one replica at its limits, as profiled; 1 where it never was."""
        profile, held = self.measured.profiles.get((stage, hardware)), self.allocation(stage, hardware)
        return profile.throughput(held.max_batch_size, held.concurrency) if profile else 1.0

    def _throughput(self, stage: str, hardware: str, seen: StageState) -> float | None:
        slowdown = seen.slowdown.get(hardware)
        return None if slowdown is None else self.planned_throughput(stage, hardware) / slowdown

    def state(
        self,
        now_s: float,
        time_s: float,
        wanted: Replicas,
        *,
        limits: Mapping[str, str] | None = None,
        slots: Mapping[str, int] | None = None,
    ) -> PipelineState:
        """What metrics and tables show.

        Args:
            now_s: now.
            time_s: the same, in seconds since the epoch.
            wanted: replicas asked of the actuator.
            limits: what keeps a stage from growing, by stage.
            slots: dispatchers of each stage; one where it is not given.
        """
        plan, recent = self.plan, self.latencies.recent(now_s)
        stages = tuple(
            self._stage_state(stage, now_s, wanted, (limits or {}).get(stage, ""), (slots or {}).get(stage, 1))
            for stage in self.shape.stages
        )
        return PipelineState(
            time_s=time_s,
            pipeline=self.context.pipeline.name,
            slo_s=plan.slo_s,
            objective=self.context.pipeline.objective,
            predicted_p99_s=plan.predicted_p99_s,
            arrival_rate=self.traffic.arrival_rate(now_s),
            envelope=tuple(
                EnvelopeWindow(window_s, live, dict(plan.envelope).get(window_s, 0))
                for window_s, live in zip(self.windows_s, self.traffic.envelope(now_s), strict=True)
            ),
            latency=self.latencies.histogram(),
            recent_p50_s=recent.quantile_s(0.5),
            recent_p95_s=recent.quantile_s(0.95),
            recent_p99_s=recent.quantile_s(0.99),
            recent_late_share=recent.above(plan.slo_s) / sum(recent.counts) if sum(recent.counts) else None,
            late_events=self.latencies.late(),
            estimated=bool(self.context.pipeline.groups),
            budget_left=None if self.budget is None else self.budget.left,
            stages=stages,
            decisions=tuple(self.decisions),
            decision_counts=dict(self.decision_counts),
            cost_per_hour=self.rate_per_hour,
            cost=self.cost,
            events_in=self.growth.total,
            events_out=self.events_out,
            completed_without_output=self.completed,
            input_age_s=self._input_age_s(now_s, stages),
            plan_algorithm=plan.algorithm,
            plan_id=hashlib.sha256(plan_to_bytes(plan)).hexdigest()[:8],
            plan_cost_per_hour=plan_cost_per_hour(plan.allocations, self.catalogue),
            replica_seconds=dict(self.replica_seconds),
            prices={kind: self.catalogue[kind].price_per_hour for kind in sorted(self._kinds(wanted))},
            plans=tuple(self.plans),
            coarse_peak_per_hour=self.coarse_peak_per_hour,
            oversubscribed=self.core_use.crowded,
            hours=self.hours,
            backgrounds=tuple(
                background_state(of, each, self.reports, time_s, tuple(self.context.sinks))
                for of, each in self.backgrounds.items()
            ),
            classes=tuple(
                class_state(of, each, self.others[of].offsets if of in self.others else self.offsets, now_s)
                for of, each in self.latencies_by_class.items()
            ),
        )

    def _input_age_s(self, now_s: float, stages: Sequence[StageState]) -> dict[str, float]:
        ages = {f"reports/{stage.name}": now_s - stage.heard_s for stage in stages if stage.heard_s is not None}
        if self.growth.newest_s is not None:
            ages["arrivals"] = now_s - self.growth.newest_s
        read_s = [offsets.sampled_s for offsets in self.offsets.values()]
        if all(read_s):
            ages["offsets"] = now_s - min(s for s in read_s if s is not None)
        return ages

    def _kinds(self, wanted: Replicas) -> set[str]:
        """Hardware kinds that anything is or was held on."""
        kinds = of_kinds(wanted).keys() | {hardware for _, hardware in self.replica_seconds}
        return kinds | {a.hardware for held in self.plan.allocations.values() for a in held}

    def _stage_state(self, stage: str, now_s: float, wanted: Replicas, limit: str, slots: int) -> StageState:
        offsets, allocations = self.offsets[stage], self.plan.allocations[stage]
        rates, use = offsets.rates(now_s, RECENT_S), self.core_use.total(stage)
        seen = self.reports.stage(stage, now_s)
        arrival_rate = seen.arrival_rate  # offsets of topics between stages count markers of transactions, too
        if self.context.pipeline.groups or not self.shape.parents(self.shape.stages.index(stage)):
            arrival_rate = sum(sum(each.rates(now_s, RECENT_S)) for _, each in self._histories(stage))
        planned, wanted_here = replicas_of_plan(self.plan.allocations)[stage], wanted.get(stage, {})
        kinds = sorted({*wanted_here, *planned})
        counts = []
        for hardware in kinds:
            count, there = wanted_here.get(hardware, 0), self.reports.ready(stage, hardware)
            ready = self.working(stage, hardware, count)
            counts.append(
                ReplicaCounts(hardware, planned.get(hardware, 0), count, ready, max(0, count - ready), there - ready)
            )
        start_ups = [s for kind in kinds if (s := self.start_ups.next_s(stage, kind)) is not None]
        ways: dict[tuple[str, str], float] = {
            (kind, way): s for kind in kinds for way, s in self.start_ups.by_way(stage, kind).items() if way
        }
        histories = (offsets, *(of_class.offsets[stage] for of_class in self.others.values()))
        shares = [share for each in histories if (share := each.uncommitted_share()) is not None]
        stuck = tuple(p for p, idle_s in self._idle_s(stage, now_s).items() if idle_s > STUCK_AFTER_S)
        return replace(
            seen,
            replicas=tuple(counts),
            total=self.reports.total(stage),
            max_batch_size=max(a.max_batch_size for a in allocations),
            hold_s=hold_of(allocations),
            concurrency=max(a.concurrency for a in allocations),
            arrival_rate=arrival_rate,
            lags=offsets.lags(),
            lag_s=max(each.oldest_s(now_s) for _, each in self._histories(stage)),
            uncommitted_share=max(shares, default=None),
            letter_age_share=self.letter_age_shares.get(stage),
            start_up_s=max(start_ups, default=None),
            start_ups_s=ways,
            cpu_total_s=use.ran_s,
            core_wait_total_s=use.waited_s,
            restarts=self.restarts[stage],
            limit=limit,
            slots=slots,
            stuck=stuck if sum(c.ready for c in counts) else (),
            partition_rates=rates,
            isolation=self.reports.isolation(stage),
        )


def _own_s(slo_s: float, longer_s: float) -> float:
    """Return the SLO of a class as people write it, without what adding up two numbers leaves behind them."""
    return round(slo_s + longer_s, 9) if longer_s else slo_s
