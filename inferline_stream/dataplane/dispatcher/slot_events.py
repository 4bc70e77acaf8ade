"""What happens to a slot, and what it asks for: see `slot.Slot`. Every time is of the clock that `Slot.on` is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from inferline_stream.dataplane.frames import ToDispatcher, ToReplica
from inferline_stream.dataplane.slot_grants import Grant, LeaderHeartbeat
from inferline_stream.dataplane.supervisor_messages import Attach, Replace, ReplicaLost, Retire
from inferline_stream.kafka.offset_metadata import Entry
from inferline_stream.kafka.records import Outgoing, Record
from inferline_stream.kafka.topic_state import TopicState

# What happens


class Owned(NamedTuple):
    """Partitions of a class are the slot's from now on: all of the first one, of a new session; or those of another
    class, or that were added to the topic. There may be none: the topic is then another one all the same."""

    numbers: Sequence[int]
    committed: Mapping[int, Entry]
    """What the group has committed."""
    beginnings: Mapping[int, int]
    """Lowest offsets that Kafka has, as far as `Slot.beginnings_needed` names them."""
    topic: TopicState
    epoch: int = 0
    """Of the session that begins; 0 where one goes on."""
    class_number: int = 0
    partitions_before: int = 0
    """That the topic is known to have had; what commits say of it counts, too."""


class RecordsRead(NamedTuple):
    """A fetch has ended."""

    records: Mapping[int, Iterable[Record]]
    positions: Mapping[int, int]
    lost: Mapping[int, str]
    """Partitions that cannot be read on, and why."""
    wall_s: float
    """Seconds since the epoch."""


class ReadAgain(NamedTuple):
    """Parts of a join were read that had been read before, or Kafka no longer has them."""

    partition: int
    found: Mapping[int, Record]
    gone: str = ""


class Produced(NamedTuple):
    """Kafka has acknowledged every record of `Produce`."""


class OffsetsCommitted(NamedTuple):
    """Kafka has acknowledged `Commit`."""


class FoundCommitted(NamedTuple):
    """What the group has committed, as `LookUp` asked."""

    entries: Mapping[int, Entry]


class TopicGone(NamedTuple):
    """A class's topic was deleted, or is another one of the same name: why there is nothing more to read."""

    why: str
    class_number: int = 0


class Heard(NamedTuple):
    """A replica has sent a frame."""

    replica: str
    frame: ToDispatcher


class ConnectionEnded(NamedTuple):
    """A replica's end of the connection is closed, or what came is no frame: why, in words."""

    replica: str
    broken: str = ""


class Drained(NamedTuple):
    """Another dispatcher is to serve the slot, in order; as an action, all that was begun is committed."""


class Dropped(NamedTuple):
    """The session is worth nothing any more: another dispatcher may own the partitions by now."""


class LeaseLost(NamedTuple):
    """The lease has expired, so another dispatcher may serve; as an action, the slot has found out by itself."""


class LeaseRegained(NamedTuple):
    """There is a lease again, and no other dispatcher had the slot meanwhile."""


class Time(NamedTuple):
    """The time that `WakeAt` named has come."""


# What it asks for


class SendFrame(NamedTuple):
    """Send a replica a frame."""

    replica: str
    frame: ToReplica


class Disconnect(NamedTuple):
    """Close the connection to a replica."""

    replica: str


class Hold(NamedTuple):
    """Read these partitions too, from these offsets."""

    positions: Mapping[int, int]


class Release(NamedTuple):
    """Read these partitions no more."""

    partitions: Sequence[int]


class LookAgain(NamedTuple):
    """Read these offsets again, and answer with `ReadAgain`."""

    partition: int
    offsets: Sequence[int]


class Produce(NamedTuple):
    """Send records, where results are exactly once in a transaction that begins here; answer with `Produced`."""

    outgoing: Outgoing


class Commit(NamedTuple):
    """Commit offsets, where results are exactly once with the transaction; answer with `OffsetsCommitted`."""

    entries: Mapping[int, Entry]


class LookUp(NamedTuple):
    """Ask the group what it has committed, and answer with `FoundCommitted`."""

    partitions: Sequence[int]


class WakeAt(NamedTuple):
    """Let `Time` happen then, and no other that was asked for."""

    at_s: float


class Report(NamedTuple):
    """The controller needs to know of a change soon."""


SlotEvent = (
    Owned | Grant | LeaderHeartbeat | RecordsRead | ReadAgain | Produced | OffsetsCommitted | FoundCommitted | TopicGone
    | Attach | Retire | ReplicaLost | Heard | ConnectionEnded | Drained | Dropped | LeaseLost | LeaseRegained | Time
)  # fmt: skip
"""A grant is the newest of the slot; the supervisor's own messages say what happens to replicas."""

Action = (
    SendFrame | Disconnect | Replace | Hold | Release | LookAgain | Produce | Commit | LookUp | WakeAt | Report
    | LeaseLost | Drained
)  # fmt: skip
