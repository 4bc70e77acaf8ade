"""The stage's queue: events that wait for a replica, in the order in which they are served, with lanes for keys."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.key_order import KeyLane


def rank(event: Event, slo_us: int) -> int:
    """Return the place of an event in the order of a queue: the lowest goes first, of equals the one taken in first.

    It is max(entry, when it was taken in − SLO), so that neither a backfill nor a wrong clock starves live events. When
    a record arrived is its writer's word alone: one whose clock is a day behind would always come first by it.
    """
    oldest_us = event.taken_ms * 1000 - slo_us
    return event.entered_us if event.entered_us > oldest_us else oldest_us  # a call of max takes longer


class StageQueue:
    """Events in the order of their `rank`.

    With `keys_in_order`, events of one key leave in the order in which they were added. `take` puts as many of them
    into one batch as it holds; the rest waits until `release` or `put_back` of every event that was taken. A key ranks
    as its waiting event of lowest rank does, so that an event with a wrong clock holds back nothing behind it.

    Args:
        slo_us: the SLO in µs.
        keys_in_order: whether events of one key keep their order. Events without a key never have one.
    """

    def __init__(self, slo_us: int, *, keys_in_order: bool) -> None:
        self.size_bytes = 0
        self.eligible = 0
        """Events that `take` could return now."""
        self._slo_us = slo_us
        self._keyed = keys_in_order
        self._heap: list[tuple[int, int, Event | KeyLane]] = []
        self._lanes: dict[bytes, KeyLane] = {}
        """Of keys that have events waiting or in hand."""
        self._bytes: dict[int, int] = {}
        self._length = 0
        self._sequence = 0
        self._front = 0

    def __len__(self) -> int:
        return self._length

    def bytes_of(self, partition: int) -> int:
        """Return the size of a partition's waiting events."""
        return self._bytes.get(partition, 0)

    def oldest_ms(self) -> int | None:
        """Return the smallest `arrived_ms` of an eligible event. Looks at each one: ask only while they are few."""
        oldest: int | None = None
        for _, place, item in self._heap:
            if type(item) is not KeyLane:
                arrived_ms = item.arrived_ms
            elif item.place == place:
                arrived_ms = min(event.arrived_ms for _, _, event in item.waiting)
            else:
                continue
            if oldest is None or arrived_ms < oldest:
                oldest = arrived_ms
        return oldest

    def due_ms(self, limit: int, hold_ms: float) -> float:
        """Return when a free replica may take a batch, on the clock of `arrived_ms`: −∞ for at once.

        Args:
            limit: the replica's batch limit; so many eligible events go at once.
            hold_ms: how long after the oldest eligible event reached the stage fewer of them wait for more.
        """
        if hold_ms <= 0 or self.eligible >= limit:
            return -math.inf
        oldest_ms = self.oldest_ms()
        return -math.inf if oldest_ms is None else oldest_ms + hold_ms

    def add(self, event: Event) -> None:
        """Add an event that was read."""
        place = rank(event, self._slo_us)
        self._sequence = sequence = self._sequence + 1
        size, partition = event.size_bytes, event.partition
        self.size_bytes += size
        self._bytes[partition] = self._bytes.get(partition, 0) + size
        self._length += 1
        key = event.key
        if key is None or not self._keyed:
            self.eligible += 1
            heapq.heappush(self._heap, (place, sequence, event))
            return
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = KeyLane()
        lowers = lane.append(place, sequence, event)
        if not lane.in_hand:
            self.eligible += 1
            if lowers:
                lane.place = sequence
                heapq.heappush(self._heap, (place, sequence, lane))

    def take(self, limit: int) -> list[Event]:
        """Remove and return the next batch: at most `limit` events, none where none is eligible."""
        heap, sizes = self._heap, self._bytes
        batch: list[Event] = []
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
            if item.place != entry[1]:
                continue
            waiting, before = item.waiting, len(batch)
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
            item.in_hand, item.place = count, 0
            if len(waiting) == 1:
                item.low = None
                batch.append(waiting.pop()[2])
            else:
                batch += item.pop(count)
        self._length -= len(batch)
        total = 0
        for event in batch:
            size = event.size_bytes
            total += size
            sizes[event.partition] -= size
        self.size_bytes -= total
        return batch

    def put_back(self, events: Sequence[Event], limit: int = 0) -> None:
        """Return events that `take` gave and that no replica ran: they wait before everything of their key.

        Of a key, events that are put back by several calls must come latest first.

        Args:
            events: in the order in which they were taken.
            limit: of every later batch that holds one of them; 0 for none.
        """
        for event in reversed(events):
            if limit and not 0 < event.limit < limit:
                event.limit = limit
            self._front -= 1
            self._length += 1
            self.size_bytes += event.size_bytes
            self._bytes[event.partition] += event.size_bytes
            place = rank(event, self._slo_us)
            if event.key is None or not self._keyed:
                self.eligible += 1
                heapq.heappush(self._heap, (place, self._front, event))
                continue
            lane = self._lanes[event.key]
            lane.prepend(place, self._front, event)
            lane.in_hand -= 1
            if not lane.in_hand:
                self._place(lane)

    def release(self, events: Sequence[Event]) -> None:
        """Free the keys of events that `take` gave: their results were handed over, in order."""
        if not self._keyed:
            return
        lanes = self._lanes
        for event in events:
            key = event.key
            if key is None:
                continue
            lane = lanes[key]
            lane.in_hand -= 1
            if not lane.in_hand:
                if lane.waiting:
                    self._place(lane)
                else:
                    del lanes[key]

    def drop(self, partition: int) -> list[Event]:
        """Remove and return a partition's waiting events. Those in hand are still to be released."""
        dropped: list[Event] = []
        heap: list[tuple[int, int, Event | KeyLane]] = []
        for place, sequence, item in self._heap:
            if type(item) is not KeyLane:
                if item.partition == partition:
                    dropped.append(item)
                else:
                    heap.append((place, sequence, item))
        self._heap = heap
        self.eligible = len(heap)
        for key, lane in list(self._lanes.items()):
            waiting, lane.waiting, lane.low = lane.waiting, [], None
            for place, sequence, event in waiting:
                if event.partition == partition:
                    dropped.append(event)
                else:
                    lane.append(place, sequence, event)
            if not lane.in_hand:
                if lane.waiting:
                    self._place(lane)
                else:
                    del self._lanes[key]
        heapq.heapify(heap)
        self._length -= len(dropped)
        self.size_bytes -= self._bytes.get(partition, 0)
        self._bytes[partition] = 0
        return dropped

    def _place(self, lane: KeyLane) -> None:
        """Make a lane eligible, whose events are all waiting."""
        lane.place = lane.waiting[0][1]
        self.eligible += len(lane.waiting)
        heapq.heappush(self._heap, (lane.rank, lane.place, lane))
