from __future__ import annotations

import pytest

from inferline_stream.controlplane.reports import Reports
from inferline_stream.dataplane.protocol import BatchStats, ReplicaReport
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.observability.state import IsolationState
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape

# entry → {branch (conditional), join}; branch → join
SHAPE = Shape(("entry", "branch", "join"), (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)))
MEASURED = PipelineProfile(
    {("entry", "cpu"): Profile("entry", "cpu", (ServiceTime(1, 0.01), ServiceTime(4, 0.02)))},
    Paths((0b111, 0b010), (0.5, 0.5)),
)


def report(replica: str, number: int, stage: str = "entry", **fields: object) -> ReplicaReport:
    return ReplicaReport(replica, stage, "cpu", "ready", number, **fields)  # type: ignore[arg-type]


def test_a_report_that_comes_late_or_twice_changes_nothing() -> None:
    reports = Reports(SHAPE, MEASURED)
    assert reports.add(report("a", 2, events=20), 1.0)
    assert not reports.add(report("a", 1, events=10), 1.1)
    assert not reports.add(report("a", 2, events=20), 1.2)
    assert reports.stage("entry", 1.2).events == 20
    assert reports.replicas["a"].heard_s == 1.0


def test_only_a_change_of_phase_partitions_or_assignment_wakes_the_controller() -> None:
    reports = Reports(SHAPE, MEASURED)
    reports.add(report("a", 1), 0.0)
    assert not reports.add(report("a", 2, events=5), 0.5)
    assert reports.add(report("a", 3, sequence=4), 1.0)
    assert reports.add(report("a", 4, sequence=4, held={1: 0}), 1.5)
    assert not reports.add(report("a", 5, sequence=4, held={1: 9}), 2.0)


def test_recent_figures_forget_what_is_older_than_ten_seconds() -> None:
    reports = Reports(SHAPE, MEASURED)
    slow, fast = {4: BatchStats(10, 2.0)}, {4: BatchStats(30, 2.0 + 20 * 0.02)}
    reports.add(report("a", 1, events=0), 0.0)
    reports.add(report("a", 2, events=40, busy_s=2.0, wait_s=4.0, batch_stats=slow), 5.0)
    reports.add(report("a", 3, events=120, busy_s=2.4, wait_s=4.8, batch_stats=fast), 12.0)
    stage = reports.stage("entry", 12.0)
    assert stage.service_time_s == pytest.approx(0.02)
    assert stage.wait_s == pytest.approx(0.8 / 80)
    assert stage.mean_batch_size == pytest.approx(4)
    assert stage.utilization == pytest.approx(0.4 / 7)
    assert stage.slowdown == {"cpu": pytest.approx(1.0)}
    assert stage.events == 120


def test_slowdown_compares_each_batch_size_that_ran_with_its_profile() -> None:
    reports = Reports(SHAPE, MEASURED)
    reports.add(report("a", 1), 0.0)
    stats = {1: BatchStats(10, 10 * 0.03), 4: BatchStats(10, 10 * 0.06)}
    reports.add(report("a", 2, batch_stats=stats), 5.0)
    assert reports.stage("entry", 5.0).slowdown == {"cpu": pytest.approx(3.0)}


def test_totals_stay_when_a_replica_ends() -> None:
    reports = Reports(SHAPE, MEASURED)
    reports.add(report("a", 1, events=7, dead_lettered=1), 0.0)
    reports.end("a")
    reports.add(report("b", 1, events=3), 0.0)
    assert (reports.stage("entry", 1.0).events, reports.stage("entry", 1.0).dead_lettered) == (10, 1)
    assert reports.ready("entry", "cpu") == 1


def test_visit_ratios_follow_the_branches_taken() -> None:
    reports = Reports(SHAPE, MEASURED)
    for stage in SHAPE.stages:
        reports.add(report(stage, 1, stage), 0.0)
    took = {"branch": 60, "join": 200}
    reports.add(report("entry", 2, "entry", events=200, batch_stats={1: BatchStats(200, 1)}, arrows_taken=took), 5.0)
    reports.add(report("branch", 2, "branch", events=60, batch_stats={1: BatchStats(60, 1)}), 5.0)
    reports.add(report("join", 2, "join", events=200, batch_stats={4: BatchStats(45, 1)}), 5.0)
    assert reports.visit_ratios(5.0) == {"entry": 1.0, "branch": pytest.approx(0.3), "join": pytest.approx(0.9)}


def test_a_visit_ratio_of_few_events_is_not_told() -> None:
    reports = Reports(SHAPE, MEASURED)
    reports.add(report("entry", 1), 0.0)
    reports.add(report("entry", 2, events=9, batch_stats={1: BatchStats(9, 1)}, arrows_taken={"branch": 9}), 1.0)
    assert reports.visit_ratios(1.0) == {"entry": 1.0, "branch": None, "join": None}


def test_latency_counts_add_up_over_replicas_that_ended_too() -> None:
    reports = Reports(SHAPE, MEASURED)
    reports.add(report("a", 1, "join", latency_buckets=[1, 2, 3], latency_sum_s=1.5), 0.0)
    reports.end("a")
    reports.add(report("b", 1, "join", latency_buckets=[0, 1, 0], latency_sum_s=0.5), 0.0)
    assert reports.latency_counts("join", 3) == ((1, 3, 3), 2.0)


def test_what_keeps_a_stage_in_is_told_by_its_weakest_replica() -> None:
    reports = Reports(SHAPE, MEASURED)
    assert reports.isolation("entry") is None
    whole = Enforced("sandbox", 7, (9092,), 76, {"files": 1024, "memory_bytes": 5}, sealed=True)
    lacking = Enforced("sandbox", 0, None, None, {"files": 512}, missing=("files: every path may be opened",))
    reports.add(report("a", 1, isolation=whole), 1.0)
    assert reports.isolation("entry") == IsolationState(
        "sandbox", 1, 1, 7, (9092,), 76, {"files": 1024, "memory_bytes": 5}
    )
    reports.add(report("b", 1, isolation=lacking), 1.0)
    assert reports.isolation("entry") == IsolationState(
        "sandbox", 2, 1, 0, None, None, {"files": 1024}, ("files: every path may be opened",)
    )
    reports.end("b")
    assert reports.isolation("entry") is not None
    assert not reports.isolation("entry").missing


def test_the_first_replica_of_a_stage_that_forks_tells_nothing_of_those_to_come() -> None:
    reports = Reports(SHAPE, MEASURED)
    reports.started("entry", "cpu-1", 2.0, "alone")
    assert reports.start_up_s("entry", "cpu-1") is None
    reports.started("entry", "cpu-1", 0.05, "fork")
    assert reports.start_up_s("entry", "cpu-1") == 0.05
    reports.started("entry", "cpu-1", 3.0, "alone")  # the parent is gone
    assert reports.start_up_s("entry", "cpu-1") == 2.5
    assert reports.every_start_up_s() == {"entry": {"cpu-1": 2.5}}
