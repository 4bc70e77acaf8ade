"""The rehearsal that a plan has before its first traffic, for `run` and `plan --rehearse`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from inferline_stream.cli.plan_steps import Declared, PlanInputs, cores_for_replicas, short_of_cores
from inferline_stream.connectors.sources.replay_process import replayed, together
from inferline_stream.controlplane.observe.live_profile import slowdowns
from inferline_stream.controlplane.run_inputs import FeedTo, Run
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.profiler.machine import this_machine
from inferline_stream.profiler.profile_store import ProfileStore
from inferline_stream.runs.broker_process import embedded_broker_process
from inferline_stream.runs.lifecycle import open_run
from inferline_stream.settings import from_environment
from inferline_stream.tuner.decision import Decision
from inferline_stream.tuner.observation import Observation
from inferline_stream.tuner.tuner_state import TunerState

REHEARSAL_S = 10.0
MOST_PLANS = 2
"""So often a plan is made again."""

LONGER = 1.1
"""Batches that take more than this many times their profile call for another plan: less is noise."""

_FEWEST_BATCHES = 10


async def rehearsed(
    inputs: PlanInputs,
    measured: PipelineProfile,
    plan: Plan,
    again: Callable[[PipelineProfile], Plan],
    *,
    note: Callable[[str], object],
    speed_up: float = 1.0,
    begins: Callable[[], object] = lambda: None,
) -> tuple[PipelineProfile, Plan]:
    """Have ten seconds of the sample go through the plan's replicas; correct profiles and plan where those are slower.

    Nothing is done where every profile that the plan rests on has passed before, for emulated hardware, for a pipeline
    without a sample in files, and where the plan takes more cores than there are.

    Args:
        inputs: what the plan was made from; the sample is rehearsed whatever the traces.
        measured: profiles.
        plan: to rehearse.
        again: makes another plan from corrected profiles.
        note: shown one line for each rehearsal.
        speed_up: seconds of the sample per second.
        begins: called before each rehearsal.

    Returns:
        Profiles and plan as they are then.
    """
    what, inputs = inputs.what, replace(inputs, traces=())
    store = ProfileStore(what.pipeline, what.file.parent, what.events, this_machine())
    kinds = catalogue(what.pipeline.hardware)
    for plans_left in reversed(range(MOST_PLANS + 1)):
        used = {(stage, a.hardware) for stage, held in plan.allocations.items() for a in held}
        real = {key for key in used if not kinds[key[1]].emulated}
        if (
            not any(what.pipeline.samples.values())
            or real <= store.load().rehearsed
            or short_of_cores(plan, inputs, measured)
        ):
            break
        begins()
        async with embedded_broker_process() as servers:
            with tempfile.TemporaryDirectory(prefix="inferline-rehearsal-") as folder:
                run = Run(
                    pipeline=what.pipeline,
                    topology=what.file,
                    bootstrap_servers=servers,
                    plan=plan,
                    measured=measured,
                    log_folder=Path(folder),
                    feed=_feed(what, speed_up),
                    replication=1,
                    policy=hold,
                    replans=False,
                    settings=from_environment(),
                    cores=cores_for_replicas(inputs, measured),
                )
                found = await rehearse(run)
        slower = found.slower
        if found.crowded:
            note(f"rehearsal: it says nothing, {found.crowded}")
            break
        if not slower:
            note(f"rehearsal: no stage was slower than its profile in {REHEARSAL_S:g} s of the sample")
            for key in real:
                store.correct(measured.profiles[key], rehearsed=True)
            break
        words = ", ".join(f"{stage} on {kind} takes {factor:.2f} ×" for (stage, kind), factor in slower.items())
        note(f"rehearsal: {words} its profile" + (": planned again" if plans_left else "; the plan stays"))
        if not plans_left:
            break
        measured = slowed(measured, slower)
        for key in slower:
            store.correct(measured.profiles[key])
        plan = await asyncio.to_thread(again, measured)
    return measured, plan


def _feed(what: Declared, speed_up: float) -> FeedTo:
    """The stretch of the sample in which most events come."""
    folder, first_s = what.file.parent, busiest_s(what)
    return together({
        topic: replayed(
            folder / sample.arrivals,
            folder / sample.events,
            speed_up=speed_up,
            start_s=first_s * speed_up,
            duration_s=REHEARSAL_S * speed_up,
        )
        for topic, sample in what.pipeline.samples.items()
        if sample is not None
    })  # fmt: skip


def busiest_s(what: Declared) -> float:
    """When in the sample's trace the `REHEARSAL_S` seconds begin in which most events come."""
    times_s = what.trace.arrivals_s
    ends = times_s.searchsorted(times_s + REHEARSAL_S, side="right")
    first = int((ends - range(len(times_s))).argmax())
    return float(times_s[first])


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
    profiles = {key: own.scaled(slower[key]) if key in slower else own for key, own in measured.profiles.items()}
    return replace(measured, profiles=profiles)


def hold(state: TunerState, seen: Observation) -> tuple[TunerState, Decision | None]:
    """A policy that decides nothing."""
    return state, None
