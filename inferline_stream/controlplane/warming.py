"""What makes deciding faster or better and takes seconds to get: made beside the loop, taken up when it is there."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import numpy as np

from inferline_stream.calculus.envelope import LONGEST_WINDOW_S, EnvelopeKernel, TrafficEnvelope, compiled_kernel
from inferline_stream.controlplane.aside import aside
from inferline_stream.controlplane.picture import Picture
from inferline_stream.controlplane.tuning import Tuning
from inferline_stream.pipeline.trace import Trace
from inferline_stream.tuner.staffing import staffing

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Warming:
    """The compiled kernel of the traffic envelope, and the table of replicas for multiples of the planned traffic.

    Args:
        picture: counts arrivals.
        tuning: decides by the table.
        sample: traffic that the plan in force was made for; None makes no table.
    """

    picture: Picture
    tuning: Tuning
    sample: Trace | None
    compiled: bool = False
    staffed: bool = False
    """Whether the policy decides by a table made for the plan in force."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def planned(self, sample: Trace | None) -> None:
        """Another plan is in force, made for this traffic."""
        self.sample, self.staffed = sample, False
        self._wake.set()

    async def step(self) -> None:
        """Make what is missing, then wait for another plan."""
        if not self.compiled:
            await aside(_compile)  # fills the cache on disk: compiling here would hold the interpreter for seconds
            self.picture.use(await asyncio.to_thread(_kernel))
            self.compiled = True
            logger.info("arrivals are counted by the compiled kernel")
        self._wake.clear()
        if self.sample is not None and not self.staffed:
            plan, prices = (
                self.picture.plan,
                {name: kind.price_per_hour for name, kind in self.picture.catalogue.items()},
            )
            table = await aside(
                staffing,
                self.picture.shape,
                plan,
                self.picture.measured,
                self.sample,
                prices,
                objective=self.picture.objective,
            )
            if self.picture.plan is plan:  # else another table is on its way
                self.tuning.staffed(table)
                self.staffed = True
                logger.info("replicas are decided on by the simulated table of the plan")
                await self._wake.wait()
        else:
            await self._wake.wait()


def _compile() -> None:
    _kernel()


def _kernel() -> EnvelopeKernel:
    """The compiled kernel, both loops compiled or loaded."""
    kernel = compiled_kernel()
    envelope = TrafficEnvelope((1.0,), LONGEST_WINDOW_S, kernel)
    envelope.add(np.arange(8.0))
    envelope.counts(8.0)
    return kernel
