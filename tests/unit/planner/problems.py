"""Small planning problems for the planner's tests, and an evaluation that owes nothing to the planner."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.estimator.station import rests_s, station
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.hardware import Catalogue, Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace, gamma_trace
from inferline_stream.planner.problem import Candidate, Option, Problem, cost_of, in_stock

SIZES = (1, 2, 4, 8)

ONE_S = 0.03
"""S(1) at every stage of a `chain`."""


def prices(**stock: int) -> dict[str, Hardware]:
    """Three kinds, the dearer the faster; stock by name."""
    return {
        name: Hardware(name, price, stock=stock.get(name))
        for name, price in (("slow", 0.1), ("middle", 0.35), ("fast", 1.0))
    }


def random_problem(
    seed: int,
    stages: int | None = None,
    *,
    rate: float = 60.0,
    duration_s: float = 20.0,
    cv: float | None = None,
    partitions: int = 0,
    catalogue: Catalogue | None = None,
    slack: float | None = None,
) -> Problem:
    """A random DAG of one to three stages; faster hardware is dearer, but not in proportion."""
    rng = np.random.default_rng(seed)
    count = stages or int(rng.integers(1, 4))
    names = tuple(f"s{i}" for i in range(count))
    arrows = tuple(Arrow(i, i + 1) for i in range(count - 1))
    taken: dict[tuple[str, str], float] = {}
    if count == 3 and rng.random() < 0.3:
        arrows, taken = (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)), {("s0", "s1"): 0.4}
    shape = Shape(names, arrows)
    profiles = {}
    for name in names:
        base = float(rng.uniform(0.01, 0.05))
        for kind, speed in (("slow", 1.0), ("middle", rng.uniform(2, 5)), ("fast", rng.uniform(4, 15))):
            share = float(rng.uniform(0.1, 0.9))
            times = tuple(ServiceTime(b, base / speed * (1 - share + share * b)) for b in SIZES)
            profiles[name, kind] = Profile(name, kind, times)
    measured = PipelineProfile(profiles, independent_paths(shape, taken))
    fastest = [min(profiles[n, k].service_time_s(1) for k in ("slow", "middle", "fast")) for n in names]
    target_s = shape.longest_path_s(fastest) * (slack or float(rng.choice([1.5, 3.0, 6.0])))
    trace = gamma_trace(rate, cv or float(rng.choice([1.0, 4.0])), duration_s, rng)
    return Problem(
        shape,
        measured,
        (trace,),
        target_s,
        catalogue or prices(),
        partitions=dict.fromkeys(names, partitions) if partitions else {},
    )


class FurtherFields(TypedDict, total=False):
    """Fields of `Problem` that have a default."""

    partitions: Mapping[str, int]
    max_batch_sizes: Mapping[str, int]
    objective: float
    seed: int
    order_slo_s: float | None
    cores: float


def plain_problem(
    times_s: Mapping[str, Mapping[str, float]],
    arrivals_s: np.ndarray,
    target_s: float,
    catalogue: Catalogue,
    *,
    arrows: tuple[Arrow, ...] | None = None,
    paths: Mapping[int, float] | None = None,
    hop_s: float = 0.0,
    **more: Unpack[FurtherFields],
) -> Problem:
    """A problem of given service times, by stage and kind, without batches; a chain unless arrows are given.

    Args:
        times_s: by stage, by kind.
        arrivals_s: of the events, of one trace.
        target_s: as in `Problem`.
        catalogue: the kinds.
        arrows: of the shape.
        paths: share of events by set of arrows taken; all take all of them by default.
        hop_s: overhead of a hop.
        more: further fields of `Problem`.
    """
    names = tuple(times_s)
    shape = Shape(names, tuple(Arrow(i, i + 1) for i in range(len(names) - 1)) if arrows is None else arrows)
    paths = paths or {2 ** len(shape.arrows) - 1: 1.0}
    profiles = {(s, k): Profile(s, k, (ServiceTime(1, t),)) for s, kinds in times_s.items() for k, t in kinds.items()}
    measured = PipelineProfile(profiles, Paths(tuple(paths), tuple(paths.values())), hop_s)
    return Problem(shape, measured, (Trace(np.sort(arrivals_s)),), target_s, catalogue, **more)


def chain(
    gain: float, *, stages: int = 1, rate: float = 1000.0, cv: float = 1.0, events: int = 8000, slo: float = 2.0
) -> Problem:
    """S(b) = S(1)·(g + (1 − g)·b) at every stage, one kind of hardware, SLO in multiples of Σ S(1)."""
    names = tuple(f"s{i}" for i in range(stages))
    times = tuple(ServiceTime(b, ONE_S * (gain + (1 - gain) * b)) for b in SIZES)
    profiles = {(name, "x"): Profile(name, "x", times) for name in names}
    shape = Shape(names, tuple(Arrow(i, i + 1) for i in range(stages - 1)))
    measured = PipelineProfile(profiles, Paths((2 ** (stages - 1) - 1,), (1.0,)))
    trace = gamma_trace(rate, cv, events / rate, np.random.default_rng(7))
    return Problem(shape, measured, (trace,), slo * ONE_S * stages, {"x": Hardware("x", 1.0)})


def options(problem: Problem, stage: str, most: int) -> list[Option]:
    """Every kind, profiled batch size and replica count up to a limit; one kind each."""
    return [
        (Allocation(kind, size, count),)
        for kind in problem.measured.hardware_of(stage)
        for size in problem.measured.profiles[stage, kind].batch_sizes
        for count in range(1, min(most, problem.partitions.get(stage, most)) + 1)
    ]


def candidates(problem: Problem, most: int) -> list[Candidate]:
    """All combinations of `options` that stock allows, cheapest first."""
    every = itertools.product(*(options(problem, stage, most) for stage in problem.shape.stages))
    return sorted((c for c in every if in_stock(problem, c)), key=lambda c: cost_of(problem, c))


def least_cost(problem: Problem, most: int) -> float:
    """The cost of the first of all `candidates` that meets the target; infinite if none does."""
    return next((cost_of(problem, c) for c in candidates(problem, most) if meets(problem, c)), math.inf)


_workloads: dict[tuple[int, ...], tuple[Workload, Problem, Trace]] = {}
"""The latest workload, by the identities of what it was made of, which it keeps alive."""


def workload_of(problem: Problem, trace: Trace) -> Workload:
    """What all candidates of a problem are simulated on: drawn once, since an enumeration asks a thousand times."""
    made_of = (id(problem.shape), id(problem.measured), id(trace), problem.seed)
    if made_of not in _workloads:
        _workloads.clear()
        _workloads[made_of] = prepare(problem.shape, problem.measured, trace, seed=problem.seed), problem, trace
    return _workloads[made_of][0]


def latencies_s(problem: Problem, candidate: Candidate, trace: Trace | None, order_slo_s: float) -> NDArray[np.float64]:
    """By a simulation from scratch, without bounds, cached departures or early ends."""
    rests = rests_s(problem.shape, problem.measured, problem.order, order_slo_s)
    stations = [
        station(
            problem.measured,
            name,
            option,
            order_slo_s=order_slo_s,
            rest_s=rests[name],
            partitions=problem.partitions.get(name),
        )
        for name, option in zip(problem.shape.stages, candidate, strict=True)
    ]
    latency_s = evaluate(workload_of(problem, trace or problem.traces[0]), stations).latency_s
    assert latency_s is not None
    return latency_s


def p99_s(problem: Problem, candidate: Candidate, trace: Trace | None = None, slo_s: float | None = None) -> float:
    """P99 by `latencies_s`."""
    return quantile_s(latencies_s(problem, candidate, trace, slo_s or problem.queue_slo_s), problem.objective)


def meets(problem: Problem, candidate: Candidate) -> bool:
    """Whether the candidate meets the target, by `p99_s`."""
    return not math.isnan(p := p99_s(problem, candidate)) and p <= problem.target_s
