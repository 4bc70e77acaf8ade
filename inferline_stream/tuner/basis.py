"""What the policy knows from the plan: the traffic it was made for and what each stage's replicas give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile

Replicas = Mapping[str, Mapping[str, int]]
"""Replicas wanted: stage → hardware kind → replicas."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One hardware kind of a stage.

    Args:
        hardware: its name.
        planned: replicas that the plan has of it.
        throughput: µ of one replica at the planned batch limit, as profiled.
        service_time_s: S of a full batch.
        price_per_hour: dollars per replica and hour.
        start_up_s: from asking for a replica to its READY, as profiled.
    """

    hardware: str
    planned: int
    throughput: float
    service_time_s: float
    price_per_hour: float
    start_up_s: float


@dataclass(frozen=True, slots=True)
class StageBasis:
    """One stage as planned.

    Args:
        name: the stage.
        kinds: hardware kinds it may run on, each with its batch limit set by the plan.
        visit_ratio: s, visits per event.
        partitions: partitions of its input topic; None for a shared queue.
    """

    name: str
    kinds: tuple[Kind, ...]
    visit_ratio: float
    partitions: int | None = None

    @property
    def planned(self) -> int:
        """k⁰, replicas planned over all kinds."""
        return sum(kind.planned for kind in self.kinds)

    @property
    def supply(self) -> float:
        """Σ k⁰·µ, events per second that the planned replicas give."""
        return sum(kind.planned * kind.throughput for kind in self.kinds)


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
    """

    slo_s: float
    objective: float
    arrival_rate: float
    windows_s: tuple[float, ...]
    counts: tuple[int, ...]
    stages: tuple[StageBasis, ...]
    stock: Mapping[str, int] = field(default_factory=dict)

    def planned(self) -> dict[str, dict[str, int]]:
        """The plan's replicas."""
        return {stage.name: {kind.hardware: kind.planned for kind in stage.kinds} for stage in self.stages}

    def utilization(self, stage: StageBasis) -> float:
        """ρ_m = λ·s_m / Σ k⁰·µ: the utilization that the plan needed (InferLine §5)."""
        return self.arrival_rate * stage.visit_ratio / stage.supply if stage.supply > 0 else math.inf


def basis_of(
    plan: Plan,
    measured: PipelineProfile,
    catalogue: Catalogue,
    *,
    objective: float = 0.99,
    shortest_window_s: float = 0.0,
) -> Basis:
    """What the policy knows from a plan and the profile that it was made with.

    Args:
        plan: with its sample's envelope.
        measured: profiles of every allocation of the plan.
        catalogue: prices and stock.
        objective: share of events that must meet the SLO.
        shortest_window_s: windows below it are left out: live, those that few samples of arrivals would fill.

    Raises:
        ValueError: the plan has no envelope window that long, no stages, or a stage without an allocation.
    """
    envelope = [(w, n) for w, n in plan.envelope if w >= shortest_window_s]
    if not envelope or not plan.allocations or not all(plan.allocations.values()):
        raise ValueError(
            f"plan of {plan.pipeline!r}: needs stages with allocations and an envelope with windows of "
            f"{shortest_window_s} s or more; make it anew with `inferline-stream plan`"
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
                    throughput=profile.throughput(allocation.max_batch_size),
                    service_time_s=profile.service_time_s(allocation.max_batch_size),
                    price_per_hour=catalogue[allocation.hardware].price_per_hour,
                    start_up_s=profile.start_up_s,
                )
            )
        stages.append(StageBasis(name, tuple(kinds), plan.visit_ratios[name], plan.partitions.get(name)))
    used = {kind.hardware for stage in stages for kind in stage.kinds}
    return Basis(
        slo_s=plan.slo_s,
        objective=objective,
        arrival_rate=plan.arrival_rate,
        windows_s=tuple(w for w, _ in envelope),
        counts=tuple(n for _, n in envelope),
        stages=tuple(stages),
        stock={name: stock for name in used if (stock := catalogue[name].stock) is not None},
    )
