"""The simulation agrees with queueing theory within 2 %.

Lengths are chosen so that 2 % is many standard deviations. The mean wait of n events of an M/M/1 queue has variance
of about ρ(2 + 5ρ − 4ρ² + ρ³)/((1 − ρ)⁴ n µ²) (Whitt 1989); at ρ = 0.7 and n = 4·10⁶ that is 0.4 % of the wait, and less
for steadier service. With 16 servers at ρ = 0.85 it was 0.7 % over seeds: hence three times as many events there.
Traces are drawn from fixed seeds: the tests never flicker.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import StageStatistics, evaluate
from inferline_stream.estimator.kernels import Varying
from inferline_stream.estimator.station import Station, station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import LEVELS, PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import Trace

EVENTS = 4_000_000
TOLERANCE = 0.02

FIXED, TWO_KINDS, EXPONENTIAL = "fixed", "two kinds of event", "exponential"


def levels(kind: str) -> np.ndarray:
    """Equally probable service times with mean near 1."""
    if kind == FIXED:
        return np.ones(LEVELS)
    if kind == TWO_KINDS:  # 90 % short, 10 % ten times as long
        return np.where(np.arange(LEVELS) < 0.9 * LEVELS, 0.5, 5.0)
    # Means between the quantiles at i/LEVELS: of -ln(1 - u) over u it is (1-u)(ln(1-u) - 1) at the ends.
    left = 1 - np.arange(LEVELS + 1) / LEVELS
    ends = np.append(left[:-1] * (np.log(left[:-1]) - 1), 0.0)
    return np.diff(ends) * LEVELS


def moments(times_s: np.ndarray) -> tuple[float, float]:
    """E[S] and E[S²]."""
    return float(times_s.mean()), float((times_s**2).mean())


def simulated(kind: str, servers: int, utilization: float, seed: int, events: int = EVENTS) -> StageStatistics:
    times_s = levels(kind)
    mean_s = float(times_s.mean())
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(mean_s / (utilization * servers), events))
    ones = np.ones((2, LEVELS))
    # Drawn by event, or by batch; of one event each, that is the same.
    by_event, by_batch = (times_s[None], ones) if kind == TWO_KINDS else (ones[:1], ones * times_s)
    serving = Station(
        limits=np.array([1]),
        table=np.array([math.nan, mean_s]),
        kinds=np.zeros(servers, dtype=np.int64),
        varying=Varying(np.zeros(2), np.ones(2), by_batch, by_event, np.zeros(1, dtype=np.uint8)),
    )
    workload = prepare(Shape(("a",), ()), PipelineProfile({}, Paths((0,), (1.0,))), Trace(arrivals_s), seed=seed)
    return evaluate(workload, [serving], latencies=False).statistics[0]


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival of an M/M/c queue waits; load = λ/µ."""
    idle = sum(load**k / math.factorial(k) for k in range(servers))
    waits = load**servers / math.factorial(servers) / (1 - load / servers)
    return waits / (idle + waits)


@pytest.mark.parametrize(
    ("kind", "utilization"),
    [(FIXED, 0.5), (FIXED, 0.7), (FIXED, 0.85), (EXPONENTIAL, 0.5), (EXPONENTIAL, 0.7), (TWO_KINDS, 0.6)],
)
def test_one_server_waits_as_pollaczek_and_khinchine_say(kind: str, utilization: float) -> None:
    """W = λ E[S²] / (2 (1 − ρ)); fixed service is M/D/1, exponential service is M/M/1."""
    mean_s, square = moments(levels(kind))
    expected = utilization / mean_s * square / (2 * (1 - utilization))
    found = simulated(kind, 1, utilization, seed=11)
    assert found.wait_s == pytest.approx(expected, rel=TOLERANCE)
    assert found.utilization == pytest.approx(utilization, rel=TOLERANCE)


def test_the_exponential_distribution_drawn_here_is_one() -> None:
    """Otherwise the laws below would hold of something else: SCV 1, and W = ρ/(1 − ρ) as M/M/1 has it."""
    mean_s, square = moments(levels(EXPONENTIAL))
    assert mean_s == pytest.approx(1, rel=2e-3)
    assert square / mean_s**2 - 1 == pytest.approx(1, rel=5e-3)
    assert simulated(EXPONENTIAL, 1, 0.7, seed=12).wait_s == pytest.approx(0.7 / 0.3, rel=TOLERANCE)


@pytest.mark.parametrize(("servers", "utilization"), [(2, 0.7), (5, 0.8), (16, 0.85)])
def test_several_servers_wait_as_erlang_says(servers: int, utilization: float) -> None:
    """W = C(c, λ/µ) / (c µ − λ): M/M/c."""
    mean_s = moments(levels(EXPONENTIAL))[0]
    expected = erlang_c(servers, servers * utilization) * mean_s / (servers * (1 - utilization))
    found = simulated(EXPONENTIAL, servers, utilization, seed=13, events=3 * EVENTS)
    assert found.wait_s == pytest.approx(expected, rel=TOLERANCE)


def test_deterministic_gaps_and_service_never_wait_below_full_utilization() -> None:
    """D/D/1."""
    serving = Station(np.array([1]), np.array([math.nan, 0.999]), np.zeros(1, dtype=np.int64))
    workload = prepare(Shape(("a",), ()), PipelineProfile({}, Paths((0,), (1.0,))), Trace(np.arange(10_000.0)))
    found = evaluate(workload, [serving]).latency_s
    assert found is not None
    assert np.allclose(found, 0.999)


@pytest.mark.parametrize("partitions", [None, 64])
@pytest.mark.parametrize("replicas", [1, 2, 7, 64])
def test_so_many_replicas_serve_so_many_times_what_one_does(replicas: int, partitions: int | None) -> None:
    """k·µ(b) within 5 %, counted while every replica has a batch's worth waiting."""
    batch_size, service_time_s, events = 8, 0.1, 40_000
    measured = PipelineProfile({("a", "gpu"): Profile("a", "gpu", tuple(
        ServiceTime(b, service_time_s) for b in (1, batch_size)
    ))}, Paths((0,), (1.0,)))  # fmt: skip
    serving = station(measured, "a", (Allocation("gpu", batch_size, replicas),), partitions=partitions)
    workload = prepare(Shape(("a",), ()), measured, Trace(np.zeros(events)), seed=1)
    left_s = evaluate(workload, [serving], keep=(0,)).departures[0].times_s
    busy_s = events / 2 / (replicas * batch_size / service_time_s)
    throughput = np.count_nonzero(left_s <= busy_s) / busy_s
    assert throughput == pytest.approx(replicas * measured.profiles["a", "gpu"].throughput(batch_size), rel=0.05)
