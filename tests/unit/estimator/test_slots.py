"""A stage with several dispatchers: each has its partitions, its replicas and a queue of its own."""

from __future__ import annotations

import numpy as np
import pytest

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.station import Station, station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.shape import Arrow, FanOut, Paths, Shape
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.unit.estimator.small import ONE, allocated, measured

PROFILE = measured(ONE, {"a": {1: 0.03, 8: 0.08}})


def p99_s(serving: Station, trace: Trace) -> float:
    latency_s = evaluate(prepare(ONE, PROFILE, trace), [serving]).latency_s
    assert latency_s is not None
    return float(np.quantile(latency_s, 0.99))


def test_each_slot_is_a_pool_of_its_own_with_the_events_of_its_partitions() -> None:
    trace = gamma_trace(200.0, 1.0, 60.0, np.random.default_rng(1))
    workload = prepare(ONE, PROFILE, trace)
    dealt = station(PROFILE, "a", allocated(7, 8), slots=3)
    together = evaluate(workload, [dealt], slice_events=64).latency_s
    slot_of = workload.partition_of(0, 3)
    for slot, replicas in enumerate((3, 2, 2)):
        own = slot_of == slot
        alone = prepare(ONE, PROFILE, Trace(trace.arrivals_s[own]))
        expected = evaluate(alone, [station(PROFILE, "a", allocated(replicas, 8))]).latency_s
        assert np.array_equal(together[own], expected)


def test_all_results_of_an_event_go_to_one_slot_as_the_key_that_they_share_does() -> None:
    shape = Shape(("split", "read"), (Arrow(0, 1),), many=(0,))
    paths = Paths((0,), (1.0,), (FanOut(0, (4,), (1.0,), (1,), (1.0,)),))
    profile = measured(shape, {"split": {1: 0.001}, "read": {1: 1.0}}, paths=paths)
    stations = [station(profile, "split", allocated()), station(profile, "read", allocated(4), slots=2)]
    apart = evaluate(prepare(shape, profile, Trace(np.arange(0.0, 1000.0, 10.0))), stations).latency_s
    assert apart is not None
    assert np.allclose(apart[100:].reshape(100, 4), [1.001, 1.001, 2.001, 2.001])  # by the two replicas of the slot


def test_dealing_replicas_to_slots_costs_latency() -> None:
    trace = gamma_trace(300.0, 1.0, 60.0, np.random.default_rng(2))
    one, two, four = (p99_s(station(PROFILE, "a", allocated(12), slots=slots), trace) for slots in (1, 2, 4))
    assert one < two < four


@pytest.mark.parametrize("slots", [0, 4])
def test_a_slot_without_a_replica_is_refused(slots: int) -> None:
    with pytest.raises(ValueError, match="slots need as many replicas"):
        station(PROFILE, "a", allocated(3), slots=slots)
