"""The cheapest plan that meets the SLO on the sample trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, trace_envelope, windows_s
from inferline_stream.errors import Infeasible, InvalidInput
from inferline_stream.pipeline.plan import KeyBound, Plan
from inferline_stream.pipeline.shape import most_at_once, visit_ratios
from inferline_stream.pipeline.trace import busiest
from inferline_stream.planner.branch_and_bound import prove
from inferline_stream.planner.default_search import refine
from inferline_stream.planner.evaluator import ALONE, Evaluator, Spread, Stopped
from inferline_stream.planner.infeasible import does_not_fit, infeasible
from inferline_stream.planner.key_bounds import key_bounds
from inferline_stream.planner.local_search import with_largest_limits, without_lone_shares, without_needless_holds
from inferline_stream.planner.mixture_search import mixed_in
from inferline_stream.planner.paper_greedy import Search, plan_inferline
from inferline_stream.planner.problem import (
    COST_EPSILON,
    Candidate,
    Problem,
    arrival_rates,
    fastest_path_s,
    hardware_kinds,
    in_stock,
    is_scarce,
    paid_of,
    shares_devices,
    slots,
    with_whole_devices,
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


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How to search.

    Args:
        algorithm: ``"default"``; ``"inferline"``, the paper's to the letter; or ``"exact"``, which goes on until
            no cheaper plan with one hardware kind per stage and without holds can exist.
        margin: share of the SLO kept free on the sample; None is `MARGIN`, and none for the paper's algorithm.
            Given up where no plan can keep it, and where that would cost more than the paper's plan, which keeps none.
        progress: called now and then with how far the search has come.
        stop: asked before every simulation; True ends the search.
        spread: where candidates are simulated; the plan does not depend on it.

    Raises:
        ValueError: a margin outside [0, 1).
    """

    algorithm: Algorithm = "default"
    margin: float | None = None
    progress: Callable[[SearchProgress], None] | None = None
    stop: Callable[[], bool] = lambda: False
    spread: Spread = ALONE

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 <= self.margin < 1:
            raise ValueError(f"margin {self.margin} must be a share of the SLO, 0 or more and below 1")

    @property
    def kept_free(self) -> float:
        """Share of the SLO."""
        if self.margin is not None:
            return self.margin
        return 0.0 if self.algorithm == "inferline" else MARGIN


_DEFAULTS = SearchSettings()


def provision(
    problem: Problem, options: SearchSettings = _DEFAULTS, *, known: Iterable[Plan] = (), pipeline: str = ""
) -> Plan:
    """Find the cheapest plan that meets the SLO.

    Batches are held only where the SLO would be missed otherwise. Of plans that cost the same it is the one with the
    largest batch limits that keep the SLO less the margin: they are capacity in hand for bursts beyond the sample. A
    search that is interrupted, by ``stop`` or with Ctrl-C, returns the best plan so far.

    Args:
        problem: what is planned for; its target is the SLO.
        options: how to search.
        known: earlier plans. Those that meet this SLO are candidates whatever their margin, so that a looser SLO
            never costs more.
        pipeline: the pipeline's name, for the plan.

    Raises:
        Infeasible: no plan meets the SLO; says which stage makes it so and the smallest SLO that some plan meets.
    """
    candidates = [candidate for plan in known if (candidate := candidate_of(problem, plan)) is not None]
    return plan_of(problem, search(problem, options, known=candidates), pipeline=pipeline)


def search(problem: Problem, options: SearchSettings = _DEFAULTS, *, known: Sequence[Candidate] = ()) -> SearchOutcome:
    """`provision` of candidates, with what else there is to know of the result.

    Raises:
        Infeasible: no plan meets the SLO.
    """
    whole = Evaluator(problem, options.stop, spread=options.spread)
    journal = _Journal(problem, options.progress)
    journal.watch(whole)
    try:
        known = [*known, *_without_shares(problem, options)]
        for candidate in known:
            if in_stock(problem, candidate) and whole.feasible(candidate):
                journal.take(candidate)
        if options.algorithm == "inferline":
            _inferline(whole, journal, options)
        else:
            _default(whole, journal, options, known)
    except (Stopped, KeyboardInterrupt):
        if journal.best is None:
            raise
    if journal.best is None:
        if math.isfinite(problem.cores):
            raise does_not_fit(problem, search(replace(problem, cores=math.inf), options).candidate)
        raise infeasible(problem, Evaluator(problem, workloads=whole.workloads))
    p99_s = whole.quantile_s(journal.best)
    # Known plans need not keep the margin that the bound was proven with.
    lower_bound = min(journal.lower_bound, paid_of(problem, journal.best))
    keys = key_bounds(problem, whole.bounds, journal.best)
    return SearchOutcome(
        journal.best, p99_s, lower_bound, options.algorithm, journal.evaluations, journal.simulated_events, keys
    )


def _without_shares(problem: Problem, options: SearchSettings) -> list[Candidate]:
    """The plan of whole devices, where shares are a choice: a search counts shares, and whole devices are paid."""
    if options.algorithm == "inferline" or not shares_devices(problem):
        return []
    try:
        return [search(with_whole_devices(problem), options).candidate]
    except (Infeasible, InvalidInput):
        return []


def _targets(whole: Evaluator, journal: _Journal, options: SearchSettings) -> Iterator[Evaluator]:
    """What decides with the margin kept free, then what decides without."""
    problem = whole.problem
    if options.kept_free:
        target_s = problem.target_s * (1 - options.kept_free)
        stricter = replace(problem, target_s=target_s, order_slo_s=problem.queue_slo_s)
        evaluator = Evaluator(stricter, options.stop, whole.workloads, options.spread)
        journal.watch(evaluator)
        yield evaluator
    yield whole


