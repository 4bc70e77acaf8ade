"""Verdicts on candidates: bounds first, then simulation downstream of what changed, stopped once it is lost."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.evaluation import SLICE_EVENTS as ESTIMATOR_SLICE
from inferline_stream.estimator.evaluation import Departures, arrivals_at, evaluate, simulate_stage
from inferline_stream.estimator.station import Station, rests_s, station
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.trace import busiest
from inferline_stream.planner.bounds import Bounds
from inferline_stream.planner.problem import Candidate, Option, Problem, replaced, replica_cap, slots

KEPT_BYTES = 1_500_000_000
"""Most memory for departures of the accepted candidate, and again for those simulated at once; longer traces are
simulated whole every time."""

SLICE_EVENTS = 1 << 13
"""Events after which a simulation of a short piece looks whether it is lost."""

_BYTES_PER_DEPARTURE = 12

GLANCED_EVENTS = 100_000
"""Events of a trace, at least, where it pays to look at a piece of it first."""

GLANCED_SHARE = 10
"""One event in so many is in the piece."""

TELLING = 0.25
"""Share of the allowed late events that the base has to have, or a piece says nothing."""

DOUBT = 4.0
"""Standard errors by which a piece may be off. A candidate is not simulated on the whole if by the piece more events
are late than are allowed: what the base has on both says how many there go with how many here."""


_Departed = Mapping[int, Departures]
"""By stage."""


A = TypeVar("A")
B = TypeVar("B")


class Map(Protocol):
    """`map`, or that of an executor: results in the order of the values, whatever is computed first."""

    def __call__(self, function: Callable[[A], B], values: Iterable[A], /) -> Iterable[B]:
        """Apply the function to each value."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where candidates are simulated. Kernels run without the interpreter's lock, so threads are enough.

    Args:
        map: applies a function to many values.
        width: how many of them at once. Plans do not depend on it.
    """

    map: Map = map
    width: int = 1


ALONE = Spread()
"""One after another."""


class Stopped(Exception):
    """The caller wants no further simulation."""


@dataclass(frozen=True, slots=True, eq=False)
class _Verdict:
    """Of one simulation: late events per trace or None, the largest batch by stage, what was kept, and the work."""

    late: tuple[int, ...] | None
    largest: Mapping[int, int]
    departures: list[tuple[_Departed, _Departed]]
    simulated_events: int


class Evaluator:
    """Simulates candidates of one problem.

    Departures of the *base*, the candidate accepted last, are kept: a candidate that differs from it in
    some stages is simulated from there down. Verdicts are remembered.

    Args:
        problem: the problem.
        stop: asked before every simulation; True ends the search with `Stopped`.
        workloads: of another evaluator of the same traces, paths and seed; None to prepare them.
        spread: where it simulates.
    """

    def __init__(
        self,
        problem: Problem,
        stop: Callable[[], bool] = lambda: False,
        workloads: Sequence[Workload] | None = None,
        spread: Spread = ALONE,
    ) -> None:
        self.problem = problem
        self.spread = spread
        self.workloads: Sequence[Workload] = workloads or [
            prepare(problem.shape, problem.measured, trace, seed=problem.seed) for trace in problem.traces
        ]
        self.bounds = Bounds(problem, self.workloads)
        self.evaluations = 0
        """Candidates simulated."""
        self.simulated_events = 0
        """Events simulated, once per stage."""
        self._counting = threading.Lock()
        self._stop = stop
        self._ahead: dict[Candidate, _Verdict] = {}
        self._piece: Evaluator | None = None
        self._looked: tuple[Evaluator, Sequence[int]] | None = None
        self._glances: dict[Candidate, _Verdict] = {}
        self._uncounted = 0
        self._late: dict[Candidate, tuple[int, ...] | None] = {}
        # By candidate without one stage's limit: the largest batch there, and the candidate as it was simulated.
        self._unreached: dict[Hashable, tuple[int, Candidate]] = {}
        self._stations: dict[tuple[int, Option], Station] = {}
        self._slots = slots(problem)
        # No news of other stages: what leaves one depends on those before it alone, on which the whole search rests.
        self._rests_s = rests_s(problem.shape, problem.measured, problem.order, problem.queue_slo_s)
        self.above = problem.shape.ancestors()
        events = sum(len(trace) for trace in problem.traces) * len(problem.shape.stages)
        candidates = KEPT_BYTES // (events * _BYTES_PER_DEPARTURE)
        self._keeps = candidates > 0
        self.width = min(spread.width, max(candidates, 1))
        """How many candidates are simulated at once."""
        self._base: tuple[Candidate, list[_Departed]] | None = None
        # Per trace, what was kept of the base and what was simulated: put together only where it becomes the base.
        self._last: tuple[Candidate, list[tuple[_Departed, _Departed]]] | None = None

    def feasible(self, candidate: Candidate) -> bool:
        """Whether the candidate meets the target on every trace."""
        return self.late(candidate) is not None

    def late(self, candidate: Candidate) -> tuple[int, ...] | None:
        """Per trace, how many events are late; None for an infeasible candidate."""
        if candidate not in self._late:
            alike = self._alike(candidate)
            if alike in self._late:
                self._late[candidate] = self._late[alike]
            else:
                self._late[candidate] = self._simulated(candidate) if self.bounds.possible(candidate) else None
        return self._late[candidate]

    def shown_feasible(self, candidate: Candidate) -> bool:
        """Whether it meets the target on every trace; False, too, where a piece of a long one speaks against it."""
        if candidate not in self._late and self._alike(candidate) == candidate and self.bounds.possible(candidate):
            self.check()
            glance = self._glance(candidate)
            if glance is not None:
                self.count(glance.simulated_events + self._uncounted)
                self._uncounted = 0
                if glance.late is None:
                    return False
        return self.feasible(candidate)

    def ahead(self, candidates: Iterable[Candidate]) -> Iterable[Candidate]:
        """Give the candidates one by one for `shown_feasible`, several of them simulated at once.

        As many as the spread is wide and as departures fit in `KEPT_BYTES`. Verdicts that are not asked for before
        the base changes count for nothing: neither they nor the work done depend on the width.
        """
        waiting = iter(candidates)
        while batch := list(itertools.islice(waiting, self.width)):
            self.together(batch, glance=True)
            yield from batch

    def together(self, candidates: Sequence[Candidate], *, glance: bool = False) -> None:
        """Simulate candidates at once whose verdicts are about to be asked for; others in advance are forgotten.

        Args:
            candidates: those that `feasible` is asked for next.
            glance: it is `shown_feasible` that is asked.
        """
        self._ahead = {c: verdict for c, verdict in self._ahead.items() if c in candidates}
        new = [c for c in candidates if c not in self._late and c not in self._ahead and self._alike(c) == c]
        if len(new) > 1 and self.width > 1:
            self.check()
            new = [c for c in new if self.bounds.possible(c)]
            if glance and self._look() is not None:
                seen = self.spread.map(self._glance, new)
                new = [c for c, verdict in zip(new, seen, strict=True) if verdict is None or verdict.late is not None]
            self._ahead |= zip(new, self.spread.map(self._verdict, new), strict=True)

    def _glance(self, candidate: Candidate) -> _Verdict | None:
        """What a piece of the traces says: late events, or None for too many to go on; None where nothing is known."""
        look = self._look()
        if candidate not in self._glances and look is not None:
            piece, limits = look
            self._glances[candidate] = piece._verdict(candidate, limits, keep=False)
        return self._glances.get(candidate)

    def _look(self) -> tuple[Evaluator, Sequence[int]] | None:
        """A piece of the traces, and how many late events there go with those that are allowed on the whole.

        As with the base. None without one, on short traces, and where the base says nothing.
        """
        if self._base is None or self._looked is not None or min(map(len, self.problem.traces)) < GLANCED_EVENTS:
            return self._looked
        base, _ = self._base
        late = self.late(base)
        if self._piece is None:
            pieces = tuple(busiest(trace, len(trace) // GLANCED_SHARE) for trace in self.problem.traces)
            self._piece = Evaluator(replace(self.problem, traces=pieces))
        piece, everything = self._piece, [len(workload) for workload in self._piece.workloads]
        found = piece._verdict(base, everything)
        piece._base = (base, [{**kept, **new} for kept, new in found.departures])
        self._uncounted += found.simulated_events
        limits = []
        for allowed, here, there, most in zip(
            self.bounds.allowed, late or (), found.late or (), everything, strict=True
        ):
            # Of a base that has few late events nothing follows for candidates that have many.
            wanted = allowed * there / here if here > allowed * TELLING else math.inf
            limits.append(int(min(wanted + DOUBT * math.sqrt(wanted), most)))
        self._looked = piece, limits
        return self._looked

    def accept(self, candidate: Candidate) -> None:
        """Make the candidate the base that others are compared with."""
        if self._base is not None and self._base[0] == candidate:
            return
        if self._last is None or self._last[0] not in (candidate, self._alike(candidate)):
            self._last = None
            late = self._simulated(candidate)
            self._late.setdefault(candidate, late)  # with its departures kept, nothing of it is simulated again
        self._base, self._looked = None, None
        self._ahead, self._glances = {}, {}
        if self._last is not None:
            self._base = (candidate, [{**kept, **new} for kept, new in self._last[1]])

    def most_busy(self, candidate: Candidate, stage: int, kind: str) -> int:
        """A count of replicas of one kind, batch 1, beyond which more change nothing: none would ever be busy.

        As many as stock or partitions allow; without such a limit the first power of two at which the
        stage's departures are those of twice as many.
        """
        name = self.problem.shape.stages[stage]
        cap = replica_cap(self.problem, name, kind)
        if cap < math.inf:
            return max(int(cap), 1)
        return max(self._never_waiting(i, candidate, stage, kind) for i in range(len(self.workloads)))

    def _never_waiting(self, trace: int, candidate: Candidate, stage: int, kind: str) -> int:
        workload, needed = self.workloads[trace], self.workloads[trace].needs(stage)
        upstream = self._kept(trace, candidate)
        if not needed <= set(upstream):
            upstream = evaluate(workload, self.stations(candidate), keep=needed, latencies=False).departures
        arrivals = arrivals_at(workload, stage, upstream)
        before: Departures | None = None
        for count in (1 << i for i in range(32)):
            departures = simulate_stage(workload, stage, arrivals, self.station(stage, (Allocation(kind, 1, count),)))
            assert departures is not None
            self.count(departures.events.size)
            if count >= len(workload) or (before and np.array_equal(before.times_s, departures.times_s)):
                return max(1, count // 2)
            before = departures
        raise AssertionError("more replicas than events and still waiting")

    def latencies_s(self, candidate: Candidate) -> list[NDArray[np.float64]]:
        """Per trace, the latency of every event; NaN where it has none."""
        found = []
        for i, workload in enumerate(self.workloads):
            evaluation = evaluate(workload, self.stations(candidate), kept=self._kept(i, candidate))
            self.count(evaluation.simulated_events)
            assert evaluation.latency_s is not None
            found.append(evaluation.latency_s)
        self.evaluations += 1
        return found

    def quantile_s(self, candidate: Candidate) -> float:
        """The latency that `Problem.objective` of the events do not pass, the largest over the traces and classes."""
        found = zip(self.workloads, self.latencies_s(candidate), strict=True)
        return max(workload.judged_quantile_s(latency_s, self.problem.objective) for workload, latency_s in found)

    def count(self, events: int) -> None:
        """Events were simulated, in any thread."""
        with self._counting:
            self.simulated_events += events

    def check(self) -> None:
        """Raise `Stopped` if the caller wants no further simulation."""
        if self._stop():
            raise Stopped

    def stations(self, candidate: Candidate) -> list[Station]:
        """The candidate's stages as the estimator wants them."""
        return [self.station(stage, option) for stage, option in enumerate(candidate)]

    def station(self, stage: int, option: Option) -> Station:
        """One stage's option as the estimator wants it."""
        found = self._stations.get((stage, option))
        if found is None:
            name = self.problem.shape.stages[stage]
            found = station(
                self.problem.measured.without_fallbacks(),
                name,
                option,
                order_slo_s=self.problem.queue_slo_s,
                rest_s=self._rests_s[name],
                partitions=self.problem.partitions.get(name),
                slots=min(self._slots[stage], sum(a.replicas for a in option)),
            )
            self._stations[stage, option] = found
        return found

    def _alike(self, candidate: Candidate) -> Candidate:
        """One simulated before that differs only in a batch limit that no batch reaches: all else is the same."""
        for stage, option in enumerate(candidate):
            largest, alike = self._unreached.get(_without_limit(candidate, stage), (math.inf, candidate))
            if option[-1].max_batch_size > largest:
                return alike
        return candidate

    def _simulated(self, candidate: Candidate) -> tuple[int, ...] | None:
        self.check()
        verdict = self._ahead.pop(candidate, None) or self._verdict(candidate)
        self.evaluations += 1
        self.count(verdict.simulated_events)
        for stage, size in verdict.largest.items():
            if len(candidate[stage]) == 1 and size < candidate[stage][0].max_batch_size:
                self._unreached[_without_limit(candidate, stage)] = (size, candidate)
        if verdict.late is not None and self._keeps:
            self._last = (candidate, verdict.departures)
        return verdict.late

    def _verdict(self, candidate: Candidate, allowed: Sequence[int] | None = None, *, keep: bool = True) -> _Verdict:
        """Simulate, and change nothing: several may run at once. Without ``allowed`` as many are as the bounds say."""
        allowed = self.bounds.allowed if allowed is None else allowed
        stages = frozenset(range(len(candidate)))
        departures: list[tuple[_Departed, _Departed]] = []
        late: list[int] = []
        largest: dict[int, int] = {}
        events = 0
        by_class = bool(self.problem.measured.classes) and allowed is self.bounds.allowed
        for i, workload in enumerate(self.workloads):
            kept = self._kept(i, candidate)
            evaluation = evaluate(
                workload,
                self.stations(candidate),
                kept=kept,
                keep=stages - frozenset(kept) if self._keeps and keep else (),
                slo_s=self.problem.target_s,
                allowed=allowed[i],
                latencies=by_class,
                slice_events=min(max(SLICE_EVENTS, len(workload) // 32), ESTIMATOR_SLICE),
            )
            events += evaluation.simulated_events
            for stage, statistics in evaluation.statistics.items():
                largest[stage] = max(largest.get(stage, 0), statistics.largest_batch)
            if evaluation.aborted or evaluation.late > allowed[i]:
                break
            # Each class within its own share: together they are then within that of all.
            if by_class and not self._kept_by_each(workload, evaluation.latency_s):
                break
            late.append(evaluation.late)
            departures.append((kept, evaluation.departures))
        return _Verdict(tuple(late) if len(late) == len(self.workloads) else None, largest, departures, events)

    def _kept_by_each(self, workload: Workload, latency_s: NDArray[np.float64] | None) -> bool:
        """Whether every live class keeps the target for its own events."""
        assert latency_s is not None
        return not workload.judged_quantile_s(latency_s, self.problem.objective) > self.problem.target_s

    def _kept(self, trace: int, candidate: Candidate) -> _Departed:
        """Departures of the base at stages where neither they nor their ancestors differ from it."""
        if self._base is None:
            return {}
        base, departures = self._base
        same = [a == b for a, b in zip(base, candidate, strict=True)]
        return {s: d for s, d in departures[trace].items() if all(same[a] for a in self.above[s])}


def _without_limit(candidate: Candidate, stage: int) -> Hashable:
    """What is left of a candidate without a stage's batch limit."""
    *others, last = candidate[stage]
    held = (last.hardware, last.replicas, last.hold_s, last.concurrency)
    return replaced(candidate, stage, tuple(others)), stage, held
