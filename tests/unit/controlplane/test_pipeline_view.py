from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from inferline_stream.controlplane.observe.event_class import further_classes
from inferline_stream.controlplane.observe.pipeline_view import PipelineView
from inferline_stream.controlplane.observe.pool_reports import GroupFigures
from inferline_stream.controlplane.pipeline_watch import Observer
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.observability.latency_histogram import LatencyHistogram
from inferline_stream.observability.pipeline_state import StoredPlan
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.consumer_group import ConsumerGroup
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape, independent_paths
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic
from inferline_stream.planner.plan_document import PlanDocument
from tests.unit.controlplane.test_fleet import a_context

SHAPE = Shape(("a",), ())
MEASURED = PipelineProfile(
    {("a", kind): Profile("a", kind, (ServiceTime(1, 0.01), ServiceTime(4, 0.02))) for kind in ("cpu", "gpu")},
    independent_paths(SHAPE, {}),
)
PLAN = Plan(
    pipeline="p",
    slo_s=0.5,
    allocations={"a": (Allocation("cpu", 4, 2, 0.012),)},
    cost_per_hour=0.2,
    predicted_p99_s=0.4,
    arrival_rate=10.0,
    envelope=((0.1, 3), (60.0, 700)),
    visit_ratios={"a": 1.0},
    utilization={"a": 0.1},
)


def view() -> PipelineView:
    return PipelineView(a_context([Hardware("cpu", 0.1), Hardware("gpu", 1.0)]), PLAN, MEASURED, {"a": 4})


def test_a_bound_among_the_others_splits_its_bucket_in_proportion() -> None:
    split = LatencyHistogram((0.1, 0.3), (5, 10, 2), 1.0).with_bound(0.15)
    assert split.bounds_s == (0.1, 0.15, 0.3)
    assert split.counts == (5, 2, 8, 2)


@pytest.mark.parametrize(("bound_s", "counts"), [(0.1, (5, 10, 2)), (0.5, (5, 10, 0, 2)), (0.05, (2, 3, 10, 2))])
def test_a_known_bound_changes_nothing_and_one_beyond_all_counts_everything_above(
    bound_s: float, counts: tuple[int, ...]
) -> None:
    assert LatencyHistogram((0.1, 0.3), (5, 10, 2), 1.0).with_bound(bound_s).counts == counts


def test_another_plan_with_other_windows_knows_the_traffic_of_the_last_minute() -> None:
    seen = view()
    for tick in range(1, 3001):
        seen.arrivals(tick * 0.02, [tick, 0, 0, 0])
    other = replace(PLAN, slo_s=0.3, envelope=((0.2, 5), (1.0, 30), (60.0, 700)))
    seen.adopt(other, MEASURED)
    assert seen.traffic.envelope(60.0) == pytest.approx((10, 50, 2999), abs=1)
    assert seen.state(60.0, 0.0, {}).slo_s == 0.3


def test_a_plan_that_came_into_force_is_reported_with_what_it_holds() -> None:
    seen = view()
    seen.plans.append(StoredPlan("c", 1, 12.0, "initial", "", PlanDocument(plan=PLAN), 3))
    (shown,) = seen.state(60.0, 0.0, {}).plans
    assert (shown.number, shown.time_s, shown.reason) == (3, 12.0, "initial")
    assert seen.state(60.0, 0.0, {}).stages[0].hold_s == 0.012
    assert shown.plan == PLAN


def test_events_are_late_by_the_slo_of_their_time() -> None:
    seen = view()
    bounds = seen.latencies.histogram().bounds_s
    buckets = [0] * (len(bounds) + 1)
    buckets[bounds.index(0.3)] = 100  # between 0.25 and 0.3
    buckets[-1] = 7  # above all
    seen.reports.add(PoolReport("d", 1, "a", 0, "serving", 1, counts=StageCounts(latency_buckets=buckets)), 1.0)
    assert seen.state(1.0, 0.0, {}).late_events == 7
    seen.adopt(replace(PLAN, slo_s=0.26), MEASURED)
    assert seen.state(1.0, 0.0, {}).late_events == 7
    later = StageCounts(latency_buckets=[2 * n for n in buckets])
    seen.reports.add(PoolReport("d", 1, "a", 0, "serving", 2, counts=later), 2.0)
    assert seen.state(2.0, 0.0, {}).late_events == 7 + 7 + 80  # what metrics count never falls


def test_a_first_stage_is_visited_as_often_as_events_lately_came_in_on_its_topic() -> None:
    kind = Hardware("cpu", 0.1)
    stages = [Stage("a", same, hardware="cpu"), Stage("b", same, hardware="cpu", source=Topic("other"))]
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=stages, hardware=[kind])
    stages[0].sink = Topic("own")
    context = replace(a_context([kind]), pipeline=pipeline)
    times = (ServiceTime(1, 0.01),)
    measured = PipelineProfile({(s, "cpu"): Profile(s, "cpu", times) for s in "ab"}, Paths((0, 1), (0.5, 0.5)))
    each = {"a": 1, "b": 1}
    plan = replace(
        PLAN, allocations=dict.fromkeys("ab", (Allocation("cpu", 1, 1),)), visit_ratios=dict.fromkeys("ab", 0.5)
    )
    seen = PipelineView(context, plan, measured, each, further_classes(context, {"other": each}))
    own, others = seen.offsets["a"], seen.live["other"].offsets["b"]

    def ratios(now_s: float) -> list[float | None]:
        observed = seen.observation(now_s, {}, {}, {}).stages
        return [observed[stage].visit_ratio for stage in "ab"]

    for second in range(31):
        own.reached(float(second), [5 * second])
        others.reached(float(second), [second])
    assert ratios(30.0) == pytest.approx([5 / 6, 1 / 6], abs=0.02)  # too few in 5 s: of half a minute
    for second in range(31, 36):
        own.reached(float(second), [5 * second])
        others.reached(float(second), [30 + 100 * (second - 30)])
    assert ratios(35.0) == pytest.approx([5 / 105, 100 / 105], abs=0.15)


