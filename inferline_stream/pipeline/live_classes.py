"""Live classes of events, with SLOs of their own or from sources of stages: what planning and simulation know of them.

A stage serves all of them by one queue, in order of slack: first what has the least time left until its own SLO. An
event of a class whose SLO is ``longer_s`` longer than the pipeline's is judged as one that entered so much later. So
the order of entry becomes the order of slack, and what is late by its own SLO is late by the pipeline's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.pipeline.units import duration_s

MOST_CLASSES = 16
"""Live classes of a pipeline: each adds a topic and a group to every stage."""


@dataclass(frozen=True, slots=True)
class LiveClass:
    """A live class beside that of the pipeline's own SLO.

    Args:
        topic: its source topic, without prefix.
        share: of the sample's events.
        longer_s: how much longer its SLO is than the pipeline's; below 0 where it is shorter.

    Raises:
        ValueError: a share that is none, or a difference that is not finite.
    """

    topic: str
    share: float
    longer_s: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not math.isfinite(self.longer_s):
            raise ValueError(f"class {self.topic!r}: share {self.share} must be above 0 and below 1, its SLO finite")


def live_classes(pipeline: Pipeline) -> tuple[LiveClass, ...]:
    """Return the live classes of a valid pipeline beside that of its own SLO, in the order of their declaration.

    One without a share has as much of the sample as each other class without one.
    """
    further = [topic for topic in pipeline.others if not topic.background]
    given = sum(topic.share for topic in further if topic.share is not None)
    alike = (1.0 - given) / (1 + sum(topic.share is None for topic in further))
    return tuple(
        LiveClass(
            str(topic.name),
            alike if topic.share is None else topic.share,
            0.0 if topic.slo is None else duration_s(topic.slo) - pipeline.slo_s,
        )
        for topic in further
    )


def longest_s(classes: Sequence[LiveClass]) -> float:
    """Return how much longer than the pipeline's the longest SLO of any class is, at least 0."""
    return max([0.0, *(each.longer_s for each in classes)])
