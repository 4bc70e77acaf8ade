"""What makes deciding faster or better and takes seconds to get: made beside the loop, taken up when it is there.

Replicas that start and the first events of a run need the machine more: it waits for a while, and for a need.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, TrafficEnvelope, compiled_kernel
from inferline_stream.calculus.envelope_state import EnvelopeKernel
from inferline_stream.controlplane.decide.subprocess_call import call_in_subprocess
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.staffing_table import Staffing, staffing

logger = logging.getLogger(__name__)

PATIENCE_S = 15.0
"""Nothing is made before: on a small machine it would take from the first replicas' start and the first events."""

FAST = 1000.0
"""Arrivals per second from which the compiled kernel is worth its import: below, NumPy takes a thousandth of a core."""


@dataclass(slots=True)
class BackgroundTables:
    """The compiled kernel of the traffic envelope, and the table of replicas for multiples of the planned traffic.

    Args:
        view: counts arrivals.
        take: given the table that was made for the plan in force.
        sample: traffic that the plan in force was made for; None makes no table.
    """

    view: PipelineView
    take: Callable[[Staffing], None]
    sample: Trace | None
    compiled: bool = False
    staffed: bool = False
    """Whether the policy decides by a table made for the plan in force."""
    staffed_s: float | None = None
    """Since when it decides by a table at all, in seconds since the epoch."""
    _began_s: float | None = None

    def planned(self, sample: Trace | None) -> None:
        """Another plan is in force, made for this traffic."""
        self.sample, self.staffed = sample, False

    async def step(self) -> None:
        """Make what is missing and needed by now."""
        now_s = asyncio.get_running_loop().time()
        if self._began_s is None:
            self._began_s = now_s
        if now_s - self._began_s < PATIENCE_S:
            return
        if not self.compiled and self.view.traffic.arrival_rate(now_s) >= FAST:
            # Fills the cache on disk: compiling here would hold the interpreter for seconds.
            await call_in_subprocess(_compile)
            self.view.use(await asyncio.to_thread(_kernel))
            self.compiled = True
            logger.info("arrivals are counted by the compiled kernel")
        if self.sample is not None and not self.staffed:
            await self._staff(self.sample)

    async def _staff(self, sample: Trace) -> None:
        plan = self.view.plan
        table = await call_in_subprocess(
            staffing,
            self.view.shape,
            plan,
            self.view.measured,
            sample,
            {name: kind.price_per_hour for name, kind in self.view.catalogue.items()},
            objective=self.view.context.pipeline.objective,
        )
        if self.view.plan is plan:  # else another one is needed
            self.take(table)
            self.staffed = True
            self.staffed_s = self.staffed_s or time.time()
            logger.info("replicas are decided on by the simulated table of the plan")


def _compile() -> None:
    _kernel()


def _kernel() -> EnvelopeKernel:
    """The compiled kernel, both loops compiled or loaded."""
    kernel = compiled_kernel()
    envelope = TrafficEnvelope((1.0,), LONGEST_WINDOW_S, kernel)
    envelope.add(np.arange(8.0))
    envelope.counts(8.0)
    return kernel
