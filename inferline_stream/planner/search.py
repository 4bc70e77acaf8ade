"""The default search: many starts on a short piece of traffic, then the best of them on ever more of it.

Coarse to fine. Feasibility on a piece proves nothing about the whole trace: what a level finds is verified,
repaired where it fails, and taken further down in cost on the next, and the last level is every trace in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.descent import descend, repair
from inferline_stream.planner.evaluation import Evaluator
from inferline_stream.planner.problem import Candidate, Problem, cost_of, in_stock
from inferline_stream.planner.starts import quickest, starts
from inferline_stream.planner.surrogate import Surrogate

COARSE_EVENTS = 30_000
"""Events of the shortest piece: some 300 of them may be late at P99."""

LEVEL_RATIO = 8
"""How many times more events each level has than the one before."""

EFFORT = 2_000_000
"""Events simulated on the shortest piece, times the square of the number of stages, before no further start is taken
down in cost: the cheapest starts are first. One descent of a pipeline of n stages needs about n² times half of this."""

CARRIED = 2
"""Candidates carried from one level to the next."""

TRIES = (40, 12, 8)
"""Proposals of one round that are simulated, by level: on longer pieces each costs more and surprises less."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a level of the search has: its candidates, cheapest first, feasible on its piece of traffic."""

    evaluator: Evaluator
    candidates: tuple[Candidate, ...]


def levels(problem: Problem) -> list[Problem]:
    """The problem on pieces of its traces, the whole traces last."""
    events = max(len(trace) for trace in problem.traces)
    sizes: list[int] = []
    while events > COARSE_EVENTS * 2:
        events = max(events // LEVEL_RATIO, COARSE_EVENTS)
        sizes.insert(0, events)
    return [*(replace(problem, traces=tuple(busiest(t, n) for t in problem.traces)) for n in sizes), problem]


def busiest(trace: Trace, events: int) -> Trace:
    """The piece with the given number of events that takes the least time; the whole trace if it has no more."""
    if len(trace) <= events:
        return trace
    times = trace.arrivals_s
    first = int(np.argmin(times[events - 1 :] - times[: times.size - events + 1]))
    return Trace(times[first : first + events] - times[first])


def refine(
    whole: Evaluator,
    known: Sequence[Candidate],
    *,
    mixed: bool,
    stop: Callable[[], bool],
    report: Callable[[str, Candidate | None], None],
) -> Iterator[Candidate]:
    """Candidates that meet the target on the whole of every trace, each cheaper than the one before.

    Args:
        whole: decides on the whole traces.
        known: candidates to look at beside the starts.
        mixed: whether a stage may mix hardware kinds.
        stop: asked before every simulation.
        report: told the phase and nothing more; results are what is yielded.
    """
    problem = whole.problem
    pieces = levels(problem)
    coarse = whole if pieces[0] is problem else Evaluator(pieces[0], stop)
    found = _from_starts(coarse, known, mixed=mixed, report=report)
    best = math.inf
    if coarse is whole:
        yield from found.candidates[:1]
        return
    for depth, piece in enumerate(pieces[1:], start=1):
        here = whole if piece is problem else Evaluator(piece, stop)
        tries = TRIES[min(depth, len(TRIES) - 1)]
        kept: list[Candidate] = []
        for candidate in found.candidates[: CARRIED if here is not whole else None]:
            report("verifying" if here is whole else "refining", None)
            surrogate = Surrogate(coarse, candidate, mixed=mixed)
            below = min((cost_of(problem, c) for c in kept), default=math.inf)
            good = (
                candidate if here.feasible(candidate) else repair(surrogate, here, candidate, below=below, tries=tries)
            )
            if good is None or (kept and good in kept):
                continue
            here.accept(good)
            for lower in descend(surrogate, here, good, tries=tries):
                good = lower
                if here is whole and cost_of(problem, good) < best:
                    best = cost_of(problem, good)
                    yield good
            kept.append(good)
            if here is whole:
                break
        if not kept and here is not whole:
            kept = list(found.candidates)
        found = Found(here, tuple(sorted(kept, key=lambda c: cost_of(problem, c))))
    if math.isinf(best):
        report("starting over on the whole trace", None)
        yield from _from_starts(whole, known, mixed=mixed, report=report).candidates[:1]


def _from_starts(
    coarse: Evaluator, known: Sequence[Candidate], *, mixed: bool, report: Callable[[str, Candidate | None], None]
) -> Found:
    """The cheapest starts, and what is known, taken down in cost on one piece of traffic."""
    problem = coarse.problem
    begun: dict[Candidate, None] = {}
    for start in starts(coarse, mixed=mixed):
        report("starting", None)
        begun[start] = None
    begun.update(dict.fromkeys(c for c in known if coarse.feasible(c)))
    if not begun:
        last, _ = quickest(problem, coarse)
        begun.update(dict.fromkeys([last] if in_stock(problem, last) and coarse.feasible(last) else []))
    reached: dict[Candidate, None] = {}
    effort = EFFORT * len(problem.shape.stages) ** 2
    for start in sorted(begun, key=lambda c: cost_of(problem, c)):
        if reached and coarse.simulated_events > effort:
            break
        way = [start]
        for lower in descend(Surrogate(coarse, start, mixed=mixed), coarse, start, tries=TRIES[0]):
            report("descending", None)
            way.append(lower)
        reached[way[-1]] = None
    return Found(coarse, tuple(sorted(reached, key=lambda c: cost_of(problem, c))))
