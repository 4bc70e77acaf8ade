"""How fast the Estimator is, and whether it is exact. CPU seconds, medians of several repeats."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from inferline_stream.estimator.evaluation import SLICE_EVENTS, evaluate
from inferline_stream.estimator.kernels import Tokens
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.shared_pool import SharedPool
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.station import Station, station
from inferline_stream.estimator.warmup import compile_kernels
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.benchmarks._comparators import Network, simulate_with_plain_heap, simulate_with_simpy
from tests.benchmarks._figures import Figures
from tests.benchmarks._variation import varying
from tests.support.event_heap import simulate_with_heap
from tests.unit.estimator.random_pipelines import random_pipeline

CELLS = [(replicas, batch, rho) for replicas, batch in ((1, 1), (4, 8), (16, 32), (64, 64)) for rho in (0.7, 0.9)]

# Detect, then classify what has a face, then combine: one conditional edge and one join.
SHAPE = Shape(
    ("prepare", "detect", "classify", "combine"),
    (Arrow(0, 1), Arrow(1, 2, conditional=True), Arrow(1, 3), Arrow(2, 3)),
)
HOP_S = 0.001
PATHS = independent_paths(SHAPE, {("detect", "classify"): 0.4})
# Odd numbers on purpose: no two sums of them coincide, so that rounding decides nothing when simulators are compared.
SERVICE_S = {
    "prepare": (0.0020371, 0.00050913),
    "detect": (0.0060137, 0.0030171),
    "classify": (0.0100519, 0.0040239),
    "combine": (0.0020183, 0.00020107),
}
LIMITS = {"prepare": 8, "detect": 16, "classify": 16, "combine": 8}
REPLICAS_AT_1000 = {"prepare": 1, "detect": 4, "classify": 3, "combine": 1}

Simulator = Callable[[Network, int], np.ndarray]
"""Returns the latencies of a network's first events."""


def measure(quick: bool) -> Figures:
    compile_kernels()
    figures: Figures = {}
    figures.update(kernel_figures(1_000_000, 5 if quick else 9))
    figures.update(pipeline_figures(quick))
    figures.update(distribution_figures(3 if quick else 7))
    figures.update(comparison_figures(50_000 if quick else 200_000))
    figures["mismatches"] = mismatches(150 if quick else 1650)
    return figures


def cpu_s(run: Callable[[], object], repeats: int) -> float:
    """Median CPU time of several runs."""
    found = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def kernel_figures(events: int, repeats: int) -> dict[str, float]:
    """CPU ns per event of one stage, departures in order, for each (replicas, batch limit, utilization).

    In order of entry, and with hopeless events last where the SLO is the P99 in order of entry: about so many events
    are late under a plan.
    """
    shape, profile = Shape(("a",), ()), PipelineProfile({}, Paths((0,), (1.0,)), hop_overhead_s=0.001)
    figures: dict[str, dict[str, float]] = {"kernel": {}, "kernel_order": {}}
    for replicas, limit, rho in CELLS:
        table = np.array([np.nan, *(0.005 + 0.001 * b for b in range(1, limit + 1))])
        rate = rho * replicas * limit / table[limit]
        trace = Trace(np.cumsum(np.random.default_rng(1).exponential(1 / rate, events)))
        workload = prepare(shape, profile, trace)
        serving = Station(np.array([limit]), table, np.zeros(replicas, dtype=np.int64))
        latency_s = evaluate(workload, [serving]).latency_s
        assert latency_s is not None
        slo_s = float(np.quantile(latency_s, 0.99))
        last = replace(serving, order_slo_s=slo_s, rest_s=profile.hop_overhead_s)
        for name, held in (("kernel", serving), ("kernel_order", last)):
            served = functools.partial(serve, workload, held)
            served()
            figures[name][f"{name}_{replicas}_{limit}_{rho}_ns"] = cpu_s(served, repeats) / events * 1e9
    return {f"{name}_ns_max": max(cells.values()) for name, cells in figures.items()} | {
        cell: ns for cells in figures.values() for cell, ns in cells.items()
    }


def serve(workload: Workload, serving: Station) -> None:
    """All events through one stage, slice by slice."""
    server, times_s, events = SharedPool(workload, 0, serving, compiled()), workload.entry_s, len(workload)
    numbers, gone = np.arange(events, dtype=np.int32), 0
    for first in range(0, events, SLICE_EVENTS):
        end = min(first + SLICE_EVENTS, events)
        server.receive(Tokens(times_s[first:end], numbers[first:end]))
        gone += server.advance(float(times_s[end]) if end < events else np.inf).times.size
    assert gone == events


def profile_of(shape: Shape, hop_s: float) -> PipelineProfile:
    profiles = {}
    for name in shape.stages:
        fixed_s, each_s = SERVICE_S[name]
        rows = tuple(ServiceTime(b, fixed_s + each_s * b) for b in (1, 2, 4, 8, 16))
        profiles[name, "gpu"] = Profile(name, "gpu", rows)
    return PipelineProfile(profiles, PATHS, hop_s)


