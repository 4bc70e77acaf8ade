"""The pipeline under control: the Estimator's queues with replicas that come and go.

The Estimator's own kernels serve the queues up to a horizon that moves on; between two calls replicas are added and
removed. What stays fixed therefore agrees with the Estimator bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.replay.keyed_pool import KeyedPool
from inferline_stream.replay.plant_kernel import advance
from inferline_stream.replay.plant_state import PlantState
from inferline_stream.replay.shared_pool import SharedPool
from inferline_stream.replay.tables import Seen, StageSetup, empty_tables

FIRST_ROOM = 255
"""Replicas of a queue that there is room for at first."""


class Plant:
    """Stages with their queues. Time only moves forward, by `advance`; everything else happens at the present.

    Args:
        workload: events and their paths.
        measured: service times of every kind.
        stages: in the shape's order.
        slo_s: by which queues are ordered, see `estimator.simulate`.
    """

    def __init__(
        self,
        workload: Workload,
        measured: PipelineProfile,
        stages: Sequence[StageSetup],
        *,
        slo_s: float,
    ) -> None:
        serving = [stage.station(measured, slo_s) for stage in stages]
        tables = empty_tables(workload, serving, [stage.slots for stage in stages], most_replicas=FIRST_ROOM)
        self.now_s = float("-inf")
        self._steady = [not station.varies for station in serving]  # and at the profile's speed
        self._plant_state = PlantState(tables, workload.hop_s, slo_s)
        self._nominal = tuple(array.copy() for array in (tables.table, tables.fixed_s, tables.per_unit_s))
        self._queues = queues = [range(*rows) for rows in tables.queues.tolist()]
        keyed = {
            s: [KeyedPool(self._plant_state, queue, s, workload, serving[s]) for queue in queues[s]]
            for s in range(len(stages))
            if workload.lanes(s).size or serving[s].levels > 1
        }
        self._pools: list[Sequence[KeyedPool | SharedPool]] = [
            keyed.get(s) or [SharedPool(self._plant_state, queue) for queue in queues[s]] for s in range(len(stages))
        ]
        self._shared = [pool for pools in self._pools for pool in pools if isinstance(pool, SharedPool)]
        # The compiled step takes stage after stage up to one that it only fills the queues of, and goes on from there.
        ends = [*sorted(keyed), len(stages)]
        self._stretches = [((first, end), keyed.get(end, [])) for first, end in zip([-1, *ends], ends, strict=False)]
        self._advance = advance()

    def advance(self, until_s: float) -> None:
        """Let everything happen that happens before ``until_s``, and replicas leave that are done then."""
        while (left_s := min((pool.next_left_s for pool in self._shared), default=math.inf)) < until_s:
            self._advance_to(left_s)
        self._advance_to(until_s)

    def _advance_to(self, until_s: float) -> None:
        """As `advance`, with nobody leaving before ``until_s``."""
        plant_state = self._plant_state
        for stretch, keyed in self._stretches:
            self._advance(plant_state.tables, stretch, until_s, plant_state.hop_s, plant_state.slo_s)
            for each in keyed:
                each.advance(until_s)
        for pool in self._shared:
            pool.remove_left(until_s)
        self.now_s = until_s

    def add(self, s: int, slot: int, kind: int) -> None:
        """A replica that is ready now."""
        self._pools[s][slot].add(kind, self.now_s)

    def leave(self, s: int, slot: int, kind: int) -> float:
        """A replica of this kind takes no further batch. Returns when it is done, and gone."""
        return self._pools[s][slot].leave(kind, self.now_s)

    @property
    def latency_s(self) -> Floats:
        """By event; NaN of those that have not reached the sink."""
        return self._plant_state.tables.latency_s

    def seen(self, s: int) -> Seen:
        """What can be counted of a stage."""
        x = self._plant_state.tables
        first, end = self._queues[s].start, self._queues[s].stop  # what left them may not be put in order yet
        completed = int(x.sent_count[s]) if end - first == 1 else int(x.sent_count[first:end].sum())
        arrived, busy_s = int(x.arrived_count[s]), float(x.totals[s, 0])
        oldest_s = self._oldest_s(s) if arrived > completed else None
        return Seen(arrived, completed, oldest_s, busy_s, busy_s if self._steady[s] else self._nominal_s(s))

    def slow(self, s: int, factor: float) -> None:
        """Service times of a stage are this many times the profile's from now on."""
        self._steady[s] = False
        tables = self._plant_state.tables
        for array, nominal in zip((tables.table, tables.fixed_s, tables.per_unit_s), self._nominal, strict=True):
            array[s] = nominal[s] * factor

    def _oldest_s(self, s: int) -> float:
        pools = self._pools[s]
        if len(pools) == 1:
            return pools[0].oldest_s()
        x = self._plant_state.tables
        queues = zip(self._queues[s], pools, strict=True)
        return min(pool.oldest_s() for q, pool in queues if x.arrived_count[q] > x.sent_count[q])

    def _nominal_s(self, s: int) -> float:
        batches = self._plant_state.tables.batches[s]
        return float(batches @ np.nan_to_num(self._nominal[0][s, : batches.size]))
