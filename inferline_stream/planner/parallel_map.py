"""How a search uses several cores: by a map that is handed in, of which only the order of the results counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Map(Protocol):
    """`map`, or that of an executor: results in the order of the values, whatever is computed first."""

    def __call__(self, function: Callable[[A], B], values: Iterable[A], /) -> Iterable[B]:
        """Apply the function to each value."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where candidates are simulated. Kernels run without the interpreter's lock, so threads are enough.

    Args:
        map: applies a function to many values.
        width: how many of them at once. Plans do not depend on it.
    """

    map: Map = map
    width: int = 1


ALONE = Spread()
"""One after another."""
