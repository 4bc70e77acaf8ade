"""A live run on Apache Kafka whose stage has a fallback, and its replay: as many events late, and as many degraded.

One replica of emulated hardware and nothing that scales it, so that what the queue does is all that counts. The rate
rises beyond what the stage itself carries, for as long as the share of the fallback lasts and for some seconds more.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from inferline_stream.runs.lifecycle import open_run
from tests.benchmarks._live import append_time_sink
from tests.benchmarks._machine import Elsewhere
from tests.benchmarks._replay_fidelity import replayed
from tests.support.emulated_runs import emulated_run

PLANNED_RATE = 4.0
LEVELS = ((4.0, 40.0), (13.0, 60.0), (4.0, 40.0))
"""Events per second and seconds. The stage itself carries 10/s, its fallback 20/s: slow enough that what else the
machine does hardly counts."""

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


async def measure(bootstrap_servers: str, folder: Path) -> dict[str, float]:
    """One run and its replay: shares of the events."""
    (folder / "topology.py").write_text(_TOPOLOGY)
    (folder / "events.jsonl").write_text("".join(f'{{"n":{n}}}\n' for n in range(50)))
    run = emulated_run(
        folder, bootstrap_servers, folder, levels=LEVELS, planned_rate=PLANNED_RATE, run_folder=folder / "run"
    )
    await append_time_sink(run)
    async with open_run(run) as under_way:
        await under_way.ready()
        elsewhere = Elsewhere()
        await under_way.fed(asyncio.Event())
        others = elsewhere.cores()
        report = await under_way.report(await under_way.drain())
    again = await replayed(folder / "run", "--policy", "none")
    return {
        "late": round(report.slo_miss_rate or 0.0, 4),
        "late_replayed": round(again["miss_rate"], 4),
        "degraded": round(sum(report.degraded.values()) / report.events_in, 4),
        "degraded_replayed": round(again["degraded_share"], 4),
        "lost": report.lost,
        "elsewhere_cores": round(others, 2),
    }
