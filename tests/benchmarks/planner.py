"""The Planner: speed on an hour of traffic, savings over the paper's algorithm, and distance from the optimum.

Times of plans are wall seconds on all cores, with the CPU's beside them, for lognormal service times (`_variation`) and
for their means; all else is planned by means. Kernels are loaded before. Every plan is verified on its whole trace by
the search itself.
Savings are those of the default with its margin, over the paper's plan, which has none. `_same_margin` figures give
the paper's algorithm the same margin; on instances of up to `PROOF_STAGES` stages the default is also asked for a
plan without one: `gap_to_optimum_mean` is what that costs above the cheapest plan there is (0 where holds or mixed
kinds make it cheaper). `dearer_than_greedy_long` counts, of instances of up to four stages, those on traces of
`LONG_WORK` times the work up to which the search begins with the paper's own plan. `saving_possible_mean` is what the
plan of the exact search without a margin saves over the paper's, on the instances where it is proven in time
(`PROOF_S`) that no plan of one kind per stage and without holds is cheaper; `saving_found_mean` is what the default
saves on the same. `bound_over_pooled` is, on instances of up to four stages, the cost of the default plan where each
replica has a queue of its own (`BOUND_PARTITIONS` partitions a stage, as in an ordinary consumer group) over its cost
on one queue. `held_out` figures justify the margin:
the share of other traces of the same traffic on which a plan keeps its SLO, and the most that it is passed by.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from inferline_stream.errors import Infeasible
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.warmup import compile_kernels
from inferline_stream.pipeline.hardware import Catalogue
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.planner.evaluator import Spread, Stopped
from inferline_stream.planner.problem import COST_EPSILON, Problem, cost_of
from inferline_stream.planner.provision import MARGIN, PAPER_WORK, Algorithm, SearchSettings, provision, search
from tests.benchmarks._figures import Figures
from tests.benchmarks._variation import varying
from tests.benchmarks.instances.published import SHAPES as PUBLISHED
from tests.benchmarks.instances.published import Instance, prices, published
from tests.unit.planner.problems import random_problem

KINDS = ("t4", "a30", "a100")
MODELS = ("bert-dist6l-ort", "tft-pytorch", "bert-dist4l-pytorch", "bert-large-trt", "bert-dist6l-pytorch", "tft-trt")
EIGHT = PUBLISHED["deep8"]
SHAPES = {
    4: PUBLISHED["fork"],
    8: EIGHT,
    16: (*EIGHT, (7, 8, 1.0), *((a + 8, b + 8, p) for a, b, p in EIGHT)),
}


def measure(quick: bool) -> Figures:
    """All figures of this module, by name."""
    compile_kernels()
    figures: Figures = {}
    for stages in (4,) if quick else (4, 8, 16):
        figures |= _times(stages, duration_s=600 if quick else 3600)
    every = published()
    short = [i for i in every if len(i.models) <= 4]
    figures |= _savings(short[:12] if quick else every, PROOF_S["quick" if quick else "full"])
    figures |= _bound_over_pooled(short[:2] if quick else short)
    figures |= _dearer_where_long([i for i in short if not quick or i.name == TIGHT])
    figures |= _optimality(range(10 if quick else 40))
    return figures


def timed(stages: int, duration_s: float) -> Instance:
    """The instance of a speed figure: 500 events per second, CV 4, three kinds, batches to 64."""
    models = tuple(MODELS[i % len(MODELS)] for i in range(stages))
    draft = Instance(f"timed-{stages}", models, SHAPES[stages], 1.0, 500.0, 4.0, duration_s, stages)
    fastest = [
        min(p.service_time_s(1) for (s, _), p in draft.measured.profiles.items() if s == n) for n in draft.stages
    ]
    return dataclasses.replace(draft, slo_s=round(4 * draft.shape.longest_path_s(fastest), 4))


def _times(stages: int, duration_s: float) -> Figures:
    instance = timed(stages, duration_s)
    found: Figures = {}
    kinds = {k: v for k, v in prices().items() if k in KINDS}
    drawn = varying(instance.measured, classes=False)
    suffixes: dict[Algorithm, str] = {"default": "", "inferline": "_inferline"}
    for algorithm, suffix in suffixes.items():
        for measured, by in ((drawn, ""), (None, "_means")):
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            plan = _plan(instance, algorithm, catalogue=kinds, measured=measured)
            found[f"time_{stages}{suffix}{by}_s"] = round(time.perf_counter() - start_s, 2)
            found[f"cpu_{stages}{suffix}{by}_s"] = round(time.process_time() - start_cpu_s, 2)
            found[f"cost_{stages}{suffix}{by}"] = None if plan is None else round(plan.cost_per_hour, 3)
    return found


def _plan(
    instance: Instance,
    algorithm: Algorithm,
    *,
    catalogue: Catalogue | None = None,
    margin: float | None = None,
    partitions: int | None = None,
    measured: PipelineProfile | None = None,
) -> Plan | None:
    cores = len(os.sched_getaffinity(0))
    try:
        with ThreadPoolExecutor(cores) as pool:
            return provision(
                Problem(
                    instance.shape,
                    measured or instance.measured,
                    (instance.trace(),),
                    instance.slo_s,
                    catalogue or prices(),
                    partitions=dict.fromkeys(instance.stages, partitions) if partitions else {},
                ),
                SearchSettings(algorithm=algorithm, margin=margin, spread=Spread(pool.map, cores)),
            )
    except Infeasible:
        return None


SEARCHES: dict[str, tuple[Algorithm, float | None]] = {
    "inferline": ("inferline", None),
    "inferline_margin": ("inferline", MARGIN),
    "default": ("default", None),
    "no_margin": ("default", 0.0),
}
"""Algorithm and margin of each plan that is compared."""

LONG_WORK = 1.5
TIGHT = "fork-39"
"""One on which a margin costs more than what the paper's greedy wastes."""

