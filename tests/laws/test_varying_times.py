"""The P99 of emulated times that vary: profiled, estimated, and compared with a queue that knows nothing of either.

What runs here is the emulation itself, batch after batch, in virtual time.
"""

from __future__ import annotations

import heapq
from random import Random

import numpy as np
import pytest

from inferline_stream.dataplane.replica.emulated_hardware import emulated_service_s
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.emulation import Emulated
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.profiler.bench_messages import Measure
from inferline_stream.profiler.service_times import measure_emulated

TABLE_S = {1: 0.012, 2: 0.016, 4: 0.024, 8: 0.040}
WEIGHTS = [5.0 if i % 5 == 0 else 1.0 for i in range(400)]
INPUTS = [b"%d" % i for i in range(len(WEIGHTS))]


class Bench:
    """A replica that sleeps as declared, and knows what events weigh, or what they cost."""

    def __init__(self, *, weighs: bool, costs: bool) -> None:
        self.says = {True: weighs, False: costs}

    async def time(self, inputs: object, order: Measure) -> list[float]:
        return [TABLE_S[order.batch_size]] * 10

    async def weigh(self, inputs: object, *, emulated: bool = False) -> list[float] | None:
        return WEIGHTS if self.says[emulated] else None


def queued_s(arrivals_s: np.ndarray, weights: np.ndarray, varies: Emulated, limit: int, replicas: int) -> np.ndarray:
    """Latencies of one queue, first come, first served."""
    random, free = Random(4), [0.0] * replicas
    latency_s, first = np.empty(arrivals_s.size), 0
    while first < arrivals_s.size:
        start_s = max(heapq.heappop(free), float(arrivals_s[first]))
        waiting = int(np.searchsorted(arrivals_s, start_s, side="right")) - first
        end = first + min(limit, waiting)
        service_s = emulated_service_s(TABLE_S, end - first) * float(weights[first:end].mean())
        done_s = start_s + service_s * varies.factor(random)
        latency_s[first:end] = done_s - arrivals_s[first:end]
        heapq.heappush(free, done_s)
        first = end
    return latency_s


@pytest.mark.parametrize(("kind", "rate"), [("chance", 150.0), ("classes", 110.0), ("costs", 110.0)])
async def test_the_p99_of_times_that_vary_is_predicted_and_means_are_far_off(kind: str, rate: float) -> None:
    by_event = kind != "chance"
    varies = Emulated(TABLE_S, weight=float) if by_event else Emulated(TABLE_S, cv=0.5)
    bench = Bench(weighs=by_event, costs=kind == "costs")
    times, variation, _ = await measure_emulated(bench, INPUTS, 8, TABLE_S, varies=varies)
    measured = PipelineProfile({("a", "x"): Profile("a", "x", times, variation=variation)}, Paths((0,), (1.0,)))
    trace = gamma_trace(rate, 1.0, 400.0, np.random.default_rng(2))
    weights = np.random.default_rng(3).choice(WEIGHTS, len(trace)) if by_event else np.ones(len(trace))
    true_s = np.quantile(queued_s(trace.arrivals_s, weights, varies, 8, 2), 0.99)
    plan = {"a": (Allocation("x", 8, 2),)}
    found_s = simulate(Shape(("a",), ()), plan, measured, trace).p99_s
    by_means_s = simulate(Shape(("a",), ()), plan, measured.steady(), trace).p99_s
    assert found_s == pytest.approx(true_s, rel=0.1)
    assert by_means_s < 0.75 * true_s
