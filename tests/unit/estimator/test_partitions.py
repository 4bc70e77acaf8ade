"""Kafka's queues: records in partitions, partitions bound to replicas."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.evaluation import Departures, arrivals_at, evaluate, simulate_stage
from inferline_stream.estimator.simulation import simulate
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.shape import Arrow, Paths, Shape
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.unit.estimator.small import CHAIN, ONE, allocated, close, measured, trace

PROFILE = measured(ONE, {"a": {1: 0.01, 4: 0.02, 8: 0.03}})


def poisson(rate: float, seconds: float, seed: int = 1) -> Trace:
    return gamma_trace(rate, 1.0, seconds, np.random.default_rng(seed))


def test_one_partition_is_one_replica_however_many_there_are() -> None:
    events = poisson(80, 50)
    one = simulate(ONE, {"a": allocated(1, 4)}, PROFILE, events)
    many = simulate(ONE, {"a": allocated(6, 4)}, PROFILE, events, partitions={"a": 1})
    assert np.array_equal(one.latency_s, many.latency_s)
    assert many.stages["a"].utilization == pytest.approx(one.stages["a"].utilization / 6)


def test_one_replica_with_every_partition_is_a_shared_queue_at_an_entry_stage() -> None:
    events = poisson(300, 30)
    shared = simulate(ONE, {"a": allocated(1, 8)}, PROFILE, events)
    bound = simulate(ONE, {"a": allocated(1, 8)}, PROFILE, events, partitions={"a": 12})
    assert np.array_equal(shared.latency_s, bound.latency_s)


def test_partitions_cost_latency_compared_with_a_shared_queue() -> None:
    events = poisson(600, 60)
    shared = simulate(ONE, {"a": allocated(4, 8)}, PROFILE, events)
    bound = simulate(ONE, {"a": allocated(4, 8)}, PROFILE, events, partitions={"a": 8})
    assert bound.p99_s > shared.p99_s


def test_every_partition_gets_its_share_of_the_records() -> None:
    workload = prepare(ONE, PROFILE, Trace(np.arange(200_000.0)))
    even = np.bincount(workload.partition_of(0, 7), minlength=7) / len(workload)
    assert np.abs(even - 1 / 7).max() < 0.005


def test_a_key_stays_in_its_partition_along_the_pipeline_and_a_join_goes_by_event() -> None:
    shape = Shape(("a", "b", "c"), (Arrow(0, 1), Arrow(0, 2), Arrow(1, 2)))
    profile = measured(shape, {name: {1: 0.01} for name in shape.stages}, paths=Paths((0b111,), (1.0,)))
    workload = prepare(shape, profile, Trace(np.arange(1000.0)))
    assert np.array_equal(workload.partition_of(0, 8), workload.partition_of(1, 8))
    together = np.corrcoef(workload.partition_of(0, 8), workload.partition_of(2, 8))[0, 1]
    assert abs(together) < 0.1


def test_mixed_hardware_gets_partitions_by_throughput() -> None:
    profile = measured(ONE, {"a.slow": {1: 0.030}, "a.fast": {1: 0.010}})
    resolved = station(profile, "a", (Allocation("slow", 1, 1), Allocation("fast", 1, 1)), partitions=12)
    assert resolved.owners is not None
    assert np.bincount(resolved.owners).tolist() == [3, 9]


def served_out_of_order(partitions: int, *, apart: bool) -> list[int]:
    """Events 0, 2, 3 and 1 arrive at "b" in this order, 1 while 3 waits; in which order do they leave?"""
    profile = measured(CHAIN, {"a": {1: 1.0}, "b": {1: 3.0}})
    workloads = (prepare(CHAIN, profile, trace(0.0, 0.1, 0.2, 0.3), seed=seed) for seed in range(1000))
    workload = next(w for w in workloads if (np.unique(w.partition_of(1, partitions)).size == 4) == apart)
    gone_a = Departures(np.array([1.0, 1.2, 1.3, 5.1]), np.array([0, 2, 3, 1], dtype=np.int32))
    gone_b = simulate_stage(
        workload, 1, arrivals_at(workload, 1, {0: gone_a}), station(profile, "b", allocated(), partitions=partitions)
    )
    assert gone_b is not None
    assert close(gone_b.times_s, [4.0, 7.0, 10.0, 13.0])
    return gone_b.events.tolist()


def test_a_replica_takes_the_earliest_entered_of_the_heads_of_its_partitions() -> None:
    assert served_out_of_order(16, apart=True) == [0, 2, 1, 3]


def test_within_a_partition_the_order_of_arrival_is_kept() -> None:
    assert served_out_of_order(1, apart=False) == [0, 2, 3, 1]


def test_a_record_that_stood_behind_a_later_one_counts_for_itself_once_that_one_is_gone() -> None:
    """Event 2 waits behind event 10 in one partition. When 10 is served, event 5 arrives in the other partition."""
    profile = measured(CHAIN, {"a": {1: 1.0}, "b": {1: 3.0}})
    workloads = (prepare(CHAIN, profile, Trace(np.arange(13) * 0.01), seed=seed) for seed in range(1000))

    def apart(partition_of: np.ndarray) -> bool:
        return partition_of[2] == partition_of[10] != partition_of[5]

    workload = next(w for w in workloads if apart(w.partition_of(1, 2)))
    gone_a = Departures(np.array([1.0, 2.0, 2.5, 5.0]), np.array([12, 10, 2, 5], dtype=np.int32))
    gone_b = simulate_stage(
        workload, 1, arrivals_at(workload, 1, {0: gone_a}), station(profile, "b", allocated(), partitions=2)
    )
    assert gone_b is not None
    assert gone_b.events.tolist() == [12, 10, 2, 5]


def test_replicas_without_a_partition_stay_idle() -> None:
    resolved = station(PROFILE, "a", allocated(5), partitions=3)
    assert resolved.owners is not None
    assert np.unique(resolved.owners).size == 3
    workload = prepare(ONE, PROFILE, poisson(50, 10))
    latency_s = evaluate(workload, [resolved]).latency_s
    assert latency_s is not None
    assert np.isfinite(latency_s).all()


@pytest.mark.parametrize("partitions", [0, -1, 70_000])
def test_partition_counts_that_cannot_be_are_refused(partitions: int) -> None:
    with pytest.raises(InvalidInput, match=str(partitions)):
        station(PROFILE, "a", allocated(), partitions=partitions)


def test_partitions_of_every_stage_must_be_given() -> None:
    with pytest.raises(InvalidInput, match="stage 'a': the partitions of its input topic"):
        simulate(ONE, {"a": allocated()}, PROFILE, trace(0.0), partitions={})
