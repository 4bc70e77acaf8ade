"""What arrives at a stage, worked out from what enters the pipeline and from the departures of the stages before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from inferline_stream.estimator.feeds import Source
from inferline_stream.estimator.kernels import Joining, Sources, Tokens
from inferline_stream.estimator.many_results import Gathering
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
        self._apart = [workload.results.get(source) if not skips else None for source, skips in self.feed.sources]
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
        arrived = [
            tokens if results is None else results.apart(tokens)
            for tokens, results in zip(arrived, self._apart, strict=True)
        ]
        begin, end = self._begin, self._end
        if len(arrived) == 1:  # every token is before the horizon: nothing is ever left
            pending, total = arrived[0], arrived[0].times.size
            begin[0], end[0] = 0, total
        else:
            pending, total = self._hold(arrived), int((end - begin).sum())
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


class Delay:
    """Takes tokens in order, gives them in the order in which they count as sent where the time between stages differs.

    Args:
        workload: the times, and the keys of the draws.
        purpose: of the draws.
        stage: position in the shape.
        code: the kernels.
    """

    def __init__(self, workload: Workload, purpose: str, stage: int, code: Any) -> None:
        self._delay = code.delay
        self._key = workload.key(purpose, stage)
        self._extra_s = workload.hop_extra_s
        self._late = _room(0)
        self._first, self._held = 0, 0

    @property
    def holds(self) -> bool:
        """Whether some do not count as sent yet."""
        return self._held > self._first

    def take(self, gone: Tokens, horizon_s: float) -> Tokens:
        """Tokens that count as sent before the horizon and were not given yet; all up to there were taken.

        The arrays are reused by the next call.
        """
        left, needed = self._held - self._first, self._held - self._first + gone.times.size
        before, late = self._late, self._late if self._late.times.size >= needed else _room(needed * 3 // 2)
        late.times[:left] = before.times[self._first : self._held].copy()
        late.events[:left] = before.events[self._first : self._held].copy()
        # A trace is read-only, which would be another type to the compiled kernels, and another compilation.
        times = gone.times if gone.times.flags.writeable else gone.times.copy()
        ready, held = self._delay(Tokens(times, gone.events), self._key, self._extra_s, late, (left, horizon_s))
        self._late, self._first, self._held = late, int(ready), int(held)
        return _first(late, int(ready))


class Flow:
    """Tokens between the stages, up to a horizon that moves on. Their arrays are reused when it does.

    Args:
        workload: events and their paths.
        stages: positions of those whose arrivals and departures pass here.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stages: Iterable[int], code: Any) -> None:
        self.skipped: dict[int, Tokens] = {}
        """By join, the events that skip it and when that was known, since the horizon before."""
        self._entry_s, self._masks = workload.entry_s, workload.masks
        stages = tuple(stages)
        feeds = workload.feeds
        self._mergers = {
            s: Merger(workload, s, code) for s in stages if workload.shape.parents(s) and feeds[s].gathers is None
        }
        self._gatherings = {s: _gathering(workload, s) for s in stages if feeds[s].gathers is not None}
        self._feeds = feeds
        self._by_all = {s: bool(feeds[s].visits.all()) for s in stages if not workload.shape.parents(s)}
        ways = [(purpose, s) for purpose in ("hop in", "hop") for s in stages] if workload.hop_extra_s.size else []
        self._delays = {way: Delay(workload, *way, code) for way in ways}

    def arrivals(
        self, s: int, entering: tuple[int, int], tokens_of: Callable[[Source], Tokens], horizon_s: float
    ) -> Tokens:
        """What is sent to a stage.

        Args:
            s: the stage.
            entering: first event that enters the pipeline since the horizon before, and end.
            tokens_of: what each source of the stage has sent since then.
            horizon_s: the present one.
        """
        if s in self._gatherings:
            return self._gatherings[s].take([tokens_of(source) for source in self._feeds[s].sources], horizon_s)
        if s in self._mergers:
            given = [tokens_of(source) for source in self._mergers[s].feed.sources]
            arrived, self.skipped[s] = self._mergers[s].take(given, horizon_s)
            return arrived
        first, end = entering
        entered = Tokens(self._entry_s[first:end], np.arange(first, end, dtype=np.int32))
        if not self._by_all[s]:  # others enter elsewhere
            mine = self._feeds[s].visits[self._masks[first:end]] > 0
            entered = Tokens(entered.times[mine], entered.events[mine])
        return self._delayed("hop in", s, entered, horizon_s)

    @property
    def holds(self) -> bool:
        """Whether tokens are on their way that do not count as sent yet."""
        return any(delay.holds for delay in self._delays.values()) or any(g.holds for g in self._gatherings.values())

    def sent(self, s: int, gone: Tokens, horizon_s: float) -> Tokens:
        """Departures of a stage as they count as sent."""
        return self._delayed("hop", s, gone, horizon_s)

    def _delayed(self, purpose: str, s: int, tokens: Tokens, horizon_s: float) -> Tokens:
        return self._delays[purpose, s].take(tokens, horizon_s) if self._delays else tokens


def _gathering(workload: Workload, stage: int) -> Gathering:
    feed = workload.feeds[stage]
    assert feed.gathers is not None
    sources = [source for source, _ in feed.sources]
    return Gathering(workload.results[feed.gathers], feed.gathers, sources, feed.admits, workload.masks)


def _room(size: int) -> Tokens:
    return Tokens(np.empty(size), np.empty(size, dtype=np.int32))


def _first(tokens: Tokens, n: int) -> Tokens:
    return Tokens(tokens.times[:n], tokens.events[:n])
