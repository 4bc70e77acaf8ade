"""Compiles every kernel, or loads it from the cache: some seconds once per installation, then half a second.

Code that shows something on screen calls this first, so that nobody waits without knowing what for; building an image
calls it so that nobody waits at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from inferline_stream.estimator.evaluation import evaluate
from inferline_stream.estimator.kernels import Varying
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import prepare
from inferline_stream.pipeline.keys import Keys
from inferline_stream.pipeline.profile import HOP_PROBABILITIES, LEVELS, PipelineProfile
from inferline_stream.pipeline.shape import Arrow, Shape, independent_paths
from inferline_stream.pipeline.trace import Trace

Progress = Callable[[int, int], None]
"""(done, of how many)"""


def compile_kernels(progress: Progress | None = None) -> None:
    """Simulate a few events with each kind of queue.

    Args:
        progress: called before and after every step; they are slow only where nothing is cached yet.
    """
    shape = Shape(("a", "b", "c"), (Arrow(0, 1, conditional=True), Arrow(0, 2), Arrow(1, 2)))
    measured = PipelineProfile({}, independent_paths(shape, {("a", "b"): 0.5}))
    spread_s = tuple(np.linspace(0.0, 0.5, len(HOP_PROBABILITIES)).tolist())
    keyed = replace(measured, keys=Keys((("busy", 0.5),), shape.stages), hop_spread_s=spread_s)
    plain, with_keys = (prepare(shape, profile, Trace(np.arange(8.0))) for profile in (measured, keyed))
    steps = [
        (plain, _station()),
        (plain, replace(_station(), order_slo_s=1.0, rest_s=0.0)),
        (plain, replace(_station(2), slots=2)),
        (with_keys, _station()),
    ]
    report = progress or (lambda done, of: None)
    for done, (workload, station) in enumerate(steps):
        report(done, len(steps))
        evaluate(workload, [station] * 3, slo_s=1.0, allowed=8, slice_events=4)
    report(len(steps), len(steps))


def _station(kinds: int = 1) -> Station:
    return Station(
        limits=np.ones(kinds, dtype=np.int64),
        table=np.array([np.nan, 0.5] * kinds),
        kinds=np.arange(kinds, dtype=np.int64),
        varying=Varying(
            fixed_s=np.full(2 * kinds, 0.5),
            per_unit_s=np.zeros(2 * kinds),
            factors=np.ones((2 * kinds, LEVELS)),
            units=np.ones((kinds, LEVELS)),
            largest=np.zeros(kinds, np.uint8),
        ),
    )
