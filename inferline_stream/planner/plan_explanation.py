"""Why a plan is what it is: what each stage's next-cheaper choice would break, and how far from the edge it sits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.errors import Infeasible
from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.plan import Allocation, Plan, hold_of, in_words
from inferline_stream.planner.confidence import Interval, p99_confidence
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    Option,
    Problem,
    in_stock,
    paid_of,
    price_of,
    replaced,
)
from inferline_stream.planner.provision import candidate_of
from inferline_stream.planner.reasons import Reasons
from inferline_stream.planner.stage_options import stage_options


@dataclass(frozen=True, slots=True)
class Alternative:
    """A cheaper choice for one stage, all others as planned, and what comes of it.

    Args:
        allocations: the stage's allocations then.
        cost_change_per_hour: dollars per hour, below 0 but where the device of a share is paid all the same.
        p99_s: latency at the objective then; None where the stage could not even keep up, and where nothing is saved.
        reason: one sentence.
    """

    allocations: tuple[Allocation, ...]
    cost_change_per_hour: float
    p99_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class StageExplanation:
    """One stage of the plan.

    Args:
        stage: its name.
        allocations: as planned.
        cost_per_hour: of the stage.
        utilization: ρ as planned.
        reasons: why it has that hardware, batch limit, hold and number of replicas, a sentence each.
        next_cheaper: the dearest choice that is cheaper than the planned one, for each hardware kind that has one.
    """

    stage: str
    allocations: tuple[Allocation, ...]
    cost_per_hour: float
    utilization: float
    reasons: tuple[str, ...]
    next_cheaper: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole plan.

    Args:
        stages: in topological order.
        slack_s: SLO less the predicted P99.
        p99: how sure the predicted P99 is, by bootstrap over blocks of the trace that decides it.
        binding: what keeps the plan from being cheaper, in one sentence.
    """

    stages: tuple[StageExplanation, ...]
    slack_s: float
    p99: Interval
    binding: str


def explain(plan: Plan, problem: Problem) -> Explanation:
    """Simulate the next-cheaper choices of every stage.

    Args:
        plan: the plan.
        problem: what it was made for; the target is its SLO.

    Raises:
        ValueError: a plan that is not one of this pipeline, profile and catalogue.
    """
    problem = replace(problem, target_s=plan.slo_s)
    candidate = candidate_of(problem, plan)
    if candidate is None:
        raise ValueError(f"the plan of {plan.pipeline!r} does not fit the stages, profile and hardware given")
    evaluator = Evaluator(problem)
    evaluator.accept(candidate)
    latencies = evaluator.latencies_s(candidate)
    by_trace = list(zip(evaluator.workloads, latencies, strict=True))
    worst = max(range(len(by_trace)), key=lambda i: by_trace[i][0].judged_quantile_s(by_trace[i][1], problem.objective))
    why = Reasons(evaluator, candidate, worst)
    stages = tuple(
        StageExplanation(
            name,
            candidate[s],
            price_of(problem, candidate[s]),
            plan.utilization.get(name, 0.0),
            tuple(why.of_stage(s)),
            tuple(_alternatives(evaluator, candidate, s)),
        )
        for s, name in enumerate(problem.shape.stages)
    )
    rng = np.random.default_rng(problem.seed)
    sure = p99_confidence(*_of_worst_class(*by_trace[worst], problem.objective), rng, p=problem.objective)
    return Explanation(stages, plan.slo_s - plan.predicted_p99_s, sure, _binding(stages, plan))


def _of_worst_class(workload: Workload, latency_s: Floats, objective: float) -> tuple[Floats, Floats]:
    """Return latencies as SLOs judge them, of the live class that decides the plan's P99, and when its events entered.

    Args:
        workload: the events.
        latency_s: float64 (events,).
        objective: the quantile.
    """
    judged_s, entry_s = workload.judged_s(latency_s[workload.last]), workload.entry_s[workload.last]
    classes = list(workload.by_class(judged_s.size)) or [np.ones(judged_s.size, dtype=np.bool_)]
    found = np.array([quantile_s(judged_s[own], objective) for own in classes])
    worst = classes[int(np.argmax(np.where(np.isnan(found), -np.inf, found)))]
    return judged_s[worst], entry_s[worst]


