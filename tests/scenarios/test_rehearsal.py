"""Plans are rehearsed before their first traffic: slow stages are found, and what has passed is not tried again."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferline_stream.cli import rehearsal_steps
from inferline_stream.cli.main import app
from inferline_stream.cli.plan_steps import Declared, PlanInputs
from inferline_stream.cli.rehearsal_steps import Rehearsed
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PROBABILITIES, PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths, shape_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.profiler.machine import this_machine
from inferline_stream.profiler.profile_store import Known, ProfileStore
from tests.support.emulated_runs import plan_by_hand

TOPOLOGY = """
import time
from inferline_stream import Pipeline, Sample, Stage, Topic

def work(numbers: list[int]) -> list[int]:
    time.sleep(0.02)
    return numbers

stage = Stage("work", work, hardware=["cpu-1"], max_batch_size=1)
sample = Sample(arrivals="arrivals.csv", events="events.jsonl")
pipeline = Pipeline("rehearsed", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage], sample=sample)
"""


@pytest.fixture
def declared(tmp_path: Path) -> Declared:
    times_s = [0.05 * n for n in range(200)]
    (tmp_path / "arrivals.csv").write_text("arrival_s\n" + "".join(f"{time_s:.3f}\n" for time_s in times_s))
    (tmp_path / "events.jsonl").write_text("1\n2\n3\n")
    file = tmp_path / "topology.py"
    file.write_text(TOPOLOGY)
    return Declared(load_topology(file), file, [b"1", b"2", b"3"], Trace(times_s))


async def test_a_stage_that_is_slower_than_its_profile_is_planned_for_again_and_then_passes(
    declared: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_steps, "REHEARSAL_S", 2.0)
    monkeypatch.setattr("inferline_stream.runs.lifecycle.taken_s", lambda cores: 0.0)  # whatever others take
    # No machine runs the stage in half of what it sleeps, and any does in much more.
    true = Profile("work", "cpu-1", (ServiceTime(1, 0.5, (0.5,) * len(PROBABILITIES)),))
    store = ProfileStore(declared.pipeline, declared.file.parent, declared.events, this_machine())
    shape = shape_of(declared.pipeline)
    wrong = PipelineProfile({("work", "cpu-1"): true.scaled(0.02)}, independent_paths(shape, {}))
    store.save(wrong.profiles["work", "cpu-1"], note="kept")
    store.save_paths(Known(paths=wrong.paths))
    asked: list[float] = []
    notes: list[str] = []

    def plan(measured: PipelineProfile) -> Plan:
        asked.append(measured.profiles["work", "cpu-1"].service_time_s(1))
        return plan_by_hand(declared.pipeline, measured, declared.trace, {"work": 1})

    inputs, first = PlanInputs(what=declared), plan(wrong)
    measured, _ = await rehearsal_steps.rehearsed(inputs, wrong, first, plan, note=notes.append)
    assert measured.profiles["work", "cpu-1"].service_time_s(1) >= 0.02
    assert asked[1] >= 0.02
    assert "work on cpu-1 takes" in notes[0]
    assert notes[0].endswith("planned again")
    kept = store.load()
    assert kept.profiles["work", "cpu-1"].service_time_s(1) == pytest.approx(asked[-1], rel=1e-3)

    slow = replace(measured, profiles={("work", "cpu-1"): true})
    store.correct(true)
    notes.clear()
    await rehearsal_steps.rehearsed(inputs, slow, first, plan, note=notes.append)
    assert notes == ["rehearsal: no stage was slower than its profile in 2 s of the sample"]
    assert store.load().rehearsed == {("work", "cpu-1")}
    await rehearsal_steps.rehearsed(inputs, slow, first, plan, note=notes.append)
    assert len(notes) == 1, "what has passed is not tried again"


async def test_a_rehearsal_while_others_take_the_cores_changes_nothing(
    declared: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_steps, "REHEARSAL_S", 4.0)
    monkeypatch.setattr("inferline_stream.runs.lifecycle.taken_s", lambda cores: 10 * time.monotonic())
    shape = shape_of(declared.pipeline)
    times = (ServiceTime(1, 0.01, (0.01,) * len(PROBABILITIES)),)
    wrong = PipelineProfile({("work", "cpu-1"): Profile("work", "cpu-1", times)}, independent_paths(shape, {}))
    first = plan_by_hand(declared.pipeline, wrong, declared.trace, {"work": 1})
    notes: list[str] = []
    inputs = PlanInputs(what=declared)
    found = await rehearsal_steps.rehearsed(inputs, wrong, first, lambda measured: first, note=notes.append)
    assert found == (wrong, first)
    assert [note.partition(",")[0] for note in notes] == ["rehearsal: it says nothing"]


def kept_profile(declared: Declared) -> PipelineProfile:
    """A profile of the stage, and paths, as `profile` keeps them."""
    times = (ServiceTime(1, 0.0205, (0.0205,) * len(PROBABILITIES)),)
    paths = independent_paths(shape_of(declared.pipeline), {})
    profile = PipelineProfile({("work", "cpu-1"): Profile("work", "cpu-1", times)}, paths)
    store = ProfileStore(declared.pipeline, declared.file.parent, declared.events, this_machine())
    store.save(profile.profiles["work", "cpu-1"], note="kept")
    store.save_paths(Known(paths=paths))
    return profile


async def test_a_plan_that_takes_more_cores_than_there_are_is_not_rehearsed(declared: Declared) -> None:
    measured = kept_profile(declared)
    plan = plan_by_hand(declared.pipeline, measured, declared.trace, {"work": 1000})
    notes: list[str] = []
    inputs = PlanInputs(what=declared)
    found = await rehearsal_steps.rehearsed(inputs, measured, plan, lambda measured: plan, note=notes.append)
    assert found == (measured, plan)
    assert notes == []


def test_a_run_that_is_allowed_to_oversubscribe_rehearses_a_plan_that_fits(
    declared: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rehearse(run: Run) -> Rehearsed:
        raise UsageError(f"rehearsed with {run.cores:.1f} cores")

    monkeypatch.setattr(rehearsal_steps, "rehearse", rehearse)
    kept_profile(declared)
    done = CliRunner().invoke(app, ["run", str(declared.file), "--oversubscribe", "--no-ui", "--metrics-port", "0"])
    assert "rehearsed with " in done.output, done.output
    assert done.exit_code == UsageError.exit_code
