"""KEDA's Kafka scaler, in numbers worked out by hand."""

from __future__ import annotations

import pytest

from inferline_stream.baselines.hpa import Behavior, Keda
from inferline_stream.baselines.rule_inputs import StageSeen


def seen(time_s: float, replicas: int, lags: tuple[int, ...], committed: tuple[int, ...] = ()) -> StageSeen:
    return StageSeen(time_s, replicas, replicas, sum(lags), partitions=len(lags), lags=lags, committed=committed)


def test_lag_that_divides_down_to_the_partition_count_is_not_capped():
    lags = (11, *[11] * 8, 10)  # 109 over 10 partitions: 109 // 10 is 10, not above 10
    rule = Keda(lag_threshold=10)
    assert rule.metric(seen(0.0, 9, lags)) == 109
    assert rule.step(rule.begin(9), seen(15.0, 9, lags))[1] == 11


def test_lag_beyond_the_partitions_is_capped():
    assert Keda(lag_threshold=10).metric(seen(0.0, 1, (11,) * 10)) == 100
    assert Keda(lag_threshold=10, allow_idle_consumers=True).metric(seen(0.0, 1, (11,) * 10)) == 110


@pytest.mark.parametrize(
    ("lag", "metric"), [(1, 10), (10, 10), (11, 20), (21, 30), (31, 40), (41, 60), (61, 120), (200, 120)]
)
def test_even_distribution_asks_for_divisors_of_the_partition_count(lag, metric):
    assert Keda(lag_threshold=10, even=True).metric(seen(0.0, 1, (lag, *[0] * 11))) == metric


def test_a_partition_whose_offset_stands_still_is_left_out_on_request():
    rule = Keda(lag_threshold=10, exclude_persistent_lag=True)
    first, second = seen(0.0, 2, (50, 20), (7, 100)), seen(15.0, 2, (60, 20), (7, 130))
    memory, _ = rule.step(rule.begin(2), first)
    assert rule.metric(second, memory.committed) == 20
    assert Keda(lag_threshold=40).metric(second, memory.committed) == 80


def test_a_step_of_lag_climbs_by_the_hpas_limits():
    rule, replicas, path = Keda(lag_threshold=10), 1, [1]
    memory = rule.begin(1)
    for sync in range(1, 6):
        memory, replicas = rule.step(memory, seen(15.0 * sync, replicas, (10,) * 64))
        path.append(replicas)
    assert path == [1, 5, 10, 20, 40, 64]


def test_lag_within_a_tenth_of_the_threshold_changes_nothing():
    rule = Keda(lag_threshold=10)
    assert rule.step(rule.begin(4), seen(15.0, 4, (11, 11, 11, 11)))[1] == 4
    assert rule.step(rule.begin(4), seen(15.0, 4, (12, 11, 11, 11, 0)))[1] == 5


def test_the_last_replica_goes_after_five_minutes_without_lag_and_comes_back_at_the_next_poll():
    rule = Keda(behavior=Behavior(minimum=0))
    memory, replicas = rule.step(rule.begin(1), seen(0.0, 1, (5,)))
    gone_s = None
    for sync in range(1, 30):
        memory, replicas = rule.step(memory, seen(15.0 * sync, replicas, (0,)))
        if replicas == 0:
            gone_s = 15.0 * sync
            break
    assert gone_s == 300.0
    memory, replicas = rule.step(memory, seen(315.0, 0, (0,)))
    assert replicas == 0
    memory, replicas = rule.step(memory, seen(330.0, 0, (3,)))
    assert replicas == 0  # read at 315 s; the next poll is at 345 s
    assert rule.step(memory, seen(345.0, 0, (3,)))[1] == 1
