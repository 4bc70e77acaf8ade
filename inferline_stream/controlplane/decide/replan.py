"""Whether another plan is worth having, from what was recorded and measured: a function of values."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.controlplane.observe.log_growth import LogGrowth
from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.controlplane.records.control_records import decode_ticks, merged
from inferline_stream.errors import Infeasible
from inferline_stream.estimator.simulation import simulate
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape
from inferline_stream.pipeline.trace import Trace, busiest
from inferline_stream.pipeline.trace import merged as of_sources
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import SearchSettings, provision
from inferline_stream.replay.spot_mix import spot_mix
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.staffing_table import MOST_EVENTS

FEWEST_EVENTS = 500
"""A plan for fewer arrivals would be a plan for noise."""


SAVING_MARGIN = 0.1
"""Share of the SLO that a plan keeps free on the recorded traffic to take the place of one that still meets it: other
traffic of the same kind would else call the dearer plan back a few minutes later."""


@dataclass(frozen=True, slots=True)
class ReplanInputs:
    """What a planning run is given.

    Args:
        shape: the DAG.
        measured: profiles and paths, corrected by what replicas measure.
        plan: in force.
        slo_s: that people want now.
        objective: share of events that must meet it.
        catalogue: hardware kinds with the prices and stock of now.
        source_partitions: of each live source topic.
        max_batch_sizes: that stages declare.
        ticks: records of the arrivals topic, in order.
        saves_share: share of its cost by which a new plan must be cheaper.
        effort_s: longest time for the search.
        cores: most that all replicas together may have.
    """

    shape: Shape
    measured: PipelineProfile
    plan: Plan
    slo_s: float
    objective: float
    catalogue: Mapping[str, Hardware]
    source_partitions: tuple[int, ...]
    max_batch_sizes: Mapping[str, int]
    ticks: Sequence[Record]
    saves_share: float
    effort_s: float
    cores: float = math.inf


@dataclass(frozen=True, slots=True)
class ReplanResult:
    """What a planning run came to.

    Args:
        reason: for a new plan, or for saying that there is none; None where the plan in force stays.
        detail: in words, with the numbers.
        plan: the new one, None without.
        trace: that it was made for.
    """

    reason: Reason | None
    detail: str
    plan: Plan | None = None
    trace: Trace | None = None


def replan(inputs: ReplanInputs) -> ReplanResult:
    """Judge the plan in force on the recorded arrivals, look for a cheaper one, and say which it should be."""
    trace = recorded(inputs.ticks, inputs.source_partitions)
    trace = trace if inputs.shape.sources else Trace(trace.arrivals_s)  # classes of one source enter alike
    if len(trace) < FEWEST_EVENTS:
        return ReplanResult(None, f"only {len(trace)} arrivals are recorded, a plan needs {FEWEST_EVENTS}")
    stretch = busiest(trace, MOST_EVENTS)
    before = inputs.plan
    p99_s = _quantile_s(inputs, stretch)
    cost = cost_per_hour(before.allocations, inputs.catalogue)
    give_up_s = time.monotonic() + inputs.effort_s
    try:
        problem = Problem(
            inputs.shape,
            inputs.measured,
            (stretch,),
            inputs.slo_s,
            inputs.catalogue,
            max_batch_sizes=inputs.max_batch_sizes,
            objective=inputs.objective,
            cores=inputs.cores,
            order=before.order,
        )
        margin = SAVING_MARGIN if p99_s <= inputs.slo_s else None
        options = SearchSettings(margin=margin, stop=lambda: time.monotonic() > give_up_s)
        plan = provision(problem, options, known=[before], pipeline=before.pipeline)
    except Infeasible as error:
        return ReplanResult(Reason.PLAN_INFEASIBLE, str(error))
    plan = replace(plan, reserve=before.reserve, idle=before.idle)
    mix = spot_mix(plan, problem.shape, inputs.measured, inputs.catalogue, trace=stretch, objective=inputs.objective)
    plan = plan if mix is None else mix.plan
    numbers = (
        f"{len(stretch)} arrivals at {stretch.arrival_rate:.1f}/s: the plan in force costs ${cost:.4f}/h and has a P99 "
        f"of {format_duration(p99_s)}, the cheapest ${plan.cost_per_hour:.4f}/h and "
        f"{format_duration(plan.predicted_p99_s)}"
    )
    if inputs.slo_s != before.slo_s:
        old, new = format_duration(before.slo_s), format_duration(inputs.slo_s)
        return ReplanResult(Reason.LIMIT_CHANGED, f"SLO {new} in place of {old}; {numbers}", plan, stretch)
    if p99_s > inputs.slo_s:
        return ReplanResult(Reason.PLAN_MISSES_SLO, numbers, plan, stretch)
    if cost - plan.cost_per_hour > inputs.saves_share * cost:
        return ReplanResult(Reason.PLAN_SAVES, numbers, plan, stretch)
    return ReplanResult(None, numbers)


def _quantile_s(inputs: ReplanInputs, trace: Trace) -> float:
    """Latency of the plan in force at the objective, on this trace and with these profiles."""
    plan = inputs.plan
    allocations: dict[str, tuple[Allocation, ...]] = {
        stage: tuple(a for a in held if a.replicas) for stage, held in plan.allocations.items()
    }
    found = simulate(
        inputs.shape,
        allocations,
        inputs.measured.without_fallbacks(),
        trace,
        order_slo_s=inputs.slo_s,
        order=plan.order,
        slots=plan.slots,
    )
    return found.quantile_s(inputs.objective)


def recorded(ticks: Sequence[Record], partitions: Sequence[int]) -> Trace:
    """Arrivals as the records of the arrivals topic hold them, spread over the time between two samples.

    Args:
        ticks: the records, in order.
        partitions: of each source topic; records of another number in all are left out.
    """
    entries = RecordDecoder().decoded(ticks, decode_ticks)
    log = merged((e.value for e in entries if e.value), sum(partitions))
    traces, first = list[Trace](), 0
    for count in partitions:
        growth, own = LogGrowth(), slice(first, first + count)
        times = [growth.sample(time_s, ends[own]) for time_s, ends in log]
        traces.append(Trace(np.concatenate([np.empty(0), *times])))
        first += count
    whole = of_sources(traces)
    return whole.window(whole.arrivals_s[0], math.inf) if len(whole) else whole
