"""Estimated against measured P99 of plans on Apache Kafka: on emulated hardware, and of real models on real cores.

Each plan runs as in production, with its own controller, replicas and topics; its profiles come from the profiler while
that Kafka runs. Afterwards every event's entry time, key and branch, and how many results it has, are read back from
the source topic, and the plan is estimated on exactly those: the error, |estimated − measured| / measured, is what the
model leaves out. `_p99_spread` is what chance leaves to it: by how much 9 of 10 draws of service times, hops and keys
differ in their P99. Of stages that give many results, `_drawn_p99_error` is the error of the median of estimates that
draw how many, as a plan's prediction does, and `_drawn_p99_below` the share of them below what was measured. A plan is
feasible if its estimate is within its SLO. Latencies are measured from the source record's timestamp to the sink's
append. Where service times vary, by chance or from event to event, `variable_error_max` is the error, and
`variable_by_means_error_max` that of an estimate by means. While others keep the machine busy a plan is measured again,
at most twice, and the quietest time counts.

The examples moderation and ocr run with real models, with the plans that the Planner gives for rates and SLOs, and
count like the others; they are left out with --quick. Pages of ocr come in random order: in turn, as many lines come in
any half minute, and nothing is seen of queues behind long pages. `_slowdown_max` is the most that any stage's batches
took over its profile, and `_live_profile_p99_error` the error with profiles corrected by that, as the periodic planner
does. `_visits_error_max`, and with those profiles `_live_profile_batch_size_error_max` and
`_live_profile_busy_error_max`, compare what each stage had to do, which a busy machine changes little.

README's first command runs ten times besides (not with --quick): `corrections` are its `throughput_fell` decisions.

A run with the default policy under traffic that steps is replayed besides: as many decisions should be the same, at the
same time, and as many events late.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from inferline_stream.controlplane.observe.live_profile import corrected, slowdowns
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.sample_files import read_arrivals
from inferline_stream.errors import InferlineError
from inferline_stream.estimator.evaluation import StageStatistics, evaluate
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import Recorded, prepare
from inferline_stream.isolation.limits import cores_here
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, shape_of, visit_ratios
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import replica_cores
from inferline_stream.runs.archive import read_record
from inferline_stream.runs.report import RunReport
from inferline_stream.testing.kafka import find_apache_kafka
from inferline_stream.tuner.decision import Reason
from tests.benchmarks._figures import Figures
from tests.benchmarks._live import passed, stamped
from tests.benchmarks._machine import QUIET_CORES, quietest
from tests.benchmarks._pipelines import results_of, taken, write
from tests.benchmarks._profiled import MODERATION, OCR, profiled
from tests.benchmarks._replay_fidelity import STEP_S, Pair, pair, stepping
from tests.benchmarks._sources import Fates, Source, source_of
from tests.support.emulated_runs import plan_by_hand, provisioned

WARM_UP_EVENTS = 600


@dataclass(frozen=True, slots=True)
class Case:
    """One plan to try.

    Args:
        pipeline: see `_pipelines`.
        slo: e.g. ``"200ms"``.
        rate: arrivals per second.
        cv: of their gaps.
        stages: (batch limit, replicas) of each.
        hold_s: by stage, of those that hold batches.
        beside: by stage, what it has of another kind than its first.
    """

    pipeline: str
    slo: str
    rate: float
    cv: float
    stages: Mapping[str, tuple[int, int]]
    hold_s: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, tuple[Allocation, ...]] = field(default_factory=dict)


GPU = "emulated-gpu-small"

CASES = {
    "single": Case("single", "150ms", 220.0, 4.0, {"classify": (8, 2)}),
    "chain": Case("chain", "200ms", 220.0, 1.0, {"parse": (4, 1), "classify": (8, 3)}),
    "diamond": Case(
        "diamond", "200ms", 150.0, 1.0, {"parse": (4, 1), "classify": (8, 1), "search": (8, 1), "answer": (8, 1)}
    ),
    "unbatched": Case("single", "80ms", 180.0, 1.0, {"classify": (1, 4)}),
    "busy": Case("single", "200ms", 190.0, 1.0, {"classify": (16, 1)}),
    "conditional": Case(
        "conditional", "250ms", 200.0, 1.0, {"parse": (2, 2), "classify": (16, 2), "translate": (16, 1)}
    ),
    "spread": Case("chain", "150ms", 200.0, 2.0, {"parse": (1, 3), "classify": (8, 4)}),
    "bursty_diamond": Case(
        "diamond", "250ms", 120.0, 4.0, {"parse": (8, 1), "classify": (16, 1), "search": (4, 1), "answer": (4, 1)}
    ),
    "fan_out": Case("fan_out", "400ms", 80.0, 1.0, {"split": (4, 1), "read": (16, 2), "join": (8, 1)}),
    "held": Case("single", "150ms", 220.0, 1.0, {"classify": (8, 3)}, hold_s={"classify": 0.03}),
    "held_chain": Case(
        "chain", "250ms", 220.0, 2.0, {"parse": (4, 2), "classify": (8, 4)}, hold_s={"parse": 0.01, "classify": 0.04}
    ),
    "mixed": Case("mixed", "200ms", 320.0, 2.0, {"classify": (4, 3)}, beside={"classify": (Allocation(GPU, 16, 1),)}),
    "mixed_held": Case(
        "mixed",
        "250ms",
        380.0,
        1.0,
        {"classify": (8, 2)},
        hold_s={"classify": 0.02},
        beside={"classify": (Allocation(GPU, 16, 1),)},
    ),
}
QUICK = ("held", "mixed", "diamond")

REAL = {
    "moderation": (MODERATION, 1.0, 0.5),
    "moderation_slow": (MODERATION, 0.6, 0.5),
    "moderation_tight": (MODERATION, 0.8, 0.35),
    "moderation_loose": (MODERATION, 1.2, 0.8),
    "ocr": (OCR, 1.0, 3.0),
}
"""An example, seconds of its sample per second, and SLO in seconds."""

REAL_S = 180.0
"""Of the busiest stretch of a sample. Half of it leaves a P99 to some 15 events, which moves it by a tenth."""

DRAWS = 5
"""Service times, hops and keys are drawn so often for one estimate; a plan's own, of an hour, needs one."""

