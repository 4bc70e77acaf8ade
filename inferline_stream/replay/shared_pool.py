"""The replicas of a stage with the plain queue: each runs one batch at a time, and no key keeps its order.

The queue is served by `plant_kernel`, which advances all such stages at once; here replicas come and go in its ring.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

import numpy as np

from inferline_stream.estimator.kernels import Ints
from inferline_stream.replay.plant_state import PlantState

_HEAD, _LENGTH, _NEEDED = 0, 1, 3  # places in `marks`


@dataclass(slots=True)
class SharedPool:
    """The replicas of one queue, in the order in which they are free.

    Args:
        plant_state: what all pools share.
        queue: its row of the tables.
    """

    plant_state: PlantState
    queue: int
    _leaving: list[tuple[float, int]] = field(default_factory=list)
    """Heap of (when it is done, kind)."""

    @property
    def next_left_s(self) -> float:
        """When the next replica that leaves is done."""
        return self._leaving[0][0] if self._leaving else math.inf

    def add(self, kind: int, now_s: float) -> None:
        """A replica that is ready now: into the ring, behind those that have been free for longer."""
        q = self.queue
        if self.plant_state.tables.marks[q, _LENGTH] >= self.plant_state.tables.ring_time.shape[1] - 1:
            self.plant_state.grow_rings()
        x, places = self.plant_state.tables, self._places()
        behind = int(np.searchsorted(x.ring_time[q, places], now_s, side="right"))
        x.marks[q, _LENGTH] += 1
        grown = self._places()
        for array in (x.ring_time, x.ring_start, x.ring_size, x.ring_kind):
            array[q, grown[behind + 1 :]] = array[q, places[behind:]]
        x.ring_time[q, grown[behind]], x.ring_kind[q, grown[behind]] = now_s, kind
        x.ring_size[q, grown[behind]] = 0

    def leave(self, kind: int, now_s: float) -> float:
        """Have the replica of this kind leave that is free first and does not leave yet. Returns when it is done.

        Until then, events may still wait for it where another kind is slower.
        """
        x, places = self.plant_state.tables, self._places()
        free_s = np.maximum(x.ring_time[self.queue, places[x.ring_kind[self.queue, places] == kind]], now_s).tolist()
        for left_s, other in self._leaving:
            if other == kind:
                free_s.remove(left_s)
        heapq.heappush(self._leaving, (free_s[0], kind))
        return float(free_s[0])

    def remove_left(self, now_s: float) -> None:
        """Remove the replicas that leave and are done now."""
        while self._leaving and self._leaving[0][0] <= now_s:
            self._remove_first(heapq.heappop(self._leaving)[1], now_s)

    def _remove_first(self, kind: int, now_s: float) -> None:
        """The replica of this kind that is or was free first leaves; it must be free now."""
        q, x, places = self.queue, self.plant_state.tables, self._places()
        gap = int(np.flatnonzero(x.ring_kind[q, places] == kind)[0])
        place = places[gap]
        assert x.ring_time[q, place] <= now_s
        first, size = int(x.ring_start[q, place]), int(x.ring_size[q, place])
        if size:  # it finishes at this instant: its batch leaves with it
            gone = int(x.sent_count[q])
            x.sent[q, gone : gone + size] = x.ring_time[q, place]
            x.sent_event[q, gone : gone + size] = x.arrived_event[q, first : first + size]
            x.sent_count[q] += size
        for array in (x.ring_time, x.ring_start, x.ring_size, x.ring_kind):
            array[q, places[gap:-1]] = array[q, places[gap + 1 :]]
        x.marks[q, _LENGTH] -= 1

    def oldest_s(self) -> float:
        """When the oldest record that has not left was sent; there must be one."""
        x, q = self.plant_state.tables, self.queue
        return float(x.arrived[q, x.marks[q, _NEEDED]])

    def _places(self) -> Ints:
        """Places of the ring that are in use, in order of time."""
        x, q = self.plant_state.tables, self.queue
        head, length = int(x.marks[q, _HEAD]), int(x.marks[q, _LENGTH])
        places: Ints = np.arange(head, head + length) & (x.ring_time.shape[1] - 1)
        return places
