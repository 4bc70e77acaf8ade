"""What stages know of each other in order of the deadline: stays as reports carry them, R as grants do.

At each multiple of `NEWS_EVERY_S` every stage gets the R that follows from what stages had taken a period before. What
is known at one of them therefore says R up to the second one after it: so far the queues can be served at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from inferline_stream.estimator.kernels import Floats, FloatTable
from inferline_stream.pipeline.deadline_order import NEWS_EVERY_S, NEWS_LASTS_S, Stay, rest_s
from inferline_stream.pipeline.fallback import UsualRest
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape


class News:
    """The stays of all stages, and R.

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
        begin_s, end_s = (float(entry_s.min()), float(entry_s.max())) if entry_s.size else (0.0, 0.0)
        self._end_s = end_s + slo_s
        self._shape, self._measured, self._slo_s = shape, measured, slo_s
        self._alone_s: Mapping[str, float] = {
            name: min(measured.profiles[name, a.hardware].service_time_s(1) for a in allocations[name])
            for name in shape.stages
        }
        self.stays = np.tile([0.0, 0.0, -math.inf], (len(shape.stages), 1))
        """By stage, as in `Stay`: as of the last departure."""
        self.awaited = [bool(shape.parents(s)) for s in range(len(shape.stages))]
        """By stage, whether one before it has to know its stay."""
        self._reported_s = (math.floor(begin_s / NEWS_EVERY_S) + 1) * NEWS_EVERY_S
        fallbacks = [
            measured.profiles[name, a.hardware].of_fallback() for name in shape.stages for a in allocations[name]
        ]
        self._usual = UsualRest() if any(profile is not None for profile in fallbacks) else None
        self._rests = [self._rests_of(self.stays, begin_s)]
        self._changes_s: list[float] = []
        if self._reported_s <= self._end_s:
            self._rests.append(self._rests[0])
            self._changes_s.append(self._reported_s)

    @property
    def known_s(self) -> float:
        """Until when R is known."""
        next_s = self._reported_s + NEWS_EVERY_S
        return next_s if next_s <= self._end_s else math.inf

    def silent_until(self, until_s: float) -> bool:
        """Go on to a later instant at once, where no stage has had a departure for so long that R stays what it is.

        Returns:
            Whether it did. If not, nothing has changed.
        """
        if self._reported_s - self.stays[:, 2].max() <= NEWS_LASTS_S:
            return False
        while True:
            next_s = min(self.known_s, until_s)
            reports_s = self.reports_s(next_s).tolist()
            self._forget(next_s)
            for report_s in reports_s:
                self._know(report_s, self._rests[-1])
            if next_s == until_s:
                return True

    def rests(self, until_s: float) -> tuple[Floats, FloatTable]:
        """When R changes before then, ascending; and, by stage, R and R' - R before, between and after."""
        changes_s = [change_s for change_s in self._changes_s if change_s < until_s]
        return np.array(changes_s), np.array(self._rests[: len(changes_s) + 1]).transpose(1, 0, 2)

    def reports_s(self, until_s: float) -> Floats:
        """When stays are reported up to then."""
        found: list[float] = []
        while (next_s := self._reported_s + NEWS_EVERY_S * len(found)) <= until_s and (
            next_s + NEWS_EVERY_S <= self._end_s
        ):
            found.append(next_s)
        return np.array(found)

    def served(self, until_s: float, reports_s: Floats, reported: FloatTable) -> None:
        """All queues are served up to then.

        Args:
            until_s: not beyond `known_s`.
            reports_s: see `reports_s`.
            reported: (stages, reports, 3), `stays` before each of them; of those that are awaited.
        """
        self._forget(until_s)
        for k, report_s in enumerate(reports_s.tolist()):
            self._know(report_s, self._rests_of(reported[:, k], report_s + NEWS_EVERY_S))

    def _forget(self, until_s: float) -> None:
        """What was before R changed is over."""
        while self._changes_s and self._changes_s[0] < until_s:
            self._changes_s.pop(0)
            self._rests.pop(0)

    def _know(self, report_s: float, rests_s: list[tuple[float, float]]) -> None:
        """The R that follows from a report, a period after it."""
        self._reported_s = report_s + NEWS_EVERY_S
        self._changes_s.append(self._reported_s)
        self._rests.append(rests_s)

    def _rests_of(self, stays: FloatTable, now_s: float) -> list[tuple[float, float]]:
        names, measured = self._shape.stages, self._measured
        stay_s = {name: Stay(*stay).at(now_s) for name, stay in zip(names, stays.tolist(), strict=True)}
        found = rest_s(
            self._shape, measured.paths, stay_s, self._alone_s, hop_s=measured.hop_overhead_s, slo_s=self._slo_s
        )
        if self._usual is None:
            return [(found[name], 0.0) for name in names]
        if any(stay is not None for stay in stay_s.values()):
            self._usual = self._usual.then(found, now_s)
        longer_s = self._usual.longer_s(found)
        return [(found[name], longer_s[name]) for name in names]
