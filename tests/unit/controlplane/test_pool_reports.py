from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from inferline_stream.controlplane.observe.pool_reports import PoolReports
from inferline_stream.controlplane.observe.start_up_times import StartUpTimes
from inferline_stream.dataplane.reports import PoolReport, ReplicaStatus
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.observability.pipeline_state import IsolationState, NodeState
from inferline_stream.observability.stage_counts import BatchStats, StageCounts
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape

# entry → {branch (conditional), join}; branch → join
SHAPE = Shape(("entry", "branch", "join"), (Arrow(0, 1, True), Arrow(0, 2), Arrow(1, 2)))
MEASURED = PipelineProfile(
    {("entry", "cpu"): Profile("entry", "cpu", (ServiceTime(1, 0.01), ServiceTime(4, 0.02)))},
    Paths((0b111, 0b010), (0.5, 0.5)),
)


def report(number: int, stage: str = "entry", **fields: Any) -> PoolReport:
    found = {"dispatcher": f"{stage}-0", "incarnation": 1, "slot": 0, "phase": "serving"} | fields
    if "batches" in found:
        found["batch_stats"] = {"cpu": found.pop("batches")}
    counts = {name: found.pop(name) for name in list(found) if name in StageCounts.__slots__}
    return PoolReport(stage=stage, report=number, counts=StageCounts(**counts), **found)


def replicas(*names: str, phase: Any = "ready") -> list[ReplicaStatus]:
    return [ReplicaStatus(name, "cpu", phase) for name in names]


@pytest.fixture
def reports() -> PoolReports:
    return PoolReports(SHAPE, MEASURED)


def test_a_report_that_comes_late_or_twice_changes_nothing(reports: PoolReports) -> None:
    assert reports.add(report(2, events=20), 1.0)
    assert not reports.add(report(1, events=10), 1.1)
    assert not reports.add(report(2, events=20), 1.2)
    assert reports.total("entry").events == 20
    assert reports.living() == {"entry-0": 1.0}


def test_what_dispatchers_had_done_before_anyone_looked_is_no_result_since(reports: PoolReports) -> None:
    for of in (report(7, latency_buckets=[3, 4]), report(8, latency_buckets=[5, 4])):
        reports.add(of, 1.0)
        reports.had_before(of)
    reports.add(report(1, incarnation=2, latency_buckets=[1, 1]), 2.0)
    assert sum(reports.total("entry").latency_buckets) - reports.earlier_results == 2


def test_recent_figures_forget_what_is_older_than_ten_seconds(reports: PoolReports) -> None:
    slow, fast = {4: BatchStats(10, 2.0)}, {4: BatchStats(30, 2.0 + 20 * 0.02)}
    reports.add(report(1, events=0), 0.0)
    reports.add(report(2, events=40, busy_s=2.0, replica_s=5.0, cpu_s=1.0, wait_s=4.0, batches=slow), 5.0)
    reports.add(report(3, events=120, busy_s=2.4, replica_s=19.0, cpu_s=4.5, wait_s=4.8, batches=fast), 12.0)
    stage = reports.stage("entry", 12.0)
    assert stage.service_time_s == pytest.approx(0.02)
    assert stage.wait_s == pytest.approx(0.8 / 80)
    assert stage.mean_batch_size == pytest.approx(4)
    assert stage.utilization == pytest.approx(0.4 / 14)
    assert stage.dispatcher_utilization == pytest.approx(3.5 / 7)
    assert stage.slowdown == {"cpu": pytest.approx(1.0)}
    assert reports.total("entry").events == 120


def test_the_busiest_dispatcher_counts(reports: PoolReports) -> None:
    for slot, cpu_s in enumerate((1.0, 4.0)):
        reports.add(report(1, dispatcher=f"entry-{slot}", slot=slot), 0.0)
        reports.add(report(2, dispatcher=f"entry-{slot}", slot=slot, cpu_s=cpu_s), 5.0)
    assert reports.stage("entry", 5.0).dispatcher_utilization == pytest.approx(0.8)


def test_slowdown_compares_each_batch_size_that_ran_with_its_profile(reports: PoolReports) -> None:
    reports.add(report(1), 0.0)
    reports.add(report(2, batches={1: BatchStats(10, 10 * 0.03), 4: BatchStats(10, 10 * 0.06)}), 5.0)
    assert reports.stage("entry", 5.0).slowdown == {"cpu": pytest.approx(3.0)}


def test_totals_stay_when_a_dispatcher_ends_or_starts_again(reports: PoolReports) -> None:
    reports.add(report(5, events=7, dead_lettered=1, batches={1: BatchStats(7, 0.7)}), 0.0)
    reports.add(report(1, incarnation=2, events=2), 0.1)
    reports.end("entry-0")
    reports.add(report(1, dispatcher="entry-1", events=3), 0.2)
    total = reports.total("entry")
    assert (total.events, total.dead_lettered, total.batches) == (12, 1, 7)


