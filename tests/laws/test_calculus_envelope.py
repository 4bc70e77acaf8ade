"""The traffic envelope equals a brute-force sliding maximum, whatever the order and grouping of arrivals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferline_stream.calculus import envelope, envelope_kernel
from inferline_stream.calculus.envelope import NumpyKernel, TrafficEnvelope, compiled_kernel, trace_envelope, windows_s
from inferline_stream.pipeline.trace import Trace
from tests.support.hypothesis_profiles import examples

WINDOWS = (0.1, 0.2, 0.7, 1.6, 5.0, 0.3, 10.0)
SPANS_S = (5.0, 5.0, 5.0, 5.0, 5.0, 7.0, 10.0)
SIGNALLING_NAN = 0x7FF0000000000001  # a subtraction with it warns


def brute_force(times, windows, spans_s, now_s):
    found = []
    for w, span_s in zip(windows, spans_s, strict=True):
        inside = sorted(t for t in times if now_s - t < span_s)
        found.append(max((sum(0 <= t - u < w for u in inside[: i + 1]) for i, t in enumerate(inside)), default=0))
    return found


# Multiples of 0.1 make ties and windows whose edge falls on an arrival; the floats make neither.
gaps = st.one_of(
    st.integers(0, 12).map(lambda i: i * 0.1), st.floats(0, 3, allow_nan=False), st.sampled_from([0.0, 0.0, 9.9, 25.0])
)
blocks = st.lists(st.tuples(st.lists(gaps, max_size=12), st.floats(-6, 0) | st.just(0.0)), max_size=12)


class InterpretedKernel:
    """The source of the compiled kernel, run by Python: its block length can be made small."""

    extend = staticmethod(envelope_kernel.extend.py_func)
    query = staticmethod(envelope_kernel.query.py_func)


@pytest.mark.parametrize("block", [2, 3, 8, 512])
@pytest.mark.parametrize("kernel", [NumpyKernel(), InterpretedKernel()], ids=["numpy", "interpreted"])
def test_envelope_equals_brute_force_with_ties_late_arrivals_and_boundary_windows(kernel, block, monkeypatch):
    monkeypatch.setattr(envelope, "BLOCK", block)
    monkeypatch.setattr(envelope_kernel, "BLOCK", block)

    @settings(max_examples=examples(80), deadline=None, derandomize=True)
    @given(blocks, st.floats(0, 4))
    def law(parts, wait_s):
        check(kernel, parts, wait_s)

    law()


@settings(max_examples=examples(100), deadline=None, derandomize=True)
@given(blocks, st.floats(0, 4))
def test_compiled_envelope_equals_brute_force(parts, wait_s):
    check(compiled_kernel(), parts, wait_s)


def check(kernel, parts, wait_s):
    seen: list[float] = []
    watched = TrafficEnvelope(WINDOWS, SPANS_S, kernel)
    watched._state.times.view(np.uint64)[:] = SIGNALLING_NAN  # what no arrival has filled may hold anything
    start, now, span_s = 0.0, float("-inf"), max(SPANS_S)
    for steps, late_s in parts:
        times = start + late_s + np.cumsum(np.array(steps, dtype=float))
        # A live span never gets back what it has dropped.
        seen = [t for t in seen if now - t < span_s] + [t for t in times.tolist() if now - t < span_s or t > now]
        watched.add(times)
        start = max([start, *times.tolist()])
        now = max([now, *seen])
        assert watched.counts().tolist() == brute_force(seen, WINDOWS, SPANS_S, now)
    assert watched.counts(now + wait_s).tolist() == brute_force(seen, WINDOWS, SPANS_S, now + wait_s)


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(
    st.lists(gaps, max_size=40),
    st.sampled_from([0.0, 1.7e9]),
    st.lists(st.sampled_from(WINDOWS) | st.floats(0.01, 60.0), min_size=1, max_size=6),
)
def test_the_envelope_of_a_trace_equals_brute_force_whatever_the_windows_and_their_order(steps, began_s, windows):
    times = began_s + np.cumsum(np.array(steps, dtype=float))
    expected = brute_force(times.tolist(), windows, [float("inf")] * len(windows), began_s)
    assert trace_envelope(Trace(times), windows) == tuple(zip(windows, expected, strict=True))


@pytest.mark.parametrize("rate", [3.0, 100.0, 3000.0])
def test_both_kernels_agree_with_the_whole_trace_bisection_over_many_blocks(rate):
    rng = np.random.default_rng(int(rate))
    gaps_s = rng.gamma(0.25, 4 / rate, int(rate * 40))
    times = np.cumsum(gaps_s)
    windows = windows_s(0.15)
    both = [TrafficEnvelope(windows, 60.0, NumpyKernel()), TrafficEnvelope(windows, 60.0, compiled_kernel())]
    cuts = np.sort(rng.integers(0, times.size, 40))
    for part in np.split(times, cuts):
        for watched in both:
            watched.add(part)
        if part.size:
            inside = times[(times <= part[-1]) & (part[-1] - times < 60.0)]
            expected = [count for _, count in trace_envelope(Trace(inside), windows)]
            for watched in both:
                assert watched.counts().tolist() == expected


def test_kernels_can_be_exchanged_while_counting():
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 200, 20_000))
    alternating, steady = TrafficEnvelope(WINDOWS, 60.0), TrafficEnvelope(WINDOWS, 60.0)
    for i, part in enumerate(np.array_split(times, 70)):
        alternating.use(compiled_kernel() if i % 2 else NumpyKernel())
        late = np.sort(part + rng.uniform(-1, 0, part.size))
        alternating.add(late)
        steady.add(late)
        assert alternating.counts(float(part[-1])).tolist() == steady.counts(float(part[-1])).tolist()
