"""What a fallback gains that each stage has beside itself: late events, events that it made, and the cost of both.

Plans are the same with and without. Unless a figure says otherwise, the table of staffing is made with the fallback
that the run has, and the default policy decides; `same_policy` figures are of the table and reserve without one, so
that only the queues differ. A fallback takes a half (`2x`) or a quarter (`4x`) of the time, on every stage, for at most
5 % of a slot's events of an hour.

`leap_2_late` and `leap_2_degraded` are of a fallback twice as fast where the rate doubles within a minute and replicas
take 30 s to start. `late_ratio` is the sum of the miss rates of judging families over that without a fallback, of the
runs that replicas can follow and hindsight keeps; `cost_ratio` is what these runs cost over the same. Each run is a
line on standard error as soon as it is known: the figures follow from those lines, however many there are.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.benchmarks._families import JUDGING, Pipeline, case
from tests.benchmarks._figures import Figures
from tests.benchmarks._reference import CATALOGUE, SHAPE, SLO_S, profile
from tests.benchmarks._workloads import BASE_RATE, LEAP_RISE_S, SAMPLE_S, leap
from tests.benchmarks.order import QUICK_EVENTS, QUICK_RUNS, QUICK_S, RUNS, keeps, planned, run, tuned

SHARE = 0.05
FASTER = {"2x": 2.0, "4x": 4.0}
ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Share:
    """What became of a run's events, and what it cost."""

    miss_rate: float
    degraded_share: float
    cost: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One run: without a fallback, with each of them, and with one under the policy of none."""

    outcomes: Mapping[str, Share]
    counts: bool


def measure(quick: bool) -> Figures:
    found = []
    with ProcessPoolExecutor() as processes:
        most = (QUICK_EVENTS, QUICK_S) if quick else ()
        for seed, each in enumerate(processes.map(partial(judged, most), range(QUICK_RUNS if quick else RUNS))):
            sys.stderr.write(f"judging run {seed}: {each}\n")
            found += [] if each is None else [each]
    counted = [each for each in found if each.counts]
    figures = leaps(1 if quick else 3)
    figures |= {"runs": len(found), "runs_counted": len(counted)}
    for which, runs in (("", counted), ("_others", [each for each in found if not each.counts])):
        for name in (*FASTER, "same_policy"):
            key = f"{which}{'' if name == '2x' else '_' + name}"
            figures[f"late_ratio{key}"] = _ratio(runs, name, lambda outcome: outcome.miss_rate)
            figures[f"cost_ratio{key}"] = _ratio(runs, name, lambda outcome: outcome.cost)
            shares = [each.outcomes[name].degraded_share for each in runs]
            figures[f"degraded_mean{key}"] = round(statistics.mean(shares), 4) if shares else None
            figures[f"degraded_worst{key}"] = round(max(shares), 4) if shares else None
    return figures


def with_fallbacks(p: Pipeline, times: float) -> Pipeline:
    """The pipeline whose stages each have a fallback so many times as fast."""
    faster = {
        key: replace(own, fallback=own.scaled(1 / times).service_times, fallback_share=SHARE)
        for key, own in p.measured.profiles.items()
    }
    return replace(p, measured=replace(p.measured, profiles=faster))


def versions(p: Pipeline, plan: Plan, sample: Trace, trace: Trace) -> dict[str, Share]:
    """The same traffic without a fallback, with each, and with one under the policy of none."""
    found = {ALONE: run(p, plan, trace, "deadline", tuned(p, plan, sample))}
    for name, times in FASTER.items():
        faster = with_fallbacks(p, times)
        found[name] = run(faster, plan, trace, "deadline", tuned(faster, plan, sample))
    found["same_policy"] = run(with_fallbacks(p, 2.0), plan, trace, "deadline", tuned(p, plan, sample))
    return {name: Share(each.miss_rate, each.degraded_share, each.cost) for name, each in found.items()}


def judged(most: Sequence[float], seed: int) -> Judged | None:
    """One run; None where no plan meets the SLO on its sample. ``most`` is of its events and seconds."""
    drawn = case(seed, JUDGING, *most)
    p = drawn.pipeline
    try:
        plan = planned(p, drawn.sample, "deadline")
    except Infeasible:
        return None
    counts = drawn.followable and keeps(p, plan, drawn.sample, drawn.trace)
    return Judged(versions(p, plan, drawn.sample, drawn.trace), counts)


def leaps(seeds: int) -> Figures:
    """Leaps to twice and four times the rate that was planned for."""
    p = Pipeline("reference", SHAPE, profile(), SLO_S, CATALOGUE)
    slow = {key: replace(each, start_up_s=LEAP_RISE_S / 2) for key, each in p.measured.profiles.items()}
    slowly = replace(p, measured=replace(p.measured, profiles=slow))
    figures: Figures = {}
    for factor in (2, 4):
        found: list[dict[str, Share]] = []
        for seed in range(seeds):
            sample = gamma_trace(BASE_RATE, 1.0, SAMPLE_S, np.random.default_rng([seed, *b"steady"]))
            plan = planned(p, sample, "deadline")
            leapt = leap(float(factor), np.random.default_rng([seed, *b"leap"]))
            found.append(versions(slowly, plan, sample, leapt))
        for name in (ALONE, *FASTER, "same_policy"):
            key = "" if name == "2x" else f"_{name}"
            outcomes = [each[name] for each in found]
            figures[f"leap_{factor}_late{key}"] = round(statistics.mean(each.miss_rate for each in outcomes), 4)
            if name != ALONE:
                share = statistics.mean(each.degraded_share for each in outcomes)
                figures[f"leap_{factor}_degraded{key}"] = round(share, 4)
                costs = (each[name].cost / each[ALONE].cost for each in found)
                figures[f"leap_{factor}_cost{key}"] = round(statistics.mean(costs), 4)
    return figures


def _ratio(runs: Iterable[Judged], name: str, of: Callable[[Share], float]) -> float | None:
    pairs = [(of(each.outcomes[name]), of(each.outcomes[ALONE])) for each in runs]
    before = sum(alone for _, alone in pairs)
    return round(sum(own for own, _ in pairs) / before, 3) if before else None
