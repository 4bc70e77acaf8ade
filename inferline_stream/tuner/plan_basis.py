"""What the policy knows from the plan: the traffic it was made for and what each stage's replicas give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from inferline_stream.calculus.curves import ArrivalCurve, ServiceCurve, backlog_bound, curve_of_envelope
from inferline_stream.errors import InvalidInput
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.idle import Idle
from inferline_stream.pipeline.plan import Plan, hold_of
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.spot import Spot, is_spot
from inferline_stream.pipeline.standing_by import StandsBy, standing_by
from inferline_stream.tuner.group_changes import GroupBasis
from inferline_stream.tuner.levels import Level, Levels, levels_of
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing
from inferline_stream.tuner.traffic import burst_rate

MOST_TIMES, BEYOND = 20.0, 1.1
"""Levels go up to so many times the planned traffic, beyond the table in steps of a tenth."""

Replicas = Mapping[str, Mapping[str, int]]
"""Replicas wanted: stage → hardware kind → replicas."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One hardware kind of a stage.

    Args:
        hardware: its name.
        planned: replicas that the plan has of it.
        max_batch_size: the planned batch limit.
        throughput: µ of one replica that runs as many full batches as it may, as profiled.
        service_time_s: S of a full batch then.
        price_per_hour: dollars per replica and hour.
        start_up_s: from asking for a replica to its READY, as profiled.
        concurrency: most batches that a replica has in hand.
        parts: replicas that share one device; 1 where each has its own.
    """

    hardware: str
    planned: int
    max_batch_size: int
    throughput: float
    service_time_s: float
    price_per_hour: float
    start_up_s: float
    concurrency: int = 1
    parts: int = 1


@dataclass(frozen=True, slots=True)
class StageBasis:
    """One stage as planned.

    Args:
        name: the stage.
        kinds: hardware kinds it may run on, each with its batch limit set by the plan.
        visit_ratio: s, visits per event.
        hold_s: how long a free replica waits for a fuller batch.
        slots: its dispatchers: each needs a replica, for its partitions are served by no other one's.
        most_replicas: that are of use; None for any number.
        at_once: visits that one event may cause at the same moment, see `most_at_once`.
        carries: how many times as many events its replicas serve by the stage's fallback; 1 without one.
    """

    name: str
    kinds: tuple[Kind, ...]
    visit_ratio: float
    hold_s: float = 0.0
    slots: int = 1
    most_replicas: int | None = None
    at_once: int = 1
    carries: float = 1.0

    planned: int = field(init=False)
    """k⁰, replicas planned over all kinds."""
    supply: float = field(init=False)
    """Σ k⁰·µ, events per second that the planned replicas give."""
    mixture: Mapping[str, int] = field(init=False)
    """Planned replicas by hardware kind; one of each where none is planned."""
    profiled: Mapping[str, float] = field(init=False)
    """µ by hardware kind."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "planned", sum(kind.planned for kind in self.kinds))
        object.__setattr__(self, "supply", sum(kind.planned * kind.throughput for kind in self.kinds))
        mixture = {kind.hardware: kind.planned if self.planned else 1 for kind in self.kinds}
        object.__setattr__(self, "mixture", mixture)
        object.__setattr__(self, "profiled", {kind.hardware: kind.throughput for kind in self.kinds})

    def replicas_for(self, supply: float) -> int:
        """Replicas of the plan's mixture that give so many events per second."""
        return max(math.ceil(supply / self.supply * self.planned - 1e-9), self.slots) if self.supply else 0