P99_DRAWS = 40
"""Of a P99 alone, to see how far draws differ in it."""

FIRST_COMMANDS = 10
FIRST_COMMAND_S = 90

VARIABLE = {
    "lognormal": Case("lognormal", "300ms", 150.0, 1.0, {"classify": (8, 2)}),
    "classes": Case("classes", "300ms", 130.0, 1.0, {"classify": (8, 2)}),
    "declared": Case("declared", "300ms", 130.0, 1.0, {"parse": (4, 1), "classify": (8, 2)}),
}
QUICK_VARIABLE = ("lognormal", "classes")


@dataclass(frozen=True, slots=True)
class Loads:
    """By how much the estimate is off, of the stage where it is off most: what a busy machine changes least.

    Args:
        visits: to a stage per event.
        batches: their mean size, with profiles corrected by what the replicas measured.
        busy: replica-seconds in all of them, with those profiles.
    """

    visits: float
    batches: float
    busy: float


@dataclass(frozen=True, slots=True)
class Found:
    """Seconds, over the events that reached the sink; cores that others took meanwhile.

    `by_means_s` is estimated as if every batch took the mean of its size, `live_profile_s` with profiles corrected by
    what the replicas measured, `slowdown_max` over those. `p99s_s` are those of `P99_DRAWS` estimates, `drawn_p99s_s`
    of estimates that draw how many results there are, too.
    """

    estimated_s: np.ndarray
    measured_s: np.ndarray
    plan: Plan
    elsewhere_cores: float
    by_means_s: np.ndarray
    live_profile_s: np.ndarray
    slowdown_max: float
    apart: Loads
    lost: int
    p99s_s: np.ndarray
    drawn_p99s_s: np.ndarray

    @property
    def p99_s(self) -> tuple[float, float]:
        """Estimated and measured."""
        return quantile_s(self.estimated_s, 0.99), quantile_s(self.measured_s, 0.99)

    @property
    def error(self) -> float:
        estimated_s, measured_s = self.p99_s
        return estimated_s / measured_s - 1

    @property
    def median_error(self) -> float:
        """The same of the median."""
        return quantile_s(self.estimated_s, 0.5) / quantile_s(self.measured_s, 0.5) - 1

    @property
    def spread(self) -> float:
        """By how much draws differ in their P99, the highest and the lowest twentieth left out."""
        low_s, middle_s, high_s = np.quantile(self.p99s_s, (0.05, 0.5, 0.95)).tolist()
        return float((high_s - low_s) / middle_s)

    @property
    def by_means_error(self) -> float:
        """The same with means in place of distributions."""
        return quantile_s(self.by_means_s, 0.99) / self.p99_s[1] - 1

    @property
    def live_profile_error(self) -> float:
        """The same with corrected profiles."""
        return quantile_s(self.live_profile_s, 0.99) / self.p99_s[1] - 1


