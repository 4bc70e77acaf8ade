"""Plans against the truth: every candidate of a tiny space, simulated from scratch, one after another by cost.

The enumeration shares nothing with the planner but the estimator: no bounds, no cached departures, no early ends.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, hold_of
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner import branch_and_bound, evaluator, pareto_search, predicted_changes
from inferline_stream.planner.problem import Candidate, Problem, cost_of
from inferline_stream.planner.provision import SearchSettings, search
from tests.unit.planner.problems import meets

MOST = 8
"""Replicas of one stage that are tried; every plan found has to stay below, or the truth is not known."""

SHAPES = {
    "chain": (2, ((0, 1, 1.0),)),
    "skipped middle": (3, ((0, 1, 0.4), (0, 2, 1.0), (1, 2, 1.0))),
    "skipped branch of a diamond": (4, ((0, 1, 1.0), (0, 2, 0.3), (1, 3, 1.0), (2, 3, 1.0))),
    "either of two": (4, ((0, 1, 0.5), (0, 2, 0.5), (1, 3, 1.0), (2, 3, 1.0))),
}


def tiny_problem(shape_name: str, seed: int) -> Problem:
    """A few hundred events; kinds without a total order, and batches that may be slower than their number is worth."""
    rng = np.random.default_rng([seed, *map(ord, shape_name)])
    count, listed = SHAPES[shape_name]
    names = tuple(f"s{i}" for i in range(count))
    shape = Shape(names, tuple(Arrow(a, b, p < 1) for a, b, p in listed))
    catalogue = {"x": Hardware("x", 0.3), "y": Hardware("y", float(rng.choice([0.25, 0.4, 0.9])))}
    # At most two stages have more than one option beside their replicas, so that all can be tried.
    rich = set(rng.choice(count, size=2, replace=False).tolist())
    profiles = {}
    for i, name in enumerate(names):
        kinds = ("x", "y") if i in rich else ("x",)
        sizes = (1, 4) if i in rich else (1,)
        for kind in kinds:
            base = float(rng.uniform(0.005, 0.04) if i in rich else 0.001)
            share = float(rng.uniform(0.2, 0.95))
            profiles[name, kind] = Profile(
                name, kind, tuple(ServiceTime(b, base * (1 - share + share * b)) for b in sizes)
            )
    taken = {(names[a], names[b]): p for a, b, p in listed}
    measured = PipelineProfile(profiles, independent_paths(shape, taken), float(rng.choice([0.0, 0.002])))
    fastest = [min(p.service_time_s(1) for (s, _), p in profiles.items() if s == name) for name in names]
    slo_s = shape.longest_path_s(fastest) * float(rng.choice([1.3, 2.0, 4.0])) + 5 * measured.hop_overhead_s
    trace = gamma_trace(float(rng.choice([40, 80])), float(rng.choice([1, 4])), 5.0, rng)
    partitions = dict.fromkeys(names, 6) if rng.random() < 0.4 else {}
    return Problem(shape, measured, (trace,), slo_s, catalogue, partitions=partitions, objective=0.95)


def cheapest(problem: Problem) -> Candidate | None:
    """The first feasible candidate in order of cost."""
    options = [
        [
            (Allocation(kind, size, replicas),)
            for kind in problem.measured.hardware_of(stage)
            for size in problem.measured.profiles[stage, kind].batch_sizes
            for replicas in range(1, problem.partitions.get(stage, MOST) + 1)
            if len(problem.measured.hardware_of(stage)) > 1 or replicas <= 2
        ]
        for stage in problem.shape.stages
    ]
    ordered = sorted(itertools.product(*options), key=lambda candidate: cost_of(problem, candidate))
    return next((candidate for candidate in ordered if meets(problem, candidate)), None)


@pytest.fixture(autouse=True)
def _many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces this short would fit in one slice: verdicts given before the trace ends would not be met."""
    for room in (evaluator, branch_and_bound, pareto_search, predicted_changes):
        monkeypatch.setattr(room, "SLICE_EVENTS", 32)


@pytest.mark.parametrize("shape_name", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_exact_is_no_dearer_than_any_candidate_without_holds_and_default_within_a_twentieth(
    shape_name: str, seed: int
) -> None:
    problem = tiny_problem(shape_name, seed)
    truth = cheapest(problem)
    try:
        proven = search(problem, SearchSettings(algorithm="exact", margin=0.0))
    except Infeasible:
        assert truth is None
        return
    largest = max(a.replicas for option in proven.candidate for a in option)
    assert truth is not None
    assert largest <= MOST, "the enumeration has to try more replicas"
    least = cost_of(problem, truth)
    default = search(problem, SearchSettings(margin=0.0))
    for found, most in ((proven, least), (default, least * 1.05)):
        cost = cost_of(problem, found.candidate)
        assert cost <= most + 1e-9
        assert meets(problem, found.candidate)
        # The enumeration holds no batches and mixes no kinds: only a plan that does may be cheaper.
        held = any(map(hold_of, found.candidate)) and not problem.partitions
        assert cost >= least - 1e-9 or held or any(len(option) > 1 for option in found.candidate)
    assert proven.lower_bound_per_hour == pytest.approx(cost_of(problem, proven.candidate))
    assert not math.isnan(default.p99_s)