@dataclass(frozen=True, slots=True)
class Basis:
    """A plan as the policy needs it.

    Args:
        slo_s: latency target.
        objective: share of events that must meet it.
        arrival_rate: λ of the sample trace.
        windows_s: windows of the traffic envelope, ascending.
        counts: most arrivals in each window of the sample trace.
        stages: in topological order.
        stock: most replicas by hardware kind, over all stages; a kind missing here has no limit.
        staffing: what multiples of the sample's traffic need; None falls back on square-root staffing.
        knobs: of the default policy.
        reserve: see `pipeline.plan.Plan`.
        idle: see `pipeline.plan.Plan`.
        spot: how each spot kind among them goes.
        stands_by: by stage, what is left of it while it sleeps.
        groups: of consumer groups, what their changes cost; None of stages.
    """

    slo_s: float
    objective: float
    arrival_rate: float
    windows_s: tuple[float, ...]
    counts: tuple[int, ...]
    stages: tuple[StageBasis, ...]
    stock: Mapping[str, int] = field(default_factory=dict)
    staffing: Staffing | None = None
    knobs: PolicySettings = field(default_factory=PolicySettings)
    reserve: float | None = None
    idle: Mapping[str, Idle] = field(default_factory=dict)
    spot: Mapping[str, Spot] = field(default_factory=dict)
    stands_by: Mapping[str, StandsBy] = field(default_factory=dict)
    groups: GroupBasis | None = None
    start_up_s: float = field(init=False)
    """Longest start-up time of any kind, as profiled."""
    floor: Mapping[str, float] = field(init=False)
    """Supply by stage of the plan and of what is insured beyond it."""
    levels: Levels | None = field(init=False)
    """What may be held, as the table of staffing has it; None without a table and its record."""
    busiest_rate: float = field(init=False)
    """Largest rate of any window of the sample, lengthened by slack for events (`PolicySettings.burst_slack_share`)."""
    backlog_bound: Mapping[str, float] = field(init=False)
    """Most records by stage, those in service included, that the sample's traffic ever leaves uncommitted."""

    def __post_init__(self) -> None:
        longest_s = max((kind.start_up_s for stage in self.stages for kind in stage.kinds), default=0.0)
        object.__setattr__(self, "start_up_s", longest_s)
        slack_s = self.knobs.burst_slack_share * self.slo_s
        object.__setattr__(self, "busiest_rate", burst_rate(self.windows_s, self.counts, slack_s)[0])
        # What follows the longest window is left out: a plan may be all but full within the busiest minute.
        curve = replace(curve_of_envelope(list(zip(self.windows_s, self.counts, strict=True))), window_s=math.inf)
        object.__setattr__(self, "backlog_bound", {s.name: _backlog_bound(s, curve) for s in self.stages})
        object.__setattr__(self, "floor", insured(self.stages, self.arrival_rate, self.knobs.insurance))
        object.__setattr__(self, "levels", None if self.staffing is None else self._levels(self.staffing))

    def _levels(self, table: Staffing) -> Levels | None:
        """Each number of replicas in the table, and beyond it in proportion, by the most traffic that it is for."""
        if table.record is None:
            return None
        multiples = list(table.multiples)
        while multiples[-1] < MOST_TIMES:
            multiples.append(multiples[-1] * BEYOND)
        # Where replicas cost nothing, as on a machine of one's own, they count instead.
        paid = any(kind.price_per_hour for stage in self.stages for kind in stage.kinds if kind.planned)
        carried: dict[tuple[int, ...], float] = {}
        for multiple in multiples:
            carried[tuple(stage.replicas_for(table.needed(stage.name, multiple)) for stage in self.stages)] = multiple
        found = [
            Level(multiple, held_per_hour(self.stages, now) if paid else sum(now), table.late_share(multiple))
            for now, multiple in carried.items()
        ]
        planned = next((i for i, level in enumerate(found) if level.multiple >= 1), len(found) - 1)
        return levels_of(found, planned, table.record, self.objective)

    def planned(self) -> dict[str, dict[str, int]]:
        """The plan's replicas."""
        return {stage.name: {kind.hardware: kind.planned for kind in stage.kinds} for stage in self.stages}

    def utilization(self, stage: StageBasis) -> float:
        """ρ_m = λ·s_m / Σ k⁰·µ: the utilization that the plan needed (InferLine §5)."""
        return self.arrival_rate * stage.visit_ratio / stage.supply if stage.supply > 0 else math.inf


def held_per_hour(stages: Sequence[StageBasis], replicas: Sequence[int]) -> float:
    """Return dollars per hour of so many replicas of each stage, in the plan's mixture.

    A device that replicas share is paid as a whole, by however few, as in `pipeline.hardware.dollars_per_hour`.
    """
    kinds = {kind.hardware: kind for stage in stages for kind in stage.kinds}
    held = dict.fromkeys(kinds, 0.0)
    for stage, count in zip(stages, replicas, strict=True):
        for hardware, part in stage.mixture.items():
            held[hardware] += count * part / sum(stage.mixture.values())
    return math.fsum(
        (count if kind.parts == 1 else math.ceil(count / kind.parts - 1e-9) * kind.parts) * kind.price_per_hour
        for kind, count in ((kinds[hardware], count) for hardware, count in held.items())
    )


def _backlog_bound(stage: StageBasis, arrivals: ArrivalCurve) -> float:
    """Network calculus' bound, with a batch more of every replica: batches upstream bunch what arrives."""
    if not stage.planned or stage.visit_ratio <= 0:
        return 0.0
    replicas = tuple((k.max_batch_size, k.service_time_s, k.planned * k.concurrency) for k in stage.kinds if k.planned)
    service = ServiceCurve(replicas, stage.hold_s)
    return backlog_bound(arrivals.thinned(stage.visit_ratio, stage.at_once), service) + service.in_service