PROOF_STAGES = 4
PROOF_S = {"quick": 2.0, "full": 10.0}
"""CPU seconds for the proof of each instance's cheapest plan, of up to `PROOF_STAGES` stages."""


def _savings(instances: list[Instance], proof_s: float) -> Figures:
    cost: dict[str, dict[str, float]] = {name: {} for name in SEARCHES}
    optimum = cost["optimum"] = {}
    ratios: dict[str, list[float]] = {name: [] for name in SEARCHES}
    seconds = dict.fromkeys(SEARCHES, 0.0)
    for instance in instances:
        for name, (algorithm, margin) in SEARCHES.items():
            if name == "no_margin" and len(instance.models) > PROOF_STAGES:
                continue
            start = time.process_time()
            plan = _plan(instance, algorithm, margin=margin)
            seconds[name] += time.process_time() - start
            if plan is not None:
                cost[name][instance.name] = plan.cost_per_hour
                ratios[name] += _held_out(instance, plan)
        if len(instance.models) <= PROOF_STAGES and (least := _optimum(instance, proof_s)) is not None:
            optimum[instance.name] = least
        reported = "  ".join(f"{n} {c[instance.name]:.3f} $/h" for n, c in cost.items() if instance.name in c)
        sys.stderr.write(f"{instance.name:12} {reported or 'infeasible'}\n")
    figures: Figures = {"instances": len(instances)}
    pairs = {
        "": ("default", "inferline"),
        "_same_margin": ("default", "inferline_margin"),
        "_no_margin": ("no_margin", "inferline"),
    }
    for suffix, (ours, papers) in pairs.items():
        known = cost[ours].keys() & cost[papers].keys()
        savings = [1 - cost[ours][i] / cost[papers][i] for i in known]
        figures |= {
            f"instances_feasible{suffix}": len(savings),
            f"dearer_than_greedy{suffix}": sum(s < -1e-9 for s in savings),
            f"saving_mean{suffix}": round(statistics.mean(savings), 4),
            f"saving_worst{suffix}": round(min(savings), 4),
            f"saving_best{suffix}": round(max(savings), 4),
        }
    figures["instances_proven"] = len(optimum)
    if optimum:
        for figure, costs in (("saving_possible_mean", optimum), ("saving_found_mean", cost["default"])):
            figures[figure] = round(statistics.mean(1 - costs[i] / cost["inferline"][i] for i in optimum), 4)
        gaps = [max(0.0, cost["no_margin"][i] / optimum[i] - 1) for i in optimum]
        figures |= {"gap_to_optimum_mean": round(statistics.mean(gaps), 4), "gap_to_optimum_max": round(max(gaps), 4)}
    for name in SEARCHES:
        figures[f"held_out_kept_{name}"] = round(statistics.mean(ratio <= 1 for ratio in ratios[name]), 3)
        figures[f"held_out_p99_over_slo_max_{name}"] = round(max(ratios[name]), 4)
        figures[f"cpu_{name}_s"] = round(seconds[name], 1)
    return figures


