"""An event while a dispatcher has it, from its records to the acknowledgement of what it caused, and its outcome."""

from __future__ import annotations

import msgspec

from inferline_stream.dataplane.frames import Done, Failed, Many, StageInput
from inferline_stream.kafka.records import Header, Record


class Event(msgspec.Struct, gc=False, eq=False):
    """An event that waits for the stage or is in a replica's hand."""

    partition: int
    """As dispatchers number those of all classes; see `event_classes`."""
    offsets: tuple[int, ...]
    """Of its record; of every part, for a join, in order of arrival."""
    event_id: bytes
    entry_us: int
    """When it entered the pipeline, µs since the epoch. What waits is judged by the fields below: on the dispatcher's
    monotonic clock, by the age that it had when it was taken in, so that no step of the clock holds or hurries it."""
    entered_us: int
    """When it entered the pipeline, in µs; of a class with an SLO of its own when it would have for the pipeline's, see
    `pipeline.live_classes`."""
    arrived_ms: int
    """When it, or its last part, entered the stage's topic, in ms: by its writer's clock, never later than when it was
    taken in nor earlier than the record before it."""
    taken_ms: int
    """When the dispatcher took it, or its last part, in, in ms."""
    key: bytes | None
    headers: list[Header]
    """What its successors carry."""
    payload: StageInput
    size_bytes: int
    records: tuple[Record, ...]
    """As they were read: what a dead letter holds."""
    replayed: bool = False
    """Whether it died before and was sent again: its miss was counted then."""
    kills: int = 0
    """Replicas that died, hung or broke their contract while they had it in hand alone."""
    cuts: int = 0
    """How often the way to the replica that had it in hand broke."""
    waits: int = 0
    """How often it has waited aside, because a server did not take it."""
    refusals: int = 0
    """How often a server has not taken it alone."""
    late: bool = False
    """Whether a batch that held it has passed its deadline."""
    limit: int = 0
    """Largest batch that it may be in, since a larger one did not fit a device's memory; 0 for any."""
    main_only: bool = False
    """Whether the stage's fallback has failed on it: the stage itself may not."""


class Skipped(msgspec.Struct, frozen=True):
    """A join's event none of whose parents was visited."""


class Dead(msgspec.Struct, frozen=True):
    """A join's event that died, and was accounted for, upstream."""

    how: int
    """`headers.DROPPED` or `headers.LETTERED`."""


class Expired(msgspec.Struct, frozen=True):
    """An event that is past its SLO and not worth processing any more."""

    to_dead_letters: bool


class Late(msgspec.Struct, frozen=True):
    """A part of a join's event that came after the event had ended, or gone on: it is a letter, and ends nothing."""

    why: str = "it came after its event was given up"


class Requeued(msgspec.Struct, frozen=True):
    """Parts of a join's event that hold up their partition: they are appended at its end again."""

    moved: int
    """See `headers.MOVED`."""


class Moved(msgspec.Struct, frozen=True):
    """An event of another class, by a header: it enters again by that class's topic."""

    class_number: int


Ending = Failed | Skipped | Dead | Late | Requeued | Moved
"""What an event comes to without the stage."""

Outcome = Done | Many | Failed | Skipped | Dead | Expired | Late | Requeued | Moved
