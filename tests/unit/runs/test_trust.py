"""Runs whose replay is known by formula: one stage, alone with each event for 20 ms, on one replica of $0.1 an hour."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from inferline_stream.errors import UsageError
from inferline_stream.observability.pipeline_state import StoredPlan
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.profile import Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.runs.archive import EventTimes, RunRecord, new_run, write_record
from inferline_stream.runs.report import RunReport
from inferline_stream.runs.trust import trust_of

EVENTS, SERVICE_S, DURATION_S = 400, 0.02, 40.0
PLAN = Plan(
    pipeline="posts", slo_s=0.25, allocations={"read": (Allocation("cpu", 1, 1),)}, cost_per_hour=0.1,
    predicted_p99_s=0.03, arrival_rate=10.0, envelope=((0.5, 5),), visit_ratios={"read": 1.0},
    utilization={"read": 0.2},
)  # fmt: skip
REPORT = RunReport(
    pipeline="posts", lost=0, duplicated=0, events_in=EVENTS, events_out=EVENTS, slo_miss_rate=0.25,
    cost=0.1 * (DURATION_S + 36) / 3600, preparation_cost=0.001, decisions=[], slo_s=0.25, p50_s=0.02, p95_s=0.02,
    p99_s=0.025, completed={}, duration_s=DURATION_S, predicted_p99_s=0.03, replicas_most={"read": 1}, lag={}, exits=[],
    lost_ids=[], emulated=True, advisory=False, verified=EVENTS,
)  # fmt: skip


def written(folder: Path, at_s: float, **changes: object) -> str:
    """Write a run down whose report differs so; return its name."""
    record = RunRecord(
        report=msgspec.structs.replace(REPORT, **changes),
        started_s=at_s, objective=0.99, shape=Shape(("read",), ()), hardware=[Hardware("cpu", 0.1)],
        profiles=[Profile("read", "cpu", (ServiceTime(1, SERVICE_S),), 1.0)], paths=Paths((0,), (1.0,)),
        hop_overhead_s=0.0, plans=[StoredPlan("c", 1, at_s, "start", "", PlanDocument(plan=PLAN), 1)], decisions=[],
    )  # fmt: skip
    arrivals_s = np.arange(EVENTS) * 0.1
    events = EventTimes(arrivals_s, arrivals_s, np.full(EVENTS, SERVICE_S), arrivals_s, at_s)
    run = new_run(folder, "posts", at_s)
    write_record(run, record, events)
    return run.name


def test_a_run_is_predicted_on_its_own_traffic_with_its_own_plan(tmp_path: Path) -> None:
    first = written(tmp_path, 1_700_000_000.0)
    second = written(tmp_path, 1_700_000_100.0, p99_s=0.04)
    found = trust_of(tmp_path, "posts", newest=10)
    assert [run.run for run in found.runs] == [second, first]
    for run, p99_error in zip(found.runs, (0.5, 0.2), strict=True):
        assert run.predicted_p99_s == pytest.approx(SERVICE_S)
        assert run.p99_error == pytest.approx(p99_error)
        assert (run.planned_p99_s, run.predicted_miss_rate, run.miss_rate) == (0.03, 0.0, 0.25)
        # The replica is idle between events, and what it cost while it started does not count.
        assert run.predicted_cost_per_hour == pytest.approx(0.1)
        assert run.cost_error == pytest.approx(0.0, abs=1e-6)
    assert found.median_of(lambda run: run.p99_error) == pytest.approx(0.35)
    assert [run.run for run in trust_of(tmp_path, "posts", newest=1).runs] == [second]


def test_runs_that_say_nothing_of_predictions_are_left_out_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no finished run"):
        trust_of(tmp_path, "posts", newest=10)
    expected = {
        written(tmp_path, 1_700_000_000.0, advisory=True): "decisions were not carried out",
        written(tmp_path, 1_700_000_100.0, events_out=99): "99 events came through",
        written(tmp_path, 1_700_000_200.0, verified=300): "only 300 of its 400 events are kept",
        (damaged := written(tmp_path, 1_700_000_300.0)): "holds no events of a run",
    }
    (next(tmp_path.rglob(damaged)) / "events.npz").write_bytes(b"PK")
    found = trust_of(tmp_path, "posts", newest=10)
    assert not found.runs
    assert found.median_of(lambda run: run.p99_error) is None
    assert found.left_out.keys() == expected.keys()
    assert all(reason in found.left_out[run] for run, reason in expected.items())
