"""The pipeline under control: the Estimator's queues with replicas that come and go.

The Estimator's own kernel serves the queues up to a horizon that moves on; between two calls replicas are added and
removed. What stays fixed therefore agrees with the Estimator bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferline_stream.estimator.kernels import Events, Floats, Ints
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.replay.plant_kernel import advance
from inferline_stream.replay.tables import StageSetup, empty_tables

_HEAD, _LENGTH, _NEEDED = 0, 1, 3  # places in `marks`

FIRST_ROOM = 255
"""Replicas of a stage that there is room for at first."""


class Plant:
    """Stages with their queues. Time only moves forward, by `advance`; everything else happens at the present.

    Args:
        workload: events and their paths.
        measured: service times of every kind.
        stages: in the shape's order.
        slo_s: beyond it an event counts as late.
    """

    def __init__(
        self,
        workload: Workload,
        measured: PipelineProfile,
        stages: Sequence[StageSetup],
        *,
        slo_s: float,
    ) -> None:
        self.stages = tuple(stages)
        self.tables = empty_tables(workload, measured, stages, most_replicas=FIRST_ROOM)
        self.now_s = float("-inf")
        self.slowed = [1.0 for _ in stages]
        tables = self.tables
        self._nominal = tuple(array.copy() for array in (tables.table, tables.fixed_s, tables.per_unit_s))
        self._hop_s = workload.hop_s
        self._slo_s = slo_s
        self._wrap = self.tables.ring_time.shape[1] - 1
        self._advance = advance()

    def advance(self, until_s: float) -> None:
        """Let everything happen that happens before ``until_s``."""
        self._advance(self.tables, until_s, self._hop_s, self._slo_s)
        self.now_s = until_s

    def add(self, s: int, kind: int) -> None:
        """A replica that is ready now: into the ring, behind those that have been free for longer."""
        if self.tables.marks[s, _LENGTH] >= self._wrap:
            self._grow()
        x, places = self.tables, self._places(s)
        behind = int(np.searchsorted(x.ring_time[s, places], self.now_s, side="right"))
        x.marks[s, _LENGTH] += 1
        grown = self._places(s)
        for array in (x.ring_time, x.ring_start, x.ring_size, x.ring_kind):
            array[s, grown[behind + 1 :]] = array[s, places[behind:]]
        x.ring_time[s, grown[behind]], x.ring_kind[s, grown[behind]] = self.now_s, kind
        x.ring_size[s, grown[behind]] = 0

    def _grow(self) -> None:
        """Rings of twice the room, each from its beginning."""
        x = self.tables
        rings = {}
        for name in ("ring_time", "ring_start", "ring_size", "ring_kind"):
            ring = getattr(x, name)
            grown = np.zeros((ring.shape[0], 2 * ring.shape[1]), ring.dtype)
            for s, head in enumerate(x.marks[:, _HEAD]):
                grown[s, : ring.shape[1]] = np.roll(ring[s], -int(head))
            rings[name] = grown
        x.marks[:, _HEAD] = 0
        self.tables = x._replace(**rings)
        self._wrap = 2 * self._wrap + 1

    def leave(self, s: int, kind: int, leaving: int) -> float:
        """When a replica of this kind can be removed, so many others being about to leave already.

        Replicas leave in the order in which they finish.
        """
        x, places = self.tables, self._places(s)
        of_kind = places[x.ring_kind[s, places] == kind]
        return max(float(x.ring_time[s, of_kind[leaving]]), self.now_s)

    def remove_first(self, s: int, kind: int) -> None:
        """The replica of this kind that is or was free first leaves; it must be free now."""
        x, places = self.tables, self._places(s)
        gap = int(np.flatnonzero(x.ring_kind[s, places] == kind)[0])
        place = places[gap]
        assert x.ring_time[s, place] <= self.now_s
        first, size = int(x.ring_start[s, place]), int(x.ring_size[s, place])
        if size:
            # It finishes at this very instant: its batch leaves with it.
            self._depart(s, x.arrived_event[s, first : first + size], float(x.ring_time[s, place]))
        for array in (x.ring_time, x.ring_start, x.ring_size, x.ring_kind):
            array[s, places[gap:-1]] = array[s, places[gap + 1 :]]
        x.marks[s, _LENGTH] -= 1

    # What can be seen of it.

    @property
    def ended(self) -> Ints:
        """Events that have reached the sink, and those of them that were late."""
        return self.tables.ended

    @property
    def latency_s(self) -> Floats:
        """By event; NaN of those that have not reached the sink."""
        return self.tables.latency_s

    def arrived(self, s: int) -> int:
        """Records sent to the stage."""
        return int(self.tables.arrived_count[s])

    def completed(self, s: int) -> int:
        """Records that have left it."""
        return int(self.tables.sent_count[s])

    def oldest_s(self, s: int) -> float | None:
        """When the oldest record that waits was sent; None if none waits."""
        waiting = int(self.tables.marks[s, _NEEDED])
        return float(self.tables.arrived[s, waiting]) if waiting < self.arrived(s) else None

    def busy_s(self, s: int) -> float:
        """Σ of service times begun."""
        return float(self.tables.totals[s, 0])

    def slow(self, s: int, factor: float) -> None:
        """Service times of a stage are this many times the profile's from now on."""
        self.slowed[s] = factor
        tables = self.tables
        for array, nominal in zip((tables.table, tables.fixed_s, tables.per_unit_s), self._nominal, strict=True):
            array[s] = nominal[s] * factor

    def nominal_s(self, s: int) -> float:
        """Σ of S(b) over the batches begun, as the profile has it."""
        if self.slowed[s] == 1.0 and not self.tables.varies[s]:
            return self.busy_s(s)
        batches = self.tables.batches[s]
        return float(batches @ np.nan_to_num(self._nominal[0][s, : batches.size]))

    def busy(self, s: int) -> int:
        """Replicas with a batch in flight."""
        return int((self.tables.ring_time[s, self._places(s)] > self.now_s).sum())

    def _places(self, s: int) -> Ints:
        """Places of the ring that are in use, in order of time."""
        head, length = int(self.tables.marks[s, _HEAD]), int(self.tables.marks[s, _LENGTH])
        places: Ints = np.arange(head, head + length) & self._wrap
        return places

    def _depart(self, s: int, events: Events, time_s: float) -> None:
        x = self.tables
        gone = int(x.sent_count[s])
        x.sent[s, gone : gone + events.size] = time_s
        x.sent_event[s, gone : gone + events.size] = events
        x.sent_count[s] += events.size
        if x.final[s]:
            x.latency_s[events] = time_s + self._hop_s - x.entry_s[events]
            x.ended[:] += events.size, int((x.latency_s[events] > self._slo_s).sum())