def measure(quick: bool) -> Figures:
    with find_apache_kafka() as kafka, tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_measure(kafka.bootstrap_servers, Path(folder), quick))


async def _measure(bootstrap_servers: str, folder: Path, quick: bool) -> Figures:
    await warmed_up(bootstrap_servers, folder)
    found = {
        name: await tried(CASES[name], name, bootstrap_servers, folder, quick) for name in (QUICK if quick else CASES)
    }
    variable = {
        name: await tried(VARIABLE[name], name, bootstrap_servers, folder, quick)
        for name in (QUICK_VARIABLE if quick else VARIABLE)
    }
    again = await _replayed(bootstrap_servers, folder, 1 if quick else 3)
    if not quick:
        found |= await real(bootstrap_servers, folder, REAL)
    errors = [abs(plan.error) for plan in found.values()]
    figures: Figures = {
        "p99_error_max": max(errors),
        "p99_error_median": statistics.median(errors),
        "variable_error_max": max(abs(plan.error) for plan in variable.values()),
        "variable_by_means_error_max": max(abs(plan.by_means_error) for plan in variable.values()),
        "infeasible_in_practice": sum(p.p99_s[0] <= p.plan.slo_s < p.p99_s[1] for p in (found | variable).values()),
        "plans": len(found),
        "plans_of_real_models": sum(name in REAL for name in found),
        "plans_called_feasible": sum(p.p99_s[0] <= p.plan.slo_s for p in found.values()),
        "plans_disturbed": sum(p.elsewhere_cores > QUIET_CORES for p in found.values()),
    }
    first = dict.fromkeys(("corrections",)) if quick else first_commands(folder, FIRST_COMMANDS, FIRST_COMMAND_S)
    return figures | of_plans(found | variable) | again | first


def of_plans(plans: Mapping[str, Found]) -> Figures:
    """Figures of each plan by its name."""
    figures: Figures = {}
    for name, plan in plans.items():
        estimated_s, measured_s = plan.p99_s
        figures |= {
            f"{name}_p99_error": round(plan.error, 3),
            f"{name}_p50_error": round(plan.median_error, 3),
            f"{name}_estimated_ms": round(estimated_s * 1e3, 1),
            f"{name}_measured_ms": round(measured_s * 1e3, 1),
            f"{name}_slo_ms": round(plan.plan.slo_s * 1e3),
            f"{name}_utilization": round(max(plan.plan.utilization.values()), 2),
            f"{name}_events": int(np.count_nonzero(~np.isnan(plan.measured_s))),
            f"{name}_elsewhere_cores": round(plan.elsewhere_cores, 2),
            f"{name}_by_means_p99_error": round(plan.by_means_error, 3),
            f"{name}_live_profile_p99_error": round(plan.live_profile_error, 3),
            f"{name}_slowdown_max": round(plan.slowdown_max, 2),
            f"{name}_visits_error_max": round(plan.apart.visits, 3),
            f"{name}_live_profile_batch_size_error_max": round(plan.apart.batches, 3),
            f"{name}_live_profile_busy_error_max": round(plan.apart.busy, 3),
            f"{name}_p99_spread": round(plan.spread, 3),
            f"{name}_lost": plan.lost,
        }
        if plan.drawn_p99s_s.size:
            figures |= {
                f"{name}_drawn_p99_error": round(float(np.median(plan.drawn_p99s_s)) / measured_s - 1, 3),
                f"{name}_drawn_p99_below": round(float((plan.drawn_p99s_s < measured_s).mean()), 3),
            }
    return figures