def allocations_at(rate: float) -> dict[str, tuple[Allocation, ...]]:
    return {
        name: (Allocation("gpu", LIMITS[name], max(1, round(count * rate / 1000))),)
        for name, count in REPLICAS_AT_1000.items()
    }


def pipeline_figures(quick: bool) -> dict[str, float | int]:
    """Whole pipelines with their exact P99, everything included but making the trace and compiling."""
    profile = profile_of(SHAPE, HOP_S)
    hour = gamma_trace(1000, 1.0, 3600, np.random.default_rng(2))
    found: list[float] = []
    hour_s = cpu_s(lambda: found.append(simulate(SHAPE, allocations_at(1000), profile, hour).p99_s), 3 if quick else 7)
    groups = [station(profile, name, allocations_at(1300)[name], partitions=24) for name in SHAPE.stages]
    grouped_s = cpu_s(lambda: evaluate(prepare(SHAPE, profile, hour), groups), 3)
    hours = 4 if quick else 24
    day = gamma_trace(500, 1.0, hours * 3600, np.random.default_rng(3))
    gc.collect()
    forget_peak_memory()
    day_s = cpu_s(lambda: found.append(simulate(SHAPE, allocations_at(500), profile, day).p99_s), 1 if quick else 3)
    memory_gb = peak_memory_gb()
    assert np.isfinite(found).all()
    return {
        "hour_pipeline_s": hour_s,
        "hour_groups_s": grouped_s,
        "day_pipeline_s": day_s * 24 / hours,
        "day_hours_measured": hours,
        "day_memory_gb": memory_gb,
    }


def distribution_figures(repeats: int) -> dict[str, float]:
    """The hour with drawn service times, draws included, over the same hour with means.

    Events of two classes, 1 : 5, and a lognormal factor of CV² 0.5 for each batch, at every stage.
    """
    steady = profile_of(SHAPE, HOP_S)
    drawn = varying(steady)
    hour = gamma_trace(1000, 1.0, 3600, np.random.default_rng(2))
    plan = allocations_at(1000)
    seconds: dict[bool, list[float]] = {False: [], True: []}

    def p99_s(profile: PipelineProfile) -> float:
        return simulate(SHAPE, plan, profile, hour).p99_s

    for _ in range(repeats):
        for draws, profile in ((False, steady), (True, drawn)):
            seconds[draws].append(cpu_s(functools.partial(p99_s, profile), 1))
    means_s, drawn_s = statistics.median(seconds[False]), statistics.median(seconds[True])
    return {"distribution_cost_ratio": drawn_s / means_s, "hour_means_s": means_s, "hour_drawn_s": drawn_s}


def forget_peak_memory() -> None:
    """Let the peak be counted from here on: making the trace took more than simulating it does."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """Largest resident set of this process, the trace included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def comparison_figures(events: int) -> dict[str, float]:
    """CPU ns per visit of an event to a stage: SimPy and the heap on a prefix of the trace, the Estimator on all of it.

    On the prefix all three have to find the same latencies.
    """
    profile = profile_of(SHAPE, HOP_S)
    whole = gamma_trace(1000, 1.0, 1200, np.random.default_rng(4))
    prefix = Trace(whole.arrivals_s[:events].copy())
    workload = prepare(SHAPE, profile, whole)
    stations = [station(profile, name, allocations_at(1000)[name]) for name in SHAPE.stages]
    first = evaluate(prepare(SHAPE, profile, prefix), stations)
    network = Network.of(prepare(SHAPE, profile, prefix), stations)
    visits = evaluate(workload, stations, latencies=False).simulated_events

    def by_estimator() -> float:
        return cpu_s(lambda: evaluate(workload, stations), 5) / visits * 1e9

    def keep(latencies: list[np.ndarray], simulator: Simulator) -> None:
        latencies.append(simulator(network, events))

    ns = {"estimator": [by_estimator()]}
    for name, simulator in (("heap", simulate_with_plain_heap), ("simpy", simulate_with_simpy)):
        latencies: list[np.ndarray] = []
        seconds = cpu_s(functools.partial(keep, latencies, simulator), 1)
        ns[name] = [seconds / first.simulated_events * 1e9]
        ns["estimator"].append(by_estimator())
        assert first.latency_s is not None
        differing = float((np.abs(latencies[0] - first.latency_s) > 1e-9).mean())
        assert differing < 0.001, f"{name}: {differing:.2%} of the latencies differ"
    medians = {name: statistics.median(found) for name, found in ns.items()}
    return {
        "simpy_ratio": medians["simpy"] / medians["estimator"],
        "heap_ratio": medians["heap"] / medians["estimator"],
        **{f"{name}_ns": found for name, found in medians.items()},
    }


def mismatches(pipelines: int) -> int:
    """Random pipelines whose latencies differ in any bit from the event heap's: two in three have many results."""
    count = 0
    for seed in range(50_000, 50_000 + pipelines):
        many = seed % 3 > 0
        pipeline = random_pipeline(seed, many=many, events=30 if many else 120)
        found = evaluate(pipeline.workload, pipeline.stations, slice_events=16).latency_s
        expected = simulate_with_heap(pipeline.workload, pipeline.stations).latency_s
        count += found is None or not np.array_equal(found, expected, equal_nan=True)
    return count
