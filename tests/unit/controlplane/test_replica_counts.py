from __future__ import annotations

import math
from dataclasses import replace

import pytest

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.replica_counts import (
    cores_held,
    cost_per_hour,
    going_over,
    replicas_of_plan,
    stock_of_cores,
    stock_of_gpus,
    within,
    within_cores,
)
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.plan import Allocation
from tests.unit.tuner.plans import plan


def replica(name: str, started_s: float, state: str = "running") -> ObservedReplica:
    return ObservedReplica(name, "s", "cpu-1", state, 1, started_s, 0)  # type: ignore[arg-type]


def test_replicas_held_cost_their_catalogue_price_and_an_empty_place_nothing() -> None:
    kinds = catalogue([Hardware("cpu-1", 0.5)])
    held = [replica("a", 1.0), replica("b", 2.0, "retiring"), replica("c", 3.0, "waiting")]
    assert cost_per_hour(held, kinds) == pytest.approx(1.0)


def test_each_kind_may_grow_by_what_the_cores_have_left_and_keeps_what_it_has() -> None:
    plan = {"a": (Allocation("cpu-0.25", 1, 2),), "b": (Allocation("cpu-0.5", 1, 1), Allocation("emulated-cpu", 1, 9))}
    held = replicas_of_plan(plan)
    stock = stock_of_cores(held, catalogue([Hardware("cpu-0.1", 0.1, cores=0.1, stock=2)]), 1.6)
    assert (stock["cpu-0.25"], stock["cpu-0.5"], stock["cpu-0.1"], stock["cpu-1"]) == (4, 2, 2, 0)
    assert "emulated-cpu" not in stock
    crowded = stock_of_cores(held, catalogue(), 0.5)
    assert (crowded["cpu-0.25"], crowded["cpu-0.5"]) == (2, 1)
    assert stock_of_cores(held, catalogue(), math.inf) == {}


def test_of_new_replicas_as_many_are_left_out_as_the_cores_lack() -> None:
    before = {"a": {"cpu-0.25": 2}, "b": {"cpu-0.5": 1}, "c": {"emulated-cpu": 1}}
    wanted = {"a": {"cpu-0.25": 4}, "b": {"cpu-0.5": 2}, "c": {"emulated-cpu": 9}}
    assert within_cores(wanted, before, catalogue(), 2.0) == wanted
    fitting = within_cores(wanted, before, catalogue(), 1.6)
    assert cores_held(fitting, catalogue()) <= 1.6
    assert fitting["c"]["emulated-cpu"] == 9
    assert within_cores(wanted, before, catalogue(), 0.1) == {**before, "c": {"emulated-cpu": 9}}


def test_places_that_there_are_now_limit_a_kind_further_than_its_stock_and_never_less() -> None:
    kinds = catalogue([Hardware("gpu-a", 1.0, stock=3), Hardware("gpu-b", 1.0)])
    assert within({}, {"gpu-a": 2, "gpu-b": 5}, kinds) == {"gpu-a": 2, "gpu-b": 5}
    assert within({}, {"gpu-a": 9}, kinds) == {"gpu-a": 3}
    assert within({"gpu-a": 1}, {"gpu-a": 2}, kinds) == {"gpu-a": 1}
    assert within({"gpu-b": 4}, {}, kinds) == {"gpu-b": 4}


def test_kinds_that_share_gpus_have_room_for_what_the_others_leave() -> None:
    t4 = {"gpu_model": "Tesla T4", "gpu_stock": 4.0}
    kinds = catalogue([Hardware("whole", 0.5, gpus=1, stock=4, **t4), Hardware("half", 0.3, gpus=0.5, stock=8, **t4)])
    held = {"a": {"whole": 2}, "b": {"half": 1}, "c": {"half": 1}, "d": {"cpu-1": 9}}
    found = stock_of_gpus(held, kinds)
    assert (found["whole"], found["half"], found["whole-1of4"]) == (3, 4, 4)
    found = stock_of_gpus({"a": {"whole": 5}}, kinds)
    assert (found["whole"], found["half"]) == (4, 0)
    assert stock_of_gpus({"a": {"half": 3}, "b": {"whole": 2}}, kinds)["half"] == 4, "the rest of a shared one"
    assert stock_of_gpus({}, catalogue()) == {}


@pytest.mark.parametrize(("away", "asked"), [((), {"x": 2, "x-spot": 3}), (["x-spot"], {"x": 4, "x-spot": 0})])
def test_a_plan_that_comes_into_force_asks_for_no_spot_capacity_that_is_away(
    away: list[str], asked: dict[str, int]
) -> None:
    spot = replace(plan(), allocations={"a": (Allocation("x", 1, 1), Allocation("x-spot", 1, 3))})
    assert going_over({"a": {"x": 2, "x-spot": 0}}, spot, away) == {"a": asked}
