"""What a policy sees: arrivals at once, or when a live one got them; stages as old as their statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from inferline_stream.estimator.kernels import Floats
from inferline_stream.pipeline.fallback import FEWEST_DEGRADED
from inferline_stream.replay.live_observations import Figures
from inferline_stream.replay.plant import Plant
from inferline_stream.replay.stage_replicas import Counted, StageReplicas
from inferline_stream.tuner.observation import RECENT_S


class Glimpse(Struct, frozen=True):
    """One stage at one instant. Totals count from the start.

    Args:
        time_s: when.
        arrived: records sent to its queue.
        completed: records that have left it.
        lag: records not yet completed.
        hidden: of them, hopeless ones that are no demand.
        degraded: records that went to the stage's fallback.
        oldest_s: when the oldest record not yet completed was sent; None if all are.
        busy_s: Σ of service times begun.
        nominal_s: the same as the profile has it.
        ready: ready replicas by kind.
        pending: pending replicas by kind.
        places: most batches that the ready replicas have in hand.
        leaving: replicas by kind that have got a notice, or were taken while they were wanted.
    """

    time_s: float
    arrived: int
    completed: int
    lag: int
    hidden: int
    degraded: int
    oldest_s: float | None
    busy_s: float
    nominal_s: float
    ready: tuple[int, ...]
    pending: tuple[int, ...]
    places: int
    leaving: tuple[int, ...] = ()

    def busy_share(self, since: Glimpse | None) -> float | None:
        """Share of the places that had a batch since then, or since the start; None where nothing is ready."""
        span_s = self.time_s - (0.0 if since is None else since.time_s)
        busy_s = self.busy_s - (0.0 if since is None else since.busy_s)
        return min(busy_s / (span_s * self.places), 1.0) if span_s > 0 and self.places else None

    def degraded_share(self, since: Glimpse) -> float:
        """Share of the records that left since then that the fallback made; 0 where it made next to none."""
        degraded, left = self.degraded - since.degraded, self.completed - since.completed
        return min(degraded / left, 1.0) if left > 0 and degraded >= FEWEST_DEGRADED else 0.0


@dataclass(slots=True)
class View:
    """What a policy may look at when it decides.

    Args:
        time_s: now.
        arrivals_s: times of the arrivals that became known since the last decision.
        now: every stage as last reported.
        earlier: the same about `RECENT_S` before.
        watched_s: how long arrivals have been watched.
        figures: what a live policy had measured, instead of what is seen here.
        events: that should have reached the sink by the last report, and within the SLO.
        late: of them.
    """

    time_s: float
    arrivals_s: Floats
    now: tuple[Glimpse, ...]
    earlier: tuple[Glimpse, ...]
    watched_s: float
    figures: Figures
    events: int
    late: int


class Due(NamedTuple):
    """Events that get to the sink, in the order in which they should be there.

    Args:
        due_s: when, ascending.
        events: which they are.
        within_s: the SLO of each.
    """

    due_s: Floats
    events: NDArray[np.int64]
    within_s: Floats


class Sight:
    """Glimpses of every stage, given out once they are old enough to have been reported.

    Args:
        plant: what is looked at.
        crews: its replicas.
        looks_back: how many looks ago the glimpse was taken that is given out.
        due: the events that get to the sink.
    """

    def __init__(
        self,
        plant: Plant,
        crews: Sequence[StageReplicas],
        looks_back: int,
        due: Due,
    ) -> None:
        self.events, self.late = 0, 0
        """Those that were due at the last look that is known, and how many of them were late."""
        self._judged = 0
        self._due = due
        self._plant = plant
        self._crews = crews
        self._looks_back = looks_back
        self._looks = 0
        self._counted: list[tuple[float, list[Counted]]] = []
        """Of the looks that are not among the glimpses yet."""
        self._glimpses: deque[tuple[Glimpse, ...]] = deque()
        """From the one to be reported on."""
        self._seconds: deque[tuple[Glimpse, ...]] = deque()

    def look(self) -> None:
        """Take in the present."""
        self._plant.look()
        self._counted.append((self._plant.now_s, [crew.counted() for crew in self._crews]))
        self._looks += 1
        if self._looks > self._looks_back + 1:
            self._glimpses.popleft()
        if not self._glimpses:
            self._gather()
        given = self._glimpses[0]
        if not self._seconds or given[0].time_s >= self._seconds[-1][0].time_s + 1.0 - 1e-9:
            self._seconds.append(given)
            while len(self._seconds) > 1 and self._seconds[1][0].time_s <= given[0].time_s - RECENT_S:
                self._seconds.popleft()

    @property
    def reported(self) -> tuple[Glimpse, ...]:
        """Every stage as last reported."""
        return self._glimpses[0]

    @property
    def earlier(self) -> tuple[Glimpse, ...]:
        """Every stage about `RECENT_S` before that, or as early as anything is known."""
        return self._seconds[0]

    def _gather(self) -> None:
        """Glimpses of all looks until now: as late as possible, so that many are gathered at once."""
        stages = [table.tolist() for table in self._plant.seen()]
        for (time_s, counted), *seen in zip(self._counted, *stages, strict=True):
            self._glimpses.append(tuple([_glimpse(time_s, *pair) for pair in zip(seen, counted, strict=True)]))
        self._counted.clear()
        since, self._judged = self._judged, int(self._due.due_s.searchsorted(self._plant.now_s, side="right"))
        judged = slice(since, self._judged)
        in_time = self._plant.latency_s[self._due.events[judged]] <= self._due.within_s[judged]
        self.events += in_time.size
        self.late += int(np.count_nonzero(~in_time))


def _glimpse(time_s: float, seen: Sequence[float], counted: Counted) -> Glimpse:
    came, left, oldest_s, busy_s, nominal_s, hidden, degraded = seen
    lag, (ready, pending, places, leaving) = int(came - left), counted
    totals = int(came), int(left), lag, int(hidden), int(degraded)
    return Glimpse(time_s, *totals, oldest_s if lag else None, busy_s, nominal_s, ready, pending, places, leaving)