def _alternatives(evaluator: Evaluator, candidate: Candidate, stage: int) -> list[Alternative]:
    """For each kind the dearest cheaper option: at that price the batch limit, held or not, with the least latency."""
    problem = evaluator.problem
    now = price_of(problem, candidate[stage])
    dearest: dict[str, list[Option]] = {}
    holds = dict.fromkeys((0.0, hold_of(candidate[stage])))
    listed = stage_options(evaluator.bounds, stage, now - 1e-9)
    for option in ((replace(a, hold_s=hold_s),) for (a,) in listed for hold_s in holds):
        held = dearest.setdefault(option[0].hardware, [])
        if held and price_of(problem, held[0]) < price_of(problem, option) - 1e-12:
            held.clear()
        held.append(option)
    found = [
        min((_alternative(evaluator, candidate, stage, option) for option in options), key=lambda a: a.p99_s or 0.0)
        for options in dearest.values()
    ]
    return found or [_too_slow(evaluator, candidate, stage)]


def _alternative(evaluator: Evaluator, candidate: Candidate, stage: int, option: Option) -> Alternative:
    problem = evaluator.problem
    changed = replaced(candidate, stage, option)
    saved = paid_of(problem, changed) - paid_of(problem, candidate)
    words = in_words(option)
    if saved > -COST_EPSILON:
        reason = f"{words} would save nothing: a device that replicas share is paid as a whole"
        return Alternative(option, saved, None, reason)
    p99_s = evaluator.quantile_s(changed)
    if not in_stock(problem, changed):
        reason = f"{words} would exceed the stock"
    elif p99_s > problem.target_s:
        reason = f"{words} would take P99 to {p99_s * 1000:.0f} ms, the SLO is {problem.target_s * 1000:.0f} ms"
    else:
        reason = f"{words} would meet the SLO at {p99_s * 1000:.0f} ms, with less margin than was asked for"
    return Alternative(option, saved, p99_s, reason)


def _too_slow(evaluator: Evaluator, candidate: Candidate, stage: int) -> Alternative:
    rate = evaluator.bounds.required_rate[stage]
    reason = f"nothing cheaper serves the {rate:.4g} events per second that its arrivals need at least"
    return Alternative((), -price_of(evaluator.problem, candidate[stage]), None, reason)


def _binding(stages: tuple[StageExplanation, ...], plan: Plan) -> str:
    """The stage whose cheaper choice comes closest to being possible."""
    near = [(a.p99_s, s.stage, a.reason) for s in stages for a in s.next_cheaper if a.p99_s is not None]
    if not near:
        return "throughput: no stage can be served by anything cheaper"
    p99_s, stage, reason = min(near)
    kind = "latency" if p99_s < 2 * plan.slo_s else "throughput"
    return f"{kind} of stage {stage!r}: {reason}"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of the cost–SLO curve; no plan where the SLO is infeasible."""

    slo_s: float
    plan: Plan | None


def cost_curve(
    slos_s: Sequence[float], plan_for: Callable[[float, Sequence[Plan]], Plan], known: Sequence[Plan] = ()
) -> tuple[CurvePoint, ...]:
    """Plans for several SLOs, the tightest first; each is a candidate for all looser ones, so cost never rises.

    Interrupted with Ctrl-C, the curve ends before the SLO that no plan was found for yet.

    Args:
        slos_s: the SLOs in seconds.
        plan_for: plans for an SLO, given earlier plans: `provision` with the rest of its arguments filled in.
        known: plans that there are already.
    """
    earlier = list(known)
    points = []
    for slo_s in sorted(slos_s):
        try:
            plan: Plan | None = plan_for(slo_s, tuple(earlier))
        except Infeasible:
            plan = None
        except KeyboardInterrupt:
            break
        if plan is not None:
            earlier.append(plan)
        points.append(CurvePoint(slo_s, plan))
    return tuple(points)


def latency_shares(plan: Plan, problem: Problem) -> Mapping[str, float]:
    """Return each stage's part of all the time that events spend in queues and in service, on the first trace.

    Args:
        plan: the plan.
        problem: what it was made for.

    Raises:
        ValueError: see `explain`.
    """
    candidate = candidate_of(problem, plan)
    if candidate is None:
        raise ValueError(f"the plan of {plan.pipeline!r} does not fit the stages, profile and hardware given")
    evaluator = Evaluator(problem)
    found = evaluate(evaluator.workloads[0], evaluator.stations(candidate), latencies=False).statistics
    spent_s = {
        name: found[s].arrivals * (found[s].wait_s + found[s].service_time_s) if found[s].arrivals else 0.0
        for s, name in enumerate(problem.shape.stages)
    }
    total_s = sum(spent_s.values()) or 1.0
    return {name: each_s / total_s for name, each_s in spent_s.items()}
