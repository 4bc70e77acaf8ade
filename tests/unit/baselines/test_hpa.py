"""The HorizontalPodAutoscaler's default behaviour, and KEDA's Kafka scaler on it, in numbers worked out by hand."""

from __future__ import annotations

import pytest

from inferline_stream.baselines.hpa import Behavior, HpaCpu, Keda, Recommended, followed
from inferline_stream.baselines.rule_inputs import StageSeen


def seen(time_s: float, replicas: int, cpu: float, ready: int | None = None, busy: float = 0.0) -> StageSeen:
    return StageSeen(time_s, replicas, replicas if ready is None else ready, 0.0, cpu=cpu, busy=busy)


def climb(behavior: Behavior, recommended: int) -> list[int]:
    memory, current, path = Recommended(), 1, [1]
    for sync in range(1, 8):
        memory, current = followed(behavior, memory, 15.0 * sync, current, recommended)
        path.append(current)
    return path


def test_growth_doubles_or_adds_four_per_sync():
    assert climb(Behavior(), 64) == [1, 5, 10, 20, 40, 64, 64, 64]


def test_the_maximum_bounds_growth():
    assert climb(Behavior(maximum=30), 64)[-1] == 30


def test_the_first_scale_down_comes_five_minutes_after_the_last_high_recommendation():
    memory, current = followed(Behavior(), Recommended(), 0.0, 64, 64)
    for sync in range(1, 20):
        memory, current = followed(Behavior(), memory, 15.0 * sync, current, 8)
        assert current == 64
    _, current = followed(Behavior(), memory, 300.0, current, 8)
    assert current == 8


@pytest.mark.parametrize(
    ("cpu", "wanted"),
    [
        (0.80, 4),  # on target
        (0.87, 4),  # 1.0875 times the target: within the tolerance of 0.1
        (0.88, 4),  # exactly 1.1
        (0.89, 5),  # ⌈4 · 1.1125⌉
        (1.00, 5),  # ⌈4 · 1.25⌉
    ],
)
def test_cpu_above_the_target_asks_for_more_in_proportion(cpu, wanted):
    rule = HpaCpu(0.8)
    assert rule.step(rule.begin(4), seen(15.0, 4, cpu))[1] == wanted


def test_replicas_that_are_not_ready_are_not_counted():
    rule = HpaCpu(0.8)
    assert rule.step(rule.begin(6), seen(15.0, 6, 1.0, ready=4))[1] == 6  # ⌈4 · 1.25⌉ = 5, held up by the window


def test_busy_shares_stand_in_for_cpu_on_request():
    rule = HpaCpu(0.5, busy=True)
    assert rule.step(rule.begin(2), seen(15.0, 2, 0.0, busy=1.0))[1] == 4


def lagging(time_s: float, replicas: int, lags: tuple[int, ...]) -> StageSeen:
    return StageSeen(time_s, replicas, replicas, sum(lags), partitions=len(lags))


def test_lag_that_divides_down_to_the_partition_count_is_not_capped():
    lags = (11, *[11] * 8, 10)  # 109 over 10 partitions: 109 // 10 is 10, not above 10
    rule = Keda(lag_threshold=10)
    assert rule.metric(lagging(0.0, 9, lags)) == 109
    assert rule.step(rule.begin(9), lagging(15.0, 9, lags))[1] == 11


def test_lag_beyond_the_partitions_is_capped():
    assert Keda(lag_threshold=10).metric(lagging(0.0, 1, (11,) * 10)) == 100


def test_a_step_of_lag_climbs_by_the_hpas_limits():
    rule, replicas, path = Keda(lag_threshold=10), 1, [1]
    memory = rule.begin(1)
    for sync in range(1, 6):
        memory, replicas = rule.step(memory, lagging(15.0 * sync, replicas, (10,) * 64))
        path.append(replicas)
    assert path == [1, 5, 10, 20, 40, 64]


def test_lag_within_a_tenth_of_the_threshold_changes_nothing():
    rule = Keda(lag_threshold=10)
    assert rule.step(rule.begin(4), lagging(15.0, 4, (11, 11, 11, 11)))[1] == 4
    assert rule.step(rule.begin(4), lagging(15.0, 4, (12, 11, 11, 11, 0)))[1] == 5