def test_every_number_that_dispatchers_count_is_summed(reports: PoolReports) -> None:
    names = [field.name for field in fields(StageCounts) if field.type in ("int", "float")]
    for slot, count in enumerate((2, 3)):
        reports.add(report(1, dispatcher=f"entry-{slot}", slot=slot, **dict.fromkeys(names, count)), 0.0)
    total = reports.total("entry")
    assert {name: getattr(total, name) for name in names} == dict.fromkeys(names, 5)


def test_the_last_report_of_a_dispatcher_counts_though_it_is_read_after_its_exit(reports: PoolReports) -> None:
    reports.add(report(1, events=7), 0.0)
    reports.end("entry-0")
    reports.add(report(2, events=9, phase="gone"), 0.1)
    assert reports.total("entry").events == 9


def test_a_thousand_dispatchers_that_came_and_went_leave_sums_alone(reports: PoolReports) -> None:
    for number in range(1000):
        name = f"entry-0-{number}"
        for sent in (1, 2):
            listed = replicas(f"r{number}")
            reports.add(report(sent, dispatcher=name, events=1, replicas=listed), 60.0 * number + 5 * sent)
        reports.end(name)
    assert (len(reports._reported["entry"]), len(reports._pools["entry"][0])) == (1, 1)
    assert reports.total("entry").events == 1000


def test_replicas_stay_ready_while_their_dispatcher_is_started_again(reports: PoolReports) -> None:
    reports.add(report(1, replicas=replicas("a", "b")), 0.0)
    reports.end("entry-0")
    reports.add(report(1, incarnation=2, phase="starting"), 10.0)
    assert reports.ready("entry", "cpu") == 2
    reports.add(report(2, incarnation=2, replicas=replicas("a", phase="starting")), 10.1)
    assert reports.ready("entry", "cpu") == 2
    reports.replica_ended("b")
    assert reports.ready("entry", "cpu") == 1
    reports.add(report(3, incarnation=2, replicas=replicas("a", phase="starting")), 13.0)
    assert reports.ready("entry", "cpu") == 0


def test_a_replica_that_is_dealt_to_another_slot_counts_once(reports: PoolReports) -> None:
    reports.add(report(1, dispatcher="x", slot=1, replicas=replicas("a", "b")), 0.0)
    reports.add(report(1, dispatcher="y", slot=0, replicas=replicas("a", phase="starting")), 5.0)
    assert reports.ready("entry", "cpu") == 2


def test_a_replica_in_quarantine_or_about_to_leave_is_not_ready(reports: PoolReports) -> None:
    held = [*replicas("a"), ReplicaStatus("b", "cpu", "ready", quarantined=True), *replicas("c", phase="leaving")]
    reports.add(report(1, replicas=held), 0.0)
    assert (reports.ready("entry", "cpu"), reports.stage("entry", 0.0).quarantined) == (1, 1)


def test_what_is_wrong_with_a_pool_is_shown_while_its_dispatcher_lives(reports: PoolReports) -> None:
    reports.add(report(1, reason="replicas fail on every batch", halted={3: "its offset is lost"}, suspects=2), 0.0)
    stage = reports.stage("entry", 1.0)
    assert (stage.trouble, stage.halted, stage.suspects) == (
        "replicas fail on every batch", {3: "its offset is lost"}, 2
    )  # fmt: skip
    reports.end("entry-0")
    assert (reports.stage("entry", 1.0).trouble, reports.stage("entry", 1.0).halted) == ("", {})


def test_the_dispatcher_that_was_heard_longest_ago_tells_a_stages_age(reports: PoolReports) -> None:
    reports.add(report(1, dispatcher="x", slot=0), 1.0)
    reports.add(report(1, dispatcher="y", slot=1), 5.0)
    assert reports.stage("entry", 6.0).heard_s == 1.0
    reports.end("x")
    assert reports.stage("entry", 6.0).heard_s == 5.0


def test_visit_ratios_follow_the_branches_taken(reports: PoolReports) -> None:
    for stage in SHAPE.stages:
        reports.add(report(1, stage), 0.0)
    took = {"branch": 60, "join": 200}
    reports.add(report(2, "entry", events=200, batches={1: BatchStats(200, 1)}, edges_taken=took), 5.0)
    reports.add(report(2, "branch", events=60, batches={1: BatchStats(60, 1)}), 5.0)
    reports.add(report(2, "join", events=200, batches={4: BatchStats(45, 1)}), 5.0)
    assert reports.visit_ratios(5.0) == {"entry": 1.0, "branch": pytest.approx(0.3), "join": pytest.approx(0.9)}


def test_events_of_one_source_visit_what_it_leads_to() -> None:
    shape = Shape(("a", "b", "c", "d"), (Arrow(0, 2), Arrow(1, 2), Arrow(1, 3, True)), sources=((0,), (1,)))
    reports = PoolReports(shape, MEASURED)
    for stage, events, took in (("a", 300, {"c": 300}), ("b", 100, {"c": 100, "d": 40}), ("c", 400, {})):
        reports.add(report(1, stage), 0.0)
        counted = {"events": events, "batches": {1: BatchStats(events, 1)}, "edges_taken": took}
        reports.add(report(2, stage, **counted), 5.0)
    expected = {"a": 0.75, "b": 0.25, "c": 1.0, "d": pytest.approx(0.1)}
    assert reports.visit_ratios(5.0, {"a": 0.75, "b": 0.25}) == expected
    assert set(reports.visit_ratios(5.0, {}).values()) == {None}


