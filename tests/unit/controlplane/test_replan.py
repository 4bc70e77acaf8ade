from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from inferline_stream.controlplane.decide.replan import ReplanInputs, recorded, replan
from inferline_stream.controlplane.records.control_records import ArrivalTicks, encode
from inferline_stream.estimator.simulation import simulate
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Plan, cost_per_hour
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.problem import Problem
from inferline_stream.planner.provision import provision
from inferline_stream.tuner.decision import Reason

SHAPE = Shape(("a", "b"), (Arrow(0, 1),))
KINDS = {"cpu": Hardware("cpu", 0.10), "gpu": Hardware("gpu", 0.50)}
SOURCE_PARTITIONS = (12,)


def measured(slower: float = 1.0) -> PipelineProfile:
    times = {
        ("a", "cpu"): [(1, 0.020), (2, 0.032), (4, 0.056)],
        ("b", "cpu"): [(1, 0.040), (2, 0.076)],
        ("b", "gpu"): [(1, 0.008), (4, 0.014), (8, 0.020)],
    }
    profiles = {
        key: Profile(*key, tuple(ServiceTime(size, s * (slower if key[1] == "cpu" else 1.0)) for size, s in entries))
        for key, entries in times.items()
    }
    return PipelineProfile(profiles, independent_paths(SHAPE, {}))


def ticks(rate: float, seconds: float = 60.0, seed: int = 1, partitions_used: int = 12) -> list[Record]:
    """What a controller writes that samples end offsets each 20 ms and writes each 100 ms; records go round."""
    arrivals = gamma_trace(rate, 1.0, seconds, np.random.default_rng(seed)).arrivals_s
    edges = np.arange(0.0, seconds + 0.02, 0.02)
    ends = np.searchsorted(arrivals, edges)
    records = []
    for offset, first in enumerate(range(0, len(edges) - 1, 5)):
        last = min(first + 5, len(edges) - 1)
        times_ms = [1e12 + 1e3 * float(t) for t in edges[first : last + 1]]
        rows = [
            [(int(n) + p) // partitions_used if p < partitions_used else 0 for p in range(12)]
            for n in ends[first : last + 1]
        ]
        value = encode(ArrivalTicks(times_ms[1:], rows[1:], rows[0], times_ms[0]))
        records.append(Record(None, value, (), 0, "arrivals", 0, offset))
    return records


@cache
def planned(rate: float) -> Plan:
    return provision(Problem(SHAPE, measured(), (gamma_trace(rate, 1.0, 60.0, np.random.default_rng(5)),), 0.3, KINDS))


def inputs(rate: float, planned_rate: float, **changes: object) -> ReplanInputs:
    plan = planned(planned_rate)
    usual = ReplanInputs(SHAPE, measured(), plan, 0.3, 0.99, KINDS, SOURCE_PARTITIONS, {}, ticks(rate), 0.1, 60.0)
    return replace(usual, **changes)


def test_the_recorded_trace_holds_every_arrival_within_a_tick_of_its_time() -> None:
    true = gamma_trace(50, 1.0, 60.0, np.random.default_rng(1)).arrivals_s
    trace = recorded(ticks(50), (3, 9))
    found = trace.arrivals_s
    assert len(found) == len(true)
    assert np.bincount(trace.source_of) / len(true) == pytest.approx([3 / 12, 9 / 12], abs=0.01)
    assert np.abs((found - found[0]) - (true - true[0])).max() <= 0.04


def test_a_plan_that_fits_stays() -> None:
    proposal = replan(inputs(60, 60, ticks=ticks(60, seed=5)))  # the traffic that it was made for
    assert proposal.reason is None
    assert proposal.plan is None


def test_traffic_beyond_the_plan_calls_for_another_that_meets_the_slo_on_it() -> None:
    given = inputs(180, 40)
    proposal = replan(given)
    assert proposal.reason is Reason.PLAN_MISSES_SLO
    assert proposal.plan is not None
    found = simulate(SHAPE, proposal.plan.allocations, given.measured, proposal.trace, order_slo_s=0.3)
    assert found.p99_s <= 0.3


def test_another_plan_holds_the_reserve_that_the_one_in_force_held() -> None:
    given = inputs(180, 40)
    proposal = replan(replace(given, plan=replace(given.plan, reserve=1.5)))
    assert proposal.plan is not None
    assert proposal.plan.reserve == 1.5


def test_the_plan_in_force_is_judged_with_the_dispatchers_that_it_has() -> None:
    given = inputs(60, 60)
    plan = given.plan
    staffed = {stage: tuple(replace(a, replicas=8) for a in held) for stage, held in plan.allocations.items()}
    eight = replace(given, plan=replace(plan, allocations=staffed, slots=dict.fromkeys(SHAPE.stages, 8)))
    trace = recorded(given.ticks, SOURCE_PARTITIONS)
    expected, other = (
        simulate(SHAPE, staffed, given.measured, trace, order_slo_s=0.3, slots=slots).p99_s
        for slots in (eight.plan.slots, {})
    )
    assert format_duration(expected) != format_duration(other)
    assert f"has a P99 of {format_duration(expected)}," in replan(eight).detail


def test_far_less_traffic_calls_for_a_cheaper_plan() -> None:
    given = inputs(20, 180)
    proposal = replan(given)
    assert proposal.reason is Reason.PLAN_SAVES
    assert proposal.plan.cost_per_hour < 0.9 * cost_per_hour(given.plan.allocations, KINDS)


def test_a_saving_below_the_threshold_changes_nothing() -> None:
    given = inputs(20, 180)
    assert replan(replace(given, saves_share=0.99)).plan is None


def test_a_stage_that_runs_slower_than_profiled_is_seen() -> None:
    assert replan(inputs(60, 60, measured=measured(slower=3.0))).reason is Reason.PLAN_MISSES_SLO


def test_a_price_that_changes_moves_a_stage_to_other_hardware() -> None:
    given = inputs(120, 120)
    kinds = {kind: {a.hardware for a in held} for kind, held in given.plan.allocations.items()}
    used = next(iter(kinds["b"]))
    dear = {**KINDS, used: Hardware(used, 50.0)} if used == "gpu" else {**KINDS, "cpu": Hardware("cpu", 5.0)}
    proposal = replan(replace(given, catalogue=dear))
    assert proposal.reason is Reason.PLAN_SAVES
    assert {a.hardware for a in proposal.plan.allocations["b"]} != {used}


def test_another_slo_is_taken_up_whatever_it_costs() -> None:
    proposal = replan(inputs(60, 60, slo_s=0.2))
    assert proposal.reason is Reason.LIMIT_CHANGED
    assert proposal.plan.slo_s == 0.2


def test_an_slo_that_no_plan_meets_is_said_and_nothing_changes() -> None:
    proposal = replan(inputs(60, 60, slo_s=0.025))
    assert (proposal.reason, proposal.plan) == (Reason.PLAN_INFEASIBLE, None)


def test_stock_that_people_have_taken_away_is_said_and_nothing_changes() -> None:
    none_left = {name: replace(kind, stock=0) for name, kind in KINDS.items()}
    proposal = replan(inputs(60, 60, catalogue=none_left))
    assert proposal.reason is Reason.PLAN_INFEASIBLE
    assert "none of cpu is in stock; free some" in proposal.detail
    assert proposal.plan is None


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_too_few_arrivals_are_no_ground_for_a_plan(seconds: float) -> None:
    proposal = replan(inputs(60, 60, ticks=ticks(60, seconds) if seconds else []))
    assert (proposal.reason, proposal.plan) == (None, None)
    assert "recorded" in proposal.detail
