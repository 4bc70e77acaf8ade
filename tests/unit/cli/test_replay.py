"""What `replay` takes of a finished run."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from inferline_stream.cli.main import app
from inferline_stream.controlplane.observe.observation_log import write_observations
from inferline_stream.estimator.simulation import simulate
from inferline_stream.pipeline.plan import Allocation, Plan
from inferline_stream.pipeline.trace import levels_trace
from inferline_stream.planner.plan_document import PlanDocument, plan_to_bytes
from inferline_stream.replay.live_observations import LiveObservations
from inferline_stream.runs.archive import EventTimes, write_record
from tests.unit.runs.test_archive import PLAN, RECORD


def test_a_run_is_replayed_with_the_dispatchers_of_its_plan(tmp_path: Path) -> None:
    held = {"read": (Allocation("cpu", 4, 2),), "judge": (Allocation("cpu", 1, 4),)}
    plan = replace(PLAN, allocations=held, slots={"judge": 4})
    stored = msgspec.structs.replace(RECORD.plans[0], document=PlanDocument(plan=plan))
    trace = levels_trace([(120.0, 20.0)], 1.0, np.random.default_rng(1))
    trace = trace.window(float(trace.arrivals_s[0]), np.inf)
    nothing = np.empty(0)
    write_record(
        tmp_path / "run",
        msgspec.structs.replace(RECORD, plans=[stored]),
        EventTimes(trace.arrivals_s, nothing, nothing, nothing, 0.0),
    )
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "run"), "--policy", "none", "--output", "json"])
    assert done.exit_code == 0, done.output
    expected = {
        slots: simulate(RECORD.shape, held, RECORD.measured, trace, order_slo_s=plan.slo_s, slots={"judge": slots})
        for slots in (1, 3, 4)
    }
    assert len({found.p99_s for found in expected.values()}) == 3
    assert json.loads(done.output)["p99_s"] == pytest.approx(expected[4].p99_s)


def test_a_run_is_replayed_from_the_replicas_that_its_traffic_found(tmp_path: Path) -> None:
    trace = levels_trace([(4.0, 12.0)], 1.0, np.random.default_rng(1))
    began_s = RECORD.decisions[0].time_s + 2.0
    nothing = np.empty(0)
    write_record(tmp_path / "run", RECORD, EventTimes(trace.arrivals_s, nothing, nothing, nothing, began_s))
    whole = nothing.astype(np.int64)
    asked_s = np.arange(0.1, trace.duration_s, 0.1)
    write_observations(
        tmp_path / "run",
        LiveObservations(asked_s, nothing, nothing, whole, nothing, whole, nothing, np.array([], np.str_)),
    )
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "run"), "--policy", "inferline", "--output", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["steps"] == []
    assert found["cost_per_hour"] == pytest.approx(0.1 * (2 + 2)), "two of `read` by a decision, two of `judge` by plan"


@pytest.mark.parametrize(
    ("plan", "code", "why"),
    [
        (None, 3, "plan.json: cannot be read (Is a directory)"),
        (replace(PLAN, allocations={"read": PLAN.allocations["read"]}), 2, "knows no stage 'judge'"),
        (replace(PLAN, allocations=PLAN.allocations | {"read": (Allocation("cpu", 64, 1),)}), 2, "was not profiled"),
    ],
)
def test_a_plan_that_a_run_cannot_be_replayed_on_is_refused(
    tmp_path: Path, plan: Plan | None, code: int, why: str
) -> None:
    arrivals_s, nothing = np.arange(3.0), np.empty(0)
    write_record(tmp_path / "run", RECORD, EventTimes(arrivals_s, nothing, nothing, nothing, 0.0))
    file = tmp_path / "plan.json"
    if plan is None:
        file.mkdir()
    else:
        file.write_bytes(plan_to_bytes(plan))
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "run"), "--plan", str(file), "--policy", "none"])
    assert (done.exit_code, done.stderr.count("error:")) == (code, 1)
    assert why in done.stderr
