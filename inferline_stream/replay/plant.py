"""The pipeline under control: the Estimator's queues with replicas that come and go.

The Estimator's own kernels serve the queues up to a horizon that moves on; between two calls replicas are added and
removed. What stays fixed therefore agrees with the Estimator bit for bit.

Calling a kernel costs more than the events of a tenth of a second. So the queues are served for several looks at once:
when a replica comes or leaves, or when someone wants to know what was seen. Where no event is under way and none enters
there is nothing to serve: a silent hour takes next to no time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from inferline_stream.estimator.feeds import Source
from inferline_stream.estimator.kernels import Flags, Floats, FloatTable, Tokens
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.stage_arrivals import Flow
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.replay.group_members import GroupMembers
from inferline_stream.replay.news import News
from inferline_stream.replay.stage_queues import ALWAYS, Horizon, StageQueues


class Plant:
    """Stages with their queues. Time only moves forward, by `advance`; everything else happens at the present.

    Args:
        workload: events and their paths.
        stations: in the shape's order, how a replica of each kind serves; of a consumer group with its partitions.
        slots: of each stage; groups have none.
        sharing: of the stages that are consumer groups, by position.
        seed: of their heartbeats.
        news: what stages know of each other, in order of the deadline.
        watched: whether anybody looks.
    """

    def __init__(
        self,
        workload: Workload,
        stations: Sequence[Station],
        slots: Sequence[int],
        *,
        sharing: Mapping[int, Sharing] | None = None,
        seed: int = 0,
        news: News | None = None,
        watched: bool = True,
    ) -> None:
        self.now_s = -math.inf
        self._workload, self._code = workload, compiled()
        self._latency_s: Floats = np.full(len(workload), math.nan)
        self._stages = [
            StageQueues(workload, s, station, station.partitions or slots[s], self._code, watched=watched)
            for s, station in enumerate(stations)
        ]
        self._groups = {
            s: GroupMembers(self._stages[s], own, np.random.default_rng((seed, s)))
            for s, own in (sharing or {}).items()
        }
        self._flow = Flow(workload, range(len(stations)), self._code)
        self._looks: list[float] = []
        self._served_s, self._entered = -math.inf, 0
        self._news = news
        self._under_way = False
        """Whether there may be events between the source and the sink."""

    def advance(self, until_s: float) -> None:
        """Let everything happen that happens before ``until_s``."""
        self.now_s = until_s

    def look(self) -> None:
        """Note what can be counted of every stage at the present."""
        self._looks.append(self.now_s)

    def seen(self) -> list[FloatTable]:
        """By stage, see `StageQueues.seen`, a row for each look since the last call."""
        self._serve()
        found = [np.concatenate(stage.seen) for stage in self._stages]
        for stage in self._stages:
            stage.seen.clear()
        return found

    def add(self, s: int, slot: int, kind: int) -> None:
        """A replica that is ready now."""
        self._serve()
        if s in self._groups:
            self._groups[s].add(kind, self.now_s)
        else:
            self._stages[s].add(slot, kind, self.now_s)

    def leave(self, s: int, slot: int, kind: int) -> float:
        """A replica of this kind takes no further batch. Returns when it is done, and gone."""
        self._serve()
        if s in self._groups:
            return self._groups[s].leave(kind, self.now_s)
        return self._stages[s].leave(slot, kind, self.now_s)

    def slow(self, s: int, factor: float) -> None:
        """From now on the stage's service times are so many times the profile's."""
        self._serve()
        self._stages[s].slow(factor)

    @property
    def latency_s(self) -> Floats:
        """By event; NaN of those that have not reached the sink."""
        self._serve()
        return self._latency_s

    def degraded(self) -> Flags:
        """By event that may reach the sink (`Workload.last`), whether any stage's fallback made something of it."""
        self._serve()
        last = self._workload.last
        degraded = np.zeros(last.stop - last.start, np.uint8)
        for s, stage in enumerate(self._stages):
            made = stage.made
            if made.size:
                degraded |= self._workload.seen_from_sink(s, made.astype(np.float64)) > 0
        return degraded

    def _serve(self) -> None:
        """Serve the queues up to the present."""
        if self._served_s == self.now_s and not self._looks:
            return
        looks_s = np.array(self._looks)
        self._looks.clear()
        if self._rests(looks_s):
            return
        while self._news is not None and self._news.known_s < self.now_s:
            before = int(np.searchsorted(looks_s, self._news.known_s, side="right"))
            self._serve_until(self._news.known_s, looks_s[:before])
            looks_s = looks_s[before:]
        self._serve_until(self.now_s, looks_s)

    def _rests(self, looks_s: Floats) -> bool:
        """Whether nothing happens up to the present: no event is under way, none enters, and all know that."""
        entering_s, news = self._workload.entering_s, self._news
        idle = not self._under_way and not self._groups and math.isfinite(self.now_s)
        if not idle or (self._entered < entering_s.size and entering_s[self._entered] < self.now_s):
            return False
        if news is not None and not news.silent_until(self.now_s):
            return False
        self._served_s = self.now_s
        for stage in self._stages:
            stage.rest(looks_s)
        return True

    def _serve_until(self, now_s: float, looks_s: Floats) -> None:
        """Serve the queues up to an instant until which every R is known."""
        workload, news = self._workload, self._news
        self._served_s = now_s
        first, self._entered = self._entered, int(workload.entering_s.searchsorted(now_s, side="left"))
        gone: list[Tokens] = []

        def tokens_of(source: Source) -> Tokens:
            return self._flow.skipped[source[0]] if source[1] else gone[source[0]]

        horizon = Horizon.of(now_s, looks_s)
        if news is not None:
            (changes_s, by_period_s), reports_s = news.rests(now_s), news.reports_s(now_s)
            reported = np.tile([0.0, 0.0, -math.inf], (len(self._stages), reports_s.size, 1))
            instants_s = np.sort(np.concatenate([horizon.instants_s, changes_s]))
            horizon = Horizon(now_s, looks_s, instants_s, instants_s.searchsorted(looks_s))
            rests_s = by_period_s.take(changes_s.searchsorted(instants_s), axis=1)
        for s, stage in enumerate(self._stages):
            arrived = self._flow.arrivals(s, (first, self._entered), tokens_of, now_s)
            left = stage.advance(arrived, horizon, ALWAYS if news is None else rests_s[s])
            if news is not None and news.awaited[s]:
                stage.note_stays(left, news.stays[s], reports_s, reported[s])
            gone.append(self._flow.sent(s, left, now_s))
        self._under_way = self._flow.holds or any(stage.holds for stage in self._stages)
        if news is not None:
            news.served(now_s, reports_s, reported)
        for s in workload.shape.finals():
            left = Tokens(gone[s].times, workload.as_last(s, gone[s].events))
            self._code.record_latencies(left, workload.entry_s, workload.hop_s, self._latency_s)
