"""Ray Serve's rule, against numbers worked out by hand."""

from __future__ import annotations

from inferline_stream.baselines.ray_serve import RayServe
from inferline_stream.baselines.rule_inputs import StageSeen


def seen(time_s: float, replicas: int, ongoing: float) -> StageSeen:
    return StageSeen(time_s, replicas, replicas, ongoing)


def test_more_replicas_come_after_thirty_seconds_of_wanting_them():
    rule = RayServe()
    memory = rule.begin(2)
    for second in range(1, 31):
        memory, wanted = rule.step(memory, seen(float(second), 2, 12.0))
        assert wanted == 2
    _, wanted = rule.step(memory, seen(31.0, 2, 12.0))
    assert wanted == 6  # 12 requests at 2 a replica


def test_fewer_replicas_come_only_after_ten_minutes():
    rule = RayServe()
    memory, at = rule.begin(6), None
    for second in range(1, 700):
        memory, wanted = rule.step(memory, seen(float(second), 6, 4.0))
        if wanted != 6:
            at = second
            break
    assert (at, wanted) == (601, 2)


def test_a_stage_without_replicas_gets_one_at_once():
    rule = RayServe(minimum=0)
    assert rule.step(rule.begin(0), seen(1.0, 0, 0.0))[1] == 0
    assert rule.step(rule.begin(0), seen(1.0, 0, 1.0))[1] == 1
