"""Small pipelines to work out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from inferline_stream.pipeline.plan import Allocation
from inferline_stream.pipeline.profile import PipelineProfile, Profile, ServiceTime
from inferline_stream.pipeline.shape import Arrow, Paths, Shape
from inferline_stream.pipeline.trace import Trace

ONE = Shape(("a",), ())
CHAIN = Shape(("a", "b"), (Arrow(0, 1),))
DIAMOND = Shape(("a", "b", "c", "d"), (Arrow(0, 1), Arrow(0, 2, conditional=True), Arrow(1, 3), Arrow(2, 3)))
ALWAYS = {ONE: Paths((0,), (1.0,)), CHAIN: Paths((1,), (1.0,))}
C_TAKEN, C_SKIPPED = 0b1111, 0b0101  # the diamond's paths


def trace(*times_s: float) -> Trace:
    return Trace(np.array(times_s))


def measured(
    shape: Shape, service_s: Mapping[str, Mapping[int, float]], *, paths: Paths | None = None, hop_s: float = 0.0
) -> PipelineProfile:
    """Every stage on hardware "h", or on the hardware after the dot in "stage.hardware"."""
    profiles = {}
    for name, times in service_s.items():
        stage, _, hardware = name.partition(".")
        rows = tuple(ServiceTime(b, s) for b, s in sorted(times.items()))
        profiles[stage, hardware or "h"] = Profile(stage, hardware or "h", rows)
    return PipelineProfile(profiles, paths or ALWAYS[shape], hop_s)


def allocated(
    replicas: int = 1, max_batch_size: int = 1, hardware: str = "h", hold_s: float = 0.0
) -> tuple[Allocation, ...]:
    return (Allocation(hardware, max_batch_size, replicas, hold_s),)


def close(found: Sequence[float] | np.ndarray, expected: Sequence[float]) -> bool:
    return np.allclose(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
