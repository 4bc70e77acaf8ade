"""A partition while a replica holds it, and the events that were read from it."""

from __future__ import annotations

from typing import Any

import msgspec

from inferline_stream.dataplane.headers import Header
from inferline_stream.dataplane.join import Join
from inferline_stream.dataplane.offsets import Committed, Completion, encode_metadata

LIVE, RELEASING, LOST = "live", "releasing", "lost"

POISON_AFTER = 4
"""Owners that die with the same event under way, in a row, before it is poison: two with it in their batch, two with
it alone. A replica that is killed for other reasons would have to be killed four times at the same event."""

CAREFUL_AFTER = 2
"""Deaths after which the events of the suspected batch are run one at a time."""


class Holding:
    """One partition from its grant to its release.

    Results of events whose holding was lost in the meantime are worth nothing: each event points to its own holding,
    so that a partition that comes back is never confused with what it was before.

    Args:
        partition: of the stage's input topic.
        found: what the group knew at the grant, or was about to be told. Where the owner before died, its last batch is
            suspected: offsets below `suspects_end`.
        owner: the name under which this replica commits; finding it again, it has only lost its lease in between.
        suspects_end: one past the last offset that the owner before may have had under way.
        join: the join's state, for a stage with several parents.

    Once it is to be released, `freed` names the assignment that asked for it, and `heir` who owns it next, for whom it
    goes on until `heir_by_s`; the last commit then says so, and the heir is told before. One that is begun `early`, at
    such a word, commits nothing until that commit is seen, lest it come after ours.
    """

    __slots__ = (
        "_committed",
        "_mark",
        "_owner",
        "attempts",
        "completion",
        "confirmed",
        "early",
        "freed",
        "halted",
        "heir",
        "heir_by_s",
        "in_flight",
        "join",
        "opened",
        "partition",
        "state",
        "suspects_end",
        "told",
    )

    def __init__(
        self, partition: int, found: Committed, owner: str, suspects_end: int = 0, join: Join | None = None
    ) -> None:
        self.partition = partition
        self._owner = owner
        self.completion = Completion(found)
        self.join = join
        self.in_flight = 0
        self.state = LIVE
        self.halted = ""
        self.opened = found.owner == owner
        self.confirmed = True
        self.freed: tuple[int, int] | None = None
        self.heir = ""
        self.heir_by_s = 0.0
        self.told = False
        self.early = False
        died = found.owner not in ("", owner)
        self.attempts = found.attempts + died
        self.suspects_end = found.attempt_end or (suspects_end if died else 0)
        self._mark = (found.attempts, found.attempt_end)
        self._committed: tuple[int, str] | None = None  # so the next commit tells that nothing of it is freed any more

    @property
    def suspected(self) -> bool:
        """Whether an event under way when an owner died is still to be done."""
        return self.suspects_end > self.completion.watermark

    @property
    def careful(self) -> bool:
        """Whether events are to be run one at a time."""
        return self.attempts >= CAREFUL_AFTER and self.suspected

    def suspects(self, event: Event) -> bool:
        """Whether this event may have killed an owner."""
        return event.offsets[-1] < self.suspects_end

    def poisoned(self, event: Event) -> bool:
        """Whether this event has killed so many owners that it is not to be tried again."""
        return self.attempts >= POISON_AFTER and event.offsets[-1] + 1 == self.suspects_end

    def attempt(self, event: Event) -> bool:
        """A batch that ends with this suspect begins; commits tell so until it is done. Whether that is news to them.

        After one death, which mostly had another cause, all suspects are attempted at once; where they are run one at
        a time, each is, so that the culprit can be told from the others.
        """
        before, end = self._mark, event.offsets[-1] + 1 if self.careful else self.suspects_end
        self._mark = (self.attempts, end)
        return self._mark != before

    def entry(self) -> tuple[int, str]:
        """Offset and metadata as they are now."""
        attempts, attempt_end = self._mark
        working = self.state == LIVE or self.in_flight > 0
        committed = self.completion.committed(
            owner=self._owner if working else self.heir,
            attempts=attempts,
            attempt_end=attempt_end,
            freed=None if working else self.freed,
        )
        return committed.offset, encode_metadata(committed)

    def to_commit(self) -> tuple[int, str] | None:
        """Offset and metadata to commit; None where the group knows them already, or is not to be told yet."""
        if self.early:
            return None
        entry = self.entry()
        return None if entry == self._committed else entry

    @property
    def settled(self) -> bool:
        """Whether the group knows all that there is to know."""
        return not self.early and self.to_commit() is None

    def was_committed(self, entry: tuple[int, str]) -> None:
        """Kafka has acknowledged a commit."""
        self._committed = entry
        self.opened = True

    def found_committed(self, entry: tuple[int, str] | None) -> bool:
        """Compare with what the group says; where it differs, somebody else wrote, and we commit again."""
        if self._committed is None or entry == self._committed:
            return True
        self._committed = None
        return False


class Event(msgspec.Struct, gc=False):
    """An event that waits for the stage or is being processed by it."""

    holding: Holding
    offsets: tuple[int, ...]
    """Of its record; of every part, for a join, in order of arrival."""
    event_id: bytes
    entry_us: int
    """When it entered the pipeline, µs since the epoch."""
    entered_ms: int
    """When it, or its last part, entered the stage's topic."""
    key: bytes | None
    headers: list[Header]
    """What its successors carry."""
    value: Any
    """Decoded."""
    size_bytes: int
    records: tuple[Any, ...]
    """As they were read: what a dead letter holds."""
    replayed: bool = False
    """Whether it died before and was sent again: its miss was counted then."""


class Skipped(msgspec.Struct, frozen=True):
    """Outcome of a join's event none of whose parents was visited."""


class Dead(msgspec.Struct, frozen=True):
    """Outcome of a join's event that died, and was accounted for, upstream."""

    how: int
    """`DROPPED` or `LETTERED`."""


class Expired(msgspec.Struct, frozen=True):
    """Outcome of an event that is past its SLO and not worth processing any more."""

    to_dead_letters: bool
