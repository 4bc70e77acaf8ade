"""Where an event goes after a stage: along the arrows taken, and past the stages that are skipped because of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inferline_stream.pipeline.shape import Shape


@dataclass(frozen=True, slots=True)
class Send:
    """One record for a child, or for a join further down.

    Args:
        stage: whose input topic it goes to.
        result: whether it carries this stage's result; otherwise it only says what was skipped.
        skipped: parents of that join which this event will not visit.
    """

    stage: str
    result: bool
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Follow:
    """What to do once a stage is through with an event.

    Args:
        sends: records, in topological order of their stages.
        to_sink: whether the result is the pipeline's own.
        completed: whether the event ends here without one.
    """

    sends: tuple[Send, ...]
    to_sink: bool = False
    completed: bool = False


def follow(shape: Shape, stage: str, taken: Iterable[str] | None) -> Follow:
    """What follows from a stage's result, or from its having none.

    A stage all of whose parents were skipped is skipped. That is decided here for stages with one parent, which
    need not see the event; a join learns it from a marker and decides when it has heard of every parent.

    Args:
        shape: the pipeline's DAG.
        stage: the stage that is through with the event.
        taken: children whose arrow the result takes; None where there is no result (skipped, dead), which takes none.
    """
    at = shape.stages.index(stage)
    final = not shape.children(at)
    if final:
        return Follow((), to_sink=taken is not None, completed=taken is None)
    children = set(taken or ())
    skipped: set[int] = set()
    sends: list[Send] = []
    completed = False
    for child in range(at + 1, len(shape.stages)):
        parents = [shape.arrows[arrow].parent for arrow in shape.parents(child)]
        name = shape.stages[child]
        result = at in parents and name in children
        passed_by = tuple(
            shape.stages[parent] for parent in parents if parent in skipped or (parent == at and not result)
        )
        if len(parents) > 1:
            if result or passed_by:
                sends.append(Send(name, result, passed_by))
        elif result:
            sends.append(Send(name, result=True))
        elif passed_by:
            skipped.add(child)
            completed = completed or not shape.children(child)
    return Follow(tuple(sends), completed=completed)
