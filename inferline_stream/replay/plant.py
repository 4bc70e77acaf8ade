"""The pipeline under control: the Estimator's queues with replicas and partition owners that come and go.

The very kernels of the Estimator serve the queues up to a horizon that moves on; between two calls replicas
are added and removed and partitions change their owner. What stays fixed therefore agrees with the Estimator bit for
bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferline_stream.estimator.kernels import Events, Ints
from inferline_stream.estimator.partitioned_queue import BUSY, IDLE, WAITING
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.replay.kernel import advance
from inferline_stream.replay.tables import StageSetup, empty_tables

_HEAD, _LENGTH = 0, 1  # places in `marks`


class Plant:
    """Stages with their queues. Time only moves forward, by `advance`; everything else happens at the present.

    Args:
        workload: events and their paths.
        measured: service times of every kind.
        stages: in the shape's order.
        slo_s: beyond it an event counts as late.
        most_replicas: see `empty_tables`.
        keyed: see `estimator.station`.
    """

    def __init__(
        self,
        workload: Workload,
        measured: PipelineProfile,
        stages: Sequence[StageSetup],
        *,
        slo_s: float,
        most_replicas: int = 256,
        keyed: bool = True,
    ) -> None:
        self.stages = tuple(stages)
        self.tables = empty_tables(workload, measured, stages, most_replicas=most_replicas, keyed=keyed)
        self.now_s = float("-inf")
        self.slowed = [1.0 for _ in stages]
        self._nominal = self.tables.table.copy()
        self._hop_s = workload.hop_s
        self._slo_s = slo_s
        self._nobody = most_replicas
        self._wrap = self.tables.ring_time.shape[1] - 1
        self._used: list[set[int]] = [set() for _ in stages]
        self._advance = advance()

    def advance(self, until_s: float) -> None:
        """Let everything happen that happens before ``until_s``."""
        self._advance(self.tables, until_s, self._hop_s, self._slo_s)
        self.now_s = until_s

    # Replicas of a partitioned stage are slots; those of a shared queue are nameless.

    def add(self, s: int, kind: int) -> int:
        """A replica that is ready now. A partitioned one holds no partition yet; its slot is returned.

        Raises:
            ValueError: more replicas at once than the plant was made for.
        """
        x = self.tables
        if self.stages[s].partitions is None:
            self._insert_shared(s, kind)
            return -1
        slot = next((i for i in range(self._nobody) if i not in self._used[s]), None)
        if slot is None:
            raise ValueError(f"stage {self.stages[s].name!r}: more than {self._nobody} replicas at once")
        self._used[s].add(slot)
        x.kind_of[s, slot], x.state[s, slot], x.queued[s, slot], x.active_count[s, slot] = kind, IDLE, 0, 0
        return slot

    def busy_until_s(self, s: int, slot: int) -> float:
        """When the batch in flight of a replica ends; now if there is none."""
        x = self.tables
        if x.state[s, slot] != BUSY:
            return self.now_s
        places = self._places(s)
        return float(x.ring_time[s, places[x.ring_note[s, places] == slot][0]])

    def forget(self, s: int, slot: int) -> None:
        """A replica without partitions and without a batch in flight is gone; its slot is free."""
        self._used[s].discard(slot)

    def own(self, s: int, owners: dict[int, int | None]) -> None:
        """Give partitions to replicas from now on, or (None) to nobody: their records wait."""
        x = self.tables
        for partition, slot in owners.items():
            x.owner[s, partition] = self._nobody if slot is None else slot
        self._regroup(s)
        for slot in {slot for slot in owners.values() if slot is not None}:
            if x.state[s, slot] == IDLE and x.queued[s, slot] > 0:
                self._wake(s, slot)

    def owner(self, s: int, partition: int) -> int | None:
        """The replica that takes a partition's records now."""
        slot = int(self.tables.owner[s, partition])
        return None if slot == self._nobody else slot

    def first_free_s(self, s: int, kind: int, skip: int = 0) -> float:
        """Shared queue: when a replica of this kind could leave, the ``skip`` first ones being about to leave anyway.

        Replicas leave in the order in which they finish.
        """
        x, places = self.tables, self._places(s)
        of_kind = places[x.ring_kind[s, places] == kind]
        return max(float(x.ring_time[s, of_kind[skip]]), self.now_s)

    def remove_first(self, s: int, kind: int) -> None:
        """Shared queue: the replica of this kind that is or was free first leaves; it must be free now."""
        x, places = self.tables, self._places(s)
        gap = int(np.flatnonzero(x.ring_kind[s, places] == kind)[0])
        place = places[gap]
        assert x.ring_time[s, place] <= self.now_s
        first, size = int(x.ring_note[s, place]), int(x.ring_size[s, place])
        if size:
            # It finishes at this very instant: its batch leaves with it.
            self._depart(s, x.arrived_event[s, first : first + size], float(x.ring_time[s, place]))
        for array in (x.ring_time, x.ring_note, x.ring_size, x.ring_kind):
            array[s, places[gap:-1]] = array[s, places[gap + 1 :]]
        x.marks[s, _LENGTH] -= 1

    # What can be seen of it.

    def lags(self, s: int) -> list[int]:
        """Records not yet completed, by partition (a single number for a shared queue)."""
        x, partitions = self.tables, self.stages[s].partitions
        if partitions is None:
            return [int(x.arrived_count[s] - x.sent_count[s])]
        lags: list[int] = x.outstanding[s, :partitions].tolist()
        return lags

    def slow(self, s: int, factor: float) -> None:
        """Service times of a stage are this many times the profile's from now on."""
        self.slowed[s] = factor
        self.tables.table[s] = self._nominal[s] * factor

    def nominal_s(self, s: int) -> float:
        """Σ of service times begun, as the profile has them."""
        batches = self.tables.batches[s]
        return float(batches @ np.nan_to_num(self._nominal[s, : batches.size, 0]))

    def busy(self, s: int) -> int:
        """Replicas with a batch in flight."""
        x = self.tables
        if self.stages[s].partitions is None:
            places = self._places(s)
            return int((x.ring_time[s, places] > self.now_s).sum())
        return int((x.state[s, : self._nobody] == BUSY).sum())

    def _places(self, s: int) -> Ints:
        """Places of the ring that are in use, in order of time."""
        head, length = int(self.tables.marks[s, _HEAD]), int(self.tables.marks[s, _LENGTH])
        places: Ints = np.arange(head, head + length) & self._wrap
        return places

    def _insert_shared(self, s: int, kind: int) -> None:
        """Into the ring, behind the replicas that have been free for longer."""
        x, places = self.tables, self._places(s)
        if places.size >= self._nobody:
            raise ValueError(f"stage {self.stages[s].name!r}: more than {self._nobody} replicas at once")
        behind = int(np.searchsorted(x.ring_time[s, places], self.now_s, side="right"))
        x.marks[s, _LENGTH] += 1
        grown = self._places(s)
        for array in (x.ring_time, x.ring_note, x.ring_size, x.ring_kind):
            array[s, grown[behind + 1 :]] = array[s, places[behind:]]
        x.ring_time[s, grown[behind]], x.ring_kind[s, grown[behind]] = self.now_s, kind
        x.ring_size[s, grown[behind]] = 0

    def _regroup(self, s: int) -> None:
        """Work out anew which of each replica's partitions hold records, and how many."""
        x, partitions = self.tables, self.stages[s].partitions or 0
        owners = x.owner[s, :partitions]
        waiting = x.outstanding[s, :partitions].copy()
        for slot in np.flatnonzero(x.state[s, : self._nobody] == BUSY):
            np.subtract.at(waiting, x.from_partition[s, slot, : x.size_of[s, slot]], 1)
        owned = np.bincount(owners, minlength=self._nobody + 1)
        x.region[s, 1:] = np.cumsum(owned)[:-1]
        x.active_count[s] = 0
        x.queued[s] = np.bincount(owners, weights=waiting, minlength=self._nobody + 1)
        for partition in np.flatnonzero(x.head_of[s, :partitions] >= 0).tolist():
            slot = owners[partition]
            place = x.region[s, slot] + x.active_count[s, slot]
            x.active[s, place] = partition
            x.active_event[s, place] = x.arrived_event[s, x.head_of[s, partition]]
            x.active_count[s, slot] += 1

    def _wake(self, s: int, slot: int) -> None:
        """Let an idle replica look at its partitions now: what waits for nothing ends its wait."""
        x = self.tables
        head = (x.marks[s, _HEAD] - 1) & self._wrap
        x.marks[s, _HEAD] = head
        x.marks[s, _LENGTH] += 1
        x.ring_time[s, head], x.ring_note[s, head] = self.now_s, slot
        x.state[s, slot] = WAITING

    def _depart(self, s: int, events: Events, time_s: float) -> None:
        x = self.tables
        gone = int(x.sent_count[s])
        x.sent[s, gone : gone + events.size] = time_s
        x.sent_event[s, gone : gone + events.size] = events
        x.sent_count[s] += events.size
        if x.final[s]:
            x.latency_s[events] = time_s + self._hop_s - x.entry_s[events]
            x.ended[:] += events.size, int((x.latency_s[events] > self._slo_s).sum())
