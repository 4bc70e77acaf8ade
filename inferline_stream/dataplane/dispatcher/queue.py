"""The stage's queue: events that wait for a replica, in the order in which they are served, with lanes for keys."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.hardware_kind import BatchNeeds
from inferline_stream.dataplane.dispatcher.waiting_room import KeyLane, WaitingRoom
from inferline_stream.pipeline.deadline_order import FEW_LANES, HOPELESS_EVERY
from inferline_stream.pipeline.event_classes import CLASS_STRIDE, class_of
from inferline_stream.pipeline.fallback import FALLBACK, MAIN, NEITHER, version_for


class FallbackTerms(NamedTuple):
    """On what the stage's fallback may make a batch."""

    allows: Callable[[int], bool]
    """Whether its share allows so many events."""
    longer_us: float = 0.0
    """R' - R."""


def rank(event: Event, slo_us: int) -> int:
    """Return the place of an event in the order of a queue: the lowest goes first, of equals the one taken in first.

    It is max(entry, when it was taken in − SLO), so that neither a backfill nor a wrong clock starves live events. When
    a record arrived is its writer's word alone: one whose clock is a day behind would always come first by it.
    """
    oldest_us = event.taken_ms * 1000 - slo_us
    return event.entered_us if event.entered_us > oldest_us else oldest_us  # a call of max takes longer


class Taken(NamedTuple):
    """A batch."""

    events: list[Event]
    hopeful: int
    """How many of them, the first ones, could still be on time; 0 in order of entry."""
    version: int = MAIN
    """Of the stage that makes them so."""


