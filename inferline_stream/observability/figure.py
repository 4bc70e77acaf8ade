"""Metrics, declared where their numbers are: at the fields of a pipeline's state. `metrics` renders what is declared.

    queued: int = gauge("stage_queued_events", "Events that wait for a replica.", 0)

What follows from other fields is declared in their class's ``derived``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from operator import attrgetter
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric. One of text is 1 while there is any, one of a collection its size; one that is None has no sample.

    Args:
        kind: whether it may fall.
        name: after ``inferline_``.
        help: what it is, for those who look at it.
        of: makes the value of what it is a figure of, where no field holds it.
        labels: of its own. Its value is then a mapping from theirs, or a sequence by number.
    """

    kind: Literal["gauge", "counter"]
    name: str
    help: str
    of: Callable[[Any], Any] | None = None
    labels: tuple[str, ...] = ()

    def samples(self, value: Any) -> Iterator[tuple[tuple[str, ...], float]]:
        """Values of its own labels, with the number there."""
        if self.labels:
            for key, number in sorted(value.items()) if isinstance(value, Mapping) else enumerate(value):
                yield key if isinstance(key, tuple) else (str(key),), _number(number)
        elif value is not None:
            yield (), _number(value)


def _field(kind: Literal["gauge", "counter"], name: str, help_text: str, default: Any = MISSING, *labels: str) -> Any:
    """A field whose number is a metric. A type as default is called for each instance."""
    figure = {"figure": Figure(kind, name, help_text, labels=labels)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=figure)
    return field(default=default, metadata=figure)


gauge = partial(_field, "gauge")
"""A field whose number may fall."""

counter = partial(_field, "counter")
"""A field whose number only grows."""


def figures(of: type) -> Iterator[tuple[Callable[[Any], Any], Figure]]:
    """Metrics of a class's instances, each with what reads its value."""
    yield from ((attrgetter(each.name), each.metadata["figure"]) for each in fields(of) if "figure" in each.metadata)
    yield from ((each.of, each) for each in getattr(of, "derived", ()))


def _number(value: Any) -> float:
    if isinstance(value, str):
        return float(bool(value))
    return float(len(value) if isinstance(value, Sized) else value)
