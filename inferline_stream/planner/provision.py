"""The cheapest plan that meets the SLO on the sample trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, trace_envelope, windows_s
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import KeyBound, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios
from inferline_stream.pipeline.trace import Trace, busiest
from inferline_stream.planner.branch_and_bound import prove
from inferline_stream.planner.default_search import lowered, refine
from inferline_stream.planner.evaluator import Evaluator, Stopped
from inferline_stream.planner.infeasible import does_not_fit, infeasible
from inferline_stream.planner.key_bounds import key_bounds
from inferline_stream.planner.local_search import with_largest_limits, without_needless_holds
from inferline_stream.planner.mixture_search import mixed_in
from inferline_stream.planner.paper_greedy import Search, plan_inferline
from inferline_stream.planner.parallel_map import ALONE, Spread
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    Problem,
    arrival_rates,
    cost_of,
    fastest_path_s,
    hardware_kinds,
    in_stock,
    is_scarce,
    slots,
)
from inferline_stream.planner.stage_options import combined

Algorithm = Literal["default", "inferline", "exact"]


@dataclass(frozen=True, slots=True)
class SearchProgress:
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


MARGIN = 0.01
"""Default share of the SLO that the default search keeps free on the sample, for traffic that is not the sample.

An optimal plan sits right on its target: on other traffic of the same kind half of such plans would miss the SLO. The
benchmark `planner` prints the share of plans that keep it on held-out traces, with and without.
"""


PROVEN_STAGES = 4
"""Pipelines up to this length end with an exact search, too, as far as `PROVEN_EFFORT` goes."""

PROVEN_EFFORT = 7_000_000
"""Events simulated in that search, as `prove` counts them: half a second on long traces, and some on short ones."""

PAPER_WORK = 3_000_000
"""Events times stages up to which the paper's plan is found first, as a plan to have early and to beat."""

PAPER_EVENTS = 24_000
"""On longer traces the paper's algorithm plans for a piece of so many events, the busiest: what suffices for it and for
the whole is a plan to beat, too."""


