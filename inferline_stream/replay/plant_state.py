"""What the pools of a pipeline under control share: its tables, which are replaced when they grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferline_stream.replay.tables import Tables


@dataclass(slots=True)
class PlantState:
    """What has happened.

    Args:
        tables: of all stages.
        hop_s: see `estimator.workload.Workload`.
        slo_s: by which queues are ordered, see `estimator.simulate`.
    """

    tables: Tables
    hop_s: float
    slo_s: float

    def grow_rings(self) -> None:
        """Rings of twice the room, each from its beginning."""
        x = self.tables
        rings = {}
        for name in ("ring_time", "ring_start", "ring_size", "ring_kind"):
            ring = getattr(x, name)
            grown = np.zeros((ring.shape[0], 2 * ring.shape[1]), ring.dtype)
            for s, head in enumerate(x.marks[:, 0]):
                grown[s, : ring.shape[1]] = np.roll(ring[s], -int(head))
            rings[name] = grown
        x.marks[:, 0] = 0
        self.tables = x._replace(**rings)
