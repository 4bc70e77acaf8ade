"""Hardware kinds, declared service times, allocations and what they cost."""

import math

import pytest

from inferline_stream.pipeline.emulation import by_kind, emulated_s
from inferline_stream.pipeline.hardware import Hardware, at_prices, catalogue
from inferline_stream.pipeline.plan import Allocation, cost_per_hour, replicas_of
from inferline_stream.pipeline.spot import Spot
from inferline_stream.pipeline.topology import Stage


def test_ten_gpu_and_three_cpu_replicas_cost_what_the_paper_says() -> None:
    """InferLine §6: a K80 replica is a GPU at $0.634 and a CPU at $0.0665."""
    allocations = {"a": (Allocation("k80", 8, 10),), "b": (Allocation("cpu-1", 1, 3),)}
    assert cost_per_hour(allocations, catalogue()) == pytest.approx(7.2045)


def test_a_stage_may_mix_hardware() -> None:
    mixed = (Allocation("k80", 8, 2), Allocation("cpu-1", 1, 3))
    assert replicas_of(mixed) == 5
    assert cost_per_hour({"a": mixed}, catalogue()) == pytest.approx(2 * 0.7005 + 3 * 0.0665)


def test_kinds_of_ones_own_extend_and_override() -> None:
    kinds = catalogue([Hardware("npu", 0.2), Hardware("cpu-1", 0.01)])
    assert kinds["npu"].price_per_hour == 0.2
    assert kinds["cpu-1"].price_per_hour == 0.01
    assert catalogue()["cpu-1"].price_per_hour == pytest.approx(0.0665)
    with pytest.raises(TypeError):
        kinds["x"] = Hardware("x", 1.0)


def test_the_price_of_a_share_of_a_core_is_that_share() -> None:
    kinds = catalogue()
    for name in ("cpu-0.1", "cpu-0.25", "cpu-0.5", "cpu-2", "cpu-4"):
        assert kinds[name].price_per_hour == pytest.approx(kinds["cpu-1"].price_per_hour * kinds[name].cores)


def test_gpus_cost_what_the_smallest_instance_with_one_did_on_the_day_of_the_price_list() -> None:
    """AWS, us-east-1, on demand, 2025-11-30; instances with eight are divided by eight."""
    listed = {"t4": 0.526, "l4": 0.8048, "l40s": 1.861, "a10g": 1.006, "h100": 6.88}
    listed |= {"a100": 21.957642 / 8, "h200": 63.296 / 8}
    kinds = catalogue()
    assert {name: kinds[name].price_per_hour for name in listed} == pytest.approx(listed, abs=0.005)
    assert kinds["l40s"].gpu_model == "NVIDIA L40S"


def test_emulated_kinds_use_no_core() -> None:
    for name, kind in catalogue().items():
        assert kind.emulated == name.startswith("emulated-")
        assert kind.cores == 0 or not kind.emulated


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""},
        {"price_per_hour": -0.1},
        {"price_per_hour": math.nan},
        {"cores": -1},
        {"cores": math.inf},
        {"price_per_hour": 1e300},
        {"cores": 10**30},
        {"stock": 2_000_000},
        {"gpus": -1},
        {"stock": -1},
        {"gpus": 1.5},
        {"gpus": 0.6},
        {"device_class": "gpu.nvidia.com"},
        {"gpus": 0.5, "device_class": "gpu.nvidia.com"},
    ],
)
def test_hardware_that_cannot_be_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"hardware"):
        Hardware(**{"name": "x", "price_per_hour": 1.0, **arguments})


@pytest.mark.parametrize(("size", "replicas"), [(0, 1), (1, -1), (1, 10**9)])
def test_an_allocation_that_cannot_be_is_refused(size: int, replicas: int) -> None:
    with pytest.raises(ValueError, match="must be 1 or more and replicas 0 to 1000000"):
        Allocation("cpu-1", size, replicas)


def stage(emulated: object) -> Stage:
    return Stage("s", list, hardware=["emulated-cpu"], emulated=emulated)


def test_declared_times_are_read_in_ascending_order() -> None:
    assert list(emulated_s({8: "60ms", 1: "20ms"}, "emulated-cpu").items()) == [(1, 0.02), (8, 0.06)]


def test_times_may_be_declared_by_kind() -> None:
    both = {"emulated-cpu": {1: "20ms"}, "emulated-gpu-small": {1: "5ms"}}
    assert emulated_s(both, "emulated-cpu") == {1: 0.02}
    assert emulated_s(both, "emulated-gpu-small") == {1: 0.005}
    with pytest.raises(ValueError, match="no service times for 'emulated-gpu-large'"):
        emulated_s(both, "emulated-gpu-large")


def test_one_of_n_that_share_a_device_takes_n_times_as_long_unless_its_times_are_declared() -> None:
    both = {"emulated-gpu-small": {1: "5ms"}, "emulated-gpu-small-1of2": {1: "7ms"}}
    assert emulated_s(both, "emulated-gpu-small-1of2") == {1: 0.007}
    assert emulated_s(both, "emulated-gpu-small-1of4") == {1: pytest.approx(0.02)}
    assert emulated_s({1: "5ms"}, "emulated-gpu-small-1of3") == {1: pytest.approx(0.015)}


@pytest.mark.parametrize("name", ["t4", "emulated-gpu-small"])
def test_shares_of_each_device_are_in_the_catalogue_and_whole_devices_are_paid(name: str) -> None:
    kinds = catalogue()
    whole, third = kinds[name], kinds[f"{name}-1of3"]
    assert (third.parts, third.price_per_hour) == (3, pytest.approx(whole.price_per_hour / 3))
    for replicas, devices in ((1, 1), (3, 1), (4, 2)):
        held = {"a": (Allocation(third.name, 1, 1),), "b": (Allocation(third.name, 8, replicas - 1),)}
        assert cost_per_hour(held, kinds) == pytest.approx(devices * whole.price_per_hour)
    assert "cpu-4-1of2" not in kinds


def test_a_kind_that_sleeps_for_less_is_shared_and_lent_and_gets_another_price() -> None:
    kind = Hardware("t4", 0.5, gpus=1, asleep_per_hour=0.1, spot=Spot(price=0.05))
    kinds = catalogue([kind])
    assert kinds["t4-1of8"].asleep_per_hour == pytest.approx(0.1 / 8)
    assert kinds["t4-spot"].asleep_per_hour == 0.05
    cheaper = at_prices(kinds, {"t4": 0.04})
    assert (cheaper["t4"].price_per_hour, cheaper["t4"].asleep_per_hour) == (0.04, 0.04)
    assert cheaper["t4-spot"].price_per_hour == 0.04, "spot capacity is never dearer"


@pytest.mark.parametrize(
    "of", [{"device_class": "gpu.nvidia.com"}, {"node_labels": {"gke": "l4"}}, {"name": "x-1g.10gb"}]
)
def test_what_a_cluster_gives_as_a_whole_is_not_divided(of: dict) -> None:
    kind = Hardware(**{"name": "x", "price_per_hour": 1.0, "gpus": 1, **of})
    assert f"{kind.name}-1of2" not in catalogue([kind])


def test_a_table_is_by_kind_if_all_of_its_keys_are_names() -> None:
    assert by_kind({"emulated-cpu": {1: "1ms"}})
    assert not by_kind({1: "1ms"})
    assert not by_kind({1: "1ms", "emulated-cpu": {}})
    assert not by_kind({})
    assert not by_kind(None)