def first_commands(folder: Path, runs: int, seconds: float) -> Figures:
    """README's first command, each time as on a machine that has not seen it."""
    errors, costs, misses, corrections = [], [], [], 0
    for k in range(runs):
        home = folder / f"first{k}"
        shutil.copytree(MODERATION.parent, home, ignore=shutil.ignore_patterns(".inferline"))
        options = ("--duration", f"{seconds:g}s", "--no-ui", "--metrics-port", "0", "--output", "json")
        app = (sys.executable, "-c", "from inferline_stream.cli.main import app; app()")
        command = [*app, "run", str(home / MODERATION.name), *options]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:  # e.g. a plan that does not fit on a busy machine
            sys.stderr.write(f"first command {k}: {done.stderr.decode(errors='replace')[-500:]}\n")
            continue
        report = msgspec.json.decode(done.stdout, type=RunReport)
        record = read_record(next((home / ".inferline" / "runs" / report.pipeline).iterdir()))
        plan = record.plans[0].plan
        corrections += sum(line.reason == Reason.THROUGHPUT_FELL for line in report.decisions)
        errors.append(abs(plan.predicted_p99_s / (report.p99_s or math.nan) - 1))
        costs.append(report.cost * 3600 / report.duration_s / plan.cost_per_hour)
        misses.append(report.slo_miss_rate or 0.0)
        shown = f"P99 error {errors[-1]:.2f}, cost {costs[-1]:.2f}, {misses[-1]:.2%} late"
        sys.stderr.write(f"first command {k}: {shown}\n")
    return {
        "corrections": corrections if errors else None,
        "first_commands_failed": runs - len(errors),
        "first_command_p99_error_max": round(max(errors), 3) if errors else None,
        "first_command_cost_ratio_max": round(max(costs), 3) if costs else None,
        "first_command_miss_rate_max": round(max(misses), 4) if misses else None,
    }


async def _replayed(bootstrap_servers: str, folder: Path, runs: int) -> Figures:
    """Runs with the default policy beside their replays: each the quietest of a few."""

    async def run(k: int, attempt: int) -> Pair:
        name = f"scaled{k}{attempt}"
        return await pair(bootstrap_servers, folder, name, stepping(name))

    pairs = [await quietest(partial(run, k)) for k in range(runs)]
    apart = [s for p in pairs for s in p.apart_s]
    return {
        "replay_decisions": sum(len(p.live) for p in pairs),
        "replay_decisions_different": sum(p.different for p in pairs),
        "replay_decisions_within_a_step": sum(s <= STEP_S for s in apart),
        "replay_decisions_apart_ms_median": round(statistics.median(apart) * 1e3) if apart else None,
        "replay_decisions_apart_ms_max": round(max(apart) * 1e3) if apart else None,
        "replay_miss_rate_apart_max": round(max(abs(p.live_miss_rate - p.replayed_miss_rate) for p in pairs), 4),
        "replay_elsewhere_cores_max": round(max(p.elsewhere_cores for p in pairs), 2),
    }


async def warmed_up(bootstrap_servers: str, folder: Path) -> None:
    """A broker's first minute is spent on compiling itself: what runs then is not measured."""
    await _once(CASES["chain"], "warm-up", bootstrap_servers, folder, WARM_UP_EVENTS)


async def tried(case: Case, name: str, bootstrap_servers: str, folder: Path, quick: bool) -> Found:
    """The quietest of a few measurements, the first that is quiet enough."""
    events = 2_600 if quick else 5_000
    return await quietest(lambda attempt: _once(case, f"{name}{attempt}", bootstrap_servers, folder, events))


