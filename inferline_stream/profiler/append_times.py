"""When the records of a partition were appended, from looks at its end offset."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

_MOST_STEPS = 20_000
"""Of a partition that is far behind; then every second one is forgotten, and times get coarser."""


class AppendTimes:
    """Times of a partition's records that are not committed yet.

    Records that came between two looks are taken for evenly spread between them; those that were there at the first
    of all times, for appended then.

    Args:
        at_s: of the first look.
        end: end offset then.
        past: earlier times and the end offset then, ascending.
    """

    def __init__(self, at_s: float, end: int, past: Iterable[tuple[float, int]] = ()) -> None:
        (first_s, first), *later = (*past, (at_s, end))
        self.first_end, self.end = end, first
        self._looked_s = first_s
        # Step i brought the records up to _ends[i], between _from_s[i] and _until_s[i].
        self._ends, self._from_s, self._until_s = [first], [first_s], [first_s]
        for then_s, there in later:
            self.look(then_s, there)

    def look(self, at_s: float, end: int) -> None:
        """Take in the end offset at a later time."""
        if end > self.end:
            self._ends.append(end)
            self._from_s.append(self._looked_s)
            self._until_s.append(at_s)
            self.end = end
            if len(self._ends) > _MOST_STEPS:
                self._ends, self._until_s = self._ends[::-1][::2][::-1], self._until_s[::-1][::2][::-1]
                self._from_s = [self._until_s[0], *self._until_s[:-1]]
        self._looked_s = at_s

    def appended_s(self, offset: int) -> float:
        """Return when the record of this offset was appended."""
        step = bisect_right(self._ends, offset)
        if step >= len(self._ends):
            return self._looked_s
        if step == 0:
            return self._until_s[0]
        before, after = self._ends[step - 1], self._ends[step]
        share = (offset - before + 0.5) / (after - before)
        return self._from_s[step] + (self._until_s[step] - self._from_s[step]) * share

    def end_at(self, time_s: float) -> int:
        """Return the end offset that was there for certain at this time."""
        step = bisect_right(self._until_s, time_s)
        return self._ends[max(0, step - 1)]

    def forget_before(self, offset: int) -> None:
        """Drop what is known of records before an offset."""
        step = bisect_left(self._ends, offset) - 1
        if step > 64:  # a list is cut rarely, and then by much
            del self._ends[:step], self._from_s[:step], self._until_s[:step]