def test_copies_for_a_version_that_is_tried_out_change_no_visit_ratio(reports: PoolReports) -> None:
    for stage in SHAPE.stages:
        reports.add(report(1, stage), 0.0)
    batches = {1: BatchStats(280, 1)}
    reports.add(report(2, "entry", events=200, batches=batches, copies=80, edges_taken={"branch": 60}), 5.0)
    assert reports.visit_ratios(5.0)["branch"] == pytest.approx(0.3)


def test_a_visit_ratio_of_few_events_is_not_given(reports: PoolReports) -> None:
    reports.add(report(1), 0.0)
    reports.add(report(2, events=9, batches={1: BatchStats(9, 1)}, edges_taken={"branch": 9}), 1.0)
    assert reports.visit_ratios(1.0) == {"entry": 1.0, "branch": None, "join": None}


def test_latency_counts_add_up_over_dispatchers_that_ended_too(reports: PoolReports) -> None:
    reports.add(report(1, "join", latency_buckets=[1, 2, 3], latency_sum_s=1.5), 0.0)
    reports.end("join-0")
    reports.add(report(1, "join", dispatcher="join-1", latency_buckets=[0, 1, 0], latency_sum_s=0.5), 0.0)
    total = reports.total("join")
    assert (total.latency_buckets, total.latency_sum_s) == ([1, 3, 3], 2.0)


def test_what_restricts_a_stage_is_reported_by_its_weakest_replica(reports: PoolReports) -> None:
    assert reports.isolation("entry") is None
    whole = Enforced("sandbox", 7, (9092,), 76, {"files": 1024, "memory_bytes": 5}, sealed=True)
    lacking = Enforced("sandbox", 0, None, None, {"files": 512}, missing=("files: every path may be opened",))
    strong, weak = (ReplicaStatus(n, "cpu", "ready", isolation=i) for n, i in (("a", whole), ("b", lacking)))
    reports.add(report(1, replicas=[strong]), 1.0)
    assert reports.isolation("entry") == IsolationState(
        "sandbox", 1, 1, 7, (9092,), 76, {"files": 1024, "memory_bytes": 5}
    )
    reports.add(report(2, replicas=[strong, weak]), 2.0)
    assert reports.isolation("entry") == IsolationState(
        "sandbox", 2, 1, 0, None, None, {"files": 1024}, ("files: every path may be opened",)
    )


def test_a_stage_is_shown_by_node_where_dispatchers_serve_and_replicas_are_ready(reports: PoolReports) -> None:
    placed = [("a", "n1", "ready"), ("b", "n1", "starting"), ("c", "n2", "ready"), ("d", "", "ready")]
    replicas = [ReplicaStatus(name, "cpu", phase, node=node) for name, node, phase in placed]
    reports.add(report(1, replicas=replicas, phase="serving", node="n3"), 1.0)
    reports.add(report(1, dispatcher="waits", phase="standby", node="n4"), 1.0)
    found = reports.stage("entry", 1.0).nodes
    assert found == {"n1": NodeState(0, 1), "n2": NodeState(0, 1), "n3": NodeState(1, 0)}


def test_the_first_replica_of_a_stage_that_forks_says_nothing_of_those_to_come() -> None:
    times = StartUpTimes()
    times.started("entry", "cpu-1", 2.0, "alone")
    assert times.next_s("entry", "cpu-1") is None
    times.started("entry", "cpu-1", 0.05, "fork")
    assert times.next_s("entry", "cpu-1") == 0.05
    times.started("entry", "cpu-1", 3.0, "alone")  # the parent is gone
    assert times.next_s("entry", "cpu-1") == 2.5
    assert times.by_stage() == {"entry": {"cpu-1": 2.5}}


def test_a_dispatcher_that_counts_as_dead_says_nothing_until_it_is_heard_again(reports: PoolReports) -> None:
    reports.add(report(1, events=10, dispatcher="lost", queued=3), 0.0)
    reports.add(report(1, events=5, dispatcher="heir", queued=1), 100.0)
    assert (reports.stage("entry", 100.0).heard_s, reports.stage("entry", 100.0).queued) == (0.0, 4)
    reports.fell_silent("lost")
    assert (reports.stage("entry", 100.0).heard_s, reports.stage("entry", 100.0).queued) == (100.0, 1)
    assert reports.total("entry").events == 15
    reports.add(report(2, events=20, dispatcher="lost", queued=2), 200.0)
    reports.add(report(2, events=5, dispatcher="heir", queued=1), 200.0)
    assert (reports.stage("entry", 200.0).heard_s, reports.stage("entry", 200.0).queued) == (200.0, 3)
    assert reports.total("entry").events == 25