async def _once(case: Case, name: str, bootstrap_servers: str, folder: Path, events: int) -> Found:
    """A plan by hand for emulated hardware."""
    found = await profiled(bootstrap_servers, write(case.pipeline, folder, case.slo, name), sample_s=0.5)
    measured = found.measured
    rng = np.random.default_rng([17, *name.encode()])
    trace = gamma_trace(case.rate, case.cv, 1.2 * events / case.rate, rng)
    trace = Trace(trace.arrivals_s[:events])
    replicas = {stage: count for stage, (_, count) in case.stages.items()}
    limits = {stage: limit for stage, (limit, _) in case.stages.items()}
    plan = plan_by_hand(found.pipeline, measured, trace, replicas, max_batch_sizes=limits)
    allocations = {
        stage: tuple(replace(a, hold_s=case.hold_s.get(stage, 0.0)) for a in (*held, *case.beside.get(stage, ())))
        for stage, held in plan.allocations.items()
    }
    served = {
        stage: sum(a.replicas * measured.profiles[stage, a.hardware].throughput(a.max_batch_size) for a in held)
        for stage, held in allocations.items()
    }
    utilization = {stage: plan.arrival_rate * plan.visit_ratios[stage] / rate for stage, rate in served.items()}
    plan = replace(plan, allocations=allocations, utilization=utilization)
    run = found.run(plan, trace, folder / name, "key")
    return await compared(run, Fates(lambda event: taken(event["n"]), lambda event: results_of(event["key"])))


async def real(
    bootstrap_servers: str, folder: Path, plans: Mapping[str, tuple[Path, float, float]], seconds: float = REAL_S
) -> dict[str, Found]:
    """Examples as a user has them: profiled, planned for their own samples, then fed with so many seconds of those."""
    from py3langid import classify

    examples = {}
    for topology in dict.fromkeys(topology for topology, _, _ in plans.values()):
        home = folder / topology.parent.name
        home.mkdir()
        examples[topology] = await profiled(bootstrap_servers, topology, home)
    found: dict[str, Found] = {}
    for name, (topology, speed_up, slo_s) in plans.items():
        example, home = examples[topology], folder / topology.parent.name
        pipeline, whole = example.pipeline, read_arrivals(topology.parent / example.sample.arrivals)
        is_text = topology == MODERATION
        posts = Fates(lambda event: {"toxicity": classify(event["text"])[0] == "en"})
        fates = posts if is_text else _fates_of_pages()
        trace = busiest_stretch(whole.sped_up(speed_up), seconds)
        cores = replica_cores(cores_here(), shape_of(pipeline), example.measured, trace.arrival_rate)
        try:
            limits = {stage.name: stage.max_batch_size for stage in pipeline.stages}
            plan = provisioned(pipeline, example.measured, trace, target_s=slo_s, max_batch_sizes=limits, cores=cores)
            (own := home / "runs" / name).mkdir(parents=True)
            if not is_text:
                example = replace(example, events=_shuffled(example.events, len(trace), own))
            run = example.run(plan, trace, own, "text" if is_text else None, cores=cores)
            found[name] = await compared(run, fates)
        except InferlineError as error:  # real models on a slow machine are no reason to lose the rest
            sys.stderr.write(f"{name}: {error}\n")
    return found


def _fates_of_pages() -> Fates:
    rows = map(msgspec.json.decode, (OCR.parent / "known.jsonl").read_bytes().splitlines())
    lines = {row["page"]: len(row["lines"]) for row in rows}
    return Fates(results=lambda page: {"find": lines[page["name"]]})


def _shuffled(events: Path, count: int, folder: Path) -> Path:
    """Write so many events, each drawn from a file whatever the others are."""
    lines = events.read_bytes().splitlines(keepends=True)
    (shuffled := folder / events.name).write_bytes(
        b"".join(lines[at] for at in np.random.default_rng(17).integers(len(lines), size=count))
    )
    return shuffled


def busiest_stretch(trace: Trace, seconds: float) -> Trace:
    """So many seconds of a trace, where most events come."""
    times_s = trace.arrivals_s
    ends = times_s.searchsorted(times_s + seconds, side="right")
    first = int((ends - np.arange(times_s.size)).argmax())
    return Trace(times_s[first : ends[first]] - times_s[first])


