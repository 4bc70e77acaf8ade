"""Pipelines to ask what-if questions about, without measuring anything.

The plans of `known_what_if` and `in_line` are known by formula: 10 ms an event in each stage, no batches, events at
equal distances. `moderation_what_if` has the example's stages and arrivals, and about the profiles of one machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.cli.options import Platform
from inferline_stream.cli.plan_steps import Declared, PlanInputs, declared, planned
from inferline_stream.cli.what_if import WhatIf
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import independent_paths, shape_of
from inferline_stream.pipeline.trace import Trace

RATE, SERVICE_S, PRICE, SLO_S = 40.0, 0.01, 0.1, 0.1


def known_what_if() -> WhatIf:
    """Answers what-if questions of the pipeline, on hardware of $0.1 an hour."""
    return in_line("a", kind="whole", hardware=[Hardware("whole", PRICE, cores=1.0)])


def in_line(*names: str, kind: str, hardware: Sequence[Hardware], spot: bool = False) -> WhatIf:
    """Such stages one after another, each on one kind of hardware, or on spot capacity of it as well."""
    stages: list[Stage] = []
    kinds = [kind, f"{kind}-spot"] if spot else [kind]
    for name in names:
        stages.append(Stage(name, lambda values: values, hardware=kinds, max_batch_size=1, after=stages[-1:]))
    pipeline = Pipeline("p", slo="100ms", source=Topic("in"), sink=Topic("out"), stages=stages, hardware=hardware)
    profiles = {
        (name, each): Profile(name, each, (ServiceTime(1, SERVICE_S),), 2.0) for name in names for each in kinds
    }
    measured = PipelineProfile(profiles, independent_paths(shape_of(pipeline), {}))
    what = Declared(pipeline, Path("topology.py"), [], Trace(np.arange(0.0, 60.0, 1 / RATE)))
    inputs = PlanInputs(what=what, platform=Platform(oversubscribe=True))
    return WhatIf(inputs, measured, planned(inputs, measured), ("inferline-stream", "plan", "my folder"))


MODERATION_S = {
    ("language", "cpu-0.1"): {1: 0.005, 4: 0.012, 16: 0.036, 64: 0.134},
    ("language", "cpu-0.25"): {1: 0.001, 4: 0.004, 16: 0.014, 64: 0.054},
    ("toxicity", "cpu-0.1"): {1: 0.068, 4: 0.069, 16: 0.073, 32: 0.078},
    ("toxicity", "cpu-0.25"): {1: 0.022, 4: 0.023, 16: 0.026, 32: 0.03},
    ("duplicate", "cpu-0.25"): {1: 0.046, 4: 0.17, 8: 0.33},
    ("duplicate", "cpu-0.5"): {1: 0.019, 4: 0.072, 8: 0.14},
    ("duplicate", "cpu-1"): {1: 0.009, 4: 0.033, 8: 0.065},
    ("verdict", "cpu-0.1"): {1: 0.003, 4: 0.004, 16: 0.008, 64: 0.022},
}
"""Seconds of a batch, by its size."""


def moderation_what_if() -> WhatIf:
    """Answers what-if questions of the moderation example."""
    what = declared(Path(__file__).parents[2] / "topologies/moderation")
    profiles = {
        (stage, kind): Profile(stage, kind, tuple(ServiceTime(size, s) for size, s in sizes.items()), 2.0)
        for (stage, kind), sizes in MODERATION_S.items()
    }
    measured = PipelineProfile(profiles, independent_paths(shape_of(what.pipeline), {("language", "toxicity"): 0.7}))
    inputs = PlanInputs(what=what, platform=Platform(oversubscribe=True))
    return WhatIf(inputs, measured, planned(inputs, measured), ("inferline-stream", "plan", "moderation"))
