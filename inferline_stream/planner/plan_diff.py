"""What changes from one plan to another, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour


@dataclass(frozen=True, slots=True)
class StageDifference:
    """One stage before and after; an empty tuple where the plan does not have it.

    Args:
        stage: the stage's name.
        before: its allocations in the first plan.
        after: its allocations in the second plan.
        cost_change_per_hour: dollars per hour; above 0 where the second is dearer.
    """

    stage: str
    before: tuple[Allocation, ...]
    after: tuple[Allocation, ...]
    cost_change_per_hour: float

    @property
    def unchanged(self) -> bool:
        """Same hardware, batch limits and replicas, in whatever order they are listed."""
        return _held(self.before) == _held(self.after)


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """Two plans side by side.

    Args:
        stages: every stage of either plan, the first plan's order first.
        cost_change_per_hour: dollars per hour over all stages, and for what they leave of shared devices.
        slo_change_s: the second plan's SLO less the first's.
        p99_change_s: the second plan's predicted P99 less the first's.
        arrival_rate_change: the second plan's λ less the first's, per second.
        reserve_before: the first plan's, see `pipeline.plan.Plan`.
        reserve_after: the second plan's.
    """

    stages: tuple[StageDifference, ...]
    cost_change_per_hour: float
    slo_change_s: float
    p99_change_s: float
    arrival_rate_change: float
    reserve_before: float | None = None
    reserve_after: float | None = None

    @property
    def unchanged(self) -> bool:
        """Whether a pipeline running the first plan would have nothing to do for the second."""
        return self.reserve_before == self.reserve_after and all(stage.unchanged for stage in self.stages)


def difference(before: Plan, after: Plan, catalogue: Catalogue) -> PlanDifference:
    """Compare two plans at the prices of one catalogue.

    Raises:
        KeyError: hardware that the catalogue does not list.
    """
    names = tuple(dict.fromkeys((*before.allocations, *after.allocations)))
    stages = tuple(
        _stage_difference(name, before.allocations.get(name, ()), after.allocations.get(name, ()), catalogue)
        for name in names
    )
    return PlanDifference(
        stages=stages,
        cost_change_per_hour=cost_per_hour(after.allocations, catalogue) - cost_per_hour(before.allocations, catalogue),
        slo_change_s=after.slo_s - before.slo_s,
        p99_change_s=after.predicted_p99_s - before.predicted_p99_s,
        arrival_rate_change=after.arrival_rate - before.arrival_rate,
        reserve_before=before.reserve,
        reserve_after=after.reserve,
    )


def _stage_difference(
    stage: str, before: tuple[Allocation, ...], after: tuple[Allocation, ...], catalogue: Catalogue
) -> StageDifference:
    change = _price(after, catalogue) - _price(before, catalogue)
    return StageDifference(stage, before, after, change)


def _price(allocations: tuple[Allocation, ...], catalogue: Catalogue) -> float:
    """Of a stage by itself, whose shares of devices count as shares."""
    return sum(a.replicas * catalogue[a.hardware].price_per_hour for a in allocations)


def _held(allocations: tuple[Allocation, ...]) -> frozenset[Allocation]:
    return frozenset(a for a in allocations if a.replicas)
