"""Where events wait to be taken, by rank; those of one key in a lane, which they leave in the order of their coming."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import final

from inferline_stream.dataplane.dispatcher.event import Event


@final
class KeyLane:
    """Events of one key that wait, as (rank, sequence, event) in the order in which they were added.

    Args:
        room: that they wait in.
    """

    __slots__ = ("in_hand", "low", "place", "room", "waiting")

    def __init__(self, room: WaitingRoom) -> None:
        self.room = room
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


Entry = tuple[int, int, Event | KeyLane]
"""Rank, sequence number, and what waits."""


@final
class WaitingRoom:
    """Events and lanes of keys that may be taken, by rank. A lane's entry counts as long as it names its `place`."""

    __slots__ = ("behind", "eligible", "heap")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.eligible = 0
        """Events that may be taken."""
        self.behind = 0
        """Those of them that are not the first ones of their lanes."""

    def put(self, rank: int, lane: KeyLane) -> None:
        """Let the events of a lane wait here."""
        lane.room = self
        self.eligible += len(lane.waiting)
        self.behind += len(lane.waiting) - 1
        heapq.heappush(self.heap, (rank, lane.place, lane))

    def first(self) -> Entry | None:
        """Return the first entry that counts."""
        heap = self.heap
        while heap:
            entry = heap[0]
            if self.counts(entry):
                return entry
            heapq.heappop(heap)
        return None

    def counts(self, entry: Entry) -> bool:
        """Return whether an entry is no lane's that waits elsewhere by now, or is in hand."""
        item = entry[2]
        return type(item) is not KeyLane or (item.place == entry[1] and item.room is self)

    def waiting(self) -> Iterator[Event]:
        """Return the events that may be taken, in any order."""
        for entry in self.heap:
            item = entry[2]
            if type(item) is not KeyLane:
                yield item
            elif self.counts(entry):
                yield from (event for _, _, event in item.waiting)

    def fill(self, batch: list[Event], limit: int) -> int:
        """Move events to the end of a batch, the first ones first; return how many it may hold, `limit` or fewer."""
        heap = self.heap
        while heap and len(batch) < limit:
            entry = heapq.heappop(heap)
            item = entry[2]
            if type(item) is not KeyLane:
                if item.limit and item.limit < limit:
                    limit = item.limit
                    if len(batch) >= limit:
                        heapq.heappush(heap, entry)
                        break
                self.eligible -= 1
                batch.append(item)
                continue
            if item.place != entry[1] or item.room is not self:
                continue
            waiting, before = item.waiting, len(batch)
            if len(waiting) == 1 and not waiting[0][2].limit:  # usual
                self.eligible -= 1
                item.in_hand, item.place, item.low = 1, 0, None
                batch.append(waiting.pop()[2])
                continue
            count = min(len(waiting), limit - before)
            for at in range(count):
                most = waiting[at][2].limit
                if most and most < limit:
                    limit = most
                if before + at >= limit:
                    count = at
                    break
            if not count:
                heapq.heappush(heap, entry)
                break
            self.eligible -= len(waiting)
            self.behind -= len(waiting) - 1
            item.in_hand, item.place = count, 0
            batch += item.pop(count)
        return limit

    def drop(self, partition: int) -> list[Event]:
        """Remove and return a partition's events without a lane; every lane leaves."""
        kept: list[Entry] = []
        dropped: list[Event] = []
        for entry in self.heap:
            item = entry[2]
            if type(item) is KeyLane:
                continue
            if item.partition == partition:
                dropped.append(item)
            else:
                kept.append(entry)
        heapq.heapify(kept)
        self.heap, self.eligible, self.behind = kept, len(kept), 0
        return dropped