def provision(
    shape: Shape,
    measured: PipelineProfile,
    trace: Trace | Sequence[Trace],
    slo_s: float,
    catalogue: Catalogue,
    *,
    pipeline: str = "",
    algorithm: Algorithm = "default",
    partitions: Mapping[str, int] | None = None,
    max_batch_sizes: Mapping[str, int] | None = None,
    objective: float = 0.99,
    margin: float | None = None,
    known: Iterable[Plan] = (),
    mixed: bool = True,
    progress: Callable[[SearchProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    seed: int = 0,
    order_slo_s: float | None = None,
    cores: float = math.inf,
    spread: Spread = ALONE,
) -> Plan:
    """Find the cheapest plan that meets the SLO.

    Batches are held only where the SLO would be missed otherwise. Of plans that cost the same it is the one with the
    largest batch limits that keep the SLO less the margin: they are capacity in hand for bursts beyond the sample. A
    search that is interrupted, by ``stop`` or with Ctrl-C, returns the best plan so far.

    Args:
        shape: the DAG.
        measured: profiles and paths.
        trace: sample arrivals; of several, the plan meets the SLO on each.
        slo_s: the SLO in seconds.
        catalogue: hardware kinds with prices and stock.
        pipeline: the pipeline's name, for the plan.
        algorithm: ``"default"``; ``"inferline"``, the paper's to the letter; or ``"exact"``, which goes on until
            no cheaper plan with one hardware kind per stage and without holds can exist.
        partitions: by stage, partitions of its input topic, for a plan of ordinary consumer groups, whose replicas own
            partitions; None plans for one queue per stage.
        max_batch_sizes: by stage, the largest batch limit to consider.
        objective: share of events that must meet the SLO.
        margin: share of the SLO kept free on the sample; None is `MARGIN`, and none for the paper's algorithm.
            Given up where no plan can keep it, and where that would cost more than the paper's plan, which keeps none.
        known: earlier plans. Those that meet this SLO are candidates whatever their margin, so that a looser SLO
            never costs more.
        mixed: a stage may mix hardware kinds.
        progress: called now and then with how far the search has come.
        stop: asked before every simulation; True ends the search.
        seed: of the estimator's draws.
        order_slo_s: SLO by which the running pipeline orders its queues; None is ``slo_s``.
        cores: most that all replicas together may have.
        spread: where candidates are simulated; the plan does not depend on it.

    Raises:
        Infeasible: no plan meets the SLO; says which stage makes it so and the smallest SLO that some plan meets.
        InvalidInput: a stage that was profiled on no hardware of the catalogue.
        ValueError: an empty trace, or an SLO, objective or margin that cannot be.
    """
    problem = Problem(
        shape,
        measured,
        (trace,) if isinstance(trace, Trace) else tuple(trace),
        slo_s,
        catalogue,
        max_batch_sizes=max_batch_sizes or {},
        objective=objective,
        seed=seed,
        partitions=partitions or {},
        order_slo_s=order_slo_s,
        cores=cores,
    )
    outcome = search(
        problem,
        algorithm=algorithm,
        margin=margin,
        known=[candidate for plan in known if (candidate := candidate_of(problem, plan)) is not None],
        mixed=mixed,
        progress=progress,
        stop=stop,
        spread=spread,
    )
    return plan_of(problem, outcome, pipeline=pipeline)


def search(
    problem: Problem,
    *,
    algorithm: Algorithm = "default",
    margin: float | None = None,
    known: Sequence[Candidate] = (),
    mixed: bool = True,
    progress: Callable[[SearchProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    spread: Spread = ALONE,
) -> SearchOutcome:
    """`provision` on a problem already put together, with what else there is to know of the result.

    Raises:
        Infeasible: no plan meets the SLO.
        ValueError: a margin outside [0, 1).
    """
    if margin is None:
        margin = 0.0 if algorithm == "inferline" else MARGIN
    if not 0 <= margin < 1:
        raise ValueError(f"margin {margin} must be a share of the SLO, 0 or more and below 1")
    stop = stop or (lambda: False)
    lower_bound = 0.0
    papers: list[Candidate] = []
    work = sum(len(trace) for trace in problem.traces) * len(problem.shape.stages)
    kinds = {kind for stage in problem.shape.stages for kind in hardware_kinds(problem, stage)}
    scarce = any(is_scarce(problem, kind) for kind in kinds)
    journal = _Journal(problem, progress)
    evaluator = whole = Evaluator(problem, stop, spread=spread)
    journal.watch(whole)
    try:
        for candidate in known:
            if in_stock(problem, candidate) and whole.feasible(candidate):
                journal.take(candidate)
        for target_s in dict.fromkeys((problem.target_s * (1 - margin), problem.target_s)):
            evaluator = whole
            if target_s != problem.target_s:
                stricter = replace(problem, target_s=target_s, order_slo_s=problem.queue_slo_s)
                evaluator = Evaluator(stricter, stop, whole.workloads, spread)
            journal.watch(evaluator)
            if algorithm == "inferline":
                searched = _paper(evaluator, journal)
            else:
                if not papers:
                    papers = _papers(whole, journal, short=work <= PAPER_WORK, stop=stop)
                    known = [*known, *papers]
                searched = refine(evaluator, known, mixed=mixed, stop=stop, report=journal.report)
            found = journal.take_all(searched)
            short = algorithm == "default" and len(problem.shape.stages) <= PROVEN_STAGES
            # Where kinds are scarce a plan may exist although nothing that was looked at fits into the stock.
            if (found is not None or scarce) and (short or algorithm == "exact"):
                effort = math.inf if algorithm == "exact" else PROVEN_EFFORT
                proof = prove(evaluator, found, take=journal.take, effort=effort)
                if proof.best is not None:
                    before, found, lower_bound = found, proof.best, proof.lower_bound
                    if found != before:  # cheaper without holds: it may be cheaper still with some
                        found = journal.take_all(lowered(evaluator, found, mixed=mixed, stop=stop)) or found
                elif proof.stopped:  # not infeasible: nobody knows yet
                    raise Stopped
            if found is not None:
                if algorithm == "inferline":
                    journal.end_with(found)
                else:
                    if mixed:
                        found = with_largest_limits(evaluator, found)
                        found = journal.take_all(mixed_in(evaluator, found)) or found
                    journal.best = _settled(whole, evaluator, journal.best, found)
                if evaluator is whole or not _dearer(problem, found, papers):
                    break
    except (Stopped, KeyboardInterrupt):
        if journal.best is None:
            raise
    if journal.best is None:
        if math.isfinite(problem.cores):
            roomy = replace(problem, cores=math.inf)
            wanted = search(
                roomy, algorithm=algorithm, margin=margin, mixed=mixed, progress=progress, stop=stop, spread=spread
            )
            raise does_not_fit(problem, wanted.candidate)
        raise infeasible(problem, Evaluator(problem, workloads=whole.workloads))
    p99_s = evaluator.quantile_s(journal.best)  # whatever its target: the queues are the same
    # Known plans need not keep the margin that the bound was proven with.
    lower_bound = min(lower_bound, cost_of(problem, journal.best))
    keys = key_bounds(problem, whole.bounds, journal.best)
    return SearchOutcome(
        journal.best, p99_s, lower_bound, algorithm, journal.evaluations, journal.simulated_events, keys
    )


def _dearer(problem: Problem, found: Candidate, papers: Sequence[Candidate]) -> bool:
    """Whether what keeps the margin costs more than what the paper's algorithm found without one."""
    return any(cost_of(problem, paper) < cost_of(problem, found) - COST_EPSILON for paper in papers)


def _settled(whole: Evaluator, kept_free: Evaluator, cheapest: Candidate | None, found: Candidate) -> Candidate:
    """What was found with the margin free, or what is cheaper without: no needless holds, and the largest limits."""
    if cheapest is not None and cost_of(whole.problem, cheapest) < cost_of(whole.problem, found) - COST_EPSILON:
        return with_largest_limits(whole, without_needless_holds(whole, cheapest))
    return with_largest_limits(kept_free, without_needless_holds(kept_free, found))


def _papers(whole: Evaluator, journal: _Journal, *, short: bool, stop: Callable[[], bool]) -> list[Candidate]:
    """The paper's plan, or on long traces that for their busiest pieces if it meets the target on the whole."""
    if short:
        return list(_paper(whole, journal))
    problem = whole.problem
    piece = replace(problem, traces=tuple(busiest(trace, PAPER_EVENTS) for trace in problem.traces))
    on_piece = Evaluator(piece, stop, spread=whole.spread)
    journal.watch(on_piece)
    for found in _paper(on_piece, journal, whole=False):
        if whole.feasible(found):
            journal.take(found)
            return [found]
    return []


def _paper(evaluator: Evaluator, journal: _Journal, *, whole: bool = True) -> Iterator[Candidate]:
    """The paper's plan; on the whole traces every feasible candidate on the way is the best so far."""

    def report(phase: str, candidate: Candidate | None) -> None:
        if candidate is not None:
            evaluator.accept(candidate)
            if whole:
                journal.take(candidate)
        journal.report(phase, candidate)

    asked = Search(
        evaluator.problem, evaluator.bounds, evaluator.feasible, evaluator.most_busy, report, evaluator.together
    )
    planned = plan_inferline(asked)
    if planned is not None:
        yield planned


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search ended with.

    Args:
        candidate: the cheapest one found that meets the SLO on every trace.
        p99_s: its latency at the objective, the largest over the traces.
        lower_bound_per_hour: dollars per hour below which no plan with one hardware kind per stage and without holds
            meets the target; 0 unless it was looked for. As high as the candidate's cost once none of those is cheaper.
        algorithm: which search found it.
        evaluations: candidates simulated.
        simulated_events: events simulated, once per stage visited.
        key_bound: by stage, a key that one replica of some hardware kind cannot serve.
    """

    candidate: Candidate
    p99_s: float
    lower_bound_per_hour: float
    algorithm: str
    evaluations: int
    simulated_events: int
    key_bound: Mapping[str, KeyBound]


class _Journal:
    """The best candidate so far, the work done, and to whom both are reported."""

    def __init__(self, problem: Problem, progress: Callable[[SearchProgress], None] | None) -> None:
        self.best: Candidate | None = None
        self._problem = problem
        self._progress = progress
        self._evaluators: list[Evaluator] = []

    @property
    def evaluations(self) -> int:
        return sum(e.evaluations for e in self._evaluators)

    @property
    def simulated_events(self) -> int:
        return sum(e.simulated_events for e in self._evaluators)

    def watch(self, evaluator: Evaluator) -> None:
        if evaluator not in self._evaluators:
            self._evaluators.append(evaluator)

    def take(self, candidate: Candidate) -> None:
        """A candidate that meets the SLO on the whole of every trace."""
        cost = cost_of(self._problem, candidate)
        if self.best is None or cost < cost_of(self._problem, self.best) - COST_EPSILON:
            self.best = candidate
        self.report("found", candidate)

    def take_all(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Take each candidate as it comes. Returns the last one; None without any."""
        last = None
        for last in candidates:
            self.take(last)
        return last

    def end_with(self, candidate: Candidate) -> None:
        """Prefer the one that a search ended with to others of its cost: the paper's doubles batches at no cost."""
        if self.best is None or cost_of(self._problem, candidate) <= cost_of(self._problem, self.best) + COST_EPSILON:
            self.best = candidate

    def report(self, phase: str, _candidate: Candidate | None) -> None:
        if self._progress is not None:
            cost = None if self.best is None else cost_of(self._problem, self.best)
            self._progress(SearchProgress(phase, cost, self.evaluations, self.simulated_events))


def candidate_of(problem: Problem, plan: Plan) -> Candidate | None:
    """A plan's allocations as a candidate of the problem; None if they use what the problem does not have."""
    options = []
    for stage in problem.shape.stages:
        held = [a for a in plan.allocations.get(stage, ()) if a.replicas]
        kinds = hardware_kinds(problem, stage)
        if (
            not held
            or (stage in problem.partitions and held[0].hold_s)
            or any(
                a.hardware not in kinds
                or a.max_batch_size > problem.measured.profiles[stage, a.hardware].batch_sizes[-1]
                or a.concurrency > problem.measured.profiles[stage, a.hardware].concurrencies[-1]
                for a in held
            )
        ):
            return None
        options.append(combined(problem, held))
    return tuple(options)


def plan_of(problem: Problem, outcome: SearchOutcome, *, pipeline: str) -> Plan:
    """The plan of a search's outcome, with the evidence."""
    candidate, stages = outcome.candidate, problem.shape.stages
    rates = arrival_rates(problem)
    served = map(problem.measured.throughput, stages, candidate)
    windows = windows_s(min(fastest_path_s(problem), LONGEST_WINDOW_S))
    envelopes = [dict(trace_envelope(t, windows)) for t in problem.traces]
    return Plan(
        pipeline=pipeline,
        slo_s=problem.target_s,
        allocations=dict(zip(stages, candidate, strict=True)),
        cost_per_hour=cost_of(problem, candidate),
        predicted_p99_s=outcome.p99_s,
        arrival_rate=max(t.arrival_rate for t in problem.traces),
        envelope=tuple((w, max(envelope[w] for envelope in envelopes)) for w in windows),
        visit_ratios=visit_ratios(problem.shape, problem.measured.paths),
        utilization={s: r / m for s, r, m in zip(stages, rates, served, strict=True)},
        algorithm=outcome.algorithm,
        lower_bound_per_hour=outcome.lower_bound_per_hour if math.isfinite(outcome.lower_bound_per_hour) else 0.0,
        slots={name: count for name, count in zip(stages, slots(problem), strict=True) if count > 1},
        key_bound=outcome.key_bound,
    )
