"""Flink's autoscaler, in numbers worked out by hand."""

from __future__ import annotations

import pytest

from inferline_stream.baselines.flink import Flink, FlinkMemory, Rates, aligned
from inferline_stream.baselines.rule_inputs import PipelineSeen, StageSeen


def look(time_s: float, replicas: int = 4, arrival: float = 100.0, busy: float = 0.9, lag: float = 0.0) -> PipelineSeen:
    stages = {
        "a": StageSeen(time_s, replicas, replicas, lag, arrival=arrival, processed=arrival, busy=busy, partitions=12),
        "b": StageSeen(time_s, 3, 3, 0.0, arrival=arrival * 0.4, processed=arrival * 0.4, busy=0.5, partitions=12),
    }
    return PipelineSeen(time_s, stages, {"a": (), "b": ("a",)})


def test_capacity_adds_lag_and_downtime_to_the_input_at_the_utilization_aimed_at():
    rule = Flink()
    # 180 records over 1800 s, 70/s for 300 s of 1800 s, and 70 / 0.7.
    assert rule.capacity(180.0, 70.0, 0.7, restart=True) == pytest.approx(0.1 + 70 * 300 / 1800 + 100.0)
    assert rule.capacity(180.0, 70.0, 0.7, restart=False) == pytest.approx(0.1 + 100.0)


def test_parallelism_scales_by_capacity_over_the_true_rate():
    rule = Flink(restart_s=0.0)
    # 4 replicas do 110/s; 100/s at 70 % need 142.9/s: factor 1.299, ⌈5.19⌉ = 6, which divides 12 partitions.
    assert rule.parallelism(4, 0.0, 100.0, 110.0, 12) == 6
    assert rule.parallelism(4, 0.0, 100.0, 110.0, None) == 6
    # At most 60 % are taken away at once: 10 → ⌈10 · 0.4⌉.
    assert rule.parallelism(10, 0.0, 1.0, 100.0, None) == 4


@pytest.mark.parametrize(
    ("wanted", "partitions", "count"), [(5, 12, 6), (7, 12, 12), (5, 31, 6), (9, 31, 11), (6, 12, 6)]
)
def test_parallelism_is_aligned_with_the_partitions(wanted, partitions, count):
    # The smallest q ≥ p that divides n, or with which n // q falls below n // p.
    assert aligned(wanted, partitions, 200) == count


def test_nothing_happens_before_stabilization_and_a_full_window():
    rule, memory, acted_s = Flink(), Flink().begin({}), None
    for minute in range(1, 40):
        memory, wanted = rule.step(memory, look(60.0 * minute, busy=1.0, lag=1000.0))
        if wanted["a"] != 4:
            acted_s = 60.0 * minute
            break
    assert acted_s == 1200.0
    # True rate 100/s; 1000/1800 + 100·300/1800 + 100/0.7 = 160.1/s are needed: ⌈6.4⌉ = 7, aligned to 12.
    # b: true rate 40/0.5 = 80/s; 40·300/1800 + 40/0.7 = 63.8/s are needed: ⌈2.4⌉ = 3, as it has.
    assert wanted == {"a": 12, "b": 3}


def test_a_vertex_within_its_utilization_bounds_is_left_alone():
    rule = Flink()
    assert rule.within_bounds(Rates(0.0, 100.0, 100.0, 120.0))
    assert not rule.within_bounds(Rates(0.0, 100.0, 100.0, 99.0))
    # The fastest allowed: 100·300/1800 + 100/0.4 = 266.7/s.
    assert rule.within_bounds(Rates(0.0, 100.0, 100.0, 266.0))
    assert not rule.within_bounds(Rates(0.0, 100.0, 100.0, 267.0))


def test_replicas_go_an_hour_after_they_were_first_wished_away():
    rule, memory, gone_s = Flink(), FlinkMemory(), None
    for minute in range(1, 120):
        memory, wanted = rule.step(memory, look(60.0 * minute, replicas=8, busy=0.2))
        if wanted["a"] != 8:
            gone_s = 60.0 * minute
            break
    assert gone_s == 1200.0 + 3600.0
    # True rate 500/s; target 16.7 + 142.9: factor 0.319, held at 0.4: ⌈3.2⌉ = 4.
    assert wanted["a"] == 4
