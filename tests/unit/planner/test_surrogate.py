"""Predictions where they have to be exact: nothing waits below what is changed."""

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Arrow
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.evaluator import Evaluator
from inferline_stream.planner.problem import replaced
from inferline_stream.planner.surrogate import Surrogate
from tests.unit.planner.problems import plain_problem, random_problem

PLENTY = 99


def _late(problem, candidate):
    held = dict(zip(problem.shape.stages, candidate, strict=True))
    found = simulate(
        problem.shape,
        held,
        problem.measured,
        problem.traces[0],
        order_slo_s=problem.target_s,
        partitions=problem.partitions or None,
    )
    return int((found.latency_s > problem.target_s).sum())


def _singles(problem, surrogate, stage):
    """Proposals that change nothing but one stage, with the late events that they really have."""
    assert surrogate.late == _late(problem, surrogate.base)
    proposed = surrogate.proposals(np.inf, np.inf)
    alone = [p for p in proposed if p.candidate == replaced(surrogate.base, stage, p.candidate[stage])]
    return [(p.late, _late(problem, p.candidate)) for p in alone]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_above_plenty_the_late_events_of_every_change_are_predicted_exactly(stage):
    arrows, paths = (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 3), Arrow(2, 3)), {0b1111: 0.3, 0b1010: 0.7}
    catalogue = {"slow": Hardware("slow", 1.0), "fast": Hardware("fast", 2.5)}
    times_s = {"a": {"slow": 0.02}, "b": {"slow": 0.04, "fast": 0.02}, "c": {"slow": 0.04, "fast": 0.01}}
    times_s["d"] = {"slow": 0.01}
    arrivals_s = gamma_trace(30, 2.0, 20, np.random.default_rng(5)).arrivals_s
    more = {"arrows": arrows, "paths": paths, "hop_s": 0.004, "objective": 0.8}
    problem = plain_problem(times_s, arrivals_s, 0.1, catalogue, **more)
    evaluator = Evaluator(problem)
    base = replaced(((Allocation("slow", 1, PLENTY),),) * 4, stage, (Allocation("slow", 1, (1, 1, 2)[stage]),))
    found = _singles(problem, Surrogate(evaluator, evaluator.bounds, base, mixed=False), stage)
    assert len({late for late, _ in found}) > 2
    assert all(predicted == late for predicted, late in found), found


@pytest.mark.parametrize("partitions", [0, 6])
def test_at_the_last_stage_the_late_events_of_every_change_are_predicted_exactly_wherever_the_base_moves(partitions):
    problem = random_problem(0, stages=2, partitions=partitions, slack=3.0)
    evaluator, last = Evaluator(problem), (Allocation("fast", 4, 2),)
    surrogate = Surrogate(evaluator, evaluator.bounds, (last, last), mixed=False)
    for first in (last, (Allocation("middle", 4, 3),)):
        surrogate.move((first, last))
        found = _singles(problem, surrogate, 1)
        assert len({late for late, _ in found}) > 2
        assert all(predicted == late for predicted, late in found), found
