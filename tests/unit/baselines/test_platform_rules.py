"""Dataflow's, Numaflow's and Seldon's rules, in numbers worked out by hand."""

from __future__ import annotations

from inferline_stream.baselines.platform_rules import Dataflow, Numaflow, Seldon
from inferline_stream.baselines.rule_inputs import StageSeen


def seen(time_s: float, replicas: int, lag: float, arrival: float, processed: float, *, cpu: float = 0.9) -> StageSeen:
    return StageSeen(time_s, replicas, replicas, lag, arrival=arrival, processed=processed, busy=cpu, cpu=cpu)


def first_change(rule, replicas, look, until_s=1000.0):
    memory, time_s = rule.begin(replicas), 0.0
    while time_s < until_s:
        time_s += rule.period_s
        memory, wanted = rule.step(memory, look(time_s))
        if wanted != replicas:
            return time_s, wanted
    return None


def test_dataflow_scales_up_after_two_minutes_of_backlog():
    # 2000 records at 100/s are 20 s; (150 + 2000/150) / 25 per worker: ⌈6.53⌉.
    assert first_change(Dataflow(), 4, lambda t: seen(t, 4, 2000, 150, 100)) == (130.0, 7)


def test_dataflow_leaves_a_backlog_of_idle_workers_alone():
    assert first_change(Dataflow(), 4, lambda t: seen(t, 4, 2000, 150, 100, cpu=0.15)) is None


def test_dataflow_scales_down_to_three_quarters_of_the_cpu():
    assert first_change(Dataflow(), 8, lambda t: seen(t, 8, 10, 100, 100, cpu=0.3)) == (130.0, 4)  # ⌈8·0.3/0.75⌉


def test_numaflow_works_off_the_backlog_in_its_target_time_by_two_at_most():
    rule = Numaflow()
    assert rule.desired(3000, 100, 4) == 6  # 30 s of records for 20 s: 1.5 times as many
    assert rule.desired(1000, 100, 4) == 2
    assert rule.desired(0, 0, 4) == 0
    assert first_change(rule, 4, lambda t: seen(t, 4, 9000, 100, 100)) == (30.0, 6)  # 18 wanted
    assert first_change(rule, 10, lambda t: seen(t, 10, 100, 100, 100)) == (30.0, 8)


def test_numaflow_waits_ninety_seconds_between_changes():
    rule = Numaflow()
    memory, replicas, changes = rule.begin(4), 4, []
    for look in range(1, 9):
        memory, wanted = rule.step(memory, seen(30.0 * look, replicas, 90_000, 100, 100))
        if wanted != replicas:
            changes.append((30.0 * look, wanted))
        replicas = wanted
    assert changes == [(30.0, 6), (120.0, 8), (210.0, 10)]


def test_seldon_adds_one_replica_per_tick_of_lag():
    rule = Seldon()
    memory, replicas = rule.begin(1), 1
    for tick in range(1, 4):
        memory, replicas = rule.step(memory, seen(5.0 * tick, replicas, 31, 10, 10))
    assert replicas == 4
    assert rule.step(memory, seen(20.0, 4, 30, 10, 10))[1] == 4


def test_seldon_takes_one_away_after_idling_if_nothing_changed_for_five_minutes():
    rule = Seldon()
    memory, _ = rule.step(rule.begin(2), seen(5.0, 2, 31, 10, 10))
    gone_s = None
    for tick in range(2, 100):
        memory, wanted = rule.step(memory, seen(5.0 * tick, 3, 0, 0, 0))
        if wanted < 3:
            gone_s = 5.0 * tick
            break
    assert gone_s == 305.0
