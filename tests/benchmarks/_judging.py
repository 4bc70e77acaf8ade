"""The default policy on families of traffic that nobody tuned for: cost over the clairvoyant's, misses, reversals.

Regret and misses are of the runs whose replicas can start within half the rise time and where the clairvoyant keeps
the objective. Of the others, `beaten_in_hindsight` counts those where a fixed fleet or a rule of others was both
cheaper and missed less. The fleet is the largest multiple of the plan's that costs less than ours did. The rules have
their defaults, and scale ordinary consumer groups and our pools.
"""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass, replace

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Allocations, Plan, cost_per_hour
from inferline_stream.replay.clairvoyant import cheapest
from inferline_stream.replay.compare import compare
from inferline_stream.replay.loop import replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Scaler, Tuner
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.staffing_table import staffing
from tests.benchmarks._families import Case, case

Figures = dict[str, float | int | str | None]

OBJECTIVE = 0.99
REVERSAL_S = 60.0

RULES = ("keda", "flink-fast", "ray", "cg-peak")
"""Of others: those that `peers` has live."""

MULTIPLES = tuple(tenths / 10 for tenths in range(200, 0, -1))
"""Of the plan's replicas, in fixed fleets."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One run: of our policy, in hindsight, and, where it does not count, of fixed fleets and the rules of others."""

    case: Case
    ours: Outcome
    clairvoyant: Outcome
    others: tuple[Outcome, ...] = ()

    @property
    def regret(self) -> float:
        """Cost over the clairvoyant's."""
        return self.ours.cost / self.clairvoyant.cost

    @property
    def counts(self) -> bool:
        """Whether it can be done: replicas start in time, and hindsight keeps the objective."""
        return counts(self.case, self.clairvoyant)

    @property
    def beaten(self) -> bool:
        """Whether one of the others was both cheaper and missed less."""
        return any(o.cost < self.ours.cost and o.miss_rate < self.ours.miss_rate for o in self.others)


def counts(drawn: Case, clairvoyant: Outcome) -> bool:
    """Whether a run is one of those that regret and misses are of."""
    return drawn.followable and clairvoyant.miss_rate <= 1 - OBJECTIVE


def judge(seed: int, *, judging: bool) -> Judged | None:
    """One run; None where no plan meets the SLO on its sample."""
    drawn = case(seed, judging=judging)
    p = drawn.pipeline
    try:
        plan = drawn.plan()
    except Infeasible:
        return None
    prices = {name: kind.price_per_hour for name, kind in p.catalogue.items()}
    table = staffing(p.shape, plan, p.measured, drawn.sample, prices, objective=OBJECTIVE)
    state = initial_state(plan, p.measured, p.catalogue, objective=OBJECTIVE, staffing=table)
    workload = prepare(p.shape, p.measured, drawn.trace)

    def run(scaler: Scaler, allocations: Allocations = plan.allocations) -> Outcome:
        return replay(
            p.shape,
            allocations,
            p.measured,
            drawn.trace,
            scaler,
            catalogue=p.catalogue,
            slo_s=p.slo_s,
            slots=plan.slots,
            workload=workload,
        )

    ours = run(Tuner("default", POLICIES["default"], state, p.shape, kernel=compiled_kernel()))
    clairvoyant = cheapest(state.basis, drawn.trace, run, instant=False)
    if counts(drawn, clairvoyant):
        return Judged(drawn, ours, clairvoyant)
    fleet = largest_fleet(plan, p.catalogue, ours.cost_per_hour)
    rules = compare(
        p.shape, plan, p.measured, drawn.sample, drawn.trace, catalogue=p.catalogue, policies=RULES, tune=False
    )
    fixed = () if fleet is None else (run(Fixed(), fleet),)
    return Judged(drawn, ours, clairvoyant, (*fixed, *(row.outcome for row in rules.rows)))


def largest_fleet(plan: Plan, kinds: Catalogue, below_per_hour: float) -> Allocations | None:
    """The largest of `MULTIPLES` of the plan's replicas that costs less than so many dollars per hour."""
    for multiple in MULTIPLES:
        fleet = times_the_plan(plan, multiple)
        if cost_per_hour(fleet, kinds) < below_per_hour:
            return fleet
    return None


def times_the_plan(plan: Plan, multiple: float) -> Allocations:
    """So many times the plan's replicas, rounded up."""
    return {
        stage: tuple(replace(a, replicas=math.ceil(multiple * a.replicas)) for a in held)
        for stage, held in plan.allocations.items()
    }


def reversals(outcome: Outcome) -> int:
    """How often a stage's replicas went the other way within a minute."""
    count = 0
    held: dict[str, int] = {}
    moved: dict[str, tuple[bool, float]] = {}
    for step in outcome.steps:
        for stage, kinds in step.replicas.items():
            total = sum(kinds.values())
            if stage in held and total != held[stage]:
                up = total > held[stage]
                before = moved.get(stage)
                count += before is not None and before[0] is not up and step.time_s - before[1] < REVERSAL_S
                moved[stage] = (up, step.time_s)
            held[stage] = total
    return count


def families(seeds: range, *, judging: bool = True) -> Figures:
    """Regret and misses over these seeds, and of each family."""
    runs = [r for seed in seeds if (r := judge(seed, judging=judging)) is not None]
    counted = [r for r in runs if r.counts]
    slow = [r for r in runs if r.case.start_up_s == 90.0 and r.clairvoyant.miss_rate <= 1 - OBJECTIVE]
    mean = functools.partial(_mean, digits=3)
    figures: Figures = {
        "runs": len(runs),
        "runs_counted": len(counted),
        "regret_mean": mean([r.regret for r in counted]),
        "regret_max": round(max((r.regret for r in counted), default=0.0), 3),
        "misses_above_1_percent": sum(r.ours.miss_rate > 1 - OBJECTIVE for r in counted),
        "regret_90_s_mean": mean([r.regret for r in slow]),
        "beaten_in_hindsight": sum(r.beaten for r in runs),
        "reversals": sum(reversals(r.ours) for r in runs),
    }
    for family in dict.fromkeys(r.case.family for r in runs):
        these = [r for r in runs if r.case.family == family]
        figures[f"{family}_regret_mean"] = mean([r.regret for r in these])
        figures[f"{family}_miss_rate_mean"] = _mean([r.ours.miss_rate for r in these], 5)
    return figures


def _mean(values: list[float], digits: int) -> float | None:
    return round(statistics.mean(values), digits) if values else None
