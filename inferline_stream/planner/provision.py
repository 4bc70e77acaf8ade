"""The cheapest plan that meets the SLO on the sample trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, trace_envelope, windows_s
from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.evaluation import Evaluator, Stopped
from inferline_stream.planner.inferline import Search, plan_inferline
from inferline_stream.planner.partitions import advise_partitions
from inferline_stream.planner.problem import (
    Candidate,
    Problem,
    Queues,
    Service,
    arrival_rates,
    batch_limits,
    cost_of,
    fastest_path_s,
    hardware_kinds,
)

Algorithm = Literal["default", "inferline", "exact"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search has come.

    Args:
        phase: what it is doing, for people.
        cost_per_hour: of the best plan so far; None before there is one.
        evaluations: candidates simulated so far.
        simulated_events: events simulated so far, once per stage visited.
    """

    phase: str
    cost_per_hour: float | None
    evaluations: int
    simulated_events: int


def provision(
    shape: Shape,
    measured: PipelineProfile,
    trace: Trace | Sequence[Trace],
    slo_s: float,
    catalogue: Catalogue,
    *,
    pipeline: str = "",
    algorithm: Algorithm = "default",
    queues: Queues | None = None,
    partitions: Mapping[str, int] | None = None,
    max_batch_sizes: Mapping[str, int] | None = None,
    objective: float = 0.99,
    service: Service = "mean",
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    seed: int = 0,
) -> Plan:
    """Find the cheapest plan that meets the SLO.

    Args:
        shape: the DAG.
        measured: profiles and paths.
        trace: sample arrivals; of several, the plan meets the SLO on each.
        slo_s: the SLO in seconds.
        catalogue: hardware kinds with prices and stock.
        pipeline: the pipeline's name, for the plan.
        algorithm: ``"inferline"`` is the paper's, to the letter.
        queues: ``"shared"`` is the paper's central queue, ``"partitioned"`` Kafka's; None follows from ``partitions``.
        partitions: by stage, of its input topic. Stages left out get an advised count.
        max_batch_sizes: by stage, the largest batch limit to consider.
        objective: share of events that must meet the SLO.
        service: the estimator's service-time model.
        progress: told now and then how far the search has come.
        stop: asked before every simulation; True returns the best plan so far.
        seed: of the estimator's draws.

    Raises:
        Infeasible: no plan meets the SLO; says which stage makes it so and the smallest SLO that some plan meets.
        InvalidTopology: a stage that was profiled on no hardware of the catalogue.
        ValueError: an empty trace, or an SLO or objective that cannot be.
    """
    traces = (trace,) if isinstance(trace, Trace) else tuple(trace)
    problem = Problem(
        shape,
        measured,
        traces,
        slo_s,
        catalogue,
        max_batch_sizes=max_batch_sizes or {},
        objective=objective,
        service=service,
        seed=seed,
    )
    if queues == "partitioned" or (queues is None and partitions is not None):
        problem = with_partitions(problem, partitions or {})
    evaluator = Evaluator(problem, stop or (lambda: False))
    best: Candidate | None = None

    def report(phase: str, candidate: Candidate | None) -> None:
        nonlocal best
        if candidate is not None:
            best = candidate
            evaluator.accept(candidate)
        if progress is not None:
            cost = None if best is None else cost_of(problem, best)
            progress(Progress(phase, cost, evaluator.evaluations, evaluator.simulated_events))

    try:
        best = plan_inferline(Search(problem, evaluator.bounds, evaluator.feasible, evaluator.most_busy, report))
    except (Stopped, KeyboardInterrupt):
        if best is None:
            raise
    if best is None:
        raise Infeasible(f"no plan meets the SLO of {slo_s} s", None)
    return plan_of(problem, evaluator, best, pipeline=pipeline, slo_s=slo_s, algorithm="inferline")


def with_partitions(problem: Problem, given: Mapping[str, int]) -> Problem:
    """The problem on partitioned queues; stages without a given count get an advised one."""
    rates = arrival_rates(problem)
    counts = {
        stage: given.get(stage) or advise_partitions(_likely_replicas(problem, stage, rates[i])).partitions
        for i, stage in enumerate(problem.shape.stages)
    }
    return replace(problem, partitions=counts)


def _likely_replicas(problem: Problem, stage: str, rate: float) -> int:
    """Replicas at 70 % utilization, the most over the kinds that cost at most twice the cheapest."""
    needed: dict[str, int] = {}
    for kind in hardware_kinds(problem, stage):
        best = problem.measured.profiles[stage, kind].throughput(batch_limits(problem, stage, kind)[-1])
        needed[kind] = max(1, math.ceil(rate / (0.7 * best)))
    costs = {kind: n * problem.catalogue[kind].price_per_hour for kind, n in needed.items()}
    return max(n for kind, n in needed.items() if costs[kind] <= 2 * min(costs.values()))


def plan_of(
    problem: Problem, evaluator: Evaluator, candidate: Candidate, *, pipeline: str, slo_s: float, algorithm: str
) -> Plan:
    """The plan of a candidate, with the evidence."""
    stages = problem.shape.stages
    rates = arrival_rates(problem)
    served = [
        sum(a.replicas * problem.measured.profiles[s, a.hardware].throughput(a.max_batch_size) for a in option)
        for s, option in zip(stages, candidate, strict=True)
    ]
    windows = windows_s(min(fastest_path_s(problem), LONGEST_WINDOW_S))
    envelopes = [dict(trace_envelope(t, windows)) for t in problem.traces]
    return Plan(
        pipeline=pipeline,
        slo_s=slo_s,
        allocations=dict(zip(stages, candidate, strict=True)),
        cost_per_hour=cost_of(problem, candidate),
        predicted_p99_s=evaluator.quantile_s(candidate),
        arrival_rate=max(t.arrival_rate for t in problem.traces),
        envelope=tuple((w, max(envelope[w] for envelope in envelopes)) for w in windows),
        visit_ratios=visit_ratios(problem.shape, problem.measured.paths),
        utilization={s: r / m for s, r, m in zip(stages, rates, served, strict=True)},
        partitions=dict(problem.partitions),
        algorithm=algorithm,
    )
