"""What a queue gains that serves hopeless events last, over order of entry, with every bound of the rule on.

Judging families, each with the plan and the table of order of entry, and the default policy: only the queues differ.
Counted are the runs in which replicas can start in time and hindsight, in order of entry, keeps the objective; a ratio
is of the sums of the runs' miss rates. A run is worse with more than 10 % and more than five late events more.
`_largest` figures are the longest latency of a run in SLOs, of counted runs and of the others. `leap_2_late` is the
mean miss rate where the rate doubles within a minute and replicas take 30 s to start; `ramp_30_worst` the worst 15 s of
a ramp of 30 s. `plan_cost_ratio` is the cost of plans made with the rule over that of plans made in order of entry, on
published instances. `backfill_p99_ratio` and `backfill_idle_used` are of the dispatchers' slots in virtual time.

Each run is a line on standard error as soon as it is known. `python -m tests.benchmarks.order --results FILE` runs the
families alone: what FILE does not have yet is added to it, so that they can be run in parts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.replay.clairvoyant import REPLAYS, cheapest
from inferline_stream.replay.loop import replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Scaler, Tuner
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.staffing_table import staffing
from tests.benchmarks._backfill_in_virtual_time import measure_virtual
from tests.benchmarks._families import JUDGING, Case, Pipeline, case
from tests.benchmarks._figures import Figures
from tests.benchmarks._reference import CATALOGUE, SHAPE, SLO_S, profile
from tests.benchmarks._workloads import BASE_RATE, LEAP_RISE_S, SAMPLE_S, leap, ramp
from tests.benchmarks.instances.published import prices, published

OBJECTIVE = 0.99
ORDERS = ("entry", "deadline")
WORSE, FEW = 1.1, 5
BIN_S = 15.0
RUNS = 48
QUICK_RUNS, QUICK_EVENTS, QUICK_S = 6, 10_000, 300.0


@dataclass(frozen=True, slots=True)
class Served:
    """What became of a run's events."""

    late: int
    events: int
    cost: float
    largest_slos: float
    """The longest latency."""

    @property
    def miss_rate(self) -> float:
        """Share of the events that were late."""
        return self.late / self.events if self.events else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """The same traffic in order of entry and of the deadline."""

    name: str
    counts: bool
    entry: Served
    deadline: Served

    @property
    def worse(self) -> bool:
        """Whether the rule did harm."""
        before, after = self.entry.late, self.deadline.late
        return after > WORSE * before and after > before + FEW


def measure(quick: bool) -> Figures:
    """Figures of 48 judging runs and all else; with ``quick``, of 6 runs of five minutes."""
    most = (QUICK_EVENTS, QUICK_S) if quick else ()
    runs = (judged(case(seed, JUDGING, *most)) for seed in range(QUICK_RUNS if quick else RUNS))
    pairs = [pair for pair in runs if pair is not None]
    return {
        **families(pairs),
        **experiments(1 if quick else 3),
        "plan_cost_ratio": plan_cost_ratio(3 if quick else None),
        **measure_virtual(quick=quick),
    }


def families(pairs: Sequence[Pair]) -> Figures:
    """Figures of these runs, see the module."""
    counted, others = [p for p in pairs if p.counts], [p for p in pairs if not p.counts]
    return {
        "late_ratio_counted": ratio(counted),
        "late_ratio_others": ratio(others),
        "worse_runs": sum(p.worse for p in pairs),
        "cost_ratio": round(statistics.mean(p.deadline.cost / p.entry.cost for p in pairs), 4) if pairs else None,
        **largest("counted", counted),
        **largest("others", others),
    }


def judged(drawn: Case) -> Pair | None:
    """One run; None where no plan meets the SLO on its sample."""
    p = drawn.pipeline
    try:
        plan = planned(p, drawn.sample)
    except Infeasible:
        return None
    entry, deadline = (served(run(p, plan, drawn.trace, order, tuned(p, plan, drawn.sample))) for order in ORDERS)
    pair = Pair(drawn.name, drawn.followable and keeps(p, plan, drawn.sample, drawn.trace), entry, deadline)
    sys.stderr.write(f"{pair.name}: counts {pair.counts}, {entry}, {deadline}\n")
    return pair


def keeps(p: Pipeline, plan: Plan, sample: Trace, trace: Trace) -> bool:
    """Whether hindsight keeps the objective; there is no search where what that begins with does."""
    return any(hindsight(p, plan, sample, trace, replays).miss_rate <= 1 - OBJECTIVE for replays in (0, REPLAYS))


def planned(p: Pipeline, sample: Trace, order: str = "entry") -> Plan:
    return provision(Problem(p.shape, p.measured, (sample,), p.slo_s, p.catalogue, order=order))


def tuned(p: Pipeline, plan: Plan, sample: Trace) -> Tuner:
    costs = {name: kind.price_per_hour for name, kind in p.catalogue.items()}
    table = staffing(p.shape, plan, p.measured, sample, costs, objective=OBJECTIVE)
    state = initial_state(plan, p.measured, p.catalogue, objective=OBJECTIVE, staffing=table)
    return Tuner("default", POLICIES["default"], state, p.shape, kernel=compiled_kernel())