def insured(
    stages: tuple[StageBasis, ...], arrival_rate: float, layers: Sequence[tuple[float, float]]
) -> dict[str, float]:
    """Supply by stage once the plan's bottlenecks have been raised.

    Traffic that outgrows the plan is held up first by the stage that can carry the smallest multiple of it.
    A fallback carries a leap until replicas have started: with it a stage carries more.
    Each layer buys replicas there, one after another, until every stage could carry its multiple of the planned rate
    at full utilization, or until the next replica would exceed its share of the plan's cost.

    Args:
        stages: as planned.
        arrival_rate: planned λ.
        layers: (multiple, share of the plan's cost), one after another.
    """
    cost = sum(kind.planned * kind.price_per_hour for stage in stages for kind in stage.kinds)
    total = {stage.name: stage.planned for stage in stages}

    def supply(stage: StageBasis, carries: float = 1.0) -> float:
        return stage.supply / stage.planned * total[stage.name] * carries if stage.planned else 0.0

    for multiple, share in layers:
        left = share * cost
        open_stages = [
            stage for stage in stages if stage.visit_ratio > 0 and stage.planned > 0 and stage.most_replicas is None
        ]
        while open_stages:
            tight = min(open_stages, key=lambda stage: supply(stage, stage.carries) / stage.visit_ratio)
            if supply(tight, tight.carries) >= multiple * arrival_rate * tight.visit_ratio:
                break
            price = min(k.price_per_hour for k in tight.kinds if k.planned)
            if price > left:
                open_stages.remove(tight)
                continue
            left -= price
            total[tight.name] += 1
    return {stage.name: supply(stage) for stage in stages}


def basis_of(
    plan: Plan,
    measured: PipelineProfile,
    catalogue: Catalogue,
    *,
    objective: float = 0.99,
    shortest_window_s: float = 0.0,
    staffing: Staffing | None = None,
    knobs: PolicySettings | None = None,
) -> Basis:
    """What the policy knows from a plan and the profile that it was made with.

    Args:
        plan: with its sample's envelope.
        measured: profiles of every allocation of the plan.
        catalogue: prices and stock.
        objective: share of events that must meet the SLO.
        shortest_window_s: windows below it are left out: live, those that few samples of arrivals would fill.
        staffing: see `Basis`.
        knobs: see `Basis`.

    Raises:
        InvalidInput: the plan has no envelope window that long, no stages, or a stage without an allocation.
    """
    envelope = [(w, n) for w, n in plan.envelope if w >= shortest_window_s]
    if not envelope or not plan.allocations or not all(plan.allocations.values()):
        raise InvalidInput(
            f"plan of {plan.pipeline!r}: needs stages with allocations and an envelope with windows of "
            f"{shortest_window_s} s or more; make it again with `inferline-stream plan`"
        )
    stages = []
    for name, allocations in plan.allocations.items():
        kinds = []
        for allocation in allocations:
            profile = measured.profiles[name, allocation.hardware]
            kinds.append(
                Kind(
                    hardware=allocation.hardware,
                    planned=allocation.replicas,
                    max_batch_size=allocation.max_batch_size,
                    throughput=profile.throughput(allocation.max_batch_size, allocation.concurrency),
                    service_time_s=profile.service_time_s(allocation.max_batch_size, allocation.concurrency),
                    price_per_hour=catalogue[allocation.hardware].price_per_hour,
                    start_up_s=profile.start_up_s,
                    concurrency=allocation.concurrency,
                    parts=catalogue[allocation.hardware].parts,
                )
            )
        most = measured.profiles[name, allocations[0].hardware].most_replicas
        slots = plan.slots.get(name, 1)
        stages.append(
            StageBasis(
                name, tuple(kinds), plan.visit_ratios[name], hold_of(allocations), slots, most,
                plan.at_once.get(name, 1), measured.carries(name, allocations),
            )
        )  # fmt: skip
    used = {kind.hardware for stage in stages for kind in stage.kinds}
    return Basis(
        slo_s=plan.slo_s,
        objective=objective,
        arrival_rate=plan.arrival_rate,
        windows_s=tuple(w for w, _ in envelope),
        counts=tuple(n for _, n in envelope),
        stages=tuple(stages),
        stock={name: stock for name in used if (stock := catalogue[name].stock) is not None},
        staffing=staffing,
        knobs=knobs or PolicySettings(),
        reserve=plan.reserve,
        idle=plan.idle,
        spot={name: spot for name in used if is_spot(name) and (spot := catalogue[name].spot) is not None},
        stands_by=standing_by(plan, measured, catalogue),
    )
