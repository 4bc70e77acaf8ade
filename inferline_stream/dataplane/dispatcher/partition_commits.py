"""One partition of a stage's input while a dispatcher owns it."""

from __future__ import annotations

from collections import deque

from inferline_stream.dataplane.dispatcher.completion import CLEAR_BYTES, CROWDED_BYTES, Completion
from inferline_stream.dataplane.dispatcher.event import Ending
from inferline_stream.dataplane.dispatcher.join import Gathered, Join
from inferline_stream.kafka.offset_metadata import METADATA_LIMIT_BYTES, Committed, Entry, encode_metadata
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, TopicState
from inferline_stream.pipeline.event_classes import class_of

_PART_BYTES = 8
"""Most that one more complete offset adds to a commit's metadata: two numbers of three bytes each."""

_NEXT = 2000
"""Offsets from the committed one on whose events may use the last of a commit's room."""

_ALWAYS = 256
"""Parts of such events that may be under way in any case where keys keep their order, so that nothing moves and makes
room: one at a time would take hours where many wait."""


class Partition:
    """What is complete of a partition, and what the group knows of that.

    Args:
        number: of the partition, as `event_classes` numbers those of all classes.
        found: what the group had committed.
        owner: name under which this dispatcher commits.
        join: the join's state, for a stage with several parents.
        topic: what the partition is one of.
    """

    __slots__ = (
        "_committed", "_entry", "_owner", "_room", "_topic", "_version", "arrived_ms", "completion", "halted", "join",
        "moving", "number", "unread", "unread_bytes",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        found: Committed,
        owner: str,
        join: Join | None = None,
        topic: TopicState = UNKNOWN_TOPIC,
    ) -> None:
        self.number = number
        self._owner = owner
        self.completion = Completion(found)
        self.join = join
        self.halted = ""
        self.arrived_ms = 0
        """When the newest record read from it arrived, ms since the epoch; never after the last was taken in."""
        self.unread: deque[tuple[Gathered, Ending | None]] = deque()
        """A join's events that go on once their parts are read again, in order, and how they end if they do."""
        self.unread_bytes = 0
        """What they take in memory until then."""
        self.moving = 0
        """Parts of a join that are being appended at the partition's end again."""
        self._committed: Entry | None = None
        self._entry: Entry = (0, "")
        self._version = -1
        self._room: int | None = None
        self._topic = topic

    @property
    def class_number(self) -> int:
        """Whose events it holds."""
        return class_of(self.number)

    def has_room(self, parts: Gathered) -> bool:
        """Return whether a join's event may go on: a commit can hold all that becomes complete by then.

        Half of a commit is left for events that hold up the committed offset, or soon will: they make room. Where it
        is close, how much there is is counted once after each `look_again`. Only where keys keep their order do those
        events go on without room.
        """
        completion, join, count = self.completion, self.join, len(parts.records)
        assert join is not None
        under_way = completion.open_count - join.parts
        soon = parts.first < completion.watermark + _NEXT
        if join.ordered and (parts.first == completion.watermark or (soon and under_way < _ALWAYS)):
            return True
        if completion.has_room(join.parts - count):
            return True
        if self._room is None:
            self._room = (METADATA_LIMIT_BYTES - len(self.entry()[1])) // _PART_BYTES - under_way
        may = self._room >= count + (0 if soon else METADATA_LIMIT_BYTES // 2 // _PART_BYTES)
        self._room -= count if may else 0
        return may

    def look_again(self) -> None:
        """Count the room for a join's events again."""
        self._room = None

    @property
    def scattered(self) -> bool:
        """Whether what is complete takes so much of a commit that it is time to make fewer runs of it."""
        waits = self.join is not None and self.join.holds
        return len(self.entry()[1]) > (CLEAR_BYTES if waits else CROWDED_BYTES)

    def grown(self, topic: TopicState) -> None:
        """Take note that the topic has more partitions: the next commit says so."""
        self._topic = topic
        self._version = -1

    def entry(self) -> Entry:
        """Return offset and metadata as they are now."""
        if self._version != self.completion.version:
            topic = self._topic
            committed = self.completion.committed(owner=self._owner, topic_id=topic.id, partitions=topic.partitions)
            self._entry = committed.offset, encode_metadata(committed)
            self._version = self.completion.version
        return self._entry

    def to_commit(self) -> Entry | None:
        """Return what to commit; None where the group knows it already, or nothing is certain any more."""
        if self.halted:
            return None
        entry = self.entry()
        return None if entry == self._committed else entry

    def was_committed(self, entry: Entry) -> None:
        """Take note that Kafka has acknowledged a commit."""
        self._committed = entry

    def found_committed(self, entry: Entry | None) -> bool:
        """Compare with what the group has; where it differs, somebody else wrote it, and it is committed again."""
        if self._committed is None or entry == self._committed:
            return True
        self._committed = None
        return False
