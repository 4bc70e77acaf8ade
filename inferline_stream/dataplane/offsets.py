"""Which offsets of a partition are complete, and how a commit's metadata tells it to the next owner.

Events of a join complete out of order: the committed offset is the lowest whose event is not complete, and the
complete ones above it go into the commit's metadata, as Confluent's Parallel Consumer does. The next owner reads
from the committed offset and skips them.
"""

from __future__ import annotations

import base64
import binascii
import bisect
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

METADATA_LIMIT_BYTES = 4096
"""Kafka's `offset.metadata.max.bytes`, by default."""

_MARK = "i1"
"""What metadata of this format, version 1, begins with; anything else is another tool's."""

Run = tuple[int, int]
"""Consecutive offsets: first, and one past the last."""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a consumer group knows of one partition.

    Args:
        offset: lowest offset that is not complete.
        runs: complete offsets above it, ascending, apart from each other.
        owner: who works on the partition; said before the first batch, and at the release changed to who is to own it
            next, so whoever finds another's name at a grant knows that the owner before died. Empty for nobody.
        freed: term and sequence of the assignment for which its last owner let it go; None where none asked for it.
        attempts: how often in a row owners have died with the event before `attempt_end` in their batch.
        attempt_end: one past the last offset of the suspected batch that is under way.
        anew: offsets below tell a join nothing: the source was to be read anew after them, and its events come again.
    """

    offset: int
    runs: tuple[Run, ...] = ()
    owner: str = ""
    attempts: int = 0
    attempt_end: int = 0
    freed: tuple[int, int] | None = None
    anew: int = 0


def encode_metadata(committed: Committed, limit_bytes: int = METADATA_LIMIT_BYTES) -> str:
    """The metadata of a commit; empty where the offset says it all.

    Runs beyond the limit are left out, highest first: their events would then be processed again by the next owner.
    """
    fields = [_MARK]
    if committed.owner:
        fields.append(f"o={committed.owner}")
    if committed.freed is not None:
        fields.append("f={},{}".format(*committed.freed))
    if committed.anew:
        fields.append(f"n={committed.anew}")
    if committed.attempts:
        fields.append(f"a={committed.attempts},{committed.attempt_end - committed.offset}")
    if committed.runs:
        room = limit_bytes - len(";".join(fields)) - len(";r=")
        fields.append(_encode_runs(committed.offset, committed.runs, room))
    return ";".join(fields) if len(fields) > 1 else ""


def decode_metadata(offset: int, metadata: str) -> Committed:
    """What a commit's offset and metadata say; metadata of another format counts as none."""
    mark, *fields = metadata.split(";")
    if mark != _MARK:
        return Committed(offset)
    found = dict(field.split("=", 1) for field in fields if "=" in field)
    try:
        attempts, length = (int(part) for part in found.get("a", "0,0").split(","))
        term, sequence = (int(part) for part in found.get("f", "0,0").split(","))
        anew = int(found.get("n", "0"))
        if "b" in found:
            runs = _from_bitmap(offset, _unarmoured(found["b"]))
        else:
            runs = _from_lengths(offset, _unarmoured(found.get("r", "")))
    except (ValueError, binascii.Error, IndexError):
        return Committed(offset)
    freed = (term, sequence) if "f" in found else None
    return Committed(offset, runs, found.get("o", ""), attempts, offset + length if attempts else 0, freed, anew)


class Completion:
    """Offsets of one partition from the committed one on: which were read, which of them are complete.

    Args:
        committed: where the group stands; its complete runs are skipped when they are read.
    """

    def __init__(self, committed: Committed) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._inherited = deque(committed.runs)
        self._start = committed.offset
        self._position = committed.offset
        self.anew = committed.anew

    @property
    def position(self) -> int:
        """One past the highest offset read."""
        return self._position

    @property
    def watermark(self) -> int:
        """Lowest offset that is not complete: the offset to commit."""
        if self._open:
            return self._open[0]
        for first, end in self._inherited:
            if first <= self._position < end:
                return end
        return self._position

    @property
    def open_count(self) -> int:
        """Offsets read and not complete."""
        return len(self._open) - len(self._done)

    def read(self, offset: int) -> bool:
        """Take note of an offset, in ascending order; False if it was complete before and is to be skipped."""
        if offset < self._start:
            return False
        self._position = max(self._position, offset + 1)
        for first, end in self._inherited:
            if offset < first:
                break
            if offset < end:
                return False
        self._open.append(offset)
        return True

    def read_to(self, position: int) -> None:
        """Everything below was read; what holds no record for us (a transaction's marker) needs nothing more."""
        self._position = max(self._position, position)

    def complete(self, offset: int) -> None:
        """The event of this offset needs nothing more."""
        self._done.add(offset)
        while self._open and self._open[0] in self._done:
            self._done.discard(self._open.popleft())
        while self._inherited and self._inherited[0][1] <= self.watermark:
            self._inherited.popleft()

    def runs(self) -> tuple[Run, ...]:
        """Complete offsets above the watermark, where there are any.

        Between complete ones, offsets that hold no record (compacted away, transaction markers) count as complete.
        """
        runs = list(self._inherited)
        if self._done:
            previous = self._open[0]
            for offset in self._open:
                if offset not in self._done:
                    if offset > previous + 1:
                        runs.append((previous + 1, offset))
                    previous = offset
            if self._position > previous + 1:
                runs.append((previous + 1, self._position))
        return _merged(sorted(runs), self.watermark)

    def committed(
        self, *, owner: str = "", attempts: int = 0, attempt_end: int = 0, freed: tuple[int, int] | None = None
    ) -> Committed:
        """What to commit now. An attempt that the watermark has passed is over."""
        watermark = self.watermark
        if attempt_end <= watermark:
            attempts = attempt_end = 0
        return Committed(watermark, self.runs(), owner, attempts, attempt_end, freed, self.anew)


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
