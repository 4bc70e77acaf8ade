"""What arrives at a stage, worked out from the departures of the stages before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Joining, Sources, Tokens
from inferline_stream.estimator.workload import Workload

NONE = Tokens(np.empty(0), np.empty(0, dtype=np.int32))


class Merger:
    """Of one stage that has a parent: filters by path, and at a join waits for the last token of each event.

    Args:
        workload: paths of the events.
        stage: position in the shape.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, code: Any) -> None:
        self.feed = workload.feeds[stage]
        self._merge = code.merge
        self._joining = Joining(
            workload.masks,
            self.feed.admits,
            self.feed.needed,
            self.feed.visits,
            self.feed.skips,
            np.zeros(len(workload) if len(self.feed.sources) > 1 else 0, dtype=np.uint8),
            workload.hop_s,
        )
        self._begin = np.zeros(len(self.feed.sources), dtype=np.int64)
        self._end = np.zeros(len(self.feed.sources), dtype=np.int64)
        self._held = NONE
        self._out = NONE
        self._skipped = NONE

    def take(self, arrived: list[Tokens], horizon_s: float) -> tuple[Tokens, Tokens]:
        """Events that run at the stage, with the sending time of their last token, and events that skip it.

        Args:
            arrived: new tokens, by source of the feed.
            horizon_s: all tokens sent before it have been given, now or earlier.

        Returns:
            Arrays that the next call reuses.
        """
        if self.feed.whole:
            return arrived[0], NONE
        if not arrived:  # no event ever comes here
            return NONE, NONE
        pending = arrived[0] if len(arrived) == 1 else self._hold(arrived)
        begin, end = self._begin, self._end
        if len(arrived) == 1:  # every token is before the horizon: nothing is ever left
            begin[0], end[0] = 0, pending.times.size
        total = int((end - begin).sum())
        if self._out.times.size < total:
            self._out = _room(total * 3 // 2)
            self._skipped = _room(total * 3 // 2) if self.feed.skips else NONE
        n, skipped = self._merge(
            Sources(pending.times, pending.events, begin, end, horizon_s), self._joining, self._out, self._skipped
        )
        return _first(self._out, n), _first(self._skipped, skipped)

    def _hold(self, arrived: list[Tokens]) -> Tokens:
        """Each source's tokens that are left and its new ones, in a part of the buffers of its own."""
        left, new = self._end - self._begin, np.array([tokens.times.size for tokens in arrived])
        room = self._held.times.size // len(arrived)
        held = self._held
        if (left + new).max() > room:
            room = int((left + new).max()) * 3 // 2
            held = _room(room * len(arrived))
        for k, tokens in enumerate(arrived):
            start, middle, end = k * room, k * room + int(left[k]), k * room + int(left[k] + new[k])
            old = slice(self._begin[k], self._end[k])
            held.times[start:middle], held.times[middle:end] = self._held.times[old], tokens.times
            held.events[start:middle], held.events[middle:end] = self._held.events[old], tokens.events
            self._begin[k], self._end[k] = start, end
        self._held = held
        return held


def _room(size: int) -> Tokens:
    return Tokens(np.empty(size), np.empty(size, dtype=np.int32))


def _first(tokens: Tokens, n: int) -> Tokens:
    return Tokens(tokens.times[:n], tokens.events[:n])
