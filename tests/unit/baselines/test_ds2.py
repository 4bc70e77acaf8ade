"""DS2, in numbers worked out by hand."""

from __future__ import annotations

from inferline_stream.baselines.ds2 import Ds2
from inferline_stream.baselines.rule_inputs import StageSeen


def seen(replicas: int, arrival: float, processed: float, busy: float) -> StageSeen:
    return StageSeen(0.0, replicas, replicas, 0.0, arrival=arrival, processed=processed, busy=busy)


def settled(rule: Ds2, look: StageSeen) -> int:
    memory = rule.begin(look.replicas)
    for _ in range(rule.warm_up):
        memory, wanted = rule.step(memory, look)
        assert wanted == look.replicas
    return rule.step(memory, look)[1]


def test_replicas_are_arrivals_over_the_true_rate_of_one():
    # 100/s at 80 % busy with 4 replicas: 31.25/s each when always busy; 150/s need ⌈4.8⌉.
    assert settled(Ds2(), seen(4, 150.0, 100.0, 0.8)) == 5


def test_one_replica_less_is_not_worth_a_restart():
    assert settled(Ds2(), seen(4, 90.0, 90.0, 0.72)) == 4  # 31.25/s each: ⌈2.88⌉ = 3
    assert settled(Ds2(), seen(5, 90.0, 90.0, 0.576)) == 3


def test_two_intervals_after_a_change_are_ignored():
    rule = Ds2()
    memory = 0
    memory, wanted = rule.step(memory, seen(4, 150.0, 100.0, 0.8))
    assert wanted == 5
    for _ in range(2):
        memory, wanted = rule.step(memory, seen(5, 400.0, 100.0, 0.8))
        assert wanted == 5
    assert rule.step(memory, seen(5, 400.0, 100.0, 0.8))[1] == 16  # 25/s each


def test_a_stage_that_was_never_busy_stays_as_it_is():
    assert settled(Ds2(), seen(3, 10.0, 0.0, 0.0)) == 3
