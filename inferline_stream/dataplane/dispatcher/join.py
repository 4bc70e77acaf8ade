"""Gathering the parents' results of one event. The join's input topic is its changelog, so this state is rebuilt by
reading it again from the committed offset, and what does not fit into memory is read again from there.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from inferline_stream.kafka.records import Record

FINISHED_BYTES = 256
"""What a finished event costs in memory beyond its id."""

FINISHED_SHARE = 0.25
"""Of a join's bytes, what finished ids may have however many parts wait: late parts of events that were given up are
recognised also while the state is full."""

PLACES_BYTES = 600
"""What a waiting event costs in memory where only the offsets of its parts are kept."""


_LARGEST_OFFSET = (1 << 63) - 1


@dataclass(slots=True, eq=False)
class Gathered:
    """What has arrived for one event of a join.

    Args:
        event_id: the event.
        first_s: when its first part arrived.
        wanted: what has to answer, a bit each: the parents, or where it is gathered the results that there are.
        answered: those of them that have given a result or were skipped.
        dead: how it died upstream, 0 where it did not; nothing runs then.
        died: those that answered only by saying so.
        records: its parts in order of arrival, as they were read, or the offset of one that has to be read again.
            Their offsets are complete once the event is.
        given: by part, the parent whose result it is.
        size_bytes: what it takes in memory.
        replay: how often the event had been sent again after it died.
        key: of its records, where its turn among events of that key counts.
    """

    event_id: bytes
    first_s: float
    wanted: int = 0
    answered: int = 0
    dead: int = 0
    died: int = 0
    records: list[Record | int] = field(default_factory=list)
    given: list[str | None] = field(default_factory=list)
    size_bytes: int = 0
    replay: int = 0
    key: bytes | None = None

    @property
    def offsets(self) -> list[int]:
        """Of its parts, in order of arrival."""
        return [record if type(record) is int else record.offset for record in self.records]  # type: ignore[union-attr]

    @property
    def first(self) -> int:
        """Offset of its first part: the lowest."""
        record = self.records[0]
        return record if type(record) is int else record.offset  # type: ignore[union-attr]

    def unread(self) -> list[int]:
        """Return the offsets of parts that have to be read again."""
        return [record for record in self.records if type(record) is int]


class Finished(NamedTuple):
    """An event that needs nothing more: since when, which replay of it that was, and which parents had answered.

    One that an earlier owner finished is known by parts whose offsets are complete. They may be so because they were
    moved: a part that was moved after all of those is no part of an event that was finished then.
    """

    at_s: float
    replay: int
    answered: int
    moved: int


class Arrival(Enum):
    """What a part is to its event."""

    WAITING = "waiting"
    DUPLICATE = "duplicate"
    LATE = "late"
    """Its event was given up without it."""


class Join:
    """Parts of the events of one partition of a join's input topic.

    Args:
        parents: every one of which answers for each event, with a result or by being skipped.
        remember_s: how long finished event ids are remembered, to recognise parts that arrive twice.
        ordered: an event waits for those of its key whose first part came before its own. Each parent keeps the order
            of a key, so that is the order in which they entered the pipeline.
    """

    def __init__(
        self,
        parents: Sequence[str],
        *,
        remember_s: float = 600.0,
        ordered: bool = False,
    ) -> None:
        self._parents = {parent: 1 << at for at, parent in enumerate(parents)}
        self._all = (1 << len(parents)) - 1
        self._remember_s = remember_s
        self._waiting: OrderedDict[bytes, Gathered] = OrderedDict()
        """In the order of their first parts."""
        self._whole: dict[bytes, Gathered] = {}
        """Those of them that hold parts."""
        self._ready: list[tuple[int, Gathered]] = []
        """Those that are complete and whose turn it is: a heap, by the offset of the first part."""
        self._finished: OrderedDict[bytes, Finished] = OrderedDict()
        self.ordered = ordered
        self._turns: dict[bytes, list[Gathered]] = {}
        """By key, those that wait for their turn. Most are one: an empty deque takes 600 bytes."""
        self._since_s: dict[bytes, float] = {}
        self.settled = 0
        """What waits with its first part below this offset can get no other part any more."""
        self.size_bytes = 0
        """Of the events that wait."""
        self.finished_bytes = 0
        """Of the finished event ids that are remembered."""
        self.parts = 0
        """Parts of the events that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self,
        event_id: bytes,
        *,
        record: Record,
        now_s: float,
        size_bytes: int = 0,
        parent: str | None = None,
        skipped: Sequence[str] = (),
        dead: int = 0,
        replay: int = 0,
        moved: int = 0,
        key: bytes | None = None,
        part: tuple[int, int] | None = None,
    ) -> Arrival:
        """Take in one part: a parent's result, parents that were skipped, or both. `take` gives complete events.

        An event that was finished is gathered again from the parts of a later replay. A part that had died, and comes
        again, takes its own place. Where results are gathered, ``part`` is the place of one, and how many there are.
        """
        bits, name = self._bits(parent, skipped, part)
        finished = self._finished.get(event_id)
        if finished is not None:
            if (replay, moved) <= (finished.replay, finished.moved):
                return Arrival.LATE if bits & ~finished.answered else Arrival.DUPLICATE
            del self._finished[event_id]
            self.finished_bytes -= FINISHED_BYTES + len(event_id)
        event = self._waiting.get(event_id)
        was_ready = event is not None and self._is_ready(event)
        if event is not None:
            if replay > event.replay and not dead and bits & event.died:
                event.answered &= ~(bits & event.died)
                event.died &= ~bits
                event.dead = event.dead if event.died else 0
            event.dead = max(event.dead, dead)
            event.replay = max(event.replay, replay)
        if not bits & ~(event.answered if event is not None else 0):
            return Arrival.DUPLICATE
        if event is None:
            event = Gathered(event_id, self._since_s.pop(event_id, now_s), self._all, dead=dead, replay=replay)
            self._waiting[event_id] = event
            if self.ordered and key is not None:
                event.key = key
                self._turns.setdefault(key, []).append(event)
        event.records.append(record)
        own = bits if part is not None else self._parents.get(name or "", 0)
        event.given.append(name if own & ~event.answered else None)
        if part is not None:
            event.wanted = _places(part[1])
        if dead:
            event.died |= bits & ~event.answered
        event.answered |= bits
        event.size_bytes += size_bytes
        self.size_bytes += size_bytes
        self.parts += 1
        self._whole[event_id] = event
        if not was_ready and self._is_ready(event):
            heapq.heappush(self._ready, (event.first, event))
        return Arrival.WAITING

    def take(self, now_s: float, may: Callable[[Gathered], bool]) -> Gathered | None:
        """Take out the first event that is complete and whose turn it is, if it may go on now; it is finished."""
        if not self._ready or not may(self._ready[0][1]):
            return None
        _, event = heapq.heappop(self._ready)
        self._finish(event, now_s)
        return event

    @property
    def holds(self) -> bool:
        """Whether an event is complete that `take` was not allowed to give."""
        return bool(self._ready)

    def recall(
        self,
        event_id: bytes,
        *,
        now_s: float,
        parent: str | None = None,
        skipped: Sequence[str] = (),
        replay: int = 0,
        moved: int = 0,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Take in a part whose offset is complete: its event was finished by an earlier owner, unless it waits."""
        if event_id in self._waiting:  # the part came twice, or was moved
            return
        bits, _ = self._bits(parent, skipped, part)
        known = self._finished.get(event_id, Finished(now_s, 0, 0, 0))
        if replay == known.replay:
            self._remember(event_id, Finished(now_s, replay, bits | known.answered, max(moved, known.moved)))
        elif replay > known.replay:
            self._remember(event_id, Finished(now_s, replay, bits, moved))

    def missing(self, event: Gathered) -> list[str]:
        """Return the parents, or the places of results, that have not answered."""
        if event.wanted == self._all:
            return [name for name, bit in self._parents.items() if not event.answered & bit]
        return [f"result {at}" for at in range(event.wanted.bit_length()) if not event.answered >> at & 1]

    def waiting_at(self, offset: int) -> Gathered | None:
        """Return the waiting event that has a part at this offset."""
        return next((event for event in self._waiting.values() if offset in event.offsets), None)

    def withdraw(self, offsets: Collection[int], most_bytes: float) -> list[Gathered]:
        """Forget events that have a part at these offsets, as if none of their parts had come.

        Their parts must be appended again. Their age goes on from the first part.
        """
        wanted = frozenset(offsets)
        found: list[Gathered] = []
        for event in self._waiting.values():
            if not wanted.isdisjoint(event.offsets):
                found.append(event)
                most_bytes -= event.size_bytes
                if most_bytes <= 0:
                    break
        for event in found:
            self._take_out(event)
            self._since_s[event.event_id] = event.first_s
        if found:
            self._ready = [entry for entry in self._ready if self._waiting.get(entry[1].event_id) is entry[1]]
            heapq.heapify(self._ready)
        return found

    def is_overdue(self, age_s: float, now_s: float) -> bool:
        """Return whether the first event has waited for longer than this."""
        first = next(iter(self._waiting.values()), None)
        return first is not None and first.first_s < now_s - age_s

    def overdue(self, age_s: float, now_s: float) -> Gathered | None:
        """Give up on an event whose first part has waited for so long, and that can get no other; it is finished."""
        for event in self._waiting.values():
            if event.first >= self.settled:
                return None
            if event.first_s < now_s - age_s and not self._is_complete(event):
                self._finish(event, now_s)
                return event
        return None

    def fit(self, limit_bytes: float) -> None:
        """Keep to a limit: of events that do not fit, only the offsets of their parts are kept, of the newest first.

        Those that have waited longest are likely to be complete first. Finished ids take the room that parts leave,
        and at least their share. Beyond that they are forgotten first, oldest first.
        """
        while self._exceeds(limit_bytes) and self.finished_bytes > limit_bytes * FINISHED_SHARE:
            self._forget_oldest()
        while self._whole and self._exceeds(limit_bytes):
            _, event = self._whole.popitem()
            event.records = [*event.offsets]
            less_bytes = max(0, event.size_bytes - PLACES_BYTES)
            event.size_bytes -= less_bytes
            self.size_bytes -= less_bytes

    def _bits(self, parent: str | None, skipped: Sequence[str], part: tuple[int, int] | None) -> tuple[int, str | None]:
        """Return what a part answers for, a bit each, and the parent whose result it is."""
        if part is not None:
            return 1 << part[0], parent
        bits = self._parents.get(parent, 0) if parent is not None else 0
        name = parent if bits else None
        for each in skipped:
            bits |= self._parents.get(each, 0)
        return bits, name

    def _is_complete(self, event: Gathered) -> bool:
        return event.answered & event.wanted == event.wanted

    def _is_ready(self, event: Gathered) -> bool:
        return self._is_complete(event) and (event.key is None or self._turns[event.key][0] is event)

    def _exceeds(self, limit_bytes: float) -> bool:
        return self.size_bytes + self.finished_bytes > limit_bytes

    def _finish(self, event: Gathered, now_s: float) -> None:
        self._take_out(event)
        self._remember(event.event_id, Finished(now_s, event.replay, event.answered, _LARGEST_OFFSET))

    def _take_out(self, event: Gathered) -> None:
        del self._waiting[event.event_id]
        self._whole.pop(event.event_id, None)
        self.parts -= len(event.records)
        self.size_bytes -= event.size_bytes
        if event.key is None:
            return
        turns = self._turns[event.key]
        was_first = turns[0] is event
        turns.remove(event)
        if not turns:
            del self._turns[event.key]
        elif was_first and self._is_complete(turns[0]):
            heapq.heappush(self._ready, (turns[0].first, turns[0]))

    def _remember(self, event_id: bytes, finished: Finished) -> None:
        if event_id not in self._finished:
            self.finished_bytes += FINISHED_BYTES + len(event_id)
        self._finished[event_id] = finished
        while next(iter(self._finished.values())).at_s < finished.at_s - self._remember_s:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        event_id, _ = self._finished.popitem(last=False)
        self.finished_bytes -= FINISHED_BYTES + len(event_id)


def _places(count: int) -> int:
    """Return what has to answer of so many results, a bit each: where there are none, one marker says so."""
    return (1 << max(1, count)) - 1
