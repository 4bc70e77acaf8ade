"""Gathering the parents' results of one event. The join's input topic is its changelog, so this state is rebuilt by
reading it again from the committed offset.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from inferline_stream.kafka.records import FetchedRecord

FINISHED_BYTES = 256
"""What a finished event costs in memory beyond its id."""

FINISHED_SHARE = 0.25
"""Of a join's bytes, what finished ids may have however many parts wait: late parts of events that were given up are
recognised also while the state is full."""


@dataclass(slots=True)
class Gathered:
    """What has arrived for one event of a join.

    Args:
        event_id: the event.
        first_s: when its first part arrived.
        results: by parent; parents that were skipped are missing.
        skipped: parents that the event did not visit.
        dead: how it died upstream, 0 where it did not; nothing runs then.
        records: the parts as they were read, in order of arrival; their offsets are complete once the event is.
        size_bytes: sum over the parts.
        replay: how often the event had been sent again after it died.
        key: of its records, where its turn among events of that key counts.
        complete: all its parts are there, and it waits for its turn.
    """

    event_id: bytes
    first_s: float
    results: dict[str, bytes] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    dead: int = 0
    records: list[FetchedRecord] = field(default_factory=list)
    size_bytes: int = 0
    replay: int = 0
    key: bytes | None = None
    complete: bool = False


class Finished(NamedTuple):
    """An event that needs nothing more: since when, and which replay of it that was."""

    at_s: float
    replay: int


class Arrival(Enum):
    """What became of a part that did not complete its event."""

    WAITING = "waiting"
    DUPLICATE = "duplicate"


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
        self._parents = frozenset(parents)
        self._remember_s = remember_s
        self._waiting: OrderedDict[bytes, Gathered] = OrderedDict()
        self._finished: OrderedDict[bytes, Finished] = OrderedDict()
        self._ordered = ordered
        self._turns: dict[bytes, deque[Gathered]] = {}
        self._since_s: dict[bytes, float] = {}
        self.size_bytes = 0
        """Of the parts that wait."""
        self.finished_bytes = 0
        """Of the finished event ids that are remembered."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self,
        event_id: bytes,
        *,
        record: FetchedRecord,
        now_s: float,
        size_bytes: int = 0,
        parent: str | None = None,
        result: bytes = b"",
        skipped: Sequence[str] = (),
        dead: int = 0,
        replay: int = 0,
        key: bytes | None = None,
    ) -> Gathered | Arrival:
        """Take in one part: a parent's result, parents that were skipped, or both.

        An event that was finished is gathered again from the parts of a later replay.

        Returns:
            The event with all its parts, once, and once it is its turn: `follow` gives those that waited for it.
            `Arrival.DUPLICATE` where the part says nothing new.
        """
        finished = self._finished.get(event_id)
        if finished is not None:
            if replay <= finished.replay:
                return Arrival.DUPLICATE
            del self._finished[event_id]
            self.finished_bytes -= FINISHED_BYTES + len(event_id)
        event = self._waiting.get(event_id)
        if event is None:
            event = self._waiting[event_id] = Gathered(event_id, self._since_s.pop(event_id, now_s))
            if self._ordered and key is not None:
                event.key = key
                self._turns.setdefault(key, deque()).append(event)
        answered = len(event.results) + len(event.skipped)
        if parent is not None and parent in self._parents and parent not in event.skipped:
            event.results.setdefault(parent, result)
        event.skipped.update(name for name in skipped if name in self._parents and name not in event.results)
        event.dead = max(event.dead, dead)
        event.replay = max(event.replay, replay)
        now_answered = len(event.results) + len(event.skipped)
        if now_answered == answered:
            if not event.records:
                del self._waiting[event_id]
                self._leave(event)
            return Arrival.DUPLICATE
        event.records.append(record)
        event.size_bytes += size_bytes
        self.size_bytes += size_bytes
        if now_answered < len(self._parents):
            return Arrival.WAITING
        if event.key is not None and self._turns[event.key][0] is not event:
            event.complete = True
            return Arrival.WAITING
        self._finish(event, now_s)
        return event

    def follow(self, event: Gathered, now_s: float) -> Gathered | None:
        """The next event of the key of one that was finished, if it is complete; call again with that one."""
        turns = self._turns.get(event.key) if event.key is not None else None
        if not turns or not turns[0].complete:
            return None
        following = turns[0]
        self._finish(following, now_s)
        return following

    def finished(self, event_id: bytes, now_s: float, replay: int = 0) -> None:
        """Remember an event that was finished by an earlier owner."""
        known = self._finished.get(event_id)
        self._remember(event_id, Finished(now_s, max(replay, known.replay if known else 0)))

    def waiting_at(self, offset: int) -> Gathered | None:
        """Return the waiting event that has a part at this offset."""
        for event in self._waiting.values():
            if any(record.offset == offset for record in event.records):
                return event
        return None

    def withdraw(self, offset: int) -> Gathered | None:
        """Forget the waiting event that has a part at this offset, as if none of its parts had come; None if none has.

        Its parts must be appended again. Its age goes on from its first part.
        """
        event = self.waiting_at(offset)
        if event is not None:
            del self._waiting[event.event_id]
            self._leave(event)
            self.size_bytes -= event.size_bytes
            self._since_s[event.event_id] = event.first_s
        return event

    def give_up(self, event: Gathered, now_s: float) -> None:
        """Count a waiting event as finished."""
        self._finish(event, now_s)

    def overdue(self, age_s: float, now_s: float) -> Gathered | None:
        """Give up on the oldest event if its first part has waited for so long; it counts as finished."""
        oldest = (
            min(self._waiting.values(), key=_age, default=None)
            if self._since_s
            else next(iter(self._waiting.values()), None)
        )
        if oldest is None or oldest.first_s >= now_s - age_s:
            return None
        self._finish(oldest, now_s)
        return oldest

    def over(self, limit_bytes: float, now_s: float) -> Gathered | None:
        """Give up on the oldest event if all of them do not fit; it counts as finished.

        Finished ids take the room that parts leave, and at least their share. Beyond that they are forgotten first,
        oldest first: a part that comes twice and is not recognised costs less than an event that is given up.
        """
        while self._exceeds(limit_bytes) and self.finished_bytes > limit_bytes * FINISHED_SHARE:
            self._forget_oldest()
        if not self._waiting or not self._exceeds(limit_bytes):
            return None
        oldest = next(iter(self._waiting.values()))
        self._finish(oldest, now_s)
        return oldest

    def _exceeds(self, limit_bytes: float) -> bool:
        return self.size_bytes + self.finished_bytes > limit_bytes

    def _finish(self, event: Gathered, now_s: float) -> None:
        del self._waiting[event.event_id]
        self._leave(event)
        self.size_bytes -= event.size_bytes
        self._remember(event.event_id, Finished(now_s, event.replay))

    def _leave(self, event: Gathered) -> None:
        """A finished event is the first of its key: the oldest that waits cannot be waiting for another."""
        if event.key is not None:
            turns = self._turns[event.key]
            turns.remove(event)
            if not turns:
                del self._turns[event.key]

    def _remember(self, event_id: bytes, finished: Finished) -> None:
        if event_id not in self._finished:
            self.finished_bytes += FINISHED_BYTES + len(event_id)
        self._finished[event_id] = finished
        while next(iter(self._finished.values())).at_s < finished.at_s - self._remember_s:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        event_id, _ = self._finished.popitem(last=False)
        self.finished_bytes -= FINISHED_BYTES + len(event_id)


def _age(event: Gathered) -> float:
    return event.first_s
