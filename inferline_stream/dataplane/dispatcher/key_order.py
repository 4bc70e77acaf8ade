"""The order of a key: its events wait in one lane, and leave it in the order in which they were added."""

from __future__ import annotations

from typing import final

from inferline_stream.dataplane.dispatcher.event import Event


@final
class KeyLane:
    """Events of one key that wait, as (rank, sequence, event) in the order in which they were added."""

    __slots__ = ("in_hand", "low", "place", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, Event]] = []
        self.low: list[int] | None = None
        """Ranks that no event behind undercuts, ascending; None while those of all waiting events ascend."""
        self.in_hand = 0
        self.place = 0
        """Sequence number of the lane's entry in the heap; an entry with another one is out of date."""

    @property
    def rank(self) -> int:
        """The lowest rank of a waiting event."""
        return self.low[0] if self.low else self.waiting[0][0]

    def append(self, rank: int, sequence: int, event: Event) -> bool:
        """Add an event; return whether that lowers the lane's rank."""
        waiting, low = self.waiting, self.low
        lowers = not waiting
        if waiting and (low is not None or rank < waiting[-1][0]):
            if low is None:
                low = self.low = [each for each, _, _ in waiting]
            while low and low[-1] > rank:
                low.pop()
            lowers = not low
            low.append(rank)
        waiting.append((rank, sequence, event))
        return lowers

    def prepend(self, rank: int, sequence: int, event: Event) -> None:
        """Put an event before the others."""
        if self.waiting and self.low is None and rank > self.waiting[0][0]:
            self.low = [each for each, _, _ in self.waiting]
        if self.low is not None and rank <= self.low[0]:
            self.low.insert(0, rank)
        self.waiting.insert(0, (rank, sequence, event))

    def pop(self, count: int) -> list[Event]:
        """Remove and return the first events."""
        taken = self.waiting[:count]
        del self.waiting[:count]
        if not self.waiting:
            self.low = None
        elif self.low is not None:
            passed = 0
            for rank, _, _ in taken:
                passed += self.low[passed] == rank
            del self.low[:passed]
        return [event for _, _, event in taken]
