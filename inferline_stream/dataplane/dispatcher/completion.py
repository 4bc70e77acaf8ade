"""Which offsets of a partition are complete, and what its group knows of them.

Events complete out of order. The committed offset is the lowest one whose event is not complete; the complete offsets
above it go into the commit's metadata (`offset_metadata`). The next owner reads from the committed offset and skips
them.
"""

from __future__ import annotations

from collections import deque

from inferline_stream.dataplane.dispatcher.event import Ending
from inferline_stream.dataplane.dispatcher.join import Gathered, Join
from inferline_stream.kafka.offset_metadata import METADATA_LIMIT_BYTES, Committed, Entry, Run, encode_metadata, merged
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC, TopicState
from inferline_stream.pipeline.deadline_order import OFFSETS_SPAN
from inferline_stream.pipeline.event_classes import class_of

CROWDED_BYTES, CLEAR_BYTES = METADATA_LIMIT_BYTES // 2, METADATA_LIMIT_BYTES // 4
"""Possible size of the runs at which a partition is paused, and at which it goes on. The rest of the limit is room
for what is fetched before the pause takes effect."""

PRESSED_BYTES = OFFSETS_SPAN // 6
"""The same from which events go first that hold the committed offset: so that no pause is needed. It is half way to
one, of a bitmap in base64, which takes six offsets a byte."""

RUNS_LEFT = 128
"""Runs that are left where the parts between the others move: they take an eighth of the metadata."""

_PART_BYTES = 8
"""Most that one more complete offset adds to a commit's metadata: two numbers of three bytes each."""

_NEXT = 2000
"""Offsets from the committed one on whose events may use the last of a commit's room."""

_ALWAYS = 256
"""Parts of such events that may be under way in any case where keys keep their order, so that nothing moves and makes
room: one at a time would take hours where many wait."""


