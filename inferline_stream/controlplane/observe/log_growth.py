"""Arrivals seen from log growth: end offsets over time, no payload read, whatever the consumers do."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inferline_stream.kafka.offset_metadata import Committed


class LogGrowth:
    """Turns samples of a topic's end offsets into arrival times.

    Records that came between two samples are spread evenly over the time between them: a tick must not
    look like a burst, nor a late sample like a large one.

    Args:
        gap_s: a longer time between two samples is a gap: what came in it is known only as a mean rate.
    """

    def __init__(self, gap_s: float = 1.0) -> None:
        self._gap_s = gap_s
        self._ends: tuple[int, ...] | None = None
        self._time_s = 0.0
        self.total = 0
        """Records that came since the first sample, without those that were recovered of earlier terms."""
        self.watched_since_s: float | None = None
        """Time of the first sample after the last gap."""

    @property
    def newest_s(self) -> float | None:
        """Time of the newest sample."""
        return None if self._ends is None else self._time_s

    @property
    def ends(self) -> tuple[int, ...]:
        """Newest end offsets; empty before the first sample."""
        return self._ends or ()

    def gap(self, time_s: float) -> bool:
        """Whether a sample at this time would come after a gap."""
        return self._ends is not None and time_s - self._time_s > self._gap_s

    def skip(self, time_s: float, ends: Sequence[int]) -> None:
        """Go on from these end offsets: what came before them is known from elsewhere, without a gap.

        Partitions may have been added anywhere among them, where they are those of several topics.
        """
        before = self._ends or tuple(ends)
        self.total += max(0, sum(ends) - sum(before))
        self._ends, self._time_s = tuple(ends), time_s
        if self.watched_since_s is None:
            self.watched_since_s = time_s

    def sample(self, time_s: float, ends: Sequence[int]) -> NDArray[np.float64]:
        """Arrival times since the last sample, ascending.

        Args:
            time_s: when the offsets were read, on a clock that only goes forward.
            ends: end offset of each partition. An offset that went backwards (a topic made again) counts
                nothing; a partition that was added counts from 0.
        """
        before, since_s = self._ends, self._time_s
        if before is not None and time_s <= since_s:
            return np.empty(0)  # the clock has not ticked yet: the next sample counts what came
        self._ends, self._time_s = tuple(ends), time_s
        if before is None:
            self.watched_since_s = time_s
            return np.empty(0)
        if time_s - since_s > self._gap_s:
            self.watched_since_s = time_s
        came = sum(max(0, end - (before[p] if p < len(before) else 0)) for p, end in enumerate(ends))
        self.total += came
        return np.linspace(since_s, time_s, came, endpoint=False)


class OffsetHistory:
    """When each offset of a topic's partitions was reached, and how far a group has come.

    Args:
        partitions: of the topic.
        span_s: how long samples are kept; a record older than that has at least this age.
    """

    def __init__(self, partitions: int, span_s: float = 120.0) -> None:
        self._span_s = span_s
        self._samples: deque[tuple[float, NDArray[np.int64]]] = deque()
        """When which end offsets were seen. All partitions share a row: a pipeline may have tens of thousands."""
        self._ends = np.zeros(partitions, np.int64)
        self._grew_s = np.full(partitions, math.inf)
        """When the newest end of each partition was first seen."""
        self._committed = [Committed(-1)] * partitions
        self._moved_s = np.zeros(partitions)
        self._lags = np.zeros(partitions, np.int64)
        self._begins: Sequence[int] | None = None
        self.sampled_s: float | None = None
        """Time of the newest committed offsets."""

    def reached(self, time_s: float, ends: Sequence[int]) -> None:
        """End offsets at that time; those of partitions added since they were asked for are missing."""
        now = self._ends.copy()
        now[: len(ends)] = ends[: now.size]
        self._grew_s[(now != self._ends) | np.isinf(self._grew_s)] = time_s
        self._ends, samples = now, self._samples
        if len(samples) > 1 and np.array_equal(samples[-1][1], now) and np.array_equal(samples[-2][1], now):
            samples[-1] = (time_s, now)  # standing still: its two ends are enough
        else:
            samples.append((time_s, now))
        while len(samples) > 2 and samples[1][0] < time_s - self._span_s:
            samples.popleft()
        self._count()

    def committed(self, time_s: float, offsets: Sequence[Committed], *, served: bool = True) -> None:
        """What the group has committed at that time; offset -1 is not believed where there was another one before.

        Nothing stands still while it is not ``served``, as nothing is ready to.
        """
        for p, (now, lag) in enumerate(zip(offsets, self.lags(), strict=False)):
            before = self._committed[p]
            if now.offset < 0 <= before.offset:
                continue
            if now.offset != before.offset or not lag or not served:
                self._moved_s[p] = time_s
            self._committed[p] = now
        self.sampled_s = time_s
        self._count()

    def _count(self) -> None:
        """Bring the lags up to date."""
        self._lags = np.array(
            [done.unfinished(end) for done, end in zip(self._committed, self._ends.tolist(), strict=True)]
        )

    def grow(self, partitions: int) -> None:
        """The topic has so many partitions now; those that were added begin at 0."""
        more = max(0, partitions - len(self._committed))
        self._samples = deque((time_s, np.pad(ends, (0, more))) for time_s, ends in self._samples)
        self._ends, self._lags = np.pad(self._ends, (0, more)), np.pad(self._lags, (0, more))
        self._grew_s = np.pad(self._grew_s, (0, more), constant_values=math.inf)
        self._committed += [Committed(-1)] * more
        self._moved_s = np.pad(self._moved_s, (0, more), constant_values=self.sampled_s or 0.0)
        self._begins = None

    def begin(self, offsets: Sequence[int]) -> None:
        """Lowest offsets that Kafka still has."""
        self._begins = offsets

    def uncommitted_share(self) -> float | None:
        """Share of the records kept in a partition that are not committed, in the fullest one; None if not measured."""
        if self._begins is None:
            return None
        kept = zip(self.ends, self._begins, self._committed, strict=True)
        return max(max(0, end - max(0, done.offset)) / max(1, end - begin) for end, begin, done in kept)

    @property
    def known(self) -> bool:
        """Whether there are end offsets, and the group has committed one of each partition."""
        return bool(self._samples) and all(done.offset >= 0 for done in self._committed)

    @property
    def ends(self) -> tuple[int, ...]:
        """Newest end offsets."""
        return tuple(self._ends.tolist())

    def lags(self) -> tuple[int, ...]:
        """Records that are not finished, by partition."""
        return tuple(self._lags.tolist())

    def finished(self) -> tuple[int, ...]:
        """One past the last offset that the group has finished, by partition; some before it may not be."""
        return tuple(max(0, done.offset, *(end for _, end in done.runs)) for done in self._committed)

    def idle_s(self, now_s: float) -> tuple[float, ...]:
        """How long each partition's committed offset has stood still while it had lag."""
        return tuple(np.where(self._lags > 0, np.maximum(0.0, now_s - self._moved_s), 0.0).tolist())

    def oldest_s(self, now_s: float) -> float:
        """Age of the oldest unfinished record, over all partitions, to a sample's resolution; 0 without lag."""
        (behind,) = self._lags.nonzero()
        if not behind.size:
            return 0.0
        done = np.array([max(0, self._committed[p].offset) for p in behind.tolist()])
        first = bisect.bisect_left(self._samples, True, key=lambda sample: bool((sample[1][behind] > done).any()))
        # A partition that stands still may have done so for longer than samples are kept.
        return now_s - min(self._samples[first][0], float(self._grew_s[behind].min()))

    def rates(self, now_s: float, over_s: float) -> tuple[float, ...]:
        """Records per second of each partition over the last ``over_s`` seconds."""
        samples = self._samples
        if len(samples) < 2:
            return (0.0,) * self._ends.size
        first = bisect.bisect_left(samples, now_s - over_s, key=lambda sample: sample[0])
        since_s, before = samples[max(0, min(first, len(samples) - 1) - 1)]
        return tuple(((self._ends - before) / max(samples[-1][0] - since_s, 1e-9)).tolist())
