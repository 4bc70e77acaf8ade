"""Three families of traffic live on Apache Kafka with the default policy, and in replay: misses and cost of both.

Of the families whose rate changes, the one that rises fastest, the middle one and the slowest one run. The traffic is
that of their first judging seeds, through one pipeline on emulated hardware; the Planner makes the plan on the quarter
before.
While others keep the machine busy a run is made again, at most twice, and the quietest counts.

`live_misses_difference_max` is in points of a percent, `live_cost_ratio_*` is what the run cost over its replay. With
``--quick`` the middle family alone runs, for half a minute.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from inferline_stream.pipeline.trace import Trace
from inferline_stream.testing.kafka import find_apache_kafka
from tests.benchmarks._families import FAMILIES, JUDGING, drawn
from tests.benchmarks._figures import Figures
from tests.benchmarks._machine import QUIET_CORES, quietest
from tests.benchmarks._replay_fidelity import LIMITS, Pair, pair, stepping
from tests.support.emulated_runs import provisioned

FASTEST_FIRST = ("on_off", "spikes", "mixture", "levels", "ramps", "drift", "day")
"""Families by how long their rates usually take to rise: half a second, a quarter of a minute (with and without a day
below), 20 s, 45 s, a minute, minutes."""

CHOSEN = (FASTEST_FIRST[0], FASTEST_FIRST[len(FASTEST_FIRST) // 2], FASTEST_FIRST[-1])
MIDDLE = CHOSEN[1:2]
RATE = 100.0
"""Base rate in events per second: stages have replicas to give back, and four times as many fit a small machine."""

JUDGED_S, QUICK_S = 180.0, 30.0


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure(kafka.bootstrap_servers, Path(folder), quick))


async def _measure(bootstrap_servers: str, folder: Path, quick: bool) -> Figures:
    if not quick:  # A broker's first minute is spent on compiling itself: what runs then is not measured.
        sample, trace = stepping("warmup")
        await pair(bootstrap_servers, folder, "warmup", (sample, trace.window(0.0, 30.0)))
    found = {
        family: await _quietest(bootstrap_servers, folder, family, QUICK_S if quick else JUDGED_S)
        for family in (MIDDLE if quick else CHOSEN)
    }
    differences = [abs(p.live_miss_rate - p.replayed_miss_rate) * 100 for p in found.values()]
    ratios = [p.live_cost / p.replayed_cost for p in found.values()]
    figures: Figures = {
        "live_misses_difference_max": round(max(differences), 3),
        "live_cost_ratio_max": round(max(ratios), 3),
        "live_cost_ratio_min": round(min(ratios), 3),
        "runs_disturbed": sum(p.elsewhere_cores > QUIET_CORES for p in found.values()),
    }
    for family, p in found.items():
        figures |= {
            f"{family}_misses_live": round(p.live_miss_rate, 5),
            f"{family}_misses_replayed": round(p.replayed_miss_rate, 5),
            f"{family}_cost_live": round(p.live_cost, 6),
            f"{family}_cost_replayed": round(p.replayed_cost, 6),
            f"{family}_decisions": len(p.live),
            f"{family}_decisions_different": p.different,
            f"{family}_elsewhere_cores": round(p.elsewhere_cores, 2),
        }
    return figures


async def _quietest(bootstrap_servers: str, folder: Path, family: str, judged_s: float) -> Pair:
    """The quietest of a few runs, the first that is quiet enough."""
    rng = np.random.default_rng([list(FAMILIES).index(family), *JUDGING.encode()])
    _, sample, trace = drawn(family, RATE, judged_s, rng)
    trace = Trace(trace.arrivals_s - trace.arrivals_s[0])
    name, planner = family.replace("_", ""), partial(provisioned, max_batch_sizes=LIMITS)
    return await quietest(lambda k: pair(bootstrap_servers, folder, f"{name}{k}", (sample, trace), planner))
