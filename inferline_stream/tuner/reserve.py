"""What is held in reserve beside the traffic's own replicas: how many, what they carry, what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from inferline_stream.tuner.demand import supplies
from inferline_stream.tuner.plan_basis import Basis


@dataclass(frozen=True, slots=True)
class Reserve:
    """Replicas that are held whatever the traffic, or after leaps and for a while from the start on.

    Args:
        always: whether whatever the traffic, because people said for how much of it.
        replicas: by stage, the plan's among them.
        cost_per_hour: dollars per hour of them all.
        multiple: of the planned rate, that every stage carries with them at full utilization.
    """

    always: bool
    replicas: Mapping[str, int]
    cost_per_hour: float
    multiple: float


def reserve_of(basis: Basis) -> Reserve:
    """Without a staffing table, what a multiple of the traffic needs is known by square-root staffing."""
    supply = basis.floor if basis.reserve is None else supplies(basis, basis.reserve)
    replicas, cost, multiple = {}, 0.0, math.inf
    for stage in basis.stages:
        # A stage of several hardware kinds keeps their mixture.
        held = math.ceil(supply[stage.name] / stage.supply * stage.planned - 1e-9) if stage.supply else 0
        held = max(held, stage.slots if stage.planned else 0)  # a dispatcher keeps one
        replicas[stage.name] = held
        if stage.planned:
            cost += held / stage.planned * sum(kind.planned * kind.price_per_hour for kind in stage.kinds)
        if (rate := basis.arrival_rate * stage.visit_ratio) > 0 and stage.planned:
            multiple = min(multiple, held / stage.planned * stage.supply / rate)
    return Reserve(basis.reserve is not None, replicas, cost, multiple)
