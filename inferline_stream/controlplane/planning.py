"""The Planner's clock: looks at the plan again every few minutes, and at once when it no longer fits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from inferline_stream.controlplane.aside import aside
from inferline_stream.controlplane.measuring import Mark, corrected, mark, measured_since
from inferline_stream.controlplane.overrides import Overrides
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.replanning import Inputs, Proposal, replan
from inferline_stream.controlplane.running import Running
from inferline_stream.dataplane.control import TopicFollower
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often to look whether there is reason to plan."""

_AGAIN_S = 10.0
"""An SLO that people want and that could not be planned for yet is tried again after so long."""

_LONG_S = 5.0
"""Windows of the envelope from this length on tell of a level, shorter ones of bursts."""


@dataclass(slots=True)
class Planning:
    """Asks for plans, one at a time, in a process of their own.

    Args:
        running: names and settings.
        picture: the plan in force and what was measured.
        overrides: what people want now.
        max_batch_sizes: that stages declare.
        take: given each proposal and the profile that it was made with.
    """

    running: Running
    picture: Picture
    overrides: Callable[[], Overrides]
    max_batch_sizes: Mapping[str, int]
    take: Callable[[Proposal, PipelineProfile], Awaitable[None]]
    _mark: Mark = field(default_factory=dict)
    _due_s: float | None = None
    _beyond_since_s: float | None = None
    _wanted: tuple[object, ...] = ()

    async def step(self) -> None:
        """Plan, and hand over what it came to, if there is reason to plan."""
        now_s = asyncio.get_running_loop().time()
        if self._due_s is not None and not self._due(now_s):
            return
        first, self._due_s = self._due_s is None, now_s + self.running.settings.planner_every_s
        self._beyond_since_s, self._wanted = None, self._set_by_people()
        if first and self._fits_people():
            return
        measured = corrected(
            self.picture.measured, self.picture.shape, measured_since(self.picture.reports, self._mark)
        )
        proposal = await aside(replan, await self._inputs(measured))
        logger.info("planned again: %s (%s)", proposal.reason or "the plan stays", proposal.detail)
        if proposal.plan is not None:
            self._mark = mark(self.picture.reports)
        elif proposal.reason is None and not self._fits_people():
            self._due_s = now_s + _AGAIN_S
        await self.take(proposal, measured)

    def _fits_people(self) -> bool:
        """Whether the plan in force was made for the SLO wanted now."""
        return self._slo_s() == self.picture.plan.slo_s

    def _slo_s(self) -> float:
        declared_s = self.picture.declared_slo_s or self.picture.plan.slo_s
        return self.overrides().slo_s(time.time()) or declared_s

    def _due(self, now_s: float) -> bool:
        assert self._due_s is not None
        if self._set_by_people() != self._wanted:
            return True
        if not self._beyond(now_s):
            self._beyond_since_s = None
        elif self._beyond_since_s is None:
            self._beyond_since_s = now_s
        elif now_s - self._beyond_since_s >= self.running.settings.planner_beyond_s:
            return True
        return now_s >= self._due_s

    def _beyond(self, now_s: float) -> bool:
        """Whether any of the envelope's longer windows holds more than in the trace that was planned for."""
        planned = dict(self.picture.plan.envelope)
        live = zip(self.picture.windows_s, self.picture.traffic.envelope(now_s), strict=True)
        return any(count > planned.get(window_s, 0) for window_s, count in live if window_s >= _LONG_S)

    def _set_by_people(self) -> tuple[object, ...]:
        """SLO, prices and stock as people set them: a change calls for another look."""
        now_s, overrides = time.time(), self.overrides()
        return overrides.slo_s(now_s), overrides.prices(now_s), overrides.stock(now_s)

    async def _inputs(self, measured: PipelineProfile) -> Inputs:
        picture, settings, now_s = self.picture, self.running.settings, time.time()
        since_s = now_s - settings.planner_recent_s
        async with TopicFollower(self.running.bootstrap_servers, self.running.names.arrivals, since_s) as follower:
            records = await follower.read_to(await follower.end())
        return Inputs(
            shape=picture.shape,
            measured=measured,
            plan=picture.plan,
            slo_s=self._slo_s(),
            objective=picture.objective,
            catalogue=self._catalogue(now_s),
            partitions=dict(picture.partitions),
            max_batch_sizes=self.max_batch_sizes,
            ticks=[record.value for record in records if record.value],
            saves_share=settings.planner_saves_share,
            effort_s=settings.planner_effort_s,
        )

    def _catalogue(self, now_s: float) -> dict[str, Hardware]:
        stock = self.overrides().stock(now_s)
        return {name: replace(kind, stock=stock.get(name, kind.stock)) for name, kind in self.picture.catalogue.items()}
