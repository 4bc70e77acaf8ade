"""The default policy on families of traffic that nobody tuned for: cost over the clairvoyant's, misses, reversals.

Regret and misses are of the runs whose replicas can start within half the rise time and where the clairvoyant keeps
the objective. Of the others it is counted how often the plan alone would have been both cheaper and missed less.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.errors import Infeasible
from inferline_stream.estimator.workload import prepare
from inferline_stream.replay.clairvoyant import cheapest
from inferline_stream.replay.loop import replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Scaler, Tuner
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.staffing import staffing
from tests.benchmarks._families import Case, case

Figures = dict[str, float | int | str | None]

OBJECTIVE = 0.99
REVERSAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Judged:
    """One run: of our policy, in hindsight, and of the plan alone."""

    case: Case
    ours: Outcome
    clairvoyant: Outcome
    alone: Outcome

    @property
    def regret(self) -> float:
        """Cost over the clairvoyant's."""
        return self.ours.cost / self.clairvoyant.cost

    @property
    def counts(self) -> bool:
        """Whether it can be done: replicas start in time, and hindsight keeps the objective."""
        return self.case.followable and self.clairvoyant.miss_rate <= 1 - OBJECTIVE

    @property
    def beaten(self) -> bool:
        """Whether the plan alone would have been both cheaper and missed less."""
        return self.alone.cost < self.ours.cost and self.alone.miss_rate < self.ours.miss_rate


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

    def run(scaler: Scaler) -> Outcome:
        return replay(
            p.shape,
            plan.allocations,
            p.measured,
            drawn.trace,
            scaler,
            catalogue=p.catalogue,
            slo_s=p.slo_s,
            workload=workload,
        )

    ours = run(Tuner("default", POLICIES["default"], state, p.shape, kernel=compiled_kernel()))
    return Judged(drawn, ours, cheapest(state.basis, drawn.trace, run, instant=False), run(Fixed()))


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
        "beaten_by_the_plan_alone": sum(r.beaten for r in runs if not r.counts),
        "reversals": sum(reversals(r.ours) for r in runs),
    }
    for family in dict.fromkeys(r.case.family for r in runs):
        these = [r for r in runs if r.case.family == family]
        figures[f"{family}_regret_mean"] = mean([r.regret for r in these])
        figures[f"{family}_miss_rate_mean"] = _mean([r.ours.miss_rate for r in these], 5)
    return figures


def _mean(values: list[float], digits: int) -> float | None:
    return round(statistics.mean(values), digits) if values else None
