from __future__ import annotations

import pytest

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.scaling import cost_per_hour, local_stock, replicas_of_plan, within
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.plan import Allocation


def replica(name: str, started_s: float, state: str = "running") -> ObservedReplica:
    return ObservedReplica(name, "s", "cpu-1", state, 1, started_s, 0)  # type: ignore[arg-type]


def test_replicas_held_cost_their_catalogue_price_and_an_empty_place_nothing() -> None:
    kinds = catalogue([Hardware("cpu-1", 0.5)])
    held = [replica("a", 1.0), replica("b", 2.0, "retiring"), replica("c", 3.0, "waiting")]
    assert cost_per_hour(held, kinds) == pytest.approx(1.0)


def test_a_machine_carries_as_many_replicas_as_it_has_cores_and_never_fewer_than_planned() -> None:
    plan = {"a": (Allocation("cpu-1", 1, 1),), "b": (Allocation("cpu-1", 1, 4), Allocation("emulated-cpu", 1, 9))}
    assert replicas_of_plan(plan)["b", "cpu-1"] == 4
    stock = local_stock(plan, catalogue(), cores=2)
    assert (stock["cpu-1"], stock["cpu-0.5"], stock["cpu-4"]) == (5, 4, 0)
    assert "emulated-cpu" not in stock
    assert "t4" not in stock


def test_places_that_there_are_now_limit_a_kind_further_than_its_stock_and_never_less() -> None:
    kinds = catalogue([Hardware("gpu-a", 1.0, stock=3), Hardware("gpu-b", 1.0)])
    assert within({}, {"gpu-a": 2, "gpu-b": 5}, kinds) == {"gpu-a": 2, "gpu-b": 5}
    assert within({}, {"gpu-a": 9}, kinds) == {"gpu-a": 3}
    assert within({"gpu-a": 1}, {"gpu-a": 2}, kinds) == {"gpu-a": 1}
    assert within({"gpu-b": 4}, {}, kinds) == {"gpu-b": 4}
