"""Shares of devices as a choice of the planner: whole devices are paid, and a share is as slow as beside others."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from inferline_stream.errors import Infeasible
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.planner.plan_explanation import explain
from inferline_stream.planner.problem import Candidate, Problem
from inferline_stream.planner.provision import SearchSettings, provision, search
from tests.unit.planner.problems import meets, options, plain_problem

DEVICE = Hardware("gpu", 1.0, gpus=1, gpu_model="Tesla T4")
KINDS = catalogue([DEVICE, Hardware("cpu", 0.3)])
ALONE_S = 0.01
"""Of a batch on a whole device; time slices give each of n replicas an n-th of the device's time."""


def two_stages(
    per_s: float, *kinds: str, devices: float | None = None, cpu_s: float = 0.5, slo_s: float = 0.25
) -> Problem:
    """Two stages of steady arrivals on these kinds, on so many devices."""
    times_s = {"gpu": ALONE_S, "gpu-1of2": 2 * ALONE_S, "gpu-1of4": 4 * ALONE_S, "cpu": cpu_s}
    stage = {kind: times_s[kind] for kind in kinds}
    return plain_problem(
        {"embed": stage, "rank": stage},
        np.arange(round(20 * per_s)) / per_s,
        slo_s,
        catalogue([Hardware("gpu", 1.0, gpus=1, gpu_model="Tesla T4", gpu_stock=devices), Hardware("cpu", 0.3)]),
    )


def test_two_light_stages_are_planned_on_one_device_which_costs_half_of_one_each_and_keeps_the_slo() -> None:
    light = two_stages(10.0, "gpu", "gpu-1of2")
    shared, apart = provision(light), provision(two_stages(10.0, "gpu"))
    assert {a.hardware for held in shared.allocations.values() for a in held} == {"gpu-1of2"}
    assert (shared.cost_per_hour, apart.cost_per_hour) == (1.0, 2.0)
    assert shared.predicted_p99_s == pytest.approx(4 * ALONE_S), "each stage takes twice as long as alone"
    assert shared.predicted_p99_s <= light.target_s
    reasons = explain(shared, light).stages[0].reasons
    assert any(
        "one of 2 replicas on a device" in reason and "embed and rank have 2 on 1 device" in reason
        for reason in reasons
    )


@pytest.mark.parametrize("per_s", [70.0, 60.0])
def test_two_halves_of_one_device_with_more_work_than_it_does_are_refused(per_s: float) -> None:
    """1.4 and 1.2 s of the device's time a second."""
    with pytest.raises(Infeasible):
        provision(two_stages(per_s, "gpu-1of2", devices=1))
    busy = provision(two_stages(per_s, "gpu", "gpu-1of2", devices=2))
    assert busy.cost_per_hour == 2.0, "where there are two devices, the plan takes both"


def test_a_share_that_nobody_has_the_rest_of_is_paid_as_a_device_and_said_so() -> None:
    """A half would be 0.5 $/h by itself, cheaper than the two CPUs: alone on its device it is 1 $/h."""
    one = plain_problem({"embed": {"gpu-1of2": 0.02, "cpu": 0.019}}, np.arange(1600) / 80, 0.3, KINDS)
    assert provision(one).cost_per_hour == pytest.approx(0.6)
    halved = plain_problem({"embed": {"gpu-1of2": 0.02}}, np.arange(200) / 10, 0.3, KINDS)
    plan = provision(halved)
    assert plan.cost_per_hour == 1.0
    assert any("1 of the 2 places on gpu-1of2 are free" in reason for reason in explain(plan, halved).stages[0].reasons)


def test_no_device_has_replicas_with_different_shares() -> None:
    """A half and two quarters are two devices, though their shares come to one."""
    stages = {"embed": {"gpu-1of2": 0.02}, "rank": {"gpu-1of4": 0.04}}
    assert provision(plain_problem(stages, np.arange(100) / 5, 0.3, KINDS)).cost_per_hour == 2.0


def test_the_odd_stage_of_a_long_pipeline_is_planned_without_a_share() -> None:
    """Five halves are three devices; four of them and the two CPUs of the fifth stage cost less."""
    times_s = {stage: {"gpu-1of2": 0.02, "cpu": 0.03} for stage in "abcde"}
    assert provision(plain_problem(times_s, np.arange(800) / 40, 0.4, KINDS)).cost_per_hour == pytest.approx(2.6)


def paid(candidate: Candidate) -> float:
    """Dollars per hour, by hand: devices full of one kind, and CPUs."""
    counts = Counter[str]()
    for a in itertools.chain.from_iterable(candidate):
        counts[a.hardware] += a.replicas
    parts = {"gpu": 1, "gpu-1of2": 2, "gpu-1of4": 4}
    return sum(0.3 * n if kind == "cpu" else math.ceil(n / parts[kind]) for kind, n in counts.items())


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_of_one_kind_for_each_stage_is_cheaper_than_the_one_found_where_devices_are_shared(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rate, cpu_s = float(rng.uniform(10, 90)), float(rng.uniform(0.01, 0.06))
    problem = two_stages(rate, "gpu", "gpu-1of2", "gpu-1of4", "cpu", cpu_s=cpu_s, slo_s=0.2)
    every = sorted(itertools.product(*(options(problem, stage, 4) for stage in problem.shape.stages)), key=paid)
    least = next(paid(candidate) for candidate in every if meets(problem, candidate))
    found = search(problem, SearchSettings(margin=0.0)).candidate
    assert meets(problem, found)
    assert paid(found) <= least + 1e-9
