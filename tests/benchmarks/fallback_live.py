"""A live run on Apache Kafka whose stage has a fallback, and its replay: as many events late, and as many degraded.

One replica of emulated hardware and nothing that scales it, so that what the queue does is all that counts. The rate
rises beyond what the stage itself carries, for as long as the share of the fallback lasts and for some seconds more.

Service times and the time of a hop are measured, not declared: a stage that lacks replicas serves its events at the
last moment at which they can be on time. There each millisecond that a batch or a hop takes beyond what was declared
makes one event in eighty late that replay has on time, and each percent of the service times as many as a percent of
the replicas would serve.

`late_hair` is the share that is late by less than `HAIR_S`; `hop_ms` and `service_ratio` were measured: a hop, and the
time of a full batch over the declared one. While others keep the machine busy both differ from what they were.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np
import uvloop

from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.runs.archive import read_events
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import stamped
from tests.benchmarks._profiled import profiled
from tests.benchmarks._replay_fidelity import replayed
from tests.support.emulated_runs import emulated_run, plan_by_hand

PLANNED_RATE = 4.0
LEVELS = ((4.0, 40.0), (13.0, 60.0), (4.0, 40.0))
"""Events per second and seconds. The stage itself carries 10/s, its fallback 20/s: slow enough that what else the
machine does hardly counts."""

HAIR_S = 0.1

_TOPOLOGY = """
from inferline_stream import Emulated, Isolation, Pipeline, Sample, Stage, Topic


def large(values: list[bytes]) -> list[bytes]:
    return values


def small(values: list[bytes]) -> list[bytes]:
    return values


work = Stage("work", large, fallback=small, fallback_share="10%", hardware=["emulated-cpu"], max_batch_size=8,
             emulated=Emulated({1: "200ms", 8: "800ms"}, fallback={1: "100ms", 8: "400ms"}),
             isolation=Isolation(forked=True))
pipeline = Pipeline("falls_back", slo="5s", source=Topic("in", partitions=8, codec="raw"),
                    sink=Topic("out", partitions=8, codec="raw"), stages=[work],
                    sample=Sample(arrivals="none.csv", events="events.jsonl"))
"""


def measure(quick: bool) -> Figures:
    del quick  # shorter, the share of the fallback would not run out
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure(kafka.bootstrap_servers, Path(folder)))


async def _measure(bootstrap_servers: str, folder: Path) -> Figures:
    """One run and its replay: shares of the events."""
    topology = folder / "topology.py"
    topology.write_text(_TOPOLOGY)
    (folder / "events.jsonl").write_text("".join(f'{{"n":{n}}}\n' for n in range(50)))
    found = await profiled(bootstrap_servers, topology, sample_s=2.0)
    measured = found.measured
    sample = gamma_trace(PLANNED_RATE, 1.0, 30.0, np.random.default_rng(7))
    run = emulated_run(
        folder,
        bootstrap_servers,
        folder,
        levels=LEVELS,
        planned_rate=PLANNED_RATE,
        run_folder=folder / "run",
        measured=measured,
        plan=plan_by_hand(found.pipeline, measured, sample, {"work": 1}),
    )
    async with stamped(run) as (under_way, elsewhere):
        await under_way.fed(asyncio.Event())
        others = elsewhere.cores()
        report = await under_way.report(await under_way.drain())
    again = await replayed(folder / "run", "--policy", "none")
    late_s = read_events(folder / "run").latency_s - report.slo_s
    return {
        "late": round(report.slo_miss_rate or 0.0, 4),
        "late_replayed": round(again["miss_rate"], 4),
        "late_hair": round(float(np.mean((late_s > 0) & (late_s < HAIR_S))), 4),
        "degraded": round(sum(report.degraded.values()) / report.events_in, 4),
        "degraded_replayed": round(again["degraded_share"], 4),
        "lost": report.lost,
        "hop_ms": round(measured.hop_overhead_s * 1e3, 2),
        "service_ratio": round(measured.profiles["work", "emulated-cpu"].service_time_s(8) / 0.8, 4),
        "elsewhere_cores": round(others, 2),
    }