def same(events: list[int]) -> list[int]:
    return events


def test_a_replica_that_stands_by_is_no_supply() -> None:
    seen = view()
    ready = [ReplicaStatus(name, "cpu", "ready") for name in ("r1", "r2", "r3")]
    seen.reports.add(PoolReport("d", 1, "a", 0, "serving", 1, replicas=ready), 1.0)
    supply = seen.observation(1.0, {"a": {"cpu": 2}}, {}, {}).stages["a"].supply["cpu"]
    assert (supply.ready, supply.pending) == (2, 0)
    (counts,) = seen.state(1.0, 0.0, {"a": {"cpu": 2}}).stages[0].replicas
    assert (counts.ready, counts.standby, counts.pending) == (2, 1, 0)


def test_only_the_last_minute_of_arrivals_is_kept() -> None:
    seen = view()
    for start_s in range(0, 200, 10):
        seen.arrived(np.arange(start_s, start_s + 10.0))
    assert sum(map(len, seen._blocks)) <= 71


def test_dead_letters_and_events_that_waited_too_long_are_counted_by_stage() -> None:
    seen = view()
    counts = StageCounts(dead_lettered=90, expired=7)
    seen.reports.add(PoolReport("d", 1, "a", 0, "serving", 1, counts=counts), 1.0)
    (stage,) = seen.state(1.0, 0.0, {}).stages
    assert (stage.total.dead_lettered, stage.total.expired) == (90, 7)


def test_a_price_that_people_set_is_that_of_the_whole_device() -> None:
    seen = view()
    seen.prices({"t4": 0.3, "l4-1of2": 0.1})
    asked = ("t4", "t4-1of2", "l4", "l4-1of2", "l4-1of4")
    assert {name: round(seen.catalogue[name].price_per_hour, 4) for name in asked} == {
        **{"t4": 0.3, "t4-1of2": 0.15},
        **{"l4": 0.8048, "l4-1of2": 0.1, "l4-1of4": 0.2012},
    }


def test_who_watches_shows_every_member_of_a_group_that_nobody_decides_on() -> None:
    group = ConsumerGroup("a", group="a-v2", topic="in", hardware="cpu")
    pipeline = Pipeline("p", slo="1s", stages=[group], hardware=[Hardware("cpu", 0.1)])
    context = replace(a_context([Hardware("cpu", 0.1)]), pipeline=pipeline)
    seen, unread = PipelineView(context, PLAN, MEASURED, {"a": 4}), cast("Any", None)
    seen.reports.groups["a"] = GroupFigures(6, 1.0, None, "")
    state = Observer(seen, unread, unread, unread, unread, unread, Overrides(), {})._state_at(1.0)
    assert [counts.ready for counts in state.stages[0].replicas] == [6]
    assert state.cost_per_hour == pytest.approx(0.6)


def test_what_comes_into_an_inner_stage_is_what_dispatchers_read_as_offsets_count_markers_of_transactions_too() -> None:
    kind = Hardware("cpu", 0.1)
    first = Stage("a", same, hardware="cpu")
    pipeline = Pipeline(
        "p", slo="1s", source=Topic("in"), sink=Topic("out"), hardware=[kind],
        stages=[first, Stage("b", same, hardware="cpu", after=[first])],
    )  # fmt: skip
    plan = replace(PLAN, allocations=dict.fromkeys("ab", (Allocation("cpu", 1, 1),)))
    seen = PipelineView(replace(a_context([kind]), pipeline=pipeline), plan, MEASURED, {"a": 1, "b": 1})
    for second in range(9):
        for stage, rate in (("a", 22), ("b", 42)):
            seen.offsets[stage].reached(float(second), [rate * second])
            counts = StageCounts(records=22 * second)
            seen.reports.add(PoolReport(stage, 1, stage, 0, "serving", second + 1, counts=counts), float(second))
    shown = seen.state(8.0, 0.0, {}).stages
    assert [stage.arrival_rate for stage in shown] == pytest.approx([22.0, 22.0])


def test_what_comes_into_a_first_stage_is_of_every_live_class_as_it_is_further_on() -> None:
    kind = Hardware("cpu", 0.1)
    pipeline = Pipeline(
        "p", slo="1s", source=[Topic("in"), Topic("premium", slo="500ms")], sink=Topic("out"), hardware=[kind],
        stages=[Stage("a", same, hardware="cpu")],
    )  # fmt: skip
    context = replace(a_context([kind]), pipeline=pipeline)
    seen = PipelineView(context, PLAN, MEASURED, {"a": 1}, further_classes(context, {"premium": {"a": 1}}))
    for second in range(9):
        seen.offsets["a"].reached(float(second), [20 * second])
        seen.live["premium"].offsets["a"].reached(float(second), [5 * second])
    assert seen.state(8.0, 0.0, {}).stages[0].arrival_rate == pytest.approx(25.0)
