"""A plan before its first traffic: some seconds of the sample go through its replicas, beside all that a run has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from inferline_stream.controlplane.observe.live_profile import scaled, slowdowns
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.tuner.decision import Decision
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.tuner_state import TunerState

LONGER = 1.1
"""Batches that take more than this many times their profile call for another plan: less is noise."""

_FEWEST_BATCHES = 10


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a rehearsal came to.

    Args:
        factors: by stage and hardware kind, how many times its profile a batch took; without those that ran too little.
        crowded: why it says nothing, in words: others took the cores meanwhile. Empty if it does.
    """

    factors: Mapping[tuple[str, str], float]
    crowded: str = ""

    @property
    def slower(self) -> dict[tuple[str, str], float]:
        """Those that are slower than profiled."""
        return {} if self.crowded else {key: factor for key, factor in self.factors.items() if factor > LONGER}


async def rehearse(run: Run) -> Rehearsed:
    """Run the feed through the plan's replicas, none of which is added or taken away, and compare with the profiles.

    Args:
        run: with topics of its own on a broker that keeps nothing.

    Raises:
        StageFailed: a stage cannot start.
        Unreachable: the broker does not answer.
    """
    crowded = ""
    async with open_run(run) as under_way:
        await under_way.ready()
        view = under_way.controller.view
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        try:
            while not feeding.done():
                crowded = view.core_use.crowded or crowded
                await asyncio.wait([feeding], timeout=0.5)
            feeding.result()
        finally:  # on Ctrl-C the feed ends before the broker that it writes to
            feeding.cancel()
            await asyncio.wait([feeding])
        seen = view.reports.totals()
        await under_way.drain()
    return Rehearsed(slowdowns(run.measured, seen, _FEWEST_BATCHES), crowded)


def slowed(measured: PipelineProfile, slower: Mapping[tuple[str, str], float]) -> PipelineProfile:
    """Profiles in which some batches take so many times longer, whatever their size."""
    profiles = {key: scaled(own, slower[key]) if key in slower else own for key, own in measured.profiles.items()}
    return replace(measured, profiles=profiles)


def hold(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
    """A policy that decides nothing."""
    return state, None
