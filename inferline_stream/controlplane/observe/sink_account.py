"""What was seen of a run's events at one sink: records there, and other endings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

OUT, ENDED = 0, 1
"""Kinds of records: in the sink, and of the completed topic."""

_MOST = 255


@dataclass(slots=True)
class _Apart:
    """What was seen of an event with many results."""

    seen: Fraction = Fraction(0)
    """The sum of its results' shares: 1 once all of them have reached the sink or ended."""
    kinds: int = 0
    """A bit for each kind of record that was seen."""
    _names: set[bytes] = field(default_factory=set)

    def see(self, name: bytes, of_it: Fraction) -> bool:
        """Note a result; return whether it is new. Once all are known any further one is not, and none is kept."""
        if self.seen >= 1 or name in self._names:
            return False
        self.seen += of_it
        if self.seen >= 1:
            self._names.clear()
        else:
            self._names.add(name)
        return True


class SinkAccount:
    """Counts by event: a byte for each kind of record of an event that is known by its place.

    Args:
        sizes: events of each source partition that are looked up by their place.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._placed = tuple([bytearray(size) for size in sizes] for _ in (OUT, ENDED))
        self._named: dict[bytes, list[int]] = {}
        """Events with an id of their own → counts by kind."""
        self.apart: dict[bytes, _Apart] = {}
        """Events with many results, by id."""

    def count(
        self, name: bytes, place: tuple[int, int] | None, kind: int, result: bytes = b"", share: Fraction | None = None
    ) -> bool:
        """Count one record; return whether it is the first of its kind that its event, or its result among many, has.

        Args:
            name: of the event.
            place: partition of the event, and its number there; None for one that its id names.
            kind: of the record.
            result: id of the result that the record is, of an event with many.
            share: of the event that this result is; None where the event has one.
        """
        if share is not None or name in self.apart:
            apart = self.apart.setdefault(name, _Apart())
            if not apart.see(result, Fraction(1) if share is None else share):
                self._count(name, place, kind)
                return False
            first, apart.kinds = not apart.kinds >> kind & 1, apart.kinds | 1 << kind
            return self._count(name, place, kind) if first else True
        return self._count(name, place, kind)

    def _count(self, name: bytes, place: tuple[int, int] | None, kind: int) -> bool:
        if place is None:
            counts = self._named.setdefault(name, [0, 0])
            counts[kind] += 1
            return counts[kind] == 1
        row, at = self._placed[kind][place[0]], place[1]
        row[at] = min(_MOST, row[at] + 1)
        return row[at] == 1

    def has(self, name: bytes, place: tuple[int, int] | None, kind: int) -> bool:
        """Return whether an event has a record of a kind."""
        if place is None:
            return self._named.get(name, (0, 0))[kind] > 0
        return self._placed[kind][place[0]][place[1]] > 0

    def placed(self, kind: int) -> Iterator[NDArray[np.bool_]]:
        """Yield of each source partition which of its events have a record of a kind."""
        return (np.frombuffer(row, np.uint8) > 0 for row in self._placed[kind])

    @property
    def duplicated(self) -> int:
        """Records in the sink beyond the first of each event."""
        return sum(sum(row) - (len(row) - row.count(0)) for row in self._placed[OUT]) + sum(
            max(0, counts[OUT] - 1) for counts in self._named.values()
        )
