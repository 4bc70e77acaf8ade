"""Preprocess → ResNet-152 → NMT for 40 %, 150 events per second, SLO 500 ms: a plan by hand, and what searches find."""

import numpy as np
import pytest

from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.plan import Allocation, cost_per_hour
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import SearchSettings, provision
from tests.benchmarks._reference import CATALOGUE, CPU, FREE, GPU, SHAPE, SLO_S, profile

BY_HAND = {
    "preprocess": (Allocation(CPU, 2, 8),),
    "resnet152": (Allocation(GPU, 8, 4),),
    "nmt": (Allocation(GPU, 64, 1),),
    "reply": (Allocation(FREE, 64, 1),),
}
BY_HAND_COST = 8 * 0.0665 + 5 * 0.7005


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("algorithm", ["default", "exact"])
def test_no_search_finds_a_dearer_plan_than_the_one_made_by_hand(seed, algorithm):
    trace = gamma_trace(150.0, 1.0, 120.0, np.random.default_rng(seed))
    assert simulate(SHAPE, BY_HAND, profile(), trace, order_slo_s=SLO_S).p99_s <= SLO_S
    assert cost_per_hour(BY_HAND, CATALOGUE) == pytest.approx(BY_HAND_COST)
    plan = provision(Problem(SHAPE, profile(), (trace,), SLO_S, CATALOGUE), SearchSettings(algorithm=algorithm))
    assert simulate(SHAPE, plan.allocations, profile(), trace, order_slo_s=SLO_S).p99_s == plan.predicted_p99_s <= SLO_S
    assert plan.cost_per_hour <= BY_HAND_COST + 1e-9
