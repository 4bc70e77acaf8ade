"""Ordinary consumer groups: each member is a slot of one replica, and has its partitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.errors import InvalidInput
from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.numba_kernels import interpreted
from inferline_stream.estimator.stage_pools import slot_of
from inferline_stream.estimator.station import station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.live_classes import LiveClass
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import Contention
from inferline_stream.pipeline.shape import Arrow, Paths, Shape
from inferline_stream.pipeline.trace import Trace, gamma_trace
from tests.unit.estimator.small import ONE, allocated, measured

PROFILE = measured(ONE, {"a": {1: 0.01, 4: 0.02, 8: 0.03}})


def poisson(rate: float, seconds: float, seed: int = 1) -> Trace:
    return gamma_trace(rate, 1.0, seconds, np.random.default_rng(seed))


def grouped(replicas: int, limit: int, events: Trace, partitions: int | None) -> np.ndarray:
    serving = station(PROFILE, "a", allocated(replicas, limit), partitions=partitions)
    latency_s = evaluate(prepare(ONE, PROFILE, events), [serving]).latency_s
    assert latency_s is not None
    return latency_s


@pytest.mark.parametrize(("members", "partitions"), [(1, 12), (6, 1)])
def test_a_member_with_every_partition_is_one_replica_of_one_queue(members: int, partitions: int) -> None:
    events = poisson(80, 50)
    assert np.array_equal(grouped(members, 4, events, partitions), grouped(1, 4, events, None))


def test_partitions_cost_latency_compared_with_a_shared_queue() -> None:
    events = poisson(600, 60)
    assert np.quantile(grouped(4, 8, events, 8), 0.99) > np.quantile(grouped(4, 8, events, None), 0.99)


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


def test_partitions_are_dealt_to_the_members_in_turn_and_members_beyond_them_have_none() -> None:
    workload = prepare(ONE, PROFILE, poisson(50, 10))
    for members, partitions in ((3, 7), (5, 3)):
        resolved = station(PROFILE, "a", allocated(members), partitions=partitions)
        assert (resolved.slots, resolved.replicas) == (min(members, partitions),) * 2
        found = slot_of(workload, 0, resolved, interpreted)
        assert np.array_equal(found, workload.partition_of(0, partitions) % resolved.slots)


@pytest.mark.parametrize("held", [allocated(hold_s=1.0), (Allocation("h", 1, 1, concurrency=2),)])
def test_members_neither_hold_batches_nor_run_several(held: tuple[Allocation, ...]) -> None:
    profile = measured(ONE, {"a": {1: 0.01}})
    profile.profiles["a", "h"] = replace(profile.profiles["a", "h"], contention=(Contention(2, (1.5,)),))
    with pytest.raises(ValueError, match="members of a consumer group neither"):
        station(profile, "a", held, partitions=2)


@pytest.mark.parametrize("partitions", [0, -1, 70_000])
def test_partition_counts_that_cannot_be_are_refused(partitions: int) -> None:
    with pytest.raises(InvalidInput, match=str(partitions)):
        station(PROFILE, "a", allocated(), partitions=partitions)


def test_a_group_takes_the_events_of_every_class_as_they_come() -> None:
    """Whatever the SLO of their class: an ordinary consumer group knows of none."""
    serving = station(PROFILE, "a", allocated(2, 4), partitions=4)
    classes = (LiveClass("patient", 0.3, 2.0), LiveClass("hasty", 0.3, -0.2))
    alike, several = (prepare(ONE, known, poisson(350, 20)) for known in (PROFILE, replace(PROFILE, classes=classes)))
    assert set(several.class_of.tolist()) == {0, 1, 2}
    assert np.array_equal(evaluate(several, [serving]).latency_s, evaluate(alike, [serving]).latency_s)
