"""What knowing the trace could save: schedules made in hindsight, and a bound that no policy can pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from inferline_stream.estimator.kernels import Floats
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Scheduled
from inferline_stream.tuner.demand import supply_for
from inferline_stream.tuner.plan_basis import Basis
from inferline_stream.tuner.replica_fit import fewer, more

SLOT_S = 1.0
"""Length of the slots for which a schedule is made."""

FACTORS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Factors on the demand among which the cheapest schedule that keeps the SLO is looked for."""


def multiples(basis: Basis, trace: Trace) -> Floats:
    """Multiple of the sample's traffic in each slot: the largest of any window that touches it.

    Windows compare as in `tuner.demand.burst_multiple`: lengthened by the slack that the SLO leaves.
    """
    slack_s = basis.knobs.burst_slack_share * basis.slo_s
    slots = math.ceil((trace.arrivals_s[-1] if len(trace) else 0.0) / SLOT_S) + 1
    most = np.zeros(slots)
    times = trace.arrivals_s
    for window_s in basis.windows_s:
        if window_s > 5.0:
            break
        counts = np.arange(1, times.size + 1) - np.searchsorted(times, times - window_s, side="right")
        rates = counts / (window_s + slack_s)
        for back_s in np.arange(0.0, window_s + SLOT_S, SLOT_S):
            slot = np.floor(np.maximum(times - min(back_s, window_s), 0.0) / SLOT_S).astype(np.int64)
            np.maximum.at(most, slot, rates)
    planned = max(
        (n / (w + slack_s) for w, n in zip(basis.windows_s, basis.counts, strict=True) if w <= 5.0), default=1.0
    )
    return most / planned


def schedule(basis: Basis, trace: Trace, *, factor: float, lead_s: float, hold_s: float) -> Scheduled:
    """Replicas for what is known to come.

    Args:
        basis: plan and staffing.
        trace: the one that will be judged by.
        factor: on the demand.
        lead_s: how long before a slot its replicas are asked for.
        hold_s: replicas stay if they are needed again within this time: coming back costs as much.
    """
    ahead = _largest_ahead(multiples(basis, trace) * factor, math.ceil((lead_s + hold_s) / SLOT_S))
    steps: list[tuple[float, Mapping[str, Mapping[str, int]]]] = []
    fitted: dict[float, dict[str, dict[str, int]]] = {}
    for slot, multiple in enumerate(ahead.tolist()):
        if multiple not in fitted:
            fitted[multiple] = _fit(basis, multiple)
        if not steps or steps[-1][1] != fitted[multiple]:
            steps.append((slot * SLOT_S, fitted[multiple]))
    return Scheduled("clairvoyant" if lead_s > 0 else "instant clairvoyant", steps)


def _largest_ahead(values: Floats, slots: int) -> Floats:
    """At each slot the largest value of it and the next so many."""
    padded = np.concatenate([values, np.zeros(slots)])
    largest: Floats = np.lib.stride_tricks.sliding_window_view(padded, slots + 1)[: values.size].max(axis=1)
    return largest


def _fit(basis: Basis, multiple: float) -> dict[str, dict[str, int]]:
    wanted = {}
    for stage in basis.stages:
        throughputs = {kind.hardware: kind.throughput for kind in stage.kinds}
        needed = supply_for(basis, stage, multiple)
        fit = more(stage, {k.hardware: k.planned for k in stage.kinds}, throughputs, needed, stock=basis.stock)
        wanted[stage.name] = fewer(stage, fit.replicas, throughputs, needed, stage.slots)
    return wanted


def cheapest(basis: Basis, trace: Trace, run: Callable[[Scheduled], Outcome], *, instant: bool) -> Outcome:
    """The cheapest schedule that keeps the objective, over `FACTORS`; the one with the fewest misses if none does.

    Args:
        basis: plan and staffing.
        trace: the one to be judged by.
        run: replays a schedule, with delays or (instant) without any.
        instant: whether replicas are there at once.
    """
    lead_s = 0.0 if instant else basis.start_up_s + basis.knobs.reaction_s
    hold_s = 0.0 if instant else basis.start_up_s
    best: Outcome | None = None
    for factor in FACTORS:
        found = run(schedule(basis, trace, factor=factor, lead_s=lead_s, hold_s=hold_s))
        if best is None or _better(found, best, 1 - basis.objective):
            best = found
        if found.miss_rate <= 1 - basis.objective:
            break
    assert best is not None
    return best


def _better(a: Outcome, b: Outcome, allowed: float) -> bool:
    if (a.miss_rate <= allowed) != (b.miss_rate <= allowed):
        return a.miss_rate <= allowed
    return a.cost < b.cost if a.miss_rate <= allowed else a.miss_rate < b.miss_rate


def work_bound(
    allocations: Allocations,
    measured: PipelineProfile,
    visits: Mapping[str, float],
    catalogue: Catalogue,
    *,
    objective: float,
) -> float:
    """Dollars below which no policy can serve the objective's share of these visits.

    Every event takes at least 1/µ of a replica's time at the best batch size of the kind that gives the most events
    per dollar; replicas would have to be busy without a break, and batches beside others as fast as alone.

    Args:
        allocations: the kinds and batch limits of each stage.
        measured: profiles.
        visits: events that visit each stage.
        catalogue: prices.
        objective: share of events to be served.
    """
    total = 0.0
    for stage, held in allocations.items():
        per_event = min(
            catalogue[a.hardware].price_per_hour
            / 3600
            / max(
                a.concurrency * measured.profiles[stage, a.hardware].throughput(b)
                for b in range(1, a.max_batch_size + 1)
            )
            for a in held
        )
        total += visits[stage] * objective * per_event
    return total
