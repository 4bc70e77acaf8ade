"""The cores of a machine that replicas may have: what the rest of a run takes is left to it."""

from __future__ import annotations

from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios

CONTROLLER_CORES = 0.15
"""Controller, supervisor, page and metrics. They hardly grow with the rate, so a constant will do: 0.08 to 0.1 while
the loop watches three stages, 0.14 as they drain. Planning runs at the lowest priority, and takes what is idle."""


def replica_cores(machine_cores: float, shape: Shape, measured: PipelineProfile, rate: float) -> float:
    """Return the cores that all replicas together may have; 0 where the rest of a run takes all of them.

    Args:
        machine_cores: cores that this run may use.
        shape: the DAG.
        measured: with overheads; without them only the controller's part is known.
        rate: events per second.
    """
    left = machine_cores - CONTROLLER_CORES
    if measured.overheads is not None:
        ratios = visit_ratios(shape, measured.paths)
        for at, stage in enumerate(shape.stages):
            parents = [shape.stages[shape.arrows[bit].parent] for bit in shape.parents(at)]
            # A join gets a record of each parent, and one where a branch was skipped.
            records = len(parents) if len(parents) > 1 else ratios[stage]
            left -= measured.overheads.stage_cores(rate * records)
    return max(0.0, left)
