"""A stage in process, one behind an OIP server and one that waits, planned and run on Apache Kafka.

Once with the plan held, for its P99, and once with the policy, under traffic that leaps and falls.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace, levels_trace
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.policy import POLICIES
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import stamped
from tests.benchmarks._machine import ATTEMPTS, Elsewhere, quietest
from tests.benchmarks._profiled import profiled
from tests.benchmarks._sources import Fates
from tests.benchmarks.fidelity import Found, compared
from tests.support.emulated_runs import provisioned

TOPOLOGY = Path(__file__).parents[1] / "scenarios/served/topology.py"
RATE = 40.0
LEVELS = ((RATE, 10.0), (2.5 * RATE, 20.0), (0.3 * RATE, 75.0))
"""Events per second, and for how many seconds: as planned, more than the plan and its insurance carry, few."""


class Beside(NamedTuple):
    """What was measured, and the share of the time in which something waited for a core."""

    found: Found
    waited: float

    @property
    def elsewhere_cores(self) -> float:
        """Cores that others took meanwhile."""
        return self.found.elsewhere_cores


async def measure(folder: Path, quick: bool) -> Figures:
    with find_apache_kafka() as kafka:
        return await _measure(kafka.bootstrap_servers, folder, quick)


async def _measure(bootstrap_servers: str, folder: Path, quick: bool) -> Figures:
    served = await profiled(bootstrap_servers, TOPOLOGY, folder, sample_s=0.5, stage_s=0.5 if quick else 2.0)
    rng = np.random.default_rng(23)
    sample = gamma_trace(RATE, 1.0, 120.0, rng)
    limits = {stage.name: stage.max_batch_size for stage in served.pipeline.stages}
    plan = provisioned(served.pipeline, served.measured, sample, max_batch_sizes=limits)

    def run(name: str, trace: Trace) -> Run:
        (folder / name).mkdir()
        return served.run(plan, trace, folder / name, sample=sample)

    # A broker's first minute is spent on compiling itself.
    await compared(run("warm-up", gamma_trace(RATE, 1.0, 4.0 if quick else 10.0, rng)), Fates())

    async def measured_beside(attempt: int) -> Beside:
        held = run(f"held{attempt}", gamma_trace(RATE, 1.0, 15.0 if quick else 60.0, rng))
        elsewhere = Elsewhere()
        return Beside(await compared(held, Fates()), elsewhere.waited())

    found, waited = await quietest(measured_beside, 1 if quick else ATTEMPTS)
    estimated_s, measured_s = found.p99_s
    figures: Figures = {
        "pipeline_plan": _words(plan),
        "pipeline_p99_error": round(found.error, 3),
        "pipeline_estimated_ms": round(estimated_s * 1e3, 1),
        "pipeline_measured_ms": round(measured_s * 1e3, 1),
        "pipeline_live_profile_p99_error": round(found.live_profile_error, 3),
        "pipeline_slowdown_max": round(found.slowdown_max, 2),
        "pipeline_elsewhere_cores": round(found.elsewhere_cores, 2),
        "pipeline_waited_for_cores": round(waited, 2),
        "pipeline_events": found.measured_s.size,
        "pipeline_lost": int(np.count_nonzero(np.isnan(found.measured_s))),
    }
    if quick:
        return figures
    return figures | await _scaled(
        replace(run("scaled", levels_trace(list(LEVELS), 1.0, rng)), policy=POLICIES["default"])
    )


async def _scaled(run: Run) -> Figures:
    """What the policy makes of traffic that leaps and falls."""
    async with stamped(run) as (under_way, _):
        await under_way.fed(asyncio.Event())
        state = under_way.controller.state
        assert state is not None
        last = {s.name: sum(kind.wanted for kind in s.replicas) for s in state.stages}
        report = await under_way.report(await under_way.drain())
    planned = {stage: sum(a.replicas for a in held) for stage, held in run.plan.allocations.items()}
    return {
        "scaled_events": report.events_in,
        "scaled_lost": report.lost,
        "scaled_duplicated": report.duplicated,
        "scaled_slo_miss_rate": report.slo_miss_rate,
        "scaled_replicas": ", ".join(
            f"{stage} {planned[stage]} → {report.replicas_most[stage]} → {last[stage]}" for stage in planned
        ),
        "scaled_stages_up": sum(report.replicas_most[stage] > planned[stage] for stage in planned),
        "scaled_stages_down": sum(last[stage] < report.replicas_most[stage] for stage in planned),
    }


def _words(plan: Plan) -> str:
    return ", ".join(
        f"{stage} {a.replicas} × batch {a.max_batch_size} × {a.concurrency} at once"
        for stage, held in plan.allocations.items()
        for a in held
    )
