"""What is said of versions that are tried out, in virtual time: one slower, one failing, one that differs, good ones.

100 events/s on nine replicas of the running version, a canary of 10 %, `--within 30m`, a look every 0.5 s: what a
dispatcher would count is drawn, and the real judge and the real steps decide. Service times vary by batch (σ of their
logarithm .25), with what the whole host does (.1, for a minute at a time), and from replica to replica for good (.02).
`verdicts`: share of right verdicts. `*_right`: runs with one. `*_s`: time to it, median and longest. `*_events`: events
that the version had.

The live run: `tests/scenarios/test_canary.py`, whose events lost and dead letters are 0.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import numpy as np

from inferline_stream.controlplane.decide.canary_steps import Trial, next_move
from inferline_stream.controlplane.decide.version_judge import Evidence, judge
from inferline_stream.observability.stage_counts import CanaryCounts, LogTimes
from tests.benchmarks._figures import Figures

RATE, SHARE, WITHIN_S, LOOK_S, REPLICAS = 100.0, 0.1, 1800.0, 0.5, 9
MEAN_BATCH = 3.0
NOISE, HOST_NOISE, HOST_S, REPLICA_NOISE = 0.25, 0.1, 60.0, 0.02


@dataclass(frozen=True, slots=True)
class Version:
    """How a version differs from the running one."""

    name: str
    slower: float = 1.0
    fails: float = 0.0
    differs: float = 0.0
    mirror: bool = False
    good: bool = False


VERSIONS = (
    Version("slower_20_percent", slower=1.2),
    Version("fails_2_percent", fails=0.02),
    Version("differs_3_percent", differs=0.03, mirror=True),
    Version("good", good=True),
    Version("good_mirrored", mirror=True, good=True),
)


def measure(quick: bool) -> Figures:
    runs = 5 if quick else 20
    figures: Figures = {}
    right = 0
    for number, version in enumerate(VERSIONS):
        found = [tried(version, np.random.default_rng([number, seed])) for seed in range(runs)]
        right += (own := sum(kind == ("promote" if version.good else "roll_back") for kind, _, _ in found))
        figures |= {
            f"{version.name}_right": own,
            f"{version.name}_s": statistics.median(time_s for _, time_s, _ in found),
            f"{version.name}_longest_s": max(time_s for _, time_s, _ in found),
            f"{version.name}_events": round(statistics.median(events for _, _, events in found)),
        }
    return {"verdicts": round(right / (runs * len(VERSIONS)), 3), "runs": runs, **figures}


def tried(version: Version, rng: np.random.Generator) -> tuple[str, float, int]:
    """Try a version out; return what became of it, after how long, and how many events it had."""
    share, time_s, events = SHARE, 0.0, 0
    own_bias, main_bias = rng.normal(0, REPLICA_NOISE), rng.normal(0, REPLICA_NOISE / math.sqrt(REPLICAS))
    counts, host = CanaryCounts(), 0.0
    while True:
        time_s += LOOK_S
        keeps = math.exp(-LOOK_S / HOST_S)
        host = keeps * host + rng.normal(0, HOST_NOISE * math.sqrt(1 - keeps**2))
        arrived = int(rng.poisson(RATE * LOOK_S))
        given = math.floor((counts.events + counts.main_events + arrived) * share) - counts.events  # by count
        counts.events += given
        counts.main_events += arrived - given
        failed = int(rng.binomial(given, version.fails))
        counts.answered += given
        counts.failed += failed
        if version.mirror:
            counts.compared += given - failed
            counts.disagreed += int(rng.binomial(given - failed, version.differs))
        events += given
        ran(counts.own, rng, given, math.log(version.slower) + own_bias + host)
        ran(counts.main, rng, arrived - given, main_bias + host)
        judged = judge(Evidence(counts, version.mirror))
        move = next_move(Trial(share, WITHIN_S - time_s, {"stage": judged}))
        if move.kind == "widen":
            share, counts = move.share, CanaryCounts()
        elif move.kind != "keep":
            return move.kind, time_s, events


def ran(times: LogTimes, rng: np.random.Generator, events: int, mean: float) -> None:
    """Count the batches of so many events."""
    logs = rng.normal(mean, NOISE, int(rng.poisson(events / MEAN_BATCH)))
    times.batches += logs.size
    times.total += float(logs.sum())
    times.squares += float(np.square(logs).sum())