async def compared(run: Run, fates: Fates) -> Found:
    """Run a plan to the end of its traffic, then estimate it on what was in the source topic.

    Args:
        run: of the plan.
        fates: of the events.
    """
    shape = shape_of(run.pipeline)
    async with stamped(run) as (under_way, elsewhere):
        await under_way.fed(asyncio.Event())
        others = elsewhere.cores()
        lag = await under_way.drain()
        sent = await passed(under_way)
        source = await source_of(run.bootstrap_servers, under_way.context.source, shape, fates)
        seen = under_way.controller.view.reports.totals()
        lost = (await under_way.report(lag)).lost
    estimated_s = estimate(shape, run.plan, run.measured, source)
    by_means_s = estimate(shape, run.plan, run.measured.steady(), source)
    live_profile = corrected(run.measured, shape, seen)
    live_profile_s = estimate(shape, run.plan, live_profile, source)
    _, statistics = evaluated(shape, run.plan, live_profile, source, 0)
    out = {(p, o): at_s for p, o, at_s in zip(sent.partition, sent.offset, sent.latency_s, strict=True)}
    measured_s = np.array([out.get(where, np.nan) for where in source.places])
    drawn = replace(source, recorded=Recorded(source.recorded.paths))
    return Found(
        estimated_s,
        measured_s,
        replace(run.plan, predicted_p99_s=quantile_s(estimated_s, 0.99)),
        others,
        by_means_s,
        live_profile_s,
        max(slowdowns(run.measured, seen, 1).values()),
        loads_apart(shape, visit_ratios(shape, run.measured.paths), statistics, seen, len(source.places)),
        lost,
        _p99s_s(shape, run.plan, run.measured, source),
        _p99s_s(shape, run.plan, run.measured, drawn) if shape.many else np.empty(0),
    )


def estimate(shape: Shape, plan: Plan, measured: PipelineProfile, source: Source) -> np.ndarray:
    """Latency of every event and draw in seconds, float64 (DRAWS · events,)."""
    found = [evaluated(shape, plan, measured, source, seed) for seed in range(DRAWS)]
    return np.concatenate([latency_s for latency_s, _ in found])


def _p99s_s(shape: Shape, plan: Plan, measured: PipelineProfile, source: Source) -> np.ndarray:
    """P99 of each of `P99_DRAWS` draws in seconds, float64."""
    found = (evaluated(shape, plan, measured, source, seed)[0] for seed in range(P99_DRAWS))
    return np.array([quantile_s(latency_s, 0.99) for latency_s in found])


def evaluated(
    shape: Shape, plan: Plan, measured: PipelineProfile, source: Source, seed: int
) -> tuple[np.ndarray, Mapping[int, StageStatistics]]:
    """Latencies of one draw in seconds, and how its stages fared."""
    trace = Trace(source.entry_s - source.entry_s[0])
    stations = [station(measured, name, plan.allocations[name], order_slo_s=plan.slo_s) for name in shape.stages]
    workload = prepare(shape, measured, trace, seed=seed, recorded=source.recorded)
    evaluation = evaluate(workload, stations)
    assert evaluation.latency_s is not None
    return evaluation.latency_s[workload.last], evaluation.statistics


def loads_apart(
    shape: Shape,
    ratios: Mapping[str, float],
    statistics: Mapping[int, StageStatistics],
    seen: Mapping[str, StageCounts],
    events: int,
) -> Loads:
    """Compare what stages had to do with what was expected.

    Args:
        shape: the pipeline's.
        ratios: visits to each stage per event, as profiled.
        statistics: of a simulation with profiles as the replicas measured them.
        seen: what was counted.
        events: that entered.
    """
    visits, batches, busy = [0.0], [0.0], [0.0]
    for s, name in enumerate(shape.stages):
        counts, found = seen[name], statistics[s]
        if not counts.served or not found.arrivals:
            continue
        visits.append(ratios[name] * events / counts.served - 1)
        batches.append(found.mean_batch_size / (counts.served / counts.batches) - 1)
        busy.append(found.busy_s / found.arrivals / (counts.service_s / counts.served) - 1)
    return Loads(*(max(errors, key=abs) for errors in (visits, batches, busy)))
