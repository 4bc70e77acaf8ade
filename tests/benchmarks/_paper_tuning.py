"""The paper's scaling experiments in replay, on the reference pipeline: each over time, and what each part is worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inferline_stream.baselines.coarse import Coarse, CoarseMemory, peak_rate, unit, units_for
from inferline_stream.baselines.rule_inputs import PipelineSeen
from inferline_stream.observability.plots.canvas import INK, QUIET, drawing, line_styles
from inferline_stream.pipeline.plan import Allocation, Plan, cost_per_hour
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Fixed, Ruled
from tests.benchmarks._reference import CATALOGUE, SHAPE, SLO_S
from tests.benchmarks._workloads import big_spike
from tests.benchmarks.replay import MEASURED, STUDENT, compared, planned, run, tuned

BIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a figure over seeds: mean, and half its 95 % interval."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        half_width = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
        return cls(statistics.mean(values), half_width)


def policies(sample: Trace, trace: Trace) -> dict[str, Outcome]:
    """Our policy, the paper's and none, from the same plan."""
    plan = planned(sample)
    return {
        "default": run(plan, trace, tuned(plan, sample)),
        "inferline": run(plan, trace, tuned(plan, sample, "inferline")),
        "no tuner": run(plan, trace, Fixed()),
    }


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


def draw_experiment(file: Path, title: str, outcomes: Mapping[str, Outcome]) -> None:
    """Arrivals, misses and replicas held over time, a line per policy."""
    first = next(iter(outcomes.values()))
    with drawing(file, [1.6, 2.2, 2.0], title=title, share_x=True) as [[rate], [misses], [replicas]]:
        bin_s = max(1.0, first.duration_s / 300)
        counts = np.bincount((first.entry_s / bin_s).astype(int))
        rate.stairs(counts / bin_s, np.arange(counts.size + 1) * bin_s, color=INK, linewidth=0.9)
        rate.set_ylabel("events per second")
        rate.set_ylim(bottom=0)
        for (name, outcome), look in zip(outcomes.items(), line_styles(), strict=False):
            label = f"{name}: {outcome.miss_rate:.2%}, ${outcome.cost_per_hour:.2f}/h"
            rates = np.nan_to_num(outcome.miss_rates(BIN_S)) * 100
            middles = (np.arange(rates.size) + 0.5) * BIN_S
            misses.plot(middles, rates, label=label, color=look.colour, linestyle=look.dashes)
            times = [0.0, *(step.time_s for step in outcome.steps), outcome.duration_s]
            held = [sum(sum(kinds.values()) for kinds in step.replicas.values()) for step in outcome.steps]
            if held:
                replicas.step(times, [held[0], *held, held[-1]], where="post", color=look.colour, linestyle=look.dashes)
        misses.axhline(1.0, color=QUIET, linewidth=0.8)
        misses.set_yscale("symlog", linthresh=1.0)
        misses.set_ylim(0, 130)
        misses.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        misses.set_ylabel(f"misses per {BIN_S:g} s [%]")
        misses.legend(loc="upper right")
        replicas.set_ylabel("replicas wanted")
        replicas.set_ylim(bottom=0)
        replicas.set_xlabel("time [s]")


def draw_ablation(file: Path, parts: Mapping[str, tuple[Spread, Spread]]) -> None:
    """Misses and cost of each combination, with 95 % intervals."""
    with drawing(file, [2.9], columns=2, title="What plan and Tuner are worth (Big Spike)") as [[misses, costs]]:
        places = np.arange(len(parts))[::-1]
        for axes, which, unit_of, scale in ((misses, 0, "misses [%]", 100.0), (costs, 1, "cost [$]", 1.0)):
            values = [pair[which].mean * scale for pair in parts.values()]
            errors = [pair[which].half_width * scale for pair in parts.values()]
            colours = [look.colour for _, look in zip(parts, line_styles(), strict=False)]
            axes.barh(places, values, xerr=errors, color=colours, height=0.62, error_kw={"linewidth": 1.0})
            for place, value, error in zip(places, values, errors, strict=True):
                axes.annotate(f"{value:.3g}", (value + error, place), xytext=(4, 0), textcoords="offset points",
                              va="center", fontsize=8)  # fmt: skip
            axes.set_xlim(0, max(v + e for v, e in zip(values, errors, strict=True)) * 1.2)
            axes.set_xlabel(unit_of)
            axes.set_yticks(places, list(parts) if which == 0 else [""] * len(parts))
            axes.grid(axis="y", visible=False)
