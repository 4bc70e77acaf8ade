"""Order of the deadline live on Apache Kafka: a leap, a busy partition and a backfill, on emulated hardware.

``--quick`` is the backfill alone.

- `leap_2_late`: the rate doubles within 20 s, and replicas take 10 s to start; `leap_2_late_replayed` is what replay
  has for the same arrivals, plan and policy. Means of three leaps: which branch an event takes is drawn in each replay,
  and the same leap is 1 % late in one live run and 4 % in the next.
- `partition_late`, `partition_late_replayed`: 1,000 events a second in one partition, a tenth more than the one replica
  serves. An offset that waits holds up all that lie behind it: hopeless events go first before these do not fit a
  commit. `partition_span` is how far the end of the log was ahead of the committed offset at most, `partition_lost` the
  events that were lost.
- `backfill_live_p99_ratio`, `backfill_live_idle_used`: see `_backfill`.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import uvloop

from inferline_stream.pipeline.trace import gamma_trace, levels_trace
from inferline_stream.runs.live_run import LiveRun
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._backfill import measure_backfill
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import one_stage, stamped
from tests.benchmarks._pipelines import START_UP_S
from tests.benchmarks._profiled import profiled
from tests.benchmarks._replay_fidelity import pair, replayed
from tests.benchmarks._workloads import warped
from tests.support.emulated_runs import provisioned

LEAPS = range(3)
"""Seeds."""

RATE, CALM_S, RISE_S = 25.0, 40.0, 2 * START_UP_S
"""Of the leap."""

LEVELS = ((500.0, 10.0), (1000.0, 60.0), (500.0, 15.0))
"""Events per second and seconds of the busy partition."""

SERVES = {1: "2ms", 32: "35ms"}
"""Of its one replica: 914 events per second."""

LOOK_S = 0.2


def measure(quick: bool) -> Figures:
    figures: Figures = dict.fromkeys(("leap_2_late", "partition_late"))
    if quick:
        figures |= dict.fromkeys(("leap_2_late_reason", "partition_late_reason"), "takes more than a minute")
    else:
        with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
            leaps = [uvloop.run(measure_leap(kafka.bootstrap_servers, Path(folder), seed)) for seed in LEAPS]
            figures |= {name: round(statistics.fmean(leap[name] for leap in leaps), 4) for name in leaps[0]}
            figures |= uvloop.run(measure_partition(kafka.bootstrap_servers, Path(folder)))
    return figures | measure_backfill(quick=quick)


async def measure_leap(bootstrap_servers: str, folder: Path, seed: int) -> dict[str, float]:
    """A leap to twice the rate for a while, and back."""
    rng = np.random.default_rng([seed, *b"live leap"])
    corners_s = np.cumsum([0.0, CALM_S, RISE_S, RISE_S, RISE_S, CALM_S])
    rates = RATE * np.array([1.0, 1.0, 2.0, 2.0, 1.0, 1.0])
    leap = warped(lambda t: np.interp(t, corners_s, rates), 1.0, float(corners_s[-1]), rng)
    sample = gamma_trace(RATE, 1.0, 300.0, rng)
    found = await pair(bootstrap_servers, folder, f"leap{seed}", (sample, leap), provisioned, kind="slow", slo="2s")
    return {
        "leap_2_late": found.live_miss_rate,
        "leap_2_late_replayed": found.replayed_miss_rate,
        "leap_2_cost_ratio": found.live_cost / found.replayed_cost,
        "leap_2_decisions": len(found.live),
        "leap_2_decisions_different": found.different,
        "leap_2_elsewhere_cores": found.elsewhere_cores,
    }


async def measure_partition(bootstrap_servers: str, folder: Path) -> Figures:
    """A partition of a thousand events a second, of which some cannot be on time."""
    trace = levels_trace(list(LEVELS), 1.0, np.random.default_rng(41))
    run = one_stage(
        bootstrap_servers, folder, trace,
        emulated=SERVES, slo="500ms", planned_rate=LEVELS[0][0],
        record_bytes=200, forked=True, partitions=1, keys=False,
    )  # fmt: skip
    measured = (await profiled(bootstrap_servers, run.topology, sample_s=0.5)).measured
    run = replace(run, measured=measured, run_folder=folder / "partition")
    async with stamped(run) as (under_way, elsewhere):
        feeding = asyncio.create_task(under_way.fed(asyncio.Event()))
        span = 0
        while not feeding.done():
            await asyncio.wait({feeding}, timeout=LOOK_S)
            span = max(span, await _span(under_way))
        others = elsewhere.cores()
        report = await under_way.report(await under_way.drain())
    again = await replayed(folder / "partition", "--policy", "none")
    return {
        "partition_late": round(report.slo_miss_rate or 0.0, 4),
        "partition_late_replayed": round(again["miss_rate"], 4),
        "partition_span": span,
        "partition_lost": report.lost,
        "partition_elsewhere_cores": round(others, 2),
    }


async def _span(under_way: LiveRun) -> int:
    """How far the end of the log is ahead of the committed offset."""
    context, offsets = under_way.context, under_way.offsets
    (committed,) = await offsets.committed(context.names.group("work"), context.source, 1)
    (end,) = (await offsets.ends({context.source: 1}))[context.source]
    return end - max(0, committed.offset)
