"""The paper's scaling experiments in replay, on the reference pipeline: what each part is worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.baselines.coarse import Coarse, CoarseMemory, peak_rate, unit, units_for
from inferline_stream.baselines.rule_inputs import PipelineSeen
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.scalers import Fixed, Ruled
from tests.benchmarks._reference import CATALOGUE, SHAPE, SLO_S
from tests.benchmarks._workloads import big_spike
from tests.benchmarks.replay import MEASURED, STUDENT, compared, planned, run, tuned


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a figure over seeds: mean, and half its 95 % interval."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        half_width = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.mean(values), half_width)


def coarse_plan(plan: Plan, sample: Trace) -> Plan:
    """CG-Peak's units in place of the plan's replicas, on the same hardware."""
    hardware = {stage: held[0].hardware for stage, held in plan.allocations.items()}
    one = unit(SHAPE, MEASURED, hardware, SLO_S)
    units = units_for(peak_rate(sample, SLO_S), one.throughput)
    allocations = {}
    utilization = {}
    for stage, kind in hardware.items():
        profile = MEASURED.profiles[stage, kind]
        size = min(one.batch_size, profile.batch_sizes[-1])
        allocations[stage] = (Allocation(kind, size, units),)
        utilization[stage] = sample.arrival_rate * plan.visit_ratios[stage] / (units * profile.throughput(size))
    cost = cost_per_hour(allocations, CATALOGUE)
    return replace(plan, allocations=allocations, utilization=utilization, cost_per_hour=cost, algorithm="cg-peak")


@dataclass(frozen=True, slots=True)
class UnitsOfThePlan:
    """The baseline's scaler on our plan: it counts units as on its own; stages keep the plan's proportion to them.

    Args:
        rule: CG-Peak's.
        planned: replicas by stage.
        units: that the rule would begin with.
    """

    rule: Coarse
    planned: Mapping[str, int]
    units: int

    @property
    def period_s(self) -> float:
        return self.rule.period_s

    def begin(self, _replicas: Mapping[str, int]) -> CoarseMemory:
        return self.rule.begin(dict.fromkeys(self.rule.stages, self.units))

    def step(self, memory: CoarseMemory, seen: PipelineSeen) -> tuple[CoarseMemory, dict[str, int]]:
        memory, units = self.rule.step(memory, seen)
        return memory, {name: math.ceil(self.planned[name] * count / self.units) for name, count in units.items()}


def baseline_scaler(plan: Plan, sample: Trace) -> Ruled:
    """CG-Peak's scaler, in the manner of AutoScale, with our plan to begin with."""
    hardware = {stage: held[0].hardware for stage, held in plan.allocations.items()}
    planned = {stage: sum(a.replicas for a in held) for stage, held in plan.allocations.items()}
    one = unit(SHAPE, MEASURED, hardware, SLO_S)
    stages = tuple(stage for stage, kind in hardware.items() if CATALOGUE[kind].price_per_hour)
    rule = Coarse(one.throughput, stages, window_s=SLO_S)
    units = units_for(peak_rate(sample, SLO_S), one.throughput)
    scaler = UnitsOfThePlan(rule, planned, units)
    return Ruled("cg-peak on our plan", scaler, SHAPE, replicas=planned, hardware=hardware)


def ablation(seeds: int) -> dict[str, tuple[Spread, Spread]]:
    """(Miss rate, dollars) on Big Spike of our plan and of CG-Peak's, each with either one's scaler and without."""
    misses: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    for seed in range(seeds):
        sample, trace = big_spike(np.random.default_rng([seed, *b"ablation"]))
        ours = planned(sample)
        theirs = coarse_plan(ours, sample)
        outcomes = {
            "our plan + our policy": run(ours, trace, tuned(ours, sample)),
            "our plan + paper's Tuner": run(ours, trace, tuned(ours, sample, "inferline")),
            "our plan + AutoScale": run(ours, trace, baseline_scaler(ours, sample)),
            "our plan alone": run(ours, trace, Fixed()),
            "CG-Peak + paper's Tuner": run(theirs, trace, tuned(theirs, sample, "inferline")),
            "CG-Peak alone": run(theirs, trace, Fixed()),
            "CG-Peak + AutoScale": compared(ours, sample, trace, ("cg-peak",)).row("cg-peak").outcome,
        }
        for name, outcome in outcomes.items():
            misses.setdefault(name, []).append(outcome.miss_rate)
            costs.setdefault(name, []).append(outcome.cost)
    return {name: (Spread.of(misses[name]), Spread.of(costs[name])) for name in misses}
