"""Which offsets of a partition are complete.

Events complete out of order. The committed offset is the lowest one whose event is not complete; the complete offsets
above it go into the commit's metadata (`offset_metadata`). The next owner reads from the committed offset and skips
them.
"""

from __future__ import annotations

import bisect
from collections import deque

from inferline_stream.kafka.offset_metadata import (
    METADATA_LIMIT_BYTES,
    Committed,
    Run,
    merged,
)

CROWDED_BYTES, CLEAR_BYTES = METADATA_LIMIT_BYTES // 2, METADATA_LIMIT_BYTES // 4
"""Possible size of the runs at which a partition is paused, and at which it goes on. The rest of the limit is room
for what is fetched before the pause takes effect."""

RUNS_LEFT = 128
"""Runs that are left where the parts between the others move: they take an eighth of the metadata."""

_HEAD_BYTES = 256
"""Room that is left for the mark and the fields before the runs."""


class Completion:
    """Offsets of one partition from the committed one on: which were read, which of them are complete.

    Args:
        committed: where the group stands; its complete runs are skipped when they are read.
    """

    def __init__(self, committed: Committed) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._segments = 0
        """Consecutive offsets among those: at least as many as the runs that they make."""
        self._ahead = deque(committed.runs)
        """Runs of the owner before that end above the position."""
        self._skipped = committed.offset
        """One past the last of its complete offsets that was passed."""
        self._start = committed.offset
        self._position = committed.offset
        self._crowded = False
        self.forget_below = committed.forget_below
        self.version = 0
        """Grows with every change of what `committed` returns."""

    @property
    def position(self) -> int:
        """One past the highest offset read."""
        return self._position

    @property
    def watermark(self) -> int:
        """Lowest offset that is not complete: the offset to commit."""
        if self._open:
            return self._open[0]
        if self._ahead and self._ahead[0][0] <= self._position:
            return self._ahead[0][1]
        return self._position

    @property
    def open_count(self) -> int:
        """Offsets read and not complete."""
        return len(self._open) - len(self._done)

    def read(self, offset: int) -> bool:
        """Note an offset, in ascending order; return False if it was complete before, so that it is skipped."""
        if offset == self._position and not self._ahead:  # the usual case: it changes nothing that is committed
            self._position = offset + 1
            self._open.append(offset)
            return True
        if offset < self._start:
            return False
        self.read_to(offset + 1)
        if offset < self._skipped or (self._ahead and self._ahead[0][0] <= offset):
            return False
        self._open.append(offset)
        return True

    def read_to(self, position: int) -> None:
        """Note that everything below was read: what holds no record for us, as a transaction's marker, is complete."""
        if position <= self._position:
            return
        self._position = position
        self.version += 1
        while self._ahead and self._ahead[0][1] <= self._position:
            self._skipped = self._ahead.popleft()[1]

    def complete(self, offset: int) -> None:
        """Note that the event of this offset needs nothing more."""
        pending, done = self._open, self._done
        self._segments += 1 - (offset - 1 in done) - (offset + 1 in done)
        done.add(offset)
        self.version += 1
        while pending and pending[0] in done:
            first = pending.popleft()
            done.discard(first)
            self._segments -= first + 1 not in done

    def runs(self) -> tuple[Run, ...]:
        """Return the complete offsets above the watermark, where there are any.

        Between complete ones, offsets that hold no record (compacted away, transaction markers) count as complete.
        """
        watermark = self.watermark
        if not self._done and self._skipped <= watermark:
            return merged(self._ahead, watermark)
        runs: list[Run] = []
        done, left = self._done, len(self._done)
        previous = self._open[0]
        for offset in self._open:
            if offset in done:
                left -= 1
                continue
            if offset > previous + 1:
                runs.append((previous + 1, offset))
            previous = offset
            if not left and offset >= self._skipped:
                break  # a long queue may be open behind it
        else:
            if self._position > previous + 1:
                runs.append((previous + 1, self._position))
        return merged([*runs, *self._ahead], watermark)

    def committed(self, *, owner: str = "", topic_id: str = "", partitions: int = 0) -> Committed:
        """Return what to commit now."""
        return Committed(self.watermark, self.runs(), owner, self.forget_below, topic_id, partitions)

    def most_bytes(self, more: int = 0, *, waiting: int = 0) -> int:
        """Return a size that the runs never exceed, whichever of the offsets read become complete.

        Each run follows an incomplete offset, so k of them make at most k runs: 2 k numbers that add up to the span.
        Nor are there more than the runs that there are, and one for each offset that becomes complete. As a bitmap
        they take a bit for each offset of the span.

        Args:
            more: consecutive offsets that would be read, too.
            waiting: of the offsets that are not complete, those that do not become so.
        """
        end = max(self._position + more, self._ahead[-1][1] if self._ahead else 0)
        span = end - self.watermark
        runs = min(self.open_count, self._segments + self.open_count - waiting)
        numbers = 2 * (runs + more + len(self._ahead))
        lengths = numbers
        while (span := span >> 7) and lengths < 3 * METADATA_LIMIT_BYTES:
            lengths += min(numbers, span)
        span = end - self.watermark
        return min((span + 7) // 8, lengths) * 4 // 3 + 3

    @property
    def room(self) -> int:
        """How many more consecutive offsets can be read, at least, before their runs might not fit a commit."""
        limit = METADATA_LIMIT_BYTES - _HEAD_BYTES
        return bisect.bisect_right(range(1, 8 * METADATA_LIMIT_BYTES), limit, key=self.most_bytes)

    @property
    def crowded(self) -> bool:
        """Whether to read no more for now: the runs might not fit a commit's metadata. Ask after each fetch.

        It falls as offsets become complete, never rises without reading, and keeps its word until half is free.
        """
        self._crowded = self.most_bytes() > (CLEAR_BYTES if self._crowded else CROWDED_BYTES)
        return self._crowded

    def has_room(self, waiting: int) -> bool:
        """Return whether half of a commit can hold all that becomes complete while so many offsets do not."""
        if not self._ahead and self._position - self.watermark < 5 * CROWDED_BYTES:  # the usual case: as a bitmap
            return True
        return self.most_bytes(waiting=waiting) <= CROWDED_BYTES

    def between_runs(self) -> list[int]:
        """Return the offsets that are not complete in all but the `RUNS_LEFT` longest rows of such offsets."""
        rows: list[list[int]] = [[]]
        for offset in self._open:
            if offset not in self._done:
                rows[-1].append(offset)
            elif rows[-1]:
                rows.append([])
        rows.sort(key=len)
        return [offset for row in rows[:-RUNS_LEFT] for offset in row]