def run(p: Pipeline, plan: Plan, trace: Trace, order: str, scaler: Scaler) -> Outcome:
    return replay(
        p.shape,
        plan.allocations,
        p.measured,
        trace,
        scaler,
        catalogue=p.catalogue,
        slo_s=p.slo_s,
        slots=plan.slots,
        order=order,
        planned_rate=plan.arrival_rate,
        workload=prepare(p.shape, p.measured, trace),
    )


def hindsight(p: Pipeline, plan: Plan, sample: Trace, trace: Trace, replays: int = REPLAYS) -> Outcome:
    basis = tuned(p, plan, sample).state.basis
    return cheapest(basis, trace, lambda scaler: run(p, plan, trace, "entry", scaler), replays=replays)


def served(outcome: Outcome) -> Served:
    largest_slos = float(np.nanmax(outcome.latency_s, initial=0.0)) / outcome.slo_s
    return Served(outcome.late, outcome.known, outcome.cost, largest_slos)


def ratio(pairs: Sequence[Pair]) -> float | None:
    before, after = sum(p.entry.miss_rate for p in pairs), sum(p.deadline.miss_rate for p in pairs)
    return round(after / before, 3) if before else None


def largest(name: str, pairs: Sequence[Pair]) -> Figures:
    """Of each run the longest latency in SLOs: the median of runs, nine in ten, the worst."""
    figures: Figures = {f"runs_{name}": len(pairs)}
    for order in ORDERS if pairs else ():
        found: list[Served] = [getattr(p, order) for p in pairs]
        for share in (50, 90, 100):
            slos = float(np.percentile([each.largest_slos for each in found], share))
            figures[f"{name}_{order}_largest_{share}"] = round(slos, 1)
        figures[f"{name}_{order}_late"] = round(statistics.mean(each.miss_rate for each in found), 5)
    return figures


def experiments(seeds: int) -> Figures:
    """A leap to twice the rate and a ramp, both planned on calm traffic."""
    p = Pipeline("reference", SHAPE, profile(), SLO_S, CATALOGUE)
    slow = {key: replace(each, start_up_s=LEAP_RISE_S / 2) for key, each in p.measured.profiles.items()}
    slowly = replace(p, measured=replace(p.measured, profiles=slow))
    leaps: dict[str, list[float]] = {order: [] for order in ORDERS}
    ramps: dict[str, list[float]] = {order: [] for order in ORDERS}
    for seed in range(seeds):
        sample = gamma_trace(BASE_RATE, 1.0, SAMPLE_S, np.random.default_rng([seed, *b"steady"]))
        plan = planned(p, sample)
        leapt = leap(2.0, np.random.default_rng([seed, *b"leap"]))
        _, risen = ramp(30.0, np.random.default_rng([seed, *b"ramp_30"]))
        for order in ORDERS:
            leaps[order].append(run(slowly, plan, leapt, order, tuned(slowly, plan, sample)).miss_rate)
            ramps[order].append(run(p, plan, risen, order, tuned(p, plan, sample)).worst_miss_rate(BIN_S))
    return {
        "leap_2_late": round(statistics.mean(leaps["deadline"]), 4),
        "leap_2_late_entry": round(statistics.mean(leaps["entry"]), 4),
        "ramp_30_worst": round(statistics.mean(ramps["deadline"]), 4),
        "ramp_30_worst_entry": round(statistics.mean(ramps["entry"]), 4),
    }


def plan_cost_ratio(instances: int | None) -> float | None:
    """Mean over instances of up to four stages that have a plan either way."""
    ratios = []
    for instance in [i for i in published() if len(i.models) <= 4][:instances]:
        p = Pipeline("published", instance.shape, instance.measured, instance.slo_s, prices())
        try:
            costs = [planned(p, instance.trace(), order).cost_per_hour for order in ORDERS]
        except Infeasible:
            continue
        ratios.append(costs[1] / costs[0])
    return round(statistics.mean(ratios), 4) if ratios else None


def kept_in(results: Path, runs: int) -> Iterator[Pair]:
    """The first so many judging runs: those that a file has, and the others, each added to it."""
    lines = results.read_text().splitlines() if results.exists() else []
    known = {seed: found for seed, found in map(json.loads, lines)}
    for seed in range(runs):
        if seed not in known:
            pair = judged(case(seed, JUDGING))
            known[seed] = None if pair is None else asdict(pair)
            with results.open("a") as file:
                file.write(json.dumps([seed, known[seed]]) + "\n")
        if (found := known[seed]) is not None:
            yield Pair(**{**found, **{order: Served(**found[order]) for order in ORDERS}})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.order", description=families.__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="the first so many of the judging stream")
    parser.add_argument("--results", type=Path, required=True, help="file of what is known, which all else is added to")
    given = parser.parse_args()
    sys.stdout.write(json.dumps(families(list(kept_in(given.results, given.runs))), indent=1) + "\n")


if __name__ == "__main__":
    main()
