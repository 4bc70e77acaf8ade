"""Where the events begin that the end of a run looks up by their ids: at its beginning, or of a long run later."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from inferline_stream.kafka.offset_metadata import Run

VERIFIED = 100_000
"""Newest events that the end of a run looks up by their ids: some seconds to read, and 300 bytes each at most."""

_APART = VERIFIED // 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LedgerBegin:
    """Where a run begins in the topics that its ledger reads: offsets by partition."""

    source: tuple[int, ...]
    sinks: Mapping[str, tuple[int, ...]]
    """Of each sink, by the stage that feeds it."""
    completed: tuple[int, ...]
    live: tuple[int, ...]
    """Of the source: what is before was there already."""
    finished: tuple[tuple[Run, ...], ...] = ()
    """Of the source: what was finished above its offset."""
    partitions: Mapping[str, int] = field(default_factory=dict)
    """Of each class's source topic, in the order of the offsets: empty for live ones; without any, all are live."""

    def of_class(self, offsets: Sequence[T], of_class: str = "") -> tuple[T, ...]:
        """Return a class's part of what is listed by the partitions of the source."""
        if of_class not in self.partitions:
            return tuple(offsets)
        before = itertools.takewhile(lambda of: of != of_class, self.partitions)
        at = sum(self.partitions[of] for of in before)
        return tuple(offsets[at : at + self.partitions[of_class]])


@dataclass(slots=True)
class EndOffsets:
    """Offsets of the newest events, some thousands of events apart; older ones are dropped as new ones come.

    Args:
        verified: events that the marks kept reach back over.
        apart: fewest events between two marks.
    """

    verified: int = VERIFIED
    apart: int = _APART
    _marks: deque[LedgerBegin] = field(default_factory=deque)
    looks_back: int = 1
    """How many looks ago the results ended that a mark names. What had not entered then cannot have come out before; of
    background events it is the committed offsets that say what has, and those are older."""
    _results: deque[tuple[Mapping[str, tuple[int, ...]], tuple[int, ...]]] = field(default_factory=deque)
    """Ends of the sinks and the completed topic at the last looks."""

    def look(self, source: Sequence[int], sinks: Mapping[str, Sequence[int]], completed: Sequence[int]) -> None:
        """End offsets now."""
        now = {stage: tuple(ends) for stage, ends in sinks.items()}, tuple(completed)
        total = sum(source)
        if len(self._results) == self.looks_back and (
            not self._marks or total - sum(self._marks[-1].source) >= self.apart
        ):
            self._marks.append(LedgerBegin(tuple(source), *self._results[0], live=()))
        self._results.append(now)
        if len(self._results) > self.looks_back:
            self._results.popleft()
        while self._marks and total - sum(self._marks[0].source) > self.verified:
            self._marks.popleft()

    def begin(self, since: LedgerBegin, ends: Sequence[int]) -> LedgerBegin:
        """Where the events begin that are looked up by id: at the run's beginning, if they are few enough.

        Args:
            since: where the run began.
            ends: of the source topic, up to which the run answers for events.
        """
        if _between(since.source, ends) <= self.verified:
            return since
        later = [mark for mark in self._marks if len(mark.source) == len(since.source)]
        fitting = [mark for mark in later if _between(mark.source, ends) <= self.verified]
        mark = fitting[0] if fitting else later[-1] if later else since
        first = [max(a, b) for a, b in zip(mark.source, since.source, strict=True)]
        left = _between(first, ends)
        if left > self.verified:  # they came faster than anyone looked: of each partition its share
            first = [
                max(at, end - max(0, end - at) * self.verified // left) for at, end in zip(first, ends, strict=True)
            ]
        return replace(since, source=tuple(first), sinks=mark.sinks, completed=mark.completed)


Begin = Callable[[LedgerBegin, Sequence[int]], LedgerBegin]
"""See `EndOffsets.begin`."""


def _between(first: Sequence[int], ends: Sequence[int]) -> int:
    return sum(max(0, end - at) for at, end in zip(first, ends, strict=True))
