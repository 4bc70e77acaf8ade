"""Where a run's topics ended as it went, so that its end can read the records of its newest events alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferline_stream.controlplane.observe.event_ledger import LedgerBegin

VERIFIED = 100_000
"""Newest events that the end of a run looks up by their ids: some seconds to read, and 300 bytes each at most."""

_APART = VERIFIED // 16


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
    _results: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Ends of the sink and the completed topic at the last look."""

    def look(self, source: Sequence[int], sink: Sequence[int], completed: Sequence[int]) -> None:
        """End offsets now."""
        now, total = (tuple(sink), tuple(completed)), sum(source)
        # Those of the look before: what entered since cannot have got there earlier.
        if self._results is not None and (not self._marks or total - sum(self._marks[-1].source) >= self.apart):
            self._marks.append(LedgerBegin(tuple(source), *self._results, live=()))
        self._results = now
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
        return LedgerBegin(tuple(first), mark.sink, mark.completed, since.live, since.finished)


def _between(first: Sequence[int], ends: Sequence[int]) -> int:
    return sum(max(0, end - at) for at, end in zip(first, ends, strict=True))
