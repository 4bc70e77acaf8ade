"""No simulated event takes longer than network calculus allows, and where theory says so one takes exactly as long."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.calculus.curves import (
    ArrivalCurve,
    ServiceCurve,
    backlog_bound,
    bounds,
    curve_of_envelope,
    delay_bound_s,
)
from inferline_stream.calculus.envelope import trace_envelope
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace
from tests.support.hypothesis_profiles import examples
from tests.unit.estimator.random_pipelines import random_shape

ONE = Shape(("a",), ())
ROUNDING = 1e-9


def profile(stage: str, hardware: str, *times_s: float) -> Profile:
    """Service times of batches of 1, 2, 4 …"""
    return Profile(stage, hardware, tuple(ServiceTime(2**i, t) for i, t in enumerate(times_s)))


def curve_of_trace(trace: Trace) -> ArrivalCurve:
    """The exact curve, event by event."""
    times = trace.arrivals_s
    steps = [(n, float((times[n - 1 :] - times[: times.size - n + 1]).min())) for n in range(1, len(trace) + 1)]
    return ArrivalCurve(tuple(steps) or ((1, 0.0),), len(trace))


def alone(*profiles: Profile) -> PipelineProfile:
    return PipelineProfile({(p.stage, p.hardware): p for p in profiles}, Paths((0,), (1.0,)))


# Bursts of events at one instant, gaps on the grid of the service time, and gaps that are neither.
gaps_s = st.lists(
    st.one_of(st.just(0.0), st.integers(1, 8).map(lambda i: i * 0.125), st.floats(0.001, 2.0)), min_size=1, max_size=80
)


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(gaps_s, st.integers(1, 4), st.sampled_from([0.125, 0.5, 0.3]))
def test_without_batches_the_slowest_event_takes_exactly_the_delay_bound(gaps, replicas, service_s):
    trace = Trace(np.cumsum(gaps))
    measured = alone(profile("a", "x", service_s))
    held = {"a": (Allocation("x", 1, replicas),)}
    longest_s = simulate(ONE, held, measured, trace).latency_s.max()
    bound_s, by_stage = bounds(ONE, held, measured, curve_of_trace(trace))
    assert longest_s == pytest.approx(bound_s, abs=ROUNDING)
    assert by_stage["a"].delay_s == bound_s


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_no_event_of_any_pipeline_passes_the_bound(seed):
    rng = np.random.default_rng(seed)
    shape = random_shape(rng)
    conditional = {(shape.stages[w.parent], shape.stages[w.child]): 0.5 for w in shape.arrows if w.conditional}
    profiles, held = {}, {}
    for stage in shape.stages:
        kinds = ["x", "y"][: int(rng.integers(1, 3))]
        for kind in kinds:
            profiles[stage, kind] = profile(stage, kind, *rng.uniform(0.01, 0.3, 4))  # not monotone on purpose
        hold_s = float(rng.choice([0.0, 0.05, 0.5]))
        held[stage] = tuple(
            Allocation(kind, int(rng.choice([1, 2, 5, 8])), int(rng.integers(1, 4)), hold_s) for kind in kinds
        )
    measured = PipelineProfile(profiles, independent_paths(shape, conditional), float(rng.choice([0.0, 0.02])))
    trace = Trace(np.cumsum(rng.gamma(0.25, 4 * rng.choice([0.01, 0.05, 0.2]), 200)))
    bound_s, _ = bounds(shape, held, measured, curve_of_trace(trace))
    for order_slo_s in (0.0, math.inf):
        found = simulate(shape, held, measured, trace, order_slo_s=order_slo_s, seed=seed)
        ended = found.latency_s[~np.isnan(found.latency_s)]
        assert ended.size == 0 or ended.max() <= bound_s + ROUNDING


def test_a_batch_upstream_reaches_the_next_stage_at_once_and_the_bound_knows():
    """Four come 0.25 s apart while a batch of 1 s runs, leave together, and then queue for 0.2 s each."""
    shape = Shape(("a", "b"), (Arrow(0, 1),))
    measured = PipelineProfile(
        {("a", "x"): profile("a", "x", 1.0, 1.0, 1.0), ("b", "x"): profile("b", "x", 0.2)},
        independent_paths(shape, {}),
    )
    held = {"a": (Allocation("x", 4, 1),), "b": (Allocation("x", 1, 1),)}
    trace = Trace(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    at_a = simulate(ONE, {"a": held["a"]}, alone(measured.profiles["a", "x"]), trace).latency_s
    in_b_s = simulate(shape, held, measured, trace).latency_s - at_a
    assert in_b_s.max() == pytest.approx(4 * 0.2)
    assert in_b_s.max() <= bounds(shape, held, measured, curve_of_trace(trace))[1]["b"].delay_s + ROUNDING


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_no_stage_ever_holds_more_events_than_the_backlog_bound(seed):
    rng = np.random.default_rng(seed)
    limit, replicas = int(rng.choice([1, 2, 4])), int(rng.integers(1, 4))
    measured = alone(profile("a", "x", *rng.uniform(0.05, 0.4, 3)))
    held = {"a": (Allocation("x", limit, replicas),)}
    trace = Trace(np.cumsum(rng.gamma(0.25, 4 * rng.choice([0.02, 0.1]), 150)))
    leaves_s = trace.arrivals_s + simulate(ONE, held, measured, trace).latency_s
    inside = [int((trace.arrivals_s <= t).sum() - (leaves_s <= t).sum()) for t in trace.arrivals_s]
    _, by_stage = bounds(ONE, held, measured, curve_of_trace(trace))
    assert max(inside) <= by_stage["a"].backlog


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_the_curve_of_an_envelope_is_never_below_the_exact_one(seed):
    """Bounds from a few windows hold for ever after, those of the exact curve for this trace: the former are larger."""
    rng = np.random.default_rng(seed)
    trace = Trace(np.cumsum(rng.gamma(0.25, 4 * 0.05, 300)))
    windows = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    service = ServiceCurve(((4, 0.08, 2),))
    exact, shown = curve_of_trace(trace), curve_of_envelope(trace_envelope(trace, windows))
    for jitter_s in (0.0, 0.3):
        assert delay_bound_s(exact, service, jitter_s) <= delay_bound_s(shown, service, jitter_s) + ROUNDING
        assert backlog_bound(exact, service, jitter_s) <= backlog_bound(shown, service, jitter_s)


def test_arrivals_that_outrun_the_replicas_have_no_bound():
    curve = curve_of_envelope(((1.0, 10), (10.0, 100)))
    assert math.isfinite(delay_bound_s(curve, ServiceCurve(((1, 0.1, 1),))))
    slower = ServiceCurve(((1, 0.101, 1),))
    assert delay_bound_s(curve, slower) == backlog_bound(curve, slower) == math.inf


def test_one_burst_by_hand():
    """Ten at once, two replicas of 0.1 s: five rounds; in batches of 4 two rounds after one already begun."""
    burst = ArrivalCurve(((10, 0.0),), 10)
    assert delay_bound_s(burst, ServiceCurve(((1, 0.1, 2),))) == pytest.approx(0.5)
    assert delay_bound_s(burst, ServiceCurve(((4, 0.1, 2),))) == pytest.approx(0.3)
    slow = ArrivalCurve(((1, 0.0), (10, 5.0)), 10)
    assert delay_bound_s(slow, ServiceCurve(((1, 0.1, 1),)), jitter_s=4.5) == pytest.approx(0.5)
