"""What a finished run says of itself reaches its replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Paths, Shape
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay import loop
from inferline_stream.runs.replay_inputs import ReplayInputs
from tests.unit.tuner.plans import plan


def test_a_replay_has_the_partitions_that_the_run_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth more comes than is served; with one partition, events that cannot be on time go first far sooner."""
    monkeypatch.setattr(loop, "OFFSETS_SPAN", 100)
    measured = PipelineProfile({("a", "x"): Profile("a", "x", (ServiceTime(1, 0.001),), 0.0)}, Paths((0,), (1.0,)))
    trace = Trace(np.arange(2000) * 0.008 / 9)
    of_one = replace(plan(), allocations={"a": (Allocation("x", 1, 1),)}, slo_s=0.05, order="deadline", slots={})

    def late(**more: dict[str, int]) -> int:
        inputs = ReplayInputs(
            "p", Shape(("a",), ()), of_one, measured, trace, trace, {"x": Hardware("x", 1.0)}, 0.99, 3600.0, **more
        )
        return inputs.replayed("none").late

    assert late(partitions={"a": 1}) > late(partitions={"a": 8}) == late()