class StageQueue:
    """Events in the order of their `rank`; with `BatchNeeds`, those last that can no longer be on time.

    With `keys_in_order`, events of one key and class leave in the order in which they were added. `take` puts as many
    of them into one batch as it holds; the rest waits until `release` or `put_back` of every event that was taken. A
    key ranks as its waiting event of lowest rank does: an event with a wrong clock holds back nothing behind it.

    Args:
        slo_us: the SLO in µs.
        keys_in_order: whether events of one key keep their order. Events without a key never have one.
    """

    def __init__(self, slo_us: int, *, keys_in_order: bool) -> None:
        self.size_bytes = 0
        self.hurries = False
        """Whether hopeless events go first, because they hold up what else could be read."""
        self._slo_us = slo_us
        self._keyed = keys_in_order
        self._live, self._aside = WaitingRoom(), WaitingRoom()
        """Hopeful events, as far as was found out, and hopeless ones."""
        self._mixed = 0
        """Batches that were formed while some of both waited, since the last that was of hopeless ones."""
        self._lanes: dict[tuple[int, bytes] | bytes, KeyLane] = {}
        """Of keys that have events waiting or in hand."""
        self._bytes: dict[int, int] = {}
        self._length = 0
        self._sequence = 0
        self._front = 0

    def __len__(self) -> int:
        return self._length

    @property
    def eligible(self) -> int:
        """Events of which the next batch could be: hopeful ones, or hopeless ones where no other waits."""
        return self._live.eligible or self._aside.eligible

    def bytes_of(self, partition: int) -> int:
        """Return the size of a partition's waiting events."""
        return self._bytes.get(partition, 0)

    def hopeless(self) -> Iterator[Event]:
        """Return the eligible events that were found hopeless, in any order."""
        return self._aside.waiting()

    def first(self) -> Event | None:
        """Return the first eligible hopeful event."""
        entry = self._live.first()
        if entry is None:
            return None
        item = entry[2]
        return item.waiting[0][2] if type(item) is KeyLane else item

    def oldest_ms(self) -> int | None:
        """Return the smallest `arrived_ms` of an eligible hopeful event. Looks at each: ask only while they are few."""
        return min((event.arrived_ms for event in self._live.waiting()), default=None)

    def due_ms(self, limit: int, hold_ms: float) -> float:
        """Return when a free replica may take a batch, on the clock of `arrived_ms`: −∞ for at once.

        Args:
            limit: most hopeful events of a batch; so many go at once.
            hold_ms: how long after the oldest of them reached the stage fewer of them wait for more.
        """
        if hold_ms <= 0 or self._live.eligible >= limit:
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
        key, room = event.key, self._live
        if key is None or not self._keyed:
            room.eligible += 1
            heapq.heappush(room.heap, (place, sequence, event))
            return
        name = key if partition < CLASS_STRIDE else _lane_of(partition, key)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = KeyLane(room)
        lowers = lane.append(place, sequence, event)
        if not lane.in_hand:
            room = lane.room
            room.eligible += 1
            room.behind += len(lane.waiting) > 1
            if lowers:
                lane.place = sequence
                heapq.heappush(room.heap, (place, sequence, lane))

    def take(
        self, limit: int, needs: BatchNeeds | None = None, now_us: float = 0.0, terms: FallbackTerms | None = None
    ) -> Taken:
        """Remove and return the next batch: at most `limit` events, none where none is eligible.

        Args:
            limit: of the replica's kind.
            needs: what a batch needs there; None for the order of entry.
            now_us: the present.
            terms: of the stage's fallback; None where the replica has none.
        """
        batch: list[Event] = []
        live, aside, hopeful, version = self._live, self._aside, 0, MAIN
        if needs is None:
            aside.fill(batch, live.fill(batch, limit))
        else:
            size, version = self._sort_out(needs, now_us, terms)
            size = min(limit, size)
            if size and aside.eligible:
                self._mixed += 1
                if self.hurries or self._mixed >= HOPELESS_EVERY:
                    self._mixed = size = 0
                    version = MAIN
            if not size:
                aside.fill(batch, limit)
            elif live.fill(batch, size) == size:
                hopeful = size
                if aside.eligible and version == MAIN:
                    age_us = now_us - batch[0].entered_us
                    most = min([limit, *(event.limit for event in batch if event.limit)])
                    while size < most and age_us + needs.times_us[size + 1] <= self._slo_us:
                        size += 1
                    aside.fill(batch, size)
            else:
                hopeful = len(batch)
            if version == FALLBACK and any(event.main_only for event in batch):
                version = MAIN
        self._left(batch)
        return Taken(batch, hopeful, version)

    def _left(self, batch: Sequence[Event]) -> None:
        """Count events no more that were taken."""
        self._length -= len(batch)
        sizes, total = self._bytes, 0
        for event in batch:
            size = event.size_bytes
            total += size
            sizes[event.partition] -= size
        self.size_bytes -= total

    def _sort_out(self, needs: BatchNeeds, now_us: float, terms: FallbackTerms | None) -> tuple[int, int]:
        """Move aside what is hopeless, as far as it is first.

        Returns:
            How many hopeful events a batch holds, and the version of the stage that makes them in time.
        """
        live, aside, slo_us = self._live, self._aside, self._slo_us
        _, cap, times_us, fallback_us, fallback_cap = needs
        allows, longer_us = terms or (None, 0.0)
        while live.heap:
            entry = live.heap[0]
            item = entry[2]
            size = live.eligible if live.eligible < cap else cap
            first: Event
            if type(item) is not KeyLane:
                first = item
                entered_us = item.entered_us
            elif not live.counts(entry):
                heapq.heappop(live.heap)
                continue
            else:
                first = item.waiting[0][2]
                few = live.eligible - live.behind < FEW_LANES
                entered_us = max(event.entered_us for _, _, event in item.waiting[:size]) if few else first.entered_us
            fast, fallback_size = math.inf, min(live.eligible, fallback_cap)
            if fallback_us and allows is not None and not first.main_only and allows(fallback_size):
                fast = fallback_us[fallback_size]
            version = version_for(now_us - entered_us, times_us[size], fast, (0.0, longer_us), slo_us)
            if version != NEITHER:
                return size if version == MAIN else fallback_size, version
            heapq.heappop(live.heap)
            if type(item) is KeyLane:
                live.eligible -= len(item.waiting)
                live.behind -= len(item.waiting) - 1
                aside.put(entry[0], item)
            else:
                live.eligible -= 1
                aside.eligible += 1
                heapq.heappush(aside.heap, entry)
        return 0, MAIN

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
                self._live.eligible += 1
                heapq.heappush(self._live.heap, (place, self._front, event))
                continue
            lane = self._lanes[_lane_of(event.partition, event.key)]
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
            name = key if event.partition < CLASS_STRIDE else _lane_of(event.partition, key)
            lane = lanes[name]
            lane.in_hand -= 1
            if not lane.in_hand:
                if lane.waiting:
                    self._place(lane)
                else:
                    del lanes[name]

    def drop(self, partition: int) -> list[Event]:
        """Remove and return a partition's waiting events. Those in hand are still to be released."""
        dropped = [*self._live.drop(partition), *self._aside.drop(partition)]
        for name, lane in list(self._lanes.items()):
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
                    del self._lanes[name]
        self._length -= len(dropped)
        self.size_bytes -= self._bytes.get(partition, 0)
        self._bytes[partition] = 0
        return dropped

    def _place(self, lane: KeyLane) -> None:
        """Make a lane eligible, whose events are all waiting. Whether it is hopeless is found out again."""
        lane.place = lane.waiting[0][1]
        self._live.put(lane.rank, lane)


def _lane_of(partition: int, key: bytes) -> tuple[int, bytes] | bytes:
    """Return what a lane is known by: order holds within a class."""
    return (class_of(partition), key) if partition >= CLASS_STRIDE else key
