"""What a reserve costs and leaves late: one of a beginning, one that people ask for, one by odds and price. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inferline_stream.tuner.demand import supplies
from inferline_stream.tuner.levels import Levels, cheapest
from inferline_stream.tuner.odds import TrafficRecord
from inferline_stream.tuner.plan_basis import Basis, held_per_hour


@dataclass(frozen=True, slots=True)
class Reserve:
    """Replicas that are held whatever the traffic, or for a while in a beginning.

    Args:
        always: whether whatever the traffic, because people said for how much of it.
        replicas: by stage, the plan's among them.
        cost_per_hour: dollars per hour of them all.
        multiple: of the planned rate, that every stage carries with them at full utilization.
        saved_per_hour: dollars per hour that stages without a fallback would add.
    """

    always: bool
    replicas: Mapping[str, int]
    cost_per_hour: float
    multiple: float
    saved_per_hour: float = 0.0


def reserve_of(basis: Basis) -> Reserve:
    """Return what a plan's reserve is, and what fallbacks save of it."""
    own = _reserve(basis)
    if basis.reserve is not None or all(stage.carries <= 1 for stage in basis.stages):
        return own
    alone = _reserve(replace(basis, stages=tuple(replace(stage, carries=1.0) for stage in basis.stages)))
    return replace(own, saved_per_hour=alone.cost_per_hour - own.cost_per_hour)


def _reserve(basis: Basis) -> Reserve:
    """Without a staffing table, what a multiple of the traffic needs is known by square-root staffing."""
    supply = basis.floor if basis.reserve is None else supplies(basis, basis.reserve)
    replicas, multiple = {}, math.inf
    for stage in basis.stages:
        # A stage of several hardware kinds keeps their mixture.
        held = math.ceil(supply[stage.name] / stage.supply * stage.planned - 1e-9) if stage.supply else 0
        held = max(held, stage.slots if stage.planned else 0)  # a dispatcher keeps one
        replicas[stage.name] = held
        if (rate := basis.arrival_rate * stage.visit_ratio) > 0 and stage.planned:
            multiple = min(multiple, held / stage.planned * stage.supply / rate)
    cost = held_per_hour(basis.stages, list(replicas.values()))
    return Reserve(basis.reserve is not None, replicas, cost, multiple)


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """What a way to hold reserve costs on traffic of the sample's kind, and how much it leaves late.

    Args:
        share: of the events that a late one is priced by; None of a multiple that is always held.
        reserve: multiple that is always held; None of a price.
        cost_per_hour: dollars per hour, in the mean.
        late: share of the events that are late with what is held.
    """

    share: float | None
    reserve: float | None
    cost_per_hour: float
    late: float


SHARES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Of the events that may be late, by which late ones are priced in `frontier`."""

RESERVES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Multiples of the sample's traffic that `frontier` holds always."""


def frontier(levels: Levels, record: TrafficRecord, lead_s: float) -> tuple[RiskPoint, ...]:
    """What the sample's kind of traffic costs and leaves late, at other prices and with reserves that are always held.

    Args:
        levels: to choose from.
        record: of the sample.
        lead_s: from asking for a replica to its working.
    """

    def point(share: float | None, reserve: float | None, held: NDArray[np.intp]) -> RiskPoint:
        return RiskPoint(share, reserve, float(levels.cost_per_hour[held].mean()), levels.late_with(held, record.came))

    found = []
    for share in SHARES:
        chosen = [cheapest(levels, record, moment, lead_s, share).multiple for moment in record.expected.tolist()]
        found.append(point(share, None, np.searchsorted(levels.multiples, chosen)))
    for reserve in RESERVES:
        held = min(int(np.searchsorted(levels.multiples, reserve)), levels.multiples.size - 1)
        found.append(point(None, reserve, np.full(record.came.size, held)))
    return tuple(found)
