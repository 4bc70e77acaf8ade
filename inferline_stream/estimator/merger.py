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
        waits = bool((self.feed.needed > 1).any())
        self._joining = Joining(
            workload.masks,
            self.feed.admits,
            self.feed.needed,
            self.feed.visits,
            self.feed.skips,
            np.zeros(len(workload) if waits else 0, dtype=np.uint8),
            workload.hop_s,
        )
        self._pending = [NONE] * len(self.feed.sources)
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
        parts = [part for pair in zip(self._pending, arrived, strict=True) for part in pair]
        times = np.concatenate([part[0] for part in parts])
        events = np.concatenate([part[1] for part in parts])
        end = np.cumsum([part[0].size for part in parts])[1::2]
        begin = np.concatenate([[0], end[:-1]])
        if self._out.times.size < times.size:
            self._out = _room(times.size * 3 // 2)
            self._skipped = _room(times.size * 3 // 2) if self.feed.skips else NONE
        n, skipped = self._merge(Sources(times, events, begin, end, horizon_s), self._joining, self._out, self._skipped)
        self._pending = [Tokens(times[a:b].copy(), events[a:b].copy()) for a, b in zip(begin, end, strict=True)]
        return _first(self._out, n), _first(self._skipped, skipped)


def _room(size: int) -> Tokens:
    return Tokens(np.empty(size), np.empty(size, dtype=np.int32))


def _first(tokens: Tokens, n: int) -> Tokens:
    return Tokens(tokens.times[:n], tokens.events[:n])
