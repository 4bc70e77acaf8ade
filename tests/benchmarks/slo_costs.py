"""What an SLO costs: one queue per stage, a queue per replica, and the whole pipeline replicated for its peak.

The reference pipeline at 150 events/s with Poisson arrivals, planned for each SLO: by the default search for pools, by
the same search for ordinary consumer groups, whose replicas own partitions, and by coarse-grained provisioning for the
sample's peak (InferLine's CG-Peak). ``NAME_MSms`` is dollars per hour, None where no plan was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferline_stream.baselines.coarse import peak_rate, unit, units_for
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.replay.compare import PARTITIONS
from tests.benchmarks._figures import Figures
from tests.benchmarks._reference import CATALOGUE, SHAPE, profile

Costs = dict[float, float | None]
"""Dollars per hour by SLO in seconds."""

RATE, SECONDS = 150.0, 60.0
SLOS_S = (0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
QUICK_S = (0.25, 0.5)


def measure(quick: bool) -> Figures:
    """Costs at two SLOs with ``quick``, and at twelve."""
    found = curves(QUICK_S, 20.0) if quick else curves(SLOS_S, SECONDS)
    return {f"{name}_{slo_s * 1e3:g}ms": cost for name, costs in found.items() for slo_s, cost in costs.items()}


def curves(slos_s: Sequence[float], seconds: float) -> dict[str, Costs]:
    """Costs by way of planning, for a sample of so many seconds."""
    sample = gamma_trace(RATE, 1.0, seconds, np.random.default_rng(21))
    return {
        "pooled": planned(sample, slos_s),
        "bound": planned(sample, slos_s, partitions=PARTITIONS),
        "coarse": {slo_s: coarse(sample, slo_s) for slo_s in slos_s},
    }


def planned(sample: Trace, slos_s: Sequence[float], partitions: int | None = None) -> Costs:
    """The default search's costs; plans for tighter SLOs stay candidates for looser ones, as in `plan --curve`."""
    owned = dict.fromkeys(SHAPE.stages, partitions) if partitions else {}
    costs: Costs = {}
    known: list[Plan] = []
    for slo_s in slos_s:
        try:
            plan = provision(Problem(SHAPE, profile(), (sample,), slo_s, CATALOGUE, partitions=owned), known=known)
        except Infeasible:
            costs[slo_s] = None
        else:
            known.append(plan)
            costs[slo_s] = round(plan.cost_per_hour, 4)
    return costs


def coarse(sample: Trace, slo_s: float) -> float | None:
    """CG-Peak's cost."""
    measured = profile()
    hardware = {stage: measured.hardware_of(stage)[0] for stage in SHAPE.stages}
    one = unit(SHAPE, measured, hardware, slo_s)
    if one.service_time_s > slo_s:
        return None
    price = sum(CATALOGUE[kind].price_per_hour for kind in hardware.values())
    return round(units_for(peak_rate(sample, slo_s), one.throughput) * price, 4)