def _optimum(instance: Instance, proof_s: float) -> float | None:
    """Cost of the exact search's plan without a margin; None where it is not proven in time."""
    problem = Problem(instance.shape, instance.measured, (instance.trace(),), instance.slo_s, prices())
    end_s = time.process_time() + proof_s
    try:
        found = search(problem, SearchSettings(algorithm="exact", margin=0.0, stop=lambda: time.process_time() > end_s))
    except (Infeasible, Stopped):
        return None
    cost = cost_of(problem, found.candidate)
    return cost if found.lower_bound_per_hour >= cost - COST_EPSILON else None


def _held_out(instance: Instance, plan: Plan) -> list[float]:
    """P99 over SLO on three other traces of the same traffic."""
    return [
        simulate(
            instance.shape,
            plan.allocations,
            instance.measured,
            instance.trace(held_out),
            order_slo_s=instance.slo_s,
        ).p99_s
        / instance.slo_s
        for held_out in (1, 2, 3)
    ]


BOUND_PARTITIONS = 24


def _bound_over_pooled(instances: list[Instance]) -> Figures:
    ratios, bound_infeasible = [], 0
    for instance in instances:
        pooled = _plan(instance, "default")
        bound = _plan(instance, "default", partitions=BOUND_PARTITIONS)
        if pooled is not None and bound is not None:
            ratios.append(bound.cost_per_hour / pooled.cost_per_hour)
        bound_infeasible += pooled is not None and bound is None
    return {
        "bound_over_pooled_mean": round(statistics.mean(ratios), 3),
        "bound_over_pooled_median": round(statistics.median(ratios), 3),
        "bound_over_pooled_max": round(max(ratios), 3),
        "bound_over_pooled_instances": len(ratios),
        "bound_infeasible": bound_infeasible,
    }


def _dearer_where_long(instances: list[Instance]) -> Figures:
    """Instances whose traces are too long for the search to begin with the paper's plan for all of them."""
    dearer = 0
    for instance in instances:
        events = LONG_WORK * PAPER_WORK / len(instance.models)
        longer = dataclasses.replace(instance, duration_s=max(instance.duration_s, events / instance.arrival_rate))
        ours, papers = _plan(longer, "default"), _plan(longer, "inferline")
        dearer += bool(papers and (not ours or ours.cost_per_hour > papers.cost_per_hour + COST_EPSILON))
    return {"dearer_than_greedy_long": dearer, "instances_long": len(instances)}


def _optimality(seeds: range) -> Figures:
    """Random pipelines of up to three stages: the default search against the exact one."""
    gaps = []
    for seed in seeds:
        problem = random_problem(seed, rate=200.0, duration_s=30.0)
        try:
            found = search(problem, SearchSettings(margin=0.0))
        except Infeasible:
            continue
        optimum = search(problem, SearchSettings(algorithm="exact", margin=0.0))
        gaps.append(cost_of(problem, found.candidate) / cost_of(problem, optimum.candidate) - 1)
    return {
        "exact_instances": len(gaps),
        "exact_share": round(sum(gap < 1e-9 for gap in gaps) / len(gaps), 4),
        "exact_gap_max": round(max(gaps), 4),
    }
