"""Steps that verbs share: whether a plan's P99 is credible on this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.actuators.devices import Device
from inferline_stream.cli import plan_steps
from inferline_stream.cli.options import Platform
from inferline_stream.cli.plan_steps import Declared, PlanInputs, not_credible, planned, planned_without, take_profiles
from inferline_stream.errors import InvalidFile
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import Overheads, PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths, shape_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.evaluator import Stopped
from inferline_stream.planner.plan_explanation import explain
from tests.support.emulated_runs import plan_by_hand


def doubt(kind: str, replicas: int, rate: float) -> str:
    """About a plan for busier traffic than the sample, on a machine of four cores."""
    kinds = [Hardware("whole", 0.1, cores=1.0), Hardware("half", 0.05, cores=0.5)]
    stage = Stage("a", lambda values: values, hardware=[kind])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage], hardware=kinds)
    measured = PipelineProfile(
        {("a", kind): Profile("a", kind, (ServiceTime(1, 0.01),))},
        independent_paths(shape_of(pipeline), {}),
        overheads=Overheads(1e4, ((0.0, 0.0), (10.0, 0.1), (1_000.0, 4.0))),
    )
    sample, busier = (Trace(np.arange(0.0, 10.0, 1 / each)) for each in (10.0, rate))
    plan = plan_by_hand(pipeline, measured, sample, {"a": replicas})
    what = Declared(pipeline, Path("topology.py"), [], sample)
    return not_credible(plan, PlanInputs(what=what, traces=(busier,)), measured)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_steps, "cores_here", lambda: 4.0)
    monkeypatch.setattr(plan_steps, "shares_held", lambda: True)


def test_a_p99_is_credible_where_replicas_have_their_cores() -> None:
    assert doubt("whole", 2, 10.0) == doubt("half", 2, 10.0) == ""


def test_a_p99_is_not_credible_where_replicas_lack_cores_at_the_rate_that_was_planned_for() -> None:
    lacks = "the P99 is not credible: replicas take {}.00 cores, and this machine has {} for them"
    assert doubt("whole", 4, 10.0) == lacks.format(4, "3.75")
    assert doubt("whole", 2, 1_000.0) == lacks.format(2, "0.00")


def test_a_p99_is_not_credible_where_nothing_holds_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_steps, "shares_held", lambda: False)
    assert doubt("whole", 2, 10.0) == ""
    assert doubt("half", 2, 10.0) == "the P99 is not credible: nothing here holds replicas to their shares of a core"


@pytest.mark.parametrize(
    ("on", "there", "said"),
    [("local", (), ", and this machine has no GPU"), ("local", (Device("GPU-1", "NVIDIA L4"),), ""), ("ray", (), "")],
)
def test_a_plan_names_the_kinds_that_it_was_made_without(
    on: Any, there: tuple[Device, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_steps, "devices", lambda: there)

    def remark(*profiled: tuple[str, str]) -> str:
        kinds = ["cpu-1", "t4", "t4-1of2", "l4", "l4-1of2"]
        stages = [Stage(name, lambda values: values, hardware=kinds) for name in "ab"]
        pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=stages)
        profiles = {(stage, kind): Profile(stage, kind, (ServiceTime(1, 0.01),)) for stage, kind in profiled}
        what = Declared(pipeline, Path("topology.py"), [], Trace(np.zeros(1)))
        inputs = PlanInputs(what=what, platform=Platform(on=on))
        return planned_without(inputs, PipelineProfile(profiles, independent_paths(shape_of(pipeline), {})))

    of_l4 = [(stage, "l4") for stage in "ab"]
    assert remark(*of_l4) == f"planned without cpu-1, t4, l4-1of2: not profiled{said}"
    assert remark(*((stage, kind) for stage in "ab" for kind in ("cpu-1", "t4", "t4-1of2", "l4", "l4-1of2"))) == ""


def test_a_plan_is_explained_within_the_limits_that_it_was_made_in() -> None:
    stage = Stage("a", lambda values: values, hardware=["whole"], max_batch_size=2)
    kinds = [Hardware("whole", 0.1, cores=1.0)]
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage], hardware=kinds)
    times = (ServiceTime(1, 0.1), ServiceTime(2, 0.11), ServiceTime(8, 0.12))
    measured = PipelineProfile(
        {("a", "whole"): Profile("a", "whole", times)}, independent_paths(shape_of(pipeline), {})
    )
    sample = Trace(np.arange(0.0, 20.0, 0.04))
    inputs = PlanInputs(what=Declared(pipeline, Path("topology.py"), [], sample), slo_s=0.4)
    found = planned(inputs, measured)
    (explained,) = explain(found, inputs.problem(measured, found.slo_s)).stages
    assert found.allocations["a"][0].max_batch_size == 2
    assert all(a.max_batch_size <= 2 for other in explained.next_cheaper for a in other.allocations)
    problem = inputs.problem(measured)
    assert (problem.target_s, problem.order_slo_s, problem.cores) == (0.4, 1.0, pytest.approx(3.85))


def test_a_search_that_no_ctrl_c_reaches_ends_when_it_is_asked_to() -> None:
    stage = Stage("a", lambda values: values, hardware=["whole"])
    kinds = [Hardware("whole", 0.1, cores=1.0)]
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage], hardware=kinds)
    profile = Profile("a", "whole", (ServiceTime(1, 0.01),))
    measured = PipelineProfile({("a", "whole"): profile}, independent_paths(shape_of(pipeline), {}))
    what = Declared(pipeline, Path("topology.py"), [], Trace(np.arange(0.0, 10.0, 0.1)))
    assert planned(PlanInputs(what=what, stop=lambda: False), measured).cost_per_hour > 0
    with pytest.raises(Stopped):
        planned(PlanInputs(what=what, stop=lambda: True), measured)


def test_profiles_from_elsewhere_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    stage = Stage("a", lambda values: values, hardware=["cpu-1"])
    pipeline = Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[stage])
    what = Declared(pipeline, tmp_path / "topology.py", [], Trace(np.arange(3.0)))
    for contents in (None, b"\xff\xfe", b"{}"):
        folder = tmp_path / str(contents and contents[0])
        folder.mkdir()
        file = folder / "a.cpu-1.json"
        file.mkdir() if contents is None else file.write_bytes(contents)
        with pytest.raises(InvalidFile, match=r"a\.cpu-1\.json: cannot be read as a profile"):
            take_profiles(what, folder, "local")
