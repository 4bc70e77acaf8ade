"""The traffic envelope's cost: CPU time per arrival and per query of all 11 windows, from 10³ to 10⁶ arrivals a second.

Arrivals of CV 1 and 4 fill the whole minute before anything is timed. They come in blocks of 1,024, and besides in
blocks of a tenth of a second, as the control loop gives them, where those are smaller.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from inferline_stream.calculus.envelope import NumpyKernel, TrafficEnvelope, compiled_kernel
from inferline_stream.calculus.envelope_state import EnvelopeKernel
from tests.benchmarks._figures import Figures

WINDOWS_S = tuple(60.0 * 2.0**-i for i in range(10, -1, -1))
RATES = (1e3, 1e4, 1e5, 1e6)
BLOCK = 1024


def arrivals(rate: float, cv: float, duration_s: float) -> np.ndarray:
    rng = np.random.default_rng([int(rate), int(cv)])
    return np.cumsum(rng.gamma(1 / cv, cv / rate, int(rate * duration_s)))


def measured(kernel: EnvelopeKernel, times: np.ndarray, block: int, repeats: int) -> tuple[float, float]:
    """CPU ns per arrival over the last 3 s of the trace, and µs per query after each tenth of a second of it."""
    ns, us = [], []
    warm = int(np.searchsorted(times, times[-1] - 3.0))
    for _ in range(repeats):
        watched = TrafficEnvelope(WINDOWS_S, 60.0, kernel)
        for first in range(0, warm, 1 << 16):
            watched.add(times[first : min(first + (1 << 16), warm)])
        watched.counts()
        blocks = [times[first : first + block] for first in range(warm, times.size, block)]
        every = max(1, len(blocks) // 30)
        spent = 0.0
        for i, part in enumerate(blocks):
            start = time.process_time_ns()
            watched.add(part)
            spent += time.process_time_ns() - start
            if i % every == 0:
                start = time.perf_counter_ns()
                watched.counts()
                us.append((time.perf_counter_ns() - start) / 1e3)
        ns.append(spent / (times.size - warm))
    return statistics.median(ns), statistics.median(us)


def mismatches() -> int:
    """Differences to a sliding maximum by brute force, over blocks with ties and late arrivals."""
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for kernel in (NumpyKernel(), compiled_kernel()):
            watched, seen, now = TrafficEnvelope(WINDOWS_S, 60.0, kernel), np.empty(0), 0.0
            for _ in range(12):
                part = np.sort(np.round(rng.uniform(now - 5.0, now + 20.0, 60), 2))
                seen = np.concatenate([seen[now - seen < 60.0], part[(now - part < 60.0) | (part > now)]])
                watched.add(part)
                now = max(now, float(seen.max()))
                inside = np.sort(seen[now - seen < 60.0])
                spans = inside[:, None] - inside[None, :]
                expected = [int(((spans >= 0) & (spans < w)).sum(axis=1).max()) for w in WINDOWS_S]
                # Among ties, each row counts all of them: the last of them is the true count.
                found += int((watched.counts() != expected).sum())
    return found


def measure(quick: bool) -> Figures:
    repeats = 1 if quick else 3
    compiled = compiled_kernel()
    measured(compiled, arrivals(1e3, 1.0, 65.0), BLOCK, 1)
    figures: Figures = {}
    ns, us, small = [], [], []
    for rate in RATES:
        for cv in (1.0, 4.0):
            times = arrivals(rate, cv, 66.0)
            per_arrival, per_query = measured(compiled, times, BLOCK, repeats)
            figures[f"ns_{rate:.0e}_cv{cv:.0f}"] = round(per_arrival, 1)
            figures[f"query_us_{rate:.0e}_cv{cv:.0f}"] = round(per_query, 1)
            ns.append(per_arrival)
            us.append(per_query)
            if rate * 0.1 < BLOCK:
                small.append(measured(compiled, times, int(rate * 0.1), repeats)[0])
    plain = [measured(NumpyKernel(), arrivals(rate, 4.0, 66.0), int(rate * 0.1), repeats) for rate in RATES[:3]]
    return {
        "ns_per_arrival_max": round(max(ns), 1),
        "query_us": round(max(us), 1),
        "ns_per_arrival_blocks_of_0.1_s": round(max(small), 1),
        "numpy_ns_per_arrival_max": round(max(n for n, _ in plain), 1),
        "numpy_query_us": round(max(u for _, u in plain), 1),
        "mismatches": mismatches(),
        **figures,
    }
