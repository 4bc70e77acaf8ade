"""What each deviation of the default policy from the paper's Tuner is worth: each switched off alone.

On the reference pipeline, as `replay`: the mean over seeds of the worst bin of 15 s on ramps and rising bursts, when
every event comes to need NMT, and when ResNet-152 slows down; misses and dollars per hour on Big Spike, and on a
night of the World Cup, whose traffic leaps nowhere.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.estimator.workload import Recorded, Workload, prepare
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.replay.loop import Slowdown, replay
from inferline_stream.replay.outcome import Outcome
from inferline_stream.replay.scalers import Tuner
from inferline_stream.tuner.policy import POLICIES, initial_state
from inferline_stream.tuner.policy_settings import PolicySettings
from inferline_stream.tuner.staffing_table import Staffing, staffing
from tests.benchmarks._figures import Figures
from tests.benchmarks._reference import CATALOGUE, SHAPE, SLO_S, profile
from tests.benchmarks._workloads import BASE_RATE, big_spike, burst, ramp, world_cup
from tests.benchmarks.replay import MEASURED, PRICES, planned, steady

OFF = MappingProxyType(
    {
        "default": PolicySettings(),
        "burst_slack": PolicySettings(burst_slack_share=0.0),
        "staffing_table": PolicySettings(),
        "shifts": PolicySettings(shift=float("inf")),
        "backlog": PolicySettings(drain_s=float("inf")),
        "odds": PolicySettings(),
        "insurance": PolicySettings(insurance=()),
        "beginning": PolicySettings(beginning_s=0.0),
        "patience": PolicySettings(down_after_s=0.0),
        "fallen": PolicySettings(fallen_wait_s=PolicySettings().down_after_s),
        "inferline": PolicySettings(),
    }
)
"""What is switched off → how (``staffing_table``: no table is given; ``odds``: one without a record).

``default`` switches nothing off; ``inferline`` is the paper's Tuner.
"""

SHIFT_S = 60.0
"""When branching or speed shifts."""

NIGHT, NIGHT_MINUTES = "1998-06-30 22:30:00", 20
BIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Case:
    """A trace, the plan of the sample before it, and the table; what happens to the stages meanwhile."""

    trace: Trace
    plan: Plan
    table: Staffing
    slowdowns: tuple[Slowdown, ...] = ()
    workload: Workload | None = None

    def without(self, name: str) -> Outcome:
        """The trace under the default policy less that, or under the paper's."""
        policy = "inferline" if name == "inferline" else "default"
        table = None if name == "staffing_table" else self.table
        if name == "odds":
            table = replace(self.table, record=None)
        state = initial_state(self.plan, MEASURED, CATALOGUE, staffing=table, knobs=OFF[name])
        return replay(
            SHAPE,
            self.plan.allocations,
            MEASURED,
            self.trace,
            Tuner(policy, POLICIES[policy], state, SHAPE, kernel=compiled_kernel()),
            catalogue=CATALOGUE,
            slo_s=SLO_S,
            slots=self.plan.slots,
            slowdowns=self.slowdowns,
            workload=self.workload,
        )


def case(sample: Trace, trace: Trace, plan: Plan | None = None) -> Case:
    plan = plan or planned(sample)
    return Case(trace, plan, staffing(SHAPE, plan, MEASURED, sample, PRICES))


def slower(rng: np.random.Generator) -> Case:
    """The base rate, at which ResNet-152 comes to take half as long again."""
    sample, trace = (gamma_trace(BASE_RATE, 1.0, 300.0, rng) for _ in range(2))
    return replace(case(sample, trace), slowdowns=(Slowdown(SHIFT_S, "resnet152", 1.5),))


def branching(rng: np.random.Generator) -> Case:
    """Three times the base rate, at which one replica has done for NMT, until every event needs it."""
    sample, trace = (gamma_trace(3 * BASE_RATE, 1.0, 300.0, rng) for _ in range(2))
    before, after = (prepare(SHAPE, paths, trace) for paths in (MEASURED, profile(1.0)))
    drawn = (np.array([mask for _, mask in w.ways])[w.masks] for w in (before, after))
    paths = np.where(trace.arrivals_s < SHIFT_S, *drawn)
    workload = prepare(SHAPE, MEASURED, trace, recorded=Recorded(paths))
    return replace(case(sample, trace), workload=workload)


def cases(name: str, seed: int) -> Case:
    rng = np.random.default_rng([seed, *name.encode()])
    if name in ("ramp_30", "burst"):
        sample, plan = steady(seed)
        _, trace = ramp(30.0, rng) if name == "ramp_30" else burst(rng)
        return case(sample, trace, plan)
    if name == "big_spike":
        return case(*big_spike(rng))
    if name == "night":
        night, quarter_s = world_cup(NIGHT, NIGHT_MINUTES, rng), 60.0 * NIGHT_MINUTES / 4
        return case(night.window(0.0, quarter_s), night.window(quarter_s, 4 * quarter_s))
    return slower(rng) if name == "slower" else branching(rng)


def measure(quick: bool) -> Figures:
    """By what is switched off: worst bins, and miss rate and cost where traffic goes on for long."""
    figures: Figures = {}
    for name in ("ramp_30", "burst", "slower", "branching", "big_spike", "night"):
        held = [cases(name, seed) for seed in range(1 if quick else 3)]
        for off in OFF:
            outcomes = [one.without(off) for one in held]
            worst = statistics.mean(outcome.worst_miss_rate(BIN_S) for outcome in outcomes)
            figures[f"{off}_{name}_worst"] = round(worst, 4)
            figures[f"{off}_{name}_cost_per_hour"] = round(statistics.mean(o.cost_per_hour for o in outcomes), 2)
            figures[f"{off}_{name}_miss_rate"] = round(statistics.mean(o.miss_rate for o in outcomes), 5)
    return figures
