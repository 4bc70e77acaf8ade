"""Events with many results in a simulation: every result is an event with a number of its own, behind the source's.

How many results each event is given, and which arrows each takes, is drawn before anything is simulated, like the
paths: whatever the plan, it meets the same luck. So a stage that gives many does nothing to times: what leaves it is
put in place of its event, result by result, and what is gathered counts once the last result of its event has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Events, FlagTable, Floats, Ints, Masks, Tokens
from inferline_stream.pipeline.shape import Scope


@dataclass(frozen=True, slots=True, eq=False)
class ManyResults:
    """The results that a stage gives.

    Args:
        of: first event, and end, of those that the stage may get.
        begins: int64 (events of that range + 1,) number of each one's first result; the next one's is its end.
    """

    of: tuple[int, int]
    begins: Ints

    @property
    def numbers(self) -> tuple[int, int]:
        """First result, and end."""
        return int(self.begins[0]), int(self.begins[-1])

    def counts(self, events: Events) -> Ints:
        """Return how many results each of the stage's events has."""
        at = events - self.of[0]
        counts: Ints = self.begins[at + 1] - self.begins[at]
        return counts

    def parents(self) -> Events:
        """Return whose each result is, int32 (results,)."""
        first, end = self.of
        return np.repeat(np.arange(first, end, dtype=np.int32), np.diff(self.begins))

    def largest(self, values: Floats) -> Floats:
        """Return the largest value of each event's results, NaN where there is none."""
        filled = np.flatnonzero(np.diff(self.begins))
        found = np.full(self.begins.size - 1, np.nan)
        if filled.size:
            found[filled] = np.fmax.reduceat(values, self.begins[filled] - self.begins[0])
        return found

    def apart(self, tokens: Tokens) -> Tokens:
        """Return tokens of events as those of all their results, in order."""
        counts = self.counts(tokens.events)
        ends = np.cumsum(counts)
        total = int(ends[-1]) if ends.size else 0
        firsts = self.begins[tokens.events - self.of[0]] - (ends - counts)
        events = (np.arange(total) + np.repeat(firsts, counts)).astype(np.int32)
        return Tokens(np.repeat(tokens.times, counts), events)


class Gathering:
    """Of one stage that gathers: waits for a token of each result of an event.

    Args:
        results: of the stage whose results are gathered.
        stage: position of that stage.
        sources: in order of stage, those whose departures are tokens of results; that stage is one.
        admits: uint8 (sources, masks), see `Feed`.
        masks: by event.
    """

    def __init__(
        self, results: ManyResults, stage: int, sources: Sequence[int], admits: FlagTable, masks: Masks
    ) -> None:
        self._results = results
        self._origin = sources.index(stage)
        self._admits, self._masks = admits, masks
        self._parents = results.parents()
        self._left = np.diff(results.begins).astype(np.int64)
        self._held: list[tuple[Any, Events]] = [(np.empty(0), np.empty(0, dtype=np.int32)) for _ in sources]

    @property
    def holds(self) -> bool:
        """Whether tokens have been taken that do not count as sent yet."""
        return any(events.size for _, events in self._held)

    def take(self, arrived: Sequence[Tokens], horizon_s: float) -> Tokens:
        """Return events that are complete, with the sending time of their last token.

        Args:
            arrived: new tokens by source.
            horizon_s: all tokens sent before it have been given, now or earlier.
        """
        first, (of, _) = self._results.numbers[0], self._results.of
        times, parents = [], []
        for at, tokens in enumerate(arrived):
            self._hold(at, tokens)
            held_s, events = self._held[at]
            end = int(np.searchsorted(held_s, horizon_s))
            due, self._held[at] = Tokens(held_s[:end], events[:end]), (held_s[end:], events[end:])
            empty = Tokens(due.times[:0], due.events[:0])
            if at == self._origin:
                counts = self._results.counts(due.events)
                none, whose = np.flatnonzero(counts == 0), np.repeat(np.arange(counts.size), counts)
                empty, due = Tokens(due.times[none], due.events[none]), self._results.apart(due)
            mine = self._admits[at, self._masks[due.events]] > 0
            of_results = self._parents[due.events[mine] - first]
            times.append(due.times[mine])
            parents.append(of_results)
            if empty.times.size:  # among the others in the order in which their events left the stage
                order = np.argsort(np.concatenate([whose[mine], none]), kind="stable")
                times[-1] = np.concatenate([due.times[mine], empty.times])[order]
                parents[-1] = np.concatenate([of_results, empty.events])[order]
        return self._complete(np.concatenate(times), np.concatenate(parents), of)

    def _hold(self, at: int, tokens: Tokens) -> None:
        held_s, events = self._held[at]
        if tokens.times.size:
            self._held[at] = np.concatenate([held_s, tokens.times]), np.concatenate([events, tokens.events])

    def _complete(self, times: Any, parents: Events, of: int) -> Tokens:
        order = np.argsort(times, kind="stable")
        times, parents = times[order], parents[order]
        # The last place at which each event occurs; where nothing of it is left then, it is complete there.
        whose, last, counts = np.unique(parents[::-1], return_index=True, return_counts=True)
        self._left[whose - of] -= counts
        last = np.sort(parents.size - 1 - last[self._left[whose - of] <= 0])
        return Tokens(times[last], parents[last])


def numbered(events: int, results: Mapping[int, ManyResults], scope: Scope) -> tuple[int, int]:
    """Return the first number, and the end, of the events of a scope.

    Args:
        events: that enter.
        results: by stage that gives many.
        scope: one of the shape's.
    """
    return results[scope[-1]].numbers if scope else (0, events)
