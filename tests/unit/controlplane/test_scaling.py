from __future__ import annotations

import pytest

from inferline_stream.actuators.actuator import ObservedReplica
from inferline_stream.controlplane.scaling import cost_per_hour, leaving, local_stock, replicas_of_plan
from inferline_stream.pipeline.hardware import Hardware, catalogue
from inferline_stream.pipeline.plan import Allocation


def replica(name: str, started_s: float, state: str = "running") -> ObservedReplica:
    return ObservedReplica(name, "s", "cpu-1", state, 1, started_s, 0)  # type: ignore[arg-type]


def test_those_with_the_fewest_partitions_leave_first_then_the_youngest() -> None:
    replicas = [replica("old", 1.0), replica("busy", 2.0), replica("idle", 3.0), replica("young", 4.0)]
    partitions = {"old": 2, "busy": 4, "young": 2}
    assert leaving(replicas, 1, partitions, ()) == ("idle", "young", "old")


def test_a_place_that_waits_for_a_restart_leaves_before_all() -> None:
    replicas = [replica("a", 1.0), replica("dead", 2.0, "waiting")]
    assert leaving(replicas, 1, {"dead": 9}, ()) == ("dead",)


def test_what_leaves_already_does_not_count() -> None:
    replicas = [replica("a", 1.0), replica("b", 2.0), replica("c", 3.0, "retiring")]
    assert leaving(replicas, 1, {}, {"b"}) == ()
    assert leaving(replicas, 3, {}, ()) == ()


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
