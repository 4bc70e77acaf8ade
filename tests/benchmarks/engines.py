"""One control step of a large pipeline in replay, and what the network adds to a batch.

The step: 1,000 replicas over 5 stages, 10⁶ events/s.

A step is everything that a tenth of a second takes: the queues of all stages served up to it, arrivals into the
traffic envelope, the production policy's decision, and what that changes. CPU time: the median over quarters of the
replay of the mean over a quarter's steps; the first half second fills the queues and is left out.

`_transports` measures a batch's round trip on loopback, by what carries it; ``remote_added_ms`` is that of the one that
hosts in a cluster use, for a batch of one record. `_takeover` loses hosts of dispatchers.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel, trace_envelope, windows_s
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.replay.loop import replay
from inferline_stream.replay.policy_view import View
from inferline_stream.replay.scalers import Tuner, Wish
from inferline_stream.tuner.policy import POLICIES, initial_state
from tests.benchmarks import _takeover, _transports
from tests.benchmarks._figures import Figures

STAGES, REPLICAS, RATE = 5, 200, 1e6
UTILIZATION, BATCH, SLO_S = 0.7, 64, 0.5
SHAPE = Shape(tuple(f"s{i}" for i in range(STAGES)), tuple(Arrow(i, i + 1) for i in range(STAGES - 1)))
CATALOGUE = {"x": Hardware("x", 1.0)}


def measured() -> PipelineProfile:
    full_s = BATCH * REPLICAS * UTILIZATION / RATE
    times = (ServiceTime(1, full_s / 4), ServiceTime(BATCH, full_s))
    profiles = {(name, "x"): Profile(name, "x", times, start_up_s=5.0) for name in SHAPE.stages}
    return PipelineProfile(profiles, independent_paths(SHAPE, {}))


def plan_for(sample: Trace) -> Plan:
    longest_s = STAGES * BATCH * REPLICAS * UTILIZATION / RATE
    return Plan(
        pipeline="large",
        slo_s=SLO_S,
        allocations={name: (Allocation("x", BATCH, REPLICAS),) for name in SHAPE.stages},
        cost_per_hour=float(STAGES * REPLICAS),
        predicted_p99_s=longest_s,
        arrival_rate=sample.arrival_rate,
        envelope=trace_envelope(sample, windows_s(longest_s)),
        visit_ratios=dict.fromkeys(SHAPE.stages, 1.0),
        utilization=dict.fromkeys(SHAPE.stages, UTILIZATION),
    )


class _Timed(Tuner):
    """The Tuner, noting the process's CPU time at each step."""

    def __init__(self, plan: Plan, profile: PipelineProfile) -> None:
        super().__init__(
            "default", POLICIES["default"], initial_state(plan, profile, CATALOGUE), SHAPE, kernel=compiled_kernel()
        )
        self.spent_s: list[float] = []

    def decide(self, view: View) -> Wish | None:
        found = super().decide(view)
        self.spent_s.append(time.process_time())
        return found


def measure(quick: bool) -> Figures:
    duration_s = 2.0 if quick else 4.0
    sample = gamma_trace(RATE, 1.0, 1.0, np.random.default_rng(1))
    plan, profile = plan_for(sample), measured()
    ms = []
    for seconds in (0.3, duration_s):  # the first compiles
        scaler = _Timed(plan, profile)
        outcome = replay(
            SHAPE,
            plan.allocations,
            profile,
            gamma_trace(RATE, 1.0, seconds, np.random.default_rng(2)),
            scaler,
            catalogue=CATALOGUE,
            slo_s=SLO_S,
            slots=plan.slots,
        )
        ms = (1e3 * np.diff(scaler.spent_s)).tolist()
    steady = ms[5:]
    carried = {**_transports.measure(quick), **_takeover.measure(quick)}
    quarters = [statistics.mean(part) for part in np.array_split(steady, 4)]
    return {
        "step_1000_replicas_ms": round(statistics.median(quarters), 2),
        "step_longest_ms": round(max(steady), 2),
        "replicas": outcome.peak_replicas,
        "events": len(outcome.entry_s),
        "miss_rate": round(outcome.miss_rate, 6),
        "remote_added_ms": carried["remote_added_ms_tls_frames_1"],
        **carried,
    }
