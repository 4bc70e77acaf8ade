from __future__ import annotations

import math

import numpy as np
import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.station import Station, service_table, station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Arrow, Paths, Shape
from inferline_stream.pipeline.trace import Trace
from tests.unit.estimator.small import CHAIN, ONE, allocated, close, measured, trace

PROFILE = measured(ONE, {"a": {1: 1.0, 4: 2.0}})
QUEUES = [{}, {"order_slo_s": 0.1}, {"order_slo_s": math.inf}]


@pytest.mark.parametrize("queue", QUEUES)
def test_an_empty_trace_has_no_latencies(queue: dict[str, object]) -> None:
    found = simulate(ONE, {"a": allocated()}, PROFILE, trace(), **queue)  # type: ignore[arg-type]
    assert found.latency_s.size == 0
    assert math.isnan(found.p99_s)
    assert found.miss_rate(1.0) == 0.0
    assert found.stages["a"].arrivals == 0
    assert math.isnan(found.stages["a"].mean_batch_size)
    assert found.stages["a"].utilization == 0.0


@pytest.mark.parametrize("queue", QUEUES)
def test_a_single_event_has_the_service_time_as_its_latency(queue: dict[str, object]) -> None:
    found = simulate(ONE, {"a": allocated(3, 4)}, PROFILE, trace(17.0), **queue)  # type: ignore[arg-type]
    assert found.latency_s.tolist() == [1.0]
    assert found.p99_s == 1.0


@pytest.mark.parametrize("queue", QUEUES)
def test_many_events_at_one_instant_are_served_in_order(queue: dict[str, object]) -> None:
    found = simulate(ONE, {"a": allocated(1, 4)}, PROFILE, trace(*[3.0] * 10), **queue)  # type: ignore[arg-type]
    assert close(found.latency_s, [2.0] * 4 + [4.0] * 4 + [4.0 + 1.0 + 1 / 3] * 2)


def test_times_before_zero_and_since_the_epoch_are_no_trouble() -> None:
    for origin in (-1e6, 1.7e9):
        found = simulate(ONE, {"a": allocated()}, PROFILE, trace(origin, origin + 0.5))
        assert np.allclose(found.latency_s, [1.0, 1.5], atol=1e-6)


@pytest.mark.parametrize("times", [[0.0, math.nan], [math.inf], [1.0, 0.0]])
def test_traces_that_are_not_ascending_numbers_are_never_made(times: list[float]) -> None:
    with pytest.raises(ValueError, match="trace"):
        Trace(np.array(times))


def test_a_batch_size_never_profiled_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidInput, match=r"batch size 8 was never profiled.*run `inferline-stream profile`"):
        simulate(ONE, {"a": allocated(1, 8)}, PROFILE, trace(0.0))


def test_batch_sizes_between_those_profiled_are_interpolated() -> None:
    assert service_table(PROFILE.profiles["a", "h"], 4).mean_s[1:] == pytest.approx([1.0, 4 / 3, 5 / 3, 2.0])


def test_hardware_never_profiled_is_refused_with_what_there_is() -> None:
    with pytest.raises(InvalidInput, match=r"never profiled on 'v100' \(profiled: h\)"):
        simulate(ONE, {"a": (Allocation("v100", 1, 1),)}, PROFILE, trace(0.0))


@pytest.mark.parametrize("allocations", [(), (Allocation("h", 1, 0),)])
def test_a_stage_without_replicas_is_refused(allocations: tuple[Allocation, ...]) -> None:
    with pytest.raises(InvalidInput, match="no replicas"):
        simulate(ONE, {"a": allocations}, PROFILE, trace(0.0))


def test_every_stage_without_an_allocation_is_named() -> None:
    profile = measured(CHAIN, {"a": {1: 1.0}, "b": {1: 1.0}})
    with pytest.raises(InvalidInput) as refused:
        simulate(CHAIN, {}, profile, trace(0.0))
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize("slo_s", [-1.0, math.nan])
def test_an_slo_of_the_order_that_cannot_be_is_refused(slo_s: float) -> None:
    with pytest.raises(ValueError, match="of the queue's order"):
        simulate(ONE, {"a": allocated()}, PROFILE, trace(0.0), order_slo_s=slo_s)


@pytest.mark.parametrize("hold_s", [-1.0, math.nan, math.inf])
def test_holds_that_cannot_be_are_refused(hold_s: float) -> None:
    with pytest.raises(ValueError, match="hold_s must be finite"):
        allocated(hold_s=hold_s)
    station_of_one = (np.array([1]), np.array([math.nan, 1.0]), np.array([0]))
    with pytest.raises(ValueError, match=r"hold .* s must be 0 or more"):
        Station(*station_of_one, hold_s=hold_s)


def test_kinds_of_one_stage_with_different_holds_are_refused() -> None:
    profile = measured(ONE, {"a.x": {1: 1.0}, "a.y": {1: 1.0}})
    with pytest.raises(InvalidInput, match="a stage has one hold_s"):
        simulate(ONE, {"a": (Allocation("x", 1, 1, 0.1), Allocation("y", 1, 1))}, profile, trace(0.0))


@pytest.mark.parametrize("service_s", [0.0, -1.0, math.nan, math.inf])
def test_a_station_refuses_service_times_that_cannot_be(service_s: float) -> None:
    with pytest.raises(ValueError, match="finite and above 0"):
        Station(np.array([1]), np.array([math.nan, service_s]), np.array([0]))


def test_a_path_out_of_a_stage_that_is_not_visited_is_refused() -> None:
    shape = Shape(("a", "b", "c"), (Arrow(0, 1, conditional=True), Arrow(1, 2)))
    profile = measured(shape, {name: {1: 1.0} for name in shape.stages}, paths=Paths((0b10,), (1.0,)))
    with pytest.raises(ValueError, match="does not visit"):
        prepare(shape, profile, trace(0.0))


def test_a_station_without_a_replica_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a replica"):
        Station(np.array([1]), np.array([math.nan, 1.0]), np.empty(0, dtype=np.int64))


def test_a_trace_that_overloads_the_stage_ends_all_the_same() -> None:
    found = simulate(ONE, {"a": allocated()}, PROFILE, Trace(np.arange(5000) * 0.1))
    assert found.latency_s[-1] == pytest.approx(5000 - 499.9)
    assert found.stages["a"].utilization == pytest.approx(1.0)


def test_conditional_stages_that_no_event_visits_are_no_trouble() -> None:
    shape = Shape(("a", "b", "c"), (Arrow(0, 1, conditional=True), Arrow(0, 2), Arrow(1, 2)))
    profile = measured(shape, {name: {1: 1.0} for name in shape.stages}, paths=Paths((0b10,), (1.0,)))
    found = simulate(shape, {name: allocated() for name in shape.stages}, profile, trace(0.0, 10.0))
    assert found.latency_s.tolist() == [2.0, 2.0]
    assert found.stages["b"].arrivals == 0


def test_the_profile_of_one_stage_resolves_to_tables_by_kind() -> None:
    profile = measured(ONE, {"a.x": {1: 1.0, 2: 1.5}, "a.y": {1: 3.0}})
    resolved = station(profile, "a", (Allocation("x", 2, 2), Allocation("y", 1, 1), Allocation("z", 1, 0)))
    assert resolved.kinds.tolist() == [0, 0, 1]
    assert resolved.limits.tolist() == [2, 1]
    assert np.array_equal(resolved.table, [math.nan, 1.0, 1.5, math.nan, 3.0, math.nan], equal_nan=True)
    assert resolved.fastest_s == 1.0
