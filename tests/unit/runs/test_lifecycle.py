"""What a controller that takes over begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferline_stream.controlplane.observe.recovery import Recovered
from inferline_stream.controlplane.records.control_records import Overrides
from inferline_stream.controlplane.run_inputs import Run
from inferline_stream.observability.pipeline_state import StoredPlan
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths
from inferline_stream.pipeline.trace import Trace
from inferline_stream.planner.plan_document import PlanDocument
from inferline_stream.runs.lifecycle import _going_on
from tests.support.emulated_runs import one_stage, plan_by_hand

PIPELINE = one_stage(hardware=[Hardware("cpu", 0.1)])
PROFILE = Profile("a", "cpu", (ServiceTime(1, 0.01), ServiceTime(4, 0.02)), 1.0)
MEASURED = PipelineProfile({("a", "cpu"): PROFILE}, Paths((0,), (1.0,)), hop_overhead_s=0.003)
OWN = plan_by_hand(PIPELINE, MEASURED, Trace(np.arange(100.0)), {"a": 1})
WANTED = {"a": {"cpu": 2}}


@pytest.mark.parametrize(
    ("held", "goes_on"),
    [
        (Allocation("cpu", 2, 3), True),
        (Allocation("cpu", 8, 3), False),
        (Allocation("cpu", 2, 3, concurrency=2), False),
        (Allocation("gpu", 2, 3), False),
    ],
)
def test_the_plan_of_the_controller_before_goes_on_where_it_was_profiled(held: Allocation, goes_on: bool) -> None:
    run = Run(
        pipeline=PIPELINE, topology=Path("topology.py"), bootstrap_servers="127.0.0.1:9",
        plan=OWN, measured=MEASURED, log_folder=Path("logs"),
    )  # fmt: skip
    before = replace(OWN, allocations={"a": (held,)})
    stored = StoredPlan("before", 1, 0.0, "initial", "", PlanDocument(plan=before), 1)
    found = Recovered(stored, (stored,), (), WANTED, Overrides(), 0)
    assert _going_on(run, found) == ((before, WANTED) if goes_on else (OWN, {"a": {"cpu": 1}}))
