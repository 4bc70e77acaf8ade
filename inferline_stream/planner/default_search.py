"""The default search: `ParetoSearch` on a short piece of traffic, then its best candidates on ever more of it.

Coarse to fine. Feasibility on a piece proves nothing about the whole trace: what a level finds is verified,
repaired where it fails, and taken further down in cost on the next, and the last level is every trace in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from inferline_stream.pipeline.trace import busiest
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.infeasible import lowest_latency
from inferline_stream.planner.local_search import descend, repair
from inferline_stream.planner.pareto_search import ParetoSearch
from inferline_stream.planner.predicted_changes import Surrogate
from inferline_stream.planner.problem import Candidate, Problem, cost_of, in_stock

COARSE_EVENTS = 6_000
"""Events of the shortest piece: some 60 of them may be late at P99. Longer ones found no cheaper plans."""

LEVEL_RATIO = 10
"""How many times more events each level has than the one before."""

EFFORT = 600_000
"""Events simulated on the shortest piece, times the square of the number of stages, before no further candidate is
taken down in cost: the cheapest are first. One descent of a pipeline of n stages needs about n² times half of this."""

CARRIED = 2
"""Candidates carried from one level to the next."""

TRIES, LEAST_TRIES, MOST_TRIES = 40, 8, 100
"""Candidates of one round that are simulated on the shortest piece, and on any: on longer ones each costs more."""

TRIED_EVENTS = 60_000_000
"""Events, once per stage, that the candidates of one round may take on the whole traces: many of them where traces are
short."""

Report = Callable[[str, Candidate | None], None]


def levels(problem: Problem) -> list[Problem]:
    """The problem on pieces of its traces, the whole traces last."""
    events = max(len(trace) for trace in problem.traces)
    sizes: list[int] = []
    while events > COARSE_EVENTS * 2:
        events = max(events // LEVEL_RATIO, COARSE_EVENTS)
        sizes.insert(0, events)
    return [*(replace(problem, traces=tuple(busiest(t, n) for t in problem.traces)) for n in sizes), problem]


def refine(
    whole: Evaluator, known: Sequence[Candidate], *, stop: Callable[[], bool], report: Report
) -> Iterator[Candidate]:
    """Candidates that meet the target on the whole of every trace, each cheaper than the one before.

    Args:
        whole: decides on the whole traces.
        known: candidates to look at beside those found.
        stop: asked before every simulation.
        report: called with the phase and nothing more; results are what is yielded.
    """
    problem = whole.problem
    pieces = levels(problem)
    coarse = whole if len(pieces) == 1 else Evaluator(pieces[0], stop, spread=whole.spread)
    fronts = ParetoSearch(coarse, whole.bounds)
    found = _on_piece(coarse, fronts, known, report=report)
    if coarse is whole:
        yield from found[:1]
        return
    reached = False
    for piece in pieces[1:]:
        here = whole if piece is problem else Evaluator(piece, stop, spread=whole.spread)
        report("verifying" if here is whole else "refining", None)
        kept: list[Candidate] = []
        for good in _deeper(here, fronts, found, tries=_tries(here)):
            kept.insert(0, good)
            if here is whole:
                reached = True
                yield good
        found = kept[:CARRIED] or found
    if not reached:
        report("starting over on the whole trace", None)
        yield from _on_piece(whole, ParetoSearch(whole, whole.bounds), known, report=report)[:1]


def _tries(piece: Evaluator) -> int:
    work = sum(len(trace) for trace in piece.problem.traces) * len(piece.problem.shape.stages)
    return max(LEAST_TRIES, min(TRIED_EVENTS // work, MOST_TRIES))


def _on_piece(piece: Evaluator, fronts: ParetoSearch, known: Sequence[Candidate], *, report: Report) -> list[Candidate]:
    """What `ParetoSearch` finds on a piece, and what is known, taken down in cost there; cheapest first."""
    problem = piece.problem
    report("searching", None)
    begun = dict.fromkeys(c for c in (*fronts.candidates(), *known) if in_stock(problem, c) and piece.feasible(c))
    if not begun:
        last, _ = lowest_latency(problem, piece)
        begun = dict.fromkeys([last] if in_stock(problem, last) and piece.feasible(last) else [])
    reached: dict[Candidate, None] = {}
    effort = piece.simulated_events + EFFORT * len(problem.shape.stages) ** 2
    for start in sorted(begun, key=lambda c: cost_of(problem, c)):
        lowest = start
        if not reached or piece.simulated_events < effort:
            surrogate = Surrogate(piece, fronts.bounds, start)
            for lower in descend(surrogate, piece, start, tries=TRIES):
                report("descending", None)
                lowest = lower
        reached[lowest] = None
    return sorted(reached, key=lambda c: cost_of(problem, c))


def _deeper(
    here: Evaluator, fronts: ParetoSearch, candidates: Sequence[Candidate], *, tries: int
) -> Iterator[Candidate]:
    """Ever cheaper candidates that are feasible on a longer piece, from those of a shorter one.

    Args:
        here: decides.
        fronts: of the shortest piece.
        candidates: cheapest first.
        tries: candidates to simulate at most, and proposals of each round.
    """
    for candidate in candidates[:tries]:
        surrogate = Surrogate(fronts.evaluator, fronts.bounds, candidate)
        if here.feasible(candidate):
            good: Candidate | None = candidate
        else:
            good = repair(surrogate, here, candidate, tries=tries)
        if good is not None:
            yield from descend(surrogate, here, good, tries=tries)
            return
