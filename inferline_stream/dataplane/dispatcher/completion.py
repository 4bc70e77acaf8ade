"""Which offsets of a partition are complete, and how a commit's metadata carries that to the next owner.

Events complete out of order. The committed offset is the lowest one whose event is not complete; the complete offsets
above it go into the commit's metadata, as Confluent's Parallel Consumer does. The next owner reads from the committed
offset and skips them.
"""

from __future__ import annotations

import base64
import bisect
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

METADATA_LIMIT_BYTES = 4096
"""Kafka's `offset.metadata.max.bytes`, by default."""

CROWDED_BYTES, CLEAR_BYTES = METADATA_LIMIT_BYTES // 2, METADATA_LIMIT_BYTES // 4
"""Possible size of the runs at which a partition is paused, and at which it goes on. The rest of the limit is room
for what is fetched before the pause takes effect."""

_MARK = "i1"
"""What metadata of this format, version 1, begins with; anything else is another tool's."""

_HEAD_BYTES = 256
"""Room that is left for the mark and the fields before the runs."""

_LARGEST_OFFSET = (1 << 63) - 1

Run = tuple[int, int]
"""Consecutive offsets: first, and one past the last."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a consumer group knows of one partition.

    Args:
        offset: lowest offset that is not complete.
        runs: complete offsets above it, ascending, apart from each other.
        owner: the dispatcher that committed; empty for none.
        forget_below: a join must forget what it knows of offsets below: its source is read again after them.
        topic_id: of the incarnation of the topic that the offset is one of; empty where it is not known.
        partitions: that the topic had, or more by now; 0 where it is not known.
    """

    offset: int
    runs: tuple[Run, ...] = ()
    owner: str = ""
    forget_below: int = 0
    topic_id: str = ""
    partitions: int = 0


def encode_metadata(committed: Committed, limit_bytes: int = METADATA_LIMIT_BYTES) -> str:
    """Return the metadata of a commit; empty where the offset says everything.

    Runs beyond the limit are left out, highest first: the next owner would process their events again.
    """
    fields = [_MARK]
    if committed.owner:
        fields.append(f"o={committed.owner}")
    if committed.forget_below:
        fields.append(f"n={committed.forget_below}")
    if committed.topic_id:
        fields.append(f"t={committed.topic_id}")
    if committed.partitions:
        fields.append(f"c={committed.partitions}")
    if committed.runs:
        room = limit_bytes - len(";".join(fields).encode()) - len(";r=")
        fields.append(_encode_runs(committed.offset, committed.runs, room))
    return ";".join(fields) if len(fields) > 1 else ""


def decode_metadata(offset: int, metadata: str) -> Committed:
    """Return what a commit's offset and metadata say. Metadata that cannot be read counts as none."""
    mark, *fields = metadata.split(";")
    if mark != _MARK or len(metadata) > 4 * METADATA_LIMIT_BYTES:
        return Committed(offset)
    found = dict(field.split("=", 1) for field in fields if "=" in field)
    try:
        forget_below, partitions = int(found.get("n", "0")), int(found.get("c", "0"))
        if "b" in found:
            runs = _from_bitmap(offset, _unarmoured(found["b"]))
        else:
            runs = _from_lengths(offset, _unarmoured(found.get("r", "")))
    except ValueError:
        return Committed(offset)
    if not 0 <= forget_below <= _LARGEST_OFFSET or (runs and runs[-1][1] > _LARGEST_OFFSET):
        return Committed(offset)
    runs = _merged(runs, offset)
    return Committed(offset, runs, found.get("o", ""), forget_below, found.get("t", ""), max(0, partitions))


def known_partitions(committed: Iterable[tuple[int, str]]) -> int:
    """Return how many partitions a topic is known to have had when offsets of it were committed; 0 if none says.

    Args:
        committed: offsets and metadata.
    """
    return max((decode_metadata(*entry).partitions for entry in committed), default=0)


