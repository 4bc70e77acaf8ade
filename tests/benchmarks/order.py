"""What a queue gains that serves hopeless events last, over order of entry, with every bound of the rule on.

Judging families, each with the plan and the table of order of entry, and the default policy: only the queues differ.
Counted are the runs in which replicas can start in time and hindsight, in order of entry, keeps the objective; a ratio
is of the sums of the runs' miss rates. A run is worse with more than 10 % and more than five late events more.
`_largest` figures are the longest latency of a run in SLOs, of counted runs and of the others. `leap_2_late` is the
mean miss rate where the rate doubles within a minute and replicas take 30 s to start; `ramp_30_worst` the worst 15 s of
a ramp of 30 s. `plan_cost_ratio` is the cost of plans made with the rule over that of plans made in order of entry, on
published instances.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.replay.clairvoyant import cheapest
from inferline_stream.replay.loop import replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Scaler, Tuner
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.staffing_table import staffing
from tests.benchmarks._families import JUDGING, Pipeline, case
from tests.benchmarks._reference import CATALOGUE, SHAPE, SLO_S, profile
from tests.benchmarks._workloads import BASE_RATE, LEAP_RISE_S, SAMPLE_S, leap, ramp
from tests.benchmarks.instances.published import prices, published

Figures = dict[str, float | int | str | None]

OBJECTIVE = 0.99
ORDERS = ("entry", "deadline")
WORSE, FEW = 1.1, 5
BIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Pair:
    """The same traffic in order of entry and of the deadline."""

    name: str
    counts: bool
    entry: Outcome
    deadline: Outcome

    @property
    def worse(self) -> bool:
        """Whether the rule did harm."""
        before, after = late(self.entry), late(self.deadline)
        return after > WORSE * before and after > before + FEW


def measure(quick: bool) -> Figures:
    pairs = [pair for seed in range(8 if quick else 48) if (pair := judged(seed)) is not None]
    counted, others = [p for p in pairs if p.counts], [p for p in pairs if not p.counts]
    return {
        "late_ratio_counted": ratio(counted),
        "late_ratio_others": ratio(others),
        "worse_runs": sum(p.worse for p in pairs),
        "cost_ratio": round(statistics.mean(p.deadline.cost / p.entry.cost for p in pairs), 4),
        **largest("counted", counted),
        **largest("others", others),
        **experiments(1 if quick else 3),
        "plan_cost_ratio": plan_cost_ratio(3 if quick else None),
    }


def judged(seed: int) -> Pair | None:
    """One run; None where no plan meets the SLO on its sample."""
    drawn = case(seed, JUDGING)
    p = drawn.pipeline
    try:
        plan = planned(p, drawn.sample)
    except Infeasible:
        return None
    found = {order: run(p, plan, drawn.trace, order, tuned(p, plan, drawn.sample)) for order in ORDERS}
    known = drawn.followable and hindsight(p, plan, drawn.sample, drawn.trace).miss_rate <= 1 - OBJECTIVE
    return Pair(drawn.name, known, found["entry"], found["deadline"])


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


def hindsight(p: Pipeline, plan: Plan, sample: Trace, trace: Trace) -> Outcome:
    basis = tuned(p, plan, sample).state.basis
    return cheapest(basis, trace, lambda scaler: run(p, plan, trace, "entry", scaler))


def late(outcome: Outcome) -> int:
    return int(np.count_nonzero(outcome.latency_s > outcome.slo_s))


def ratio(pairs: Sequence[Pair]) -> float | None:
    before, after = (sum(getattr(p, order).miss_rate for p in pairs) for order in ORDERS)
    return round(after / before, 3) if before else None


def largest(name: str, pairs: Sequence[Pair]) -> Figures:
    """Of each run the longest latency in SLOs: the median of runs, nine in ten, the worst."""
    figures: Figures = {f"runs_{name}": len(pairs)}
    for order in ORDERS if pairs else ():
        outcomes = [getattr(p, order) for p in pairs]
        slos = [float(np.nanmax(outcome.latency_s)) / outcome.slo_s for outcome in outcomes]
        for share in (50, 90, 100):
            figures[f"{name}_{order}_largest_{share}"] = round(float(np.percentile(slos, share)), 1)
        figures[f"{name}_{order}_late"] = round(statistics.mean(outcome.miss_rate for outcome in outcomes), 5)
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