class Completion:
    """Offsets of one partition from the committed one on: which were read, which of them are complete.

    Args:
        committed: where the group stands; its complete runs are skipped when they are read.
    """

    def __init__(self, committed: Committed) -> None:
        self._open: deque[int] = deque()
        """Offsets from the watermark on that were read, ascending; those that are complete, too."""
        self._done = 0
        """How many of them are complete."""
        self._ends: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        """Complete runs above the watermark: the end of each by its first offset, and the other way round. A run goes
        on over offsets that hold no record, so the next one begins after an offset that is not complete."""
        self._gaps: dict[int, int] = {}
        """By one past an offset that is not complete: the next that holds a record or is complete, if not that one."""
        self._edge = committed.offset
        """One past the last of the offsets and runs that were noted."""
        self._ahead = deque(committed.runs)
        """Runs of the owner before that end above the position."""
        self._skipped = committed.offset
        """One past the last of its complete offsets that was passed."""
        self._start = committed.offset
        self._position = committed.offset
        self._crowded = False
        self.forget_below = committed.forget_below
        self.version = 0
        """Grows with every change of what `committed` returns."""

    @property
    def position(self) -> int:
        """One past the highest offset read."""
        return self._position

    @property
    def watermark(self) -> int:
        """Lowest offset that is not complete: the offset to commit."""
        if self._open:
            return self._open[0]
        if self._ahead and self._ahead[0][0] <= self._position:
            return self._ahead[0][1]
        return self._position

    @property
    def open_count(self) -> int:
        """Offsets read and not complete."""
        return len(self._open) - self._done

    def read(self, offset: int) -> bool:
        """Note an offset, in ascending order; return False if it was complete before, so that it is skipped."""
        if offset == self._edge == self._position and not self._ahead:  # usual: it changes nothing that is committed
            self._edge = self._position = offset + 1
            self._open.append(offset)
            return True
        if offset < self._start:
            return False
        self.read_to(offset + 1)
        if offset < self._skipped or (self._ahead and self._ahead[0][0] <= offset):
            return False
        self._reach(offset)
        self._edge = offset + 1
        self._open.append(offset)
        return True

    def read_to(self, position: int) -> None:
        """Note that everything below was read: what holds no record for us, as a transaction's marker, is complete."""
        if position <= self._position:
            return
        self._position = position
        self.version += 1
        while self._ahead and self._ahead[0][1] <= self._position:
            first, self._skipped = self._ahead.popleft()
            if self._open:
                self._reach(first)
                self._add(first, self._skipped)
            self._edge = self._skipped

    def complete(self, offset: int) -> None:
        """Note that the event of this offset needs nothing more."""
        pending = self._open
        self._done += 1
        self.version += 1
        if offset != pending[0]:
            self._add(offset, offset + 1)
            return
        end = self._gaps.pop(offset + 1, offset + 1)
        end = self._starts.pop(end, end)
        self._ends.pop(end, None)
        while pending and pending[0] < end:
            pending.popleft()
            self._done -= 1

    def _reach(self, offset: int) -> None:
        """Note that nothing between the edge and an offset holds a record."""
        if self._edge < offset and self._open:
            first = self._ends.pop(self._edge, None)
            if first is None:
                self._gaps[self._edge] = offset
            else:
                self._starts[first], self._ends[offset] = offset, first

    def _add(self, first: int, end: int) -> None:
        """Join a run with those that it touches."""
        end = self._gaps.pop(end, end)
        first, end = self._ends.pop(first, first), self._starts.pop(end, end)
        self._starts[first], self._ends[end] = end, first

    def runs(self) -> tuple[Run, ...]:
        """Return the complete offsets above the watermark, where there are any.

        Between complete ones, offsets that hold no record (compacted away, transaction markers) count as complete.
        """
        runs = sorted(self._starts.items())
        if runs and runs[-1][1] == self._edge:
            runs[-1] = (runs[-1][0], self._position)
        return merged([*runs, *self._ahead], self.watermark)

    def committed(self, *, owner: str = "", topic_id: str = "", partitions: int = 0) -> Committed:
        """Return what to commit now."""
        return Committed(self.watermark, self.runs(), owner, self.forget_below, topic_id, partitions)

    def most_bytes(self, *, waiting: int = 0) -> int:
        """Return a size that the runs never exceed, whichever of the offsets read become complete.

        Each run follows an incomplete offset, so k of them make at most k runs: 2 k numbers that add up to the span.
        Nor are there more than the runs that there are, and one for each offset that becomes complete. As a bitmap
        they take a bit for each offset of the span.

        Args:
            waiting: of the offsets that are not complete, those that do not become so.
        """
        span = max(self._position, self._ahead[-1][1] if self._ahead else 0) - self.watermark
        runs = min(self.open_count, len(self._starts) + self.open_count - waiting)
        lengths = numbers = 2 * (runs + len(self._ahead))
        bitmap = (span + 7) // 8
        while (span := span >> 7) and lengths < 3 * METADATA_LIMIT_BYTES:
            lengths += min(numbers, span)
        return min(bitmap, lengths) * 4 // 3 + 3

    @property
    def crowded(self) -> bool:
        """Whether to read no more for now: the runs might not fit a commit's metadata. Ask after each fetch.

        It falls as offsets become complete, never rises without reading, and keeps its word until half is free.
        """
        self._crowded = self.most_bytes() > (CLEAR_BYTES if self._crowded else CROWDED_BYTES)
        return self._crowded

    @property
    def pressed(self) -> bool:
        """Whether it will be crowded soon, unless the oldest offsets become complete."""
        if not self._ahead and self._position - self.watermark < 5 * PRESSED_BYTES:  # the usual case: as a bitmap
            return False
        return self.most_bytes() > PRESSED_BYTES

    def has_room(self, waiting: int) -> bool:
        """Return whether half of a commit can hold all that becomes complete while so many offsets do not."""
        if not self._ahead and self._position - self.watermark < 5 * CROWDED_BYTES:  # the usual case: as a bitmap
            return True
        return self.most_bytes(waiting=waiting) <= CROWDED_BYTES

    def between_runs(self) -> list[int]:
        """Return the offsets that are not complete in all but the `RUNS_LEFT` longest rows of such offsets."""
        rows: list[list[int]] = [[]]
        runs = iter(sorted(self._starts.items()))
        first, end = next(runs, (self._position, self._position))
        for offset in self._open:
            while end <= offset:
                first, end = next(runs, (self._position, self._position))
                rows.append([])
            if offset < first:
                rows[-1].append(offset)
        rows.sort(key=len)
        return [offset for row in rows[:-RUNS_LEFT] for offset in row]


class Partition:
    """One partition of the stage's input while a dispatcher owns it.

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