class Completion:
    """Offsets of one partition from the committed one on: which were read, which of them are complete.

    Args:
        committed: where the group stands; its complete runs are skipped when they are read.
    """

    def __init__(self, committed: Committed) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
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
        return len(self._open) - len(self._done)

    def read(self, offset: int) -> bool:
        """Note an offset, in ascending order; return False if it was complete before, so that it is skipped."""
        if offset == self._position and not self._ahead:  # the usual case: it changes nothing that is committed
            self._position = offset + 1
            self._open.append(offset)
            return True
        if offset < self._start:
            return False
        self.read_to(offset + 1)
        if offset < self._skipped or (self._ahead and self._ahead[0][0] <= offset):
            return False
        self._open.append(offset)
        return True

    def read_to(self, position: int) -> None:
        """Note that everything below was read: what holds no record for us, as a transaction's marker, is complete."""
        if position <= self._position:
            return
        self._position = position
        self.version += 1
        while self._ahead and self._ahead[0][1] <= self._position:
            self._skipped = self._ahead.popleft()[1]

    def complete(self, offset: int) -> None:
        """Note that the event of this offset needs nothing more."""
        pending, done = self._open, self._done
        done.add(offset)
        self.version += 1
        while pending and pending[0] in done:
            done.discard(pending.popleft())

    def runs(self) -> tuple[Run, ...]:
        """Return the complete offsets above the watermark, where there are any.

        Between complete ones, offsets that hold no record (compacted away, transaction markers) count as complete.
        """
        watermark = self.watermark
        if not self._done and self._skipped <= watermark:
            return _merged(self._ahead, watermark)
        runs: list[Run] = []
        done, left = self._done, len(self._done)
        previous = self._open[0]
        for offset in self._open:
            if offset in done:
                left -= 1
                continue
            if offset > previous + 1:
                runs.append((previous + 1, offset))
            previous = offset
            if not left and offset >= self._skipped:
                break  # a long queue may be open behind it
        else:
            if self._position > previous + 1:
                runs.append((previous + 1, self._position))
        return _merged([*runs, *self._ahead], watermark)

    def committed(self, *, owner: str = "", topic_id: str = "", partitions: int = 0) -> Committed:
        """Return what to commit now."""
        return Committed(self.watermark, self.runs(), owner, self.forget_below, topic_id, partitions)

    def most_bytes(self, more: int = 0) -> int:
        """Return a size that the runs never exceed, whichever of the offsets read become complete.

        Each run follows an incomplete offset, so k of them make at most k runs: 2 k numbers that add up to the span. As
        a bitmap they take a bit for each offset of the span.

        Args:
            more: consecutive offsets that would be read, too.
        """
        end = max(self._position + more, self._ahead[-1][1] if self._ahead else 0)
        span = end - self.watermark
        numbers = 2 * (self.open_count + more + len(self._ahead))
        lengths = numbers
        while (span := span >> 7) and lengths < 3 * METADATA_LIMIT_BYTES:
            lengths += min(numbers, span)
        span = end - self.watermark
        return min((span + 7) // 8, lengths) * 4 // 3 + 3

    @property
    def room(self) -> int:
        """How many more consecutive offsets can be read, at least, before their runs might not fit a commit."""
        limit = METADATA_LIMIT_BYTES - _HEAD_BYTES
        return bisect.bisect_right(range(1, 8 * METADATA_LIMIT_BYTES), limit, key=self.most_bytes)

    @property
    def crowded(self) -> bool:
        """Whether to read no more for now: the runs might not fit a commit's metadata. Ask after each fetch.

        It falls as offsets become complete, never rises without reading, and keeps its word until half is free.
        """
        self._crowded = self.most_bytes() > (CLEAR_BYTES if self._crowded else CROWDED_BYTES)
        return self._crowded

    def fits(self, limit_bytes: int = METADATA_LIMIT_BYTES, *, owner: str = "") -> bool:
        """Return whether a commit now says everything. Cheap unless it is close."""
        if self.most_bytes() <= limit_bytes - _HEAD_BYTES and len(owner) <= _HEAD_BYTES // 2:
            return True
        committed = self.committed(owner=owner)
        metadata = encode_metadata(committed, limit_bytes)
        return len(metadata) <= limit_bytes and decode_metadata(committed.offset, metadata).runs == committed.runs


def _merged(runs: Iterable[Run], above: int) -> tuple[Run, ...]:
    merged: list[Run] = []
    for first, end in runs:
        start = max(first, above)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
    return tuple(merged)


def _encode_runs(offset: int, runs: Sequence[Run], room: int) -> str:
    """The shorter of run lengths and bitmap; where neither fits, the run lengths of as many runs as do."""
    lengths = _armoured(_lengths(offset, runs))
    if runs[-1][1] - offset <= 6 * min(room, len(lengths)):
        bitmap = _armoured(_bitmap(offset, runs))
        if len(bitmap) < len(lengths):
            return f"b={bitmap}"
    if len(lengths) > room:
        sizes = range(len(runs) + 1)
        fitting = bisect.bisect_right(sizes, room, key=lambda count: len(_armoured(_lengths(offset, runs[:count]))))
        lengths = _armoured(_lengths(offset, runs[: fitting - 1]))
    return f"r={lengths}"


def _lengths(offset: int, runs: Sequence[Run]) -> bytes:
    """Alternately how many offsets are incomplete and how many complete, as LEB128 numbers."""
    encoded = bytearray()
    for first, end in runs:
        for number in (first - offset, end - first):
            while number > 0x7F:
                encoded.append(number & 0x7F | 0x80)
                number >>= 7  # noqa: PLW2901  consumed digit by digit
            encoded.append(number)
        offset = end
    return bytes(encoded)


def _from_lengths(offset: int, encoded: bytes) -> tuple[Run, ...]:
    numbers: list[int] = []
    number = shift = 0
    for byte in encoded:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(number)
            number = shift = 0
    runs = []
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        runs.append((offset + gap, offset + gap + length))
        offset += gap + length
    return tuple(runs)


def _bitmap(offset: int, runs: Sequence[Run]) -> bytes:
    bits = 0
    for first, end in runs:
        bits |= ((1 << end - first) - 1) << first - offset
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _from_bitmap(offset: int, encoded: bytes) -> tuple[Run, ...]:
    bits = int.from_bytes(encoded, "little")
    runs = []
    position = offset
    while bits:
        gap = (bits & -bits).bit_length() - 1
        bits >>= gap
        length = (~bits & bits + 1).bit_length() - 1
        bits >>= length
        runs.append((position + gap, position + gap + length))
        position += gap + length
    return tuple(runs)


def _armoured(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _unarmoured(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
