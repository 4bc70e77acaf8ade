"""A partition while a replica holds it, and the events that were read from it."""

from __future__ import annotations

from typing import Any

import msgspec

from inferline_stream.dataplane.headers import Header
from inferline_stream.dataplane.join import Join
from inferline_stream.dataplane.offsets import Committed, Completion, encode_metadata

LIVE, RELEASING, LOST = "live", "releasing", "lost"


class Holding:
    """One partition from its grant to its release.

    Results of events whose holding was lost in the meantime are worth nothing: each event points to its own holding,
    so that a partition that comes back is never confused with what it was before.

    Args:
        partition: of the stage's input topic.
        committed: where the group stands.
        join: the join's state, for a stage with several parents.
    """

    __slots__ = ("_committed", "completion", "halted", "in_flight", "join", "partition", "state")

    def __init__(self, partition: int, committed: Committed, join: Join | None = None) -> None:
        self.partition = partition
        self.completion = Completion(committed)
        self.join = join
        self.in_flight = 0
        self.state = LIVE
        self.halted = ""
        self._committed = (committed.offset, encode_metadata(committed))

    def to_commit(self) -> tuple[int, str] | None:
        """Offset and metadata to commit; None where the group knows them already."""
        committed = self.completion.committed()
        entry = (committed.offset, encode_metadata(committed))
        return None if entry == self._committed else entry

    def was_committed(self, entry: tuple[int, str]) -> None:
        """Kafka has acknowledged a commit."""
        self._committed = entry

    @property
    def committed(self) -> tuple[int, str]:
        """The last commit that Kafka acknowledged, or what was found at the grant."""
        return self._committed


class Event(msgspec.Struct, gc=False):
    """An event that waits for the stage or is being processed by it."""

    holding: Holding
    offsets: tuple[int, ...]
    """Of its record; of every part, for a join."""
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


class Skipped(msgspec.Struct, frozen=True):
    """Outcome of a join's event none of whose parents was visited."""


class Dead(msgspec.Struct, frozen=True):
    """Outcome of a join's event that died, and was accounted for, upstream."""


class Expired(msgspec.Struct, frozen=True):
    """Outcome of an event that is past its SLO and not worth processing any more."""

    to_dead_letters: bool
