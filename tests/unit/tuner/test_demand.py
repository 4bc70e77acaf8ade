"""What a stage needs follows from the traffic and from what is measured of it: branching, speed, backlog."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.demand import Demand, demands, supply_for
from inferline_stream.tuner.observation import StageObservation
from inferline_stream.tuner.policy_settings import PolicySettings
from tests.unit.tuner.plans import seen, state

PLAIN = PolicySettings(insurance=(), beginning_s=0.0)
AT_PLAN = 300, 600, 6000
ROOM = {"a": (100.0, 100.0), "b": (50.0, 100.0)}
"""By stage, the load of the sample and the room above it that its plan leaves, events per second."""


def needed(stage: str, multiple: float) -> float:
    load, room = ROOM[stage]
    return load * multiple + room * math.sqrt(multiple)


def demand(
    stage: str,
    *,
    traffic: int = 1,
    arrival_rate: float = 100.0,
    throughput: float | None = None,
    start_up_s: float | None = None,
    ready: int = 2,
    **there: Any,
) -> Demand:
    """What a stage needs at a multiple of the planned traffic where this is seen of it."""
    observed = seen(0.0, tuple(traffic * count for count in AT_PLAN), peak_rate=arrival_rate)
    supply = {
        "x": structs.replace(
            observed.stages[stage].supply["x"], ready=ready, throughput=throughput, start_up_s=start_up_s
        )
    }
    stages = {**observed.stages, stage: structs.replace(observed.stages[stage], supply=supply, **there)}
    return demands(state(PLAIN), structs.replace(observed, stages=stages))[1][stage]


def test_without_a_table_the_room_above_the_load_grows_with_the_root_of_the_traffic():
    basis = state(PLAIN).basis
    for stage in basis.stages:
        for multiple in (0.5, 1.0, 4.0):
            assert supply_for(basis, stage, multiple) == pytest.approx(needed(stage.name, multiple))


def test_at_the_planned_traffic_each_stage_needs_what_was_planned():
    for stage in ROOM:
        found = demand(stage)
        assert found.needed == pytest.approx(needed(stage, 1.0))
        assert found.reason is Reason.ENVELOPE_EXCEEDED


def test_the_window_that_holds_most_for_its_length_says_how_much_traffic_there_is():
    """Each is lengthened by half the SLO of 500 ms: 450 within 1 s are 360/s, 450 within 5 s are 86/s."""
    tuner = state(PLAIN)
    for envelope, multiple in (((450, 600, 6000), 360 / 240), ((300, 3150, 6000), 600 / 240)):
        found = demands(tuner, seen(0.0, envelope))[1]["a"]
        assert found.needed == pytest.approx(needed("a", multiple))
    assert found.detail == "3150 arrivals within 5 s, planned for 600"
    longest = demands(tuner, seen(0.0, (300, 600, 60_000)))[1]["a"]
    assert longest.needed == pytest.approx(needed("a", 1.0)), "the minute's window shows only what is over"


def test_where_nothing_arrives_nothing_is_expected_to_rise():
    found = demands(state(PLAIN), seen(0.0, (0, 0, 0), peak_rate=0.0))[1]["a"]
    assert found.needed == 0.0
    assert found.reason is Reason.ENVELOPE_EXCEEDED
    assert found.detail.startswith("0 arrivals within 1 s, planned for 300")


@pytest.mark.parametrize(("visits", "multiple"), [(0.75, 1.5), (0.56, 1.12), (0.54, 1.0), (0.45, 1.0), (0.25, 0.5)])
def test_a_stage_that_is_visited_more_or_less_often_by_over_a_tenth_needs_as_much_more_or_less(visits, multiple):
    found = demand("b", visit_ratio=visits)
    assert found.needed == pytest.approx(needed("b", multiple))
    assert (found.reason is Reason.VISIT_RATIO_SHIFTED) == (multiple > 1)


@pytest.mark.parametrize(
    ("rate", "visits", "multiple"),
    [(100.0, 0.6, 1.2), (20.0, 0.6, 1.0), (0.0, 0.6, 1.0), (100.0, 0.4, 0.8), (20.0, 0.4, 0.8)],
)
def test_more_visits_that_may_be_chance_are_no_shift(rate: float, visits: float, multiple: float) -> None:
    """Three standard errors of half the events of ten seconds: 9.5 % at 100/s, and 21 % at 20/s."""
    observed = seen(0.0, AT_PLAN)
    stages = {**observed.stages, "b": structs.replace(observed.stages["b"], visit_ratio=visits)}
    found = demands(state(PLAIN), structs.replace(observed, stages=stages, arrival_rate=rate))[1]["b"]
    assert found.needed == pytest.approx(needed("b", multiple))


def test_more_visits_to_a_stage_that_each_event_visits_may_be_chance_too() -> None:
    observed = seen(0.0, AT_PLAN)
    stages = {**observed.stages, "a": structs.replace(observed.stages["a"], visit_ratio=1.15)}
    found = demands(state(PLAIN), structs.replace(observed, stages=stages, arrival_rate=20.0))[1]["a"]
    assert found.needed == pytest.approx(needed("a", 1.0))


def test_replicas_that_are_slower_count_for_what_they_do_and_need_no_room_beyond_half_their_time():
    """b is planned at a third of its time: at half its speed two thirds of what it does is no reason for more."""
    found = demand("b", throughput=25.0)
    assert found.throughputs == {"x": 25.0}
    assert found.needed == pytest.approx(50.0 / 0.5)
    assert found.reason is Reason.THROUGHPUT_FELL
    assert found.detail == "25/s per replica on x, profiled at 50/s"
    assert demand("b", traffic=2, throughput=25.0).needed == pytest.approx(2 * 50.0 / 0.5)
    at_half = demand("a", throughput=80.0)
    assert at_half.needed == pytest.approx(min(needed("a", 1.0), 100.0 / 0.5))


@pytest.mark.parametrize(("throughput", "counted"), [(91.0, 100.0), (89.0, 89.0), (109.0, 100.0), (111.0, 111.0)])
def test_a_tenth_of_a_replicas_speed_is_within_what_is_measured(throughput, counted):
    found = demand("a", traffic=2, throughput=throughput)
    assert found.throughputs == {"x": counted}
    assert found.needed == pytest.approx(needed("a", 2.0))
    assert (found.reason is Reason.THROUGHPUT_FELL) == (counted < 100.0)


@pytest.mark.parametrize(
    ("share", "utilization", "asks"), [(0.03, 0.9, True), (0.03, None, True), (0.02, 0.9, False), (0.5, 0.4, False)]
)
def test_a_fallback_that_makes_more_than_a_fiftieth_asks_for_replicas_where_the_stage_is_busy(
    share: float, utilization: float | None, asks: bool
) -> None:
    there = {"degraded_share": share, "utilization": utilization}
    tuner, observed = state(PLAIN), seen(0.0, AT_PLAN)
    observed = structs.replace(
        observed, stages={**observed.stages, "a": structs.replace(observed.stages["a"], **there)}
    )
    for time_s in (0.0, 9.9):
        tuner, found_all = demands(tuner, structs.replace(observed, time_s=time_s))
        assert found_all["a"].reason is not Reason.DEGRADED
    found = demands(tuner, structs.replace(observed, time_s=10.0))[1]["a"]
    assert (found.reason is Reason.DEGRADED) == asks
    assert found.needed == pytest.approx(2 * 100.0 * 1.02 if asks else needed("a", 1.0))  # a replica more


def test_a_fallback_that_carries_four_times_as_much_has_hidden_what_its_share_takes_the_stage_itself() -> None:
    """Half of the events by it, in a quarter of the time: they would have taken eight fifths of what there is."""
    tuner, observed = state(PLAIN), seen(0.0, AT_PLAN)
    stages = tuple(replace(stage, carries=4.0) for stage in tuner.basis.stages)
    tuner = structs.replace(tuner, basis=replace(tuner.basis, stages=stages))
    there = structs.replace(observed.stages["a"], degraded_share=0.5, utilization=0.9)
    for time_s in (0.0, 10.0):
        busy = structs.replace(observed, time_s=time_s, stages={**observed.stages, "a": there})
        tuner, found = demands(tuner, busy)
    assert found["a"].needed == pytest.approx(2 * 100.0 * 8 / 5)


def test_more_visits_are_named_before_slower_replicas():
    assert demand("b", visit_ratio=0.75, throughput=25.0).reason is Reason.VISIT_RATIO_SHIFTED


def test_a_backlog_is_drained_within_five_seconds_beside_what_arrives():
    bound = state(PLAIN).basis.backlog_bound["b"]
    lag = math.ceil(bound) + 1000
    found = demand("b", partition_lags=(lag - 400, 400), partition_idle_s=(0.0, 0.0), oldest_lag_s=7.0)
    assert found.needed == pytest.approx(100.0 * 0.5 + lag / 5.0)
    assert found.reason is Reason.BACKLOG
    assert found.detail == f"{lag} records in the queue, the oldest for 7.00 s, and 50.0/s arrive"
    by_visits = demand("b", partition_lags=(lag,), partition_idle_s=(0.0,), visit_ratio=0.52)
    assert by_visits.needed == pytest.approx(100.0 * 0.52 + lag / 5.0)


def test_a_backlog_may_take_as_long_as_a_replica_takes_to_start():
    lag = math.ceil(state(PLAIN).basis.backlog_bound["b"]) + 4000
    for start_up_s, drain_s in ((4.0, 5.0), (20.0, 20.0)):
        found = demand("b", partition_lags=(lag,), partition_idle_s=(0.0,), start_up_s=start_up_s)
        assert found.needed == pytest.approx(50.0 + lag / drain_s)


def test_a_backlog_that_the_samples_traffic_leaves_too_or_that_supply_drains_asks_for_nothing():
    bound = state(PLAIN).basis.backlog_bound
    assert demand("a", partition_lags=(int(bound["a"]),), partition_idle_s=(0.0,)).reason is Reason.ENVELOPE_EXCEEDED
    just = math.ceil(bound["a"]) + 1
    few = demand("a", partition_lags=(just,), partition_idle_s=(0.0,), arrival_rate=1.0)
    assert 1.0 + just / 5.0 < needed("a", 1.0)
    assert few.needed == pytest.approx(needed("a", 1.0))


def test_a_partition_that_stands_still_while_others_move_is_stuck_and_no_backlog():
    found = demand("b", partition_lags=(9000, 9000, 0), partition_idle_s=(5.1, 4.9, 9.0))
    assert found.stuck == (0,)
    assert found.needed == pytest.approx(50.0 + 9000 / 5.0)


@pytest.mark.parametrize(("utilization", "stuck"), [(0.49, (0, 1)), (0.5, ()), (1.0, ()), (None, ())])
def test_where_nothing_moves_partitions_are_stuck_only_if_replicas_have_time(utilization, stuck):
    found = demand("b", partition_lags=(10, 10), partition_idle_s=(6.0, 6.0), utilization=utilization)
    assert found.stuck == stuck


def test_where_no_replica_is_ready_nothing_is_stuck_and_what_waits_is_a_backlog():
    found = demand("b", ready=0, partition_lags=(9000, 9000, 0), partition_idle_s=(9.0, 9.0, 0.0))
    assert found.stuck == ()
    assert found.reason is Reason.BACKLOG


def test_a_stage_that_is_not_seen_needs_what_its_traffic_says():
    observed = seen(0.0, (600, 1200, 12000))
    tuner = state(PLAIN)
    without = structs.replace(observed, stages={"a": StageObservation({})})
    found = demands(tuner, without)[1]
    assert found["b"] == demands(tuner, observed)[1]["b"]
    assert found["b"].needed == pytest.approx(needed("b", 2.0))


@pytest.mark.parametrize("busy", [0.0, 1.0, 40.0])
def test_what_background_events_keep_busy_counts_beside_the_mean_of_live_ones_not_beside_their_peaks(busy: float):
    basis = state(PLAIN).basis
    for stage in basis.stages:
        found = demand(stage.name, arrival_rate=60.0, background_busy=busy)
        beside = 60.0 * stage.visit_ratio + busy * stage.supply / stage.planned
        assert found.needed == pytest.approx(max(needed(stage.name, 1.0), beside))
        bought = beside > needed(stage.name, 1.0)
        assert (found.reason is Reason.BACKGROUND) == bought
        assert bought == (busy == 40.0)
