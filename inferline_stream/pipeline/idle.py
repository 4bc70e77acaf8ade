"""How long a pipeline, or a stage, has to be without work before no replica of it is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.pipeline.units import duration_s, format_duration

LEAST_IDLE_S = 60.0
"""Shortest time without work that may be declared: traffic of less has not been seen to have fallen."""


@dataclass(frozen=True, slots=True)
class Idle:
    """When a stage sleeps: it has its dispatchers then, and no replica beside those that stand by.

    Args:
        after_s: for how long nothing has come.
        own: whether its own records count, since the stage declares its own time. Otherwise the pipeline's arrivals
            count, by which all stages fall asleep and wake together.
        standby: replicas that stay. Where the server that they ask can sleep, it does.
    """

    after_s: float
    own: bool = False
    standby: int = 0


def idle_of(pipeline: Pipeline) -> dict[str, Idle]:
    """Return when each stage of a valid pipeline sleeps; stages that never do are left out."""
    found = {}
    for stage in pipeline.stages:
        declared = pipeline.idle if stage.idle is None else stage.idle
        if declared is not None:
            found[stage.name] = Idle(duration_s(declared), own=stage.idle is not None, standby=stage.standby)
    return found


def problems_of_idle(declaring: Pipeline | Stage) -> Iterator[str]:
    """Report what is wrong with the idle time of a pipeline or a stage."""
    if declaring.idle is None:
        return
    if isinstance(declaring, Pipeline) and declaring.groups:
        yield f"idle {declaring.idle!r} is for stages: members of a consumer group take its records, so one stays"
        return
    try:
        after_s = duration_s(declaring.idle)
    except ValueError as error:
        yield f"idle {error}"
        return
    if after_s < LEAST_IDLE_S:
        yield f"idle {declaring.idle!r} must be {format_duration(LEAST_IDLE_S)} or more"
