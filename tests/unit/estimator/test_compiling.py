from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.warmup import compile_kernels
from tests.unit.estimator.random_pipelines import random_pipeline


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_estimator_does_not_import_numba() -> None:
    code = """
import sys
import inferline_stream.estimator.simulation, inferline_stream.estimator.warmup
print("numba" in sys.modules)
"""
    assert run(code) == "False"


def test_progress_is_reported_up_to_the_last_step() -> None:
    reported: list[tuple[int, int]] = []
    compile_kernels(lambda done, steps: reported.append((done, steps)))
    assert [done for done, _ in reported] == list(range(len(reported)))
    assert reported[-1][0] == reported[-1][1]


def test_after_compiling_nothing_is_compiled_any_more() -> None:
    """Every kind of argument that a simulation passes was met before."""
    code = """
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.warmup import compile_kernels
from tests.unit.estimator.random_pipelines import random_pipeline
from inferline_stream.estimator.evaluation import arrivals_at, evaluate, simulate_stage, count_late, latencies_s
compile_kernels()
before = {name: len(kernel.signatures) for name, kernel in vars(compiled()).items()}
for seed in range(30):
    p = random_pipeline(seed, many=seed % 3 == 0)
    stages = range(len(p.stations))
    e = evaluate(p.workload, p.stations, slo_s=0.1, allowed=10**9, keep=stages, slice_events=9)
    for s in stages:
        arrivals = arrivals_at(p.workload, s, e.departures)
        simulate_stage(p.workload, s, arrivals, p.stations[s], late_s=1.0, allowed=10**9)
    count_late(p.workload, e.departures[0], 1.0)
    latencies_s(p.workload, e.departures)
    evaluate(p.workload, p.stations, kept={0: e.departures[0]})
print({n: (before[n], len(k.signatures)) for n, k in vars(compiled()).items() if len(k.signatures) != before[n]})
"""
    assert run(code) == "{}"


def test_simulations_in_several_threads_do_not_disturb_each_other() -> None:
    pipelines = [random_pipeline(seed, events=2000) for seed in range(300, 308)]
    alone = [evaluate(p.workload, p.stations).latency_s for p in pipelines]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: evaluate(p.workload, p.stations).latency_s, pipelines))
    for a, b in zip(alone, together, strict=True):
        assert a is not None
        assert b is not None
        assert np.array_equal(a, b, equal_nan=True)