def _inferline(whole: Evaluator, journal: _Journal, options: SearchSettings) -> None:
    for evaluator in _targets(whole, journal, options):
        found = journal.take_all(_paper(evaluator, journal))
        if found is not None:
            journal.end_with(found)
            return


def _default(whole: Evaluator, journal: _Journal, options: SearchSettings, known: Sequence[Candidate]) -> None:
    papers = _papers(whole, journal, options)
    for evaluator in _targets(whole, journal, options):
        found = _cheapest(evaluator, journal, options, [*known, *papers])
        if found is not None:
            journal.best = _settled(whole, evaluator, journal.best, found)
            if not _dearer(whole.problem, found, papers):
                return


def _cheapest(
    evaluator: Evaluator, journal: _Journal, options: SearchSettings, known: Sequence[Candidate]
) -> Candidate | None:
    """The cheapest candidate found that meets the evaluator's target, with the largest batch limits."""
    found = journal.take_all(refine(evaluator, known, stop=options.stop, report=journal.report))
    found = _proven(evaluator, journal, options, found)
    if found is None:
        return None
    found = with_largest_limits(evaluator, without_lone_shares(evaluator, found))
    journal.take(found)
    return journal.take_all(mixed_in(evaluator, found)) or found


def _proven(
    evaluator: Evaluator, journal: _Journal, options: SearchSettings, found: Candidate | None
) -> Candidate | None:
    """What is found, or a cheaper one by a search of all there is: of short pipelines as far as its effort goes."""
    problem, exact = evaluator.problem, options.algorithm == "exact"
    kinds = {kind for stage in problem.shape.stages for kind in hardware_kinds(problem, stage)}
    # Where kinds are scarce a plan may exist although nothing that was looked at fits into the stock.
    worth = found is not None or any(is_scarce(problem, kind) for kind in kinds)
    if not worth or not (exact or len(problem.shape.stages) <= PROVEN_STAGES):
        return found
    proof = prove(evaluator, found, take=journal.take, effort=math.inf if exact else PROVEN_EFFORT)
    if proof.best is None:
        if proof.stopped:  # not infeasible: nobody knows yet
            raise Stopped
        return None
    journal.lower_bound = proof.lower_bound
    return proof.best


def _dearer(problem: Problem, found: Candidate, papers: Sequence[Candidate]) -> bool:
    """Whether what keeps the margin costs more than what the paper's algorithm found without one."""
    return any(paid_of(problem, paper) < paid_of(problem, found) - COST_EPSILON for paper in papers)


def _settled(whole: Evaluator, kept_free: Evaluator, cheapest: Candidate | None, found: Candidate) -> Candidate:
    """What was found with the margin free, or what is cheaper without: no needless holds, and the largest limits."""
    if cheapest is not None and paid_of(whole.problem, cheapest) < paid_of(whole.problem, found) - COST_EPSILON:
        return with_largest_limits(whole, without_needless_holds(whole, cheapest))
    return with_largest_limits(kept_free, without_needless_holds(kept_free, found))


def _papers(whole: Evaluator, journal: _Journal, options: SearchSettings) -> list[Candidate]:
    """The paper's plan, or on long traces that for their busiest pieces if it meets the target on the whole."""
    problem = whole.problem
    if sum(len(trace) for trace in problem.traces) * len(problem.shape.stages) <= PAPER_WORK:
        return list(_paper(whole, journal))
    piece = replace(problem, traces=tuple(busiest(trace, PAPER_EVENTS) for trace in problem.traces))
    on_piece = Evaluator(piece, options.stop, spread=whole.spread)
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
    """The best candidate so far, what is proven, the work done, and to whom it is reported."""

    def __init__(self, problem: Problem, progress: Callable[[SearchProgress], None] | None) -> None:
        self.best: Candidate | None = None
        self.lower_bound = 0.0
        """See `SearchOutcome`."""
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
        cost = paid_of(self._problem, candidate)
        if self.best is None or cost < paid_of(self._problem, self.best) - COST_EPSILON:
            self.best = candidate
        self.report("found", candidate)

    def take_all(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Take each candidate as it comes. Returns the cheapest, the last one of several; None without any."""
        cheapest = None
        for candidate in candidates:
            self.take(candidate)
            paid = paid_of(self._problem, candidate)
            if cheapest is None or paid <= paid_of(self._problem, cheapest) + COST_EPSILON:
                cheapest = candidate
        return cheapest

    def end_with(self, candidate: Candidate) -> None:
        """Prefer the one that a search ended with to others of its cost: the paper's doubles batches at no cost."""
        if self.best is None or paid_of(self._problem, candidate) <= paid_of(self._problem, self.best) + COST_EPSILON:
            self.best = candidate

    def report(self, phase: str, _candidate: Candidate | None) -> None:
        if self._progress is not None:
            cost = None if self.best is None else paid_of(self._problem, self.best)
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
        order=problem.order,
        allocations=dict(zip(stages, candidate, strict=True)),
        cost_per_hour=paid_of(problem, candidate),
        predicted_p99_s=outcome.p99_s,
        arrival_rate=max(t.arrival_rate for t in problem.traces),
        envelope=tuple((w, max(envelope[w] for envelope in envelopes)) for w in windows),
        visit_ratios=visit_ratios(problem.shape, problem.measured.paths),
        at_once={name: n for name, n in most_at_once(problem.shape, problem.measured.paths).items() if n > 1},
        utilization={s: r / m for s, r, m in zip(stages, rates, served, strict=True)},
        algorithm=outcome.algorithm,
        lower_bound_per_hour=outcome.lower_bound_per_hour if math.isfinite(outcome.lower_bound_per_hour) else 0.0,
        slots={name: count for name, count in zip(stages, slots(problem), strict=True) if count > 1},
        key_bound=outcome.key_bound,
    )
