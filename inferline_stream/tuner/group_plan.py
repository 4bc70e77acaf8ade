"""The smallest number of members of each consumer group that keeps the SLO on a sample, held all the time."""

from __future__ import annotations

import math
from dataclasses import replace

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, trace_envelope, windows_s
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.pipeline.shape import most_at_once, visit_ratios
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import format_duration
from inferline_stream.tuner.staffing_table import StaffingSearch

ALGORITHM = "groups"

LEAST_TRAFFIC_S = 60.0
"""Traffic that a first plan is made for lasts so long at least."""


def plan_groups(model: GroupModel, sample: Trace) -> Plan:
    """Return the cheapest plan found whose simulated latency meets the SLO on the whole sample.

    Only useful numbers are tried (`Sharing.useful`): first those below which a queue grows, then always the member that
    shortens most for its money, until the SLO is met; then what it is met without is given back.

    Args:
        model: what was learned of the groups.
        sample: traffic, with at least one event.

    Raises:
        Infeasible: not even a member for each partition meets it; names the groups and the remedy.
    """
    shape, measured = model.shape, model.measured
    ratios, hop_s = visit_ratios(shape, measured.paths), measured.least_hop_s
    profiles = {name: measured.profiles[name, kind] for name, kind in model.hardware.items()}
    one = {name: (Allocation(profile.hardware, profile.batch_sizes[-1], 1),) for name, profile in profiles.items()}
    shortest_s = shape.longest_path_s({name: p.service_time_s(1) + hop_s for name, p in profiles.items()}) + hop_s
    begun = Plan(
        pipeline=model.pipeline,
        slo_s=model.slo_s,
        allocations=one,
        cost_per_hour=0.0,
        predicted_p99_s=math.nan,
        arrival_rate=sample.arrival_rate,
        envelope=trace_envelope(sample, windows_s(min(shortest_s, LONGEST_WINDOW_S))),
        visit_ratios=ratios,
        utilization={},
        algorithm=ALGORITHM,
        order="entry",
        at_once={name: n for name, n in most_at_once(shape, measured.paths).items() if n > 1},
    )
    prices = {name: kind.price_per_hour for name, kind in model.catalogue.items()}
    search = StaffingSearch(shape, begun, measured, prices, sharing=model.sharing, seed=0)
    most = sum(model.most.values())
    found = search.above(sample, 1.0, search.least(1.0), objective=model.objective, most=most)
    p99_s = search.quantile_s(sample, found, model.objective)
    if p99_s > model.slo_s:
        raise Infeasible(_too_few(model, found, p99_s), p99_s)
    found = search.below(sample, 1.0, found, objective=model.objective)
    held = {name: (replace(one[name][0], replicas=count),) for name, count in found.items()}
    load = {name: sample.arrival_rate * ratios[name] for name in shape.stages}
    return replace(
        begun,
        allocations=held,
        cost_per_hour=cost_per_hour(held, model.catalogue),
        predicted_p99_s=search.quantile_s(sample, found, model.objective),
        utilization={name: load[name] / measured.throughput(name, held[name]) for name in shape.stages},
    )


def _too_few(model: GroupModel, found: dict[str, int], p99_s: float) -> str:
    full = [name for name, count in found.items() if count >= model.most[name]]
    what = ", ".join(f"{name!r} ({model.most[name]})" for name in full)
    return (
        f"the SLO of {format_duration(model.slo_s)} is met by no number of members: with one for each partition of "
        f"{what} {model.objective:.0%} of the events take up to {format_duration(p99_s)}; add partitions, or declare a "
        "looser SLO"
    )
