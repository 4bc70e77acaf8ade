"""The Planner's clock: looks at the plan again every few minutes, and at once when it no longer fits."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from inferline_stream.controlplane.decide.replan import ReplanInputs, ReplanResult, replan
from inferline_stream.controlplane.decide.subprocess_call import call_in_subprocess
from inferline_stream.controlplane.observe.live_profile import corrected
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.errors import Unreachable
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.tuner.forecast import fallen_to
from inferline_stream.tuner.traffic import PEAK_SPAN_S

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""How often to look whether there is reason to plan."""

_AGAIN_S = 10.0
"""An SLO that people want and that could not be planned for yet is tried again after so long; so is a plan for which
Kafka did not answer."""

_LONG_S = 5.0
"""Windows of the envelope from this length on show a level, shorter ones bursts."""


@dataclass(slots=True)
class ReplanOccasions:
    """When to plan. Times are on one clock.

    Args:
        every_s: without any other reason.
        beyond_s: how long traffic must have been beyond the plan; twice as long each time that it still is.
    """

    every_s: float
    beyond_s: float
    _due_s: float | None = None
    _beyond_since_s: float | None = None
    _looks: int = 0
    _wanted: object = None

    def due(self, now_s: float, *, beyond: bool, wanted: object) -> bool:
        """Whether to plan now. If so, the time until the next occasion begins.

        Args:
            now_s: now.
            beyond: whether traffic is beyond the plan.
            wanted: what people want of a plan; any change is an occasion.
        """
        if self._due_s is None:
            self._due_s, self._wanted = now_s + self.every_s, wanted
        if not beyond:
            self._beyond_since_s, self._looks = None, 0
        elif self._beyond_since_s is None:
            self._beyond_since_s = now_s
        since_s = self._beyond_since_s
        long_beyond = since_s is not None and now_s - since_s >= self.beyond_s * 2**self._looks
        if not (long_beyond or wanted != self._wanted or now_s >= self._due_s):
            return False
        if long_beyond:
            self._beyond_since_s, self._looks = now_s, self._looks + 1
        self._due_s, self._wanted = now_s + self.every_s, wanted
        return True

    def again(self, at_s: float) -> None:
        """Plan again at that time, if not before."""
        self._due_s = at_s


@dataclass(slots=True)
class ReplanClock:
    """Asks for plans, one at a time, in a process of their own.

    Args:
        view: the plan in force and what was measured.
        overrides: what people want now.
        take: given each proposal and the profile that it was made with.
        cores: most that all replicas together may have.
    """

    view: PipelineView
    overrides: Callable[[], Overrides]
    take: Callable[[ReplanResult, PipelineProfile], Awaitable[None]]
    cores: float = math.inf
    _occasions: ReplanOccasions = field(init=False)
    _counts: Mapping[str, StageCounts] = field(default_factory=dict)
    """Of each stage when the plan in force was made: what came since is what it is judged by."""

    def __post_init__(self) -> None:
        settings = self.view.context.settings
        self._occasions = ReplanOccasions(settings.planner_every_s, settings.planner_beyond_s)
        if self._slo_s() != self.view.plan.slo_s:  # set by people before this controller led
            self._occasions.again(0.0)

    async def step(self) -> None:
        """Plan, and hand over what it came to, if there is reason to plan."""
        now_s = asyncio.get_running_loop().time()
        if self._held():
            return
        if not self._occasions.due(now_s, beyond=self._beyond(now_s), wanted=self._set_by_people()):
            return
        measured = corrected(self.view.measured, self.view.shape, self.view.reports.totals(self._counts))
        try:
            inputs = await self._inputs(measured)
        except Unreachable:
            self._occasions.again(now_s + _AGAIN_S)
            raise
        proposal = await call_in_subprocess(replan, inputs)
        if self._held():  # since it was asked for, and what people want was noted as planned for
            self._occasions.again(0.0)
            return
        logger.info("planned again: %s (%s)", proposal.reason or "the plan stays", proposal.detail)
        if proposal.plan is not None:
            self._counts = self.view.reports.totals()
        elif proposal.reason is None and self._slo_s() != self.view.plan.slo_s:
            self._occasions.again(now_s + _AGAIN_S)  # too little has been recorded yet
        await self.take(proposal, measured)

    def _held(self) -> bool:
        """Whether no plan is taken up now: people hold decisions, or the machine lacks cores, and that is measured."""
        return bool(self.view.core_use.crowded) or self.overrides().paused(time.time())

    def _slo_s(self) -> float:
        return self.overrides().slo_s(time.time()) or self.view.context.pipeline.slo_s

    def _beyond(self, now_s: float) -> bool:
        traffic = self.view.traffic
        return is_beyond(self.view.plan, self.view.windows_s, traffic.envelope(now_s), traffic.recent(now_s))

    def _set_by_people(self) -> tuple[object, ...]:
        """SLO, prices and stock as people set them."""
        now_s, overrides = time.time(), self.overrides()
        return overrides.slo_s(now_s), overrides.prices(now_s), overrides.stock(now_s)

    async def _inputs(self, measured: PipelineProfile) -> ReplanInputs:
        view, settings, now_s = self.view, self.view.context.settings, time.time()
        since_s = now_s - settings.planner_recent_s
        async with self.view.context.kafka.follow(self.view.context.names.arrivals, since_s) as follower:
            records = await follower.read_to(await follower.end())
        return ReplanInputs(
            shape=view.shape,
            measured=measured,
            plan=view.plan,
            slo_s=self._slo_s(),
            objective=view.context.pipeline.objective,
            catalogue=self._catalogue(now_s),
            source_partitions=view.source_partitions,
            max_batch_sizes={stage.name: stage.max_batch_size for stage in self.view.context.pipeline.stages},
            ticks=records,
            saves_share=settings.planner_saves_share,
            effort_s=settings.planner_effort_s,
            cores=self.cores,
        )

    def _catalogue(self, now_s: float) -> dict[str, Hardware]:
        stock = self.overrides().stock(now_s)
        return {name: replace(kind, stock=stock.get(name, kind.stock)) for name, kind in self.view.catalogue.items()}


def is_beyond(plan: Plan, windows_s: Sequence[float], counts: Sequence[int], recent: Sequence[int]) -> bool:
    """Return whether traffic is beyond the plan: by any window that shows a level, unless it has surely fallen since.

    The envelope remembers a leap for as long as its longest windows, which would make a plan of what has passed.

    Args:
        plan: in force.
        windows_s: of the envelope; those above `PEAK_SPAN_S` show only what is over.
        counts: most arrivals in each.
        recent: arrivals in each of the last seconds, oldest first.
    """
    live = zip(windows_s, counts, strict=True)
    beyond = any(count > most_planned(plan, w) for w, count in live if _LONG_S <= w <= PEAK_SPAN_S)
    return beyond and fallen_to(recent) == 1


def most_planned(plan: Plan, window_s: float) -> float:
    """Arrivals in a window of the plan's envelope that are within what the plan was made for.

    A sample shorter than the window does not fill it: its mean rate does. Three standard deviations of a Poisson count
    more are still the same traffic.
    """
    planned = max(dict(plan.envelope).get(window_s, 0), plan.arrival_rate * window_s)
    return planned + 3 * math.sqrt(planned)
