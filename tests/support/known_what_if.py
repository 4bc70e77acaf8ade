"""Pipelines whose plans are known by formula: 10 ms an event in each stage, no batches, events at equal distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.cli.options import Platform
from inferline_stream.cli.plan_steps import Declared, PlanInputs, planned
from inferline_stream.cli.what_if import WhatIf
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths, shape_of
from inferline_stream.pipeline.trace import Trace

RATE, SERVICE_S, PRICE, SLO_S = 40.0, 0.01, 0.1, 0.1


def known_what_if() -> WhatIf:
    """Answers what-if questions of the pipeline, on hardware of $0.1 an hour."""
    return in_line("a", kind="whole", hardware=[Hardware("whole", PRICE, cores=1.0)])


def in_line(*names: str, kind: str, hardware: Sequence[Hardware]) -> WhatIf:
    """Such stages one after another, each on one kind of hardware."""
    stages: list[Stage] = []
    for name in names:
        stages.append(Stage(name, lambda values: values, hardware=[kind], max_batch_size=1, after=stages[-1:]))
    pipeline = Pipeline("p", slo="100ms", source=Topic("in"), sink=Topic("out"), stages=stages, hardware=hardware)
    profiles = {(name, kind): Profile(name, kind, (ServiceTime(1, SERVICE_S),), 2.0) for name in names}
    measured = PipelineProfile(profiles, independent_paths(shape_of(pipeline), {}))
    what = Declared(pipeline, Path("topology.py"), [], Trace(np.arange(0.0, 60.0, 1 / RATE)))
    inputs = PlanInputs(what=what, platform=Platform(oversubscribe=True))
    return WhatIf(inputs, measured, planned(inputs, measured), ("inferline-stream", "plan", "my folder"))
