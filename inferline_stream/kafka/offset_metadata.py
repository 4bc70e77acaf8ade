"""What a commit's metadata carries to a partition's next owner: complete offsets above the committed one, and more.

As Confluent's Parallel Consumer does, so that events that completed out of order are not processed again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

METADATA_LIMIT_BYTES = 4096
"""Kafka's `offset.metadata.max.bytes`, by default."""

_MARK = "i1"
"""What metadata of this format, version 1, begins with; anything else is another tool's."""

_LARGEST_OFFSET = (1 << 63) - 1

_SECOND_FIELD_BYTES = 4
"""What a bitmap before run lengths has to save to be worth it: more than what it takes to name a second field."""

Run = tuple[int, int]
"""Consecutive offsets: first, and one past the last."""

Entry = tuple[int, str]
"""Offset and metadata, as committed."""


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

    def unfinished(self, end: int) -> int:
        """Return how many offsets below the end of the partition are not complete: all, if none was committed."""
        above = sum(max(0, min(last, end) - first) for first, last in self.runs) if self.runs else 0
        return max(0, end - max(0, self.offset) - above)


def finished_by_all(groups: Sequence[Committed]) -> Committed:
    """Return what each of these groups of one partition has finished. Beyond offsets, it keeps nothing of theirs."""
    complete = _complete(groups[0])
    for group in groups[1:]:
        complete = _common(complete, _complete(group))
    return _of_complete(complete)


def finished_by_any(groups: Iterable[Committed]) -> Committed:
    """Return what at least one of these groups of one partition has finished. Beyond offsets, it keeps nothing."""
    return _of_complete(merged(sorted(run for group in groups for run in _complete(group)), 0))


def _complete(committed: Committed) -> tuple[Run, ...]:
    return ((0, committed.offset), *committed.runs) if committed.offset > 0 else committed.runs


def _of_complete(complete: tuple[Run, ...]) -> Committed:
    return Committed(complete[0][1], complete[1:]) if complete and not complete[0][0] else Committed(0, complete)


def _common(some: Sequence[Run], others: Sequence[Run]) -> tuple[Run, ...]:
    """Return the offsets that are in both, each of them ascending and apart."""
    found, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        first, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if first < end:
            found.append((first, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


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
        room = limit_bytes - len(";".join(fields).encode()) - len(";b=;r=")
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
        runs = _from_bitmap(offset, _unarmoured(found.get("b", "")))
        runs += _from_lengths(runs[-1][1] if runs else offset, _unarmoured(found.get("r", "")))
    except ValueError:
        return Committed(offset)
    if not 0 <= forget_below <= _LARGEST_OFFSET or (runs and runs[-1][1] > _LARGEST_OFFSET):
        return Committed(offset)
    runs = merged(runs, offset)
    return Committed(offset, runs, found.get("o", ""), forget_below, found.get("t", ""), max(0, partitions))


def known_partitions(committed: Iterable[Entry]) -> int:
    """Return how many partitions a topic is known to have had when offsets of it were committed; 0 if none says.

    Args:
        committed: offsets and metadata.
    """
    return max((decode_metadata(*entry).partitions for entry in committed), default=0)


def merged(runs: Iterable[Run], above: int) -> tuple[Run, ...]:
    """Return runs, ascending, as runs that are apart from each other, and of each only what is not below an offset."""
    merged: list[Run] = []
    for first, end in runs:
        start = max(first, above)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end > start:
            merged.append((start, end))
    return tuple(merged)


def _encode_runs(offset: int, runs: Sequence[Run], room: int) -> str:
    """A bitmap of the first runs and the run lengths of the others, as many of each as make it short.

    Where that does not fit, as many runs as do, from the first on.
    """
    kept = split = bitmap_runs = bitmap_bytes = lengths_bytes = 0
    least, before = 0, offset
    for at, (first, end) in enumerate(runs, 1):
        lengths_bytes += _length_bytes(first - before) + _length_bytes(end - first)
        before, bitmap_bytes = end, (end - offset + 7) // 8
        as_bitmap = bitmap_bytes < least + lengths_bytes
        if _armoured_chars(bitmap_bytes if as_bitmap else least + lengths_bytes) > room:
            break
        kept, split = at, at if as_bitmap else bitmap_runs
        if bitmap_bytes + _SECOND_FIELD_BYTES < least + lengths_bytes:
            least, bitmap_runs = bitmap_bytes + _SECOND_FIELD_BYTES - lengths_bytes, at
    fields = [f"b={_armoured(_bitmap(offset, runs[:split]))}"] if split else []
    if split < kept or not split:
        fields.append(f"r={_armoured(_lengths(runs[split - 1][1] if split else offset, runs[split:kept]))}")
    return ";".join(fields)


def _armoured_chars(size_bytes: int) -> int:
    """Most characters that one or two fields of so many bytes take."""
    return size_bytes * 4 // 3 + 2


def _length_bytes(number: int) -> int:
    """Size of a LEB128 number."""
    return 1 if number < 0x80 else (number.bit_length() + 6) // 7


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
    digits: list[str] = []
    for first, end in runs:
        digits += "0" * (first - offset), "1" * (end - first)
        offset = end
    bits = int("".join(digits)[::-1], 2)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _from_bitmap(offset: int, encoded: bytes) -> tuple[Run, ...]:
    bits = f"{int.from_bytes(encoded, 'little'):b}"[::-1]
    return tuple((offset + run.start(), offset + run.end()) for run in re.finditer("1+", bits))


def _armoured(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _unarmoured(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
