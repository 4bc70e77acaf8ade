"""What stages know of each other in order of the deadline: stays as reports carry them, R as grants do.

At each multiple of `NEWS_EVERY_S` every stage gets the R that follows from what stages had taken a period before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from inferline_stream.estimator.kernels import Floats, Tokens
from inferline_stream.pipeline.deadline_order import NEWS_EVERY_S, Stay, rest_s
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape


class News:
    """The stays of all stages.

    Args:
        shape: the DAG.
        allocations: the plan's; their kinds count.
        measured: profiles, paths and the time of a hop.
        slo_s: the SLO.
        entry_s: when events enter. Once the last of them is late R stays what it is.
    """

    def __init__(
        self, shape: Shape, allocations: Allocations, measured: PipelineProfile, slo_s: float, entry_s: Floats
    ) -> None:
        begin_s, end_s = (float(entry_s[0]), float(entry_s[-1])) if entry_s.size else (0.0, 0.0)
        self.end_s = end_s + slo_s
        self.next_s = (math.floor(begin_s / NEWS_EVERY_S) + 1) * NEWS_EVERY_S
        """When R changes next."""
        self._shape, self._measured, self._slo_s = shape, measured, slo_s
        self._alone_s: Mapping[str, float] = {
            name: min(measured.profiles[name, a.hardware].service_time_s(1) for a in allocations[name])
            for name in shape.stages
        }
        self._stays = [Stay()] * len(shape.stages)
        self._reported = list(self._stays)

    def add(self, s: int, gone: Tokens, arrived_s: Floats) -> None:
        """Hopeful events that a stage was done with, in order of time, and when each had come to it."""
        if gone.times.size:
            last_s = float(gone.times[-1])
            weights = np.exp((gone.times - last_s) / NEWS_EVERY_S)
            lately = Stay(float(weights @ (gone.times - arrived_s)), float(weights.sum()), last_s)
            self._stays[s] = self._stays[s].merged(lately)

    def rests_s(self, now_s: float) -> Sequence[float]:
        """R of every stage from now on, which is `next_s`."""
        names = self._shape.stages
        stay_s = {name: stay.at(now_s) for name, stay in zip(names, self._reported, strict=True)}
        self._reported, self.next_s = list(self._stays), now_s + NEWS_EVERY_S
        measured = self._measured
        found = rest_s(
            self._shape, measured.paths, stay_s, self._alone_s, hop_s=measured.hop_overhead_s, slo_s=self._slo_s
        )
        return [found[name] for name in names]
