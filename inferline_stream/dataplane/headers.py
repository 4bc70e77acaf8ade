"""Kafka headers that the data plane reads and writes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from inferline_stream.kafka.records import Header, record_bytes
from inferline_stream.pipeline.names import (
    ENTRY_TIME,
    ERRORS_PREFIX,
    EVENT_ID,
    HEADER_PREFIX,
    OF,
    PARENT,
    PART,
    SKIPPED,
    VERSION,
    WIRE_VERSION,
)
from inferline_stream.pipeline.topology import MOST_RESULTS
from inferline_stream.pipeline.version import Structure

DEAD = HEADER_PREFIX + "dead"
"""Beside `SKIPPED`: the event died upstream, so a join must not run for it. `DROPPED` or `LETTERED`."""

DROPPED, LETTERED = 1, 2
"""How an event died: nothing of it is kept, or its record is among the dead letters and may be sent again."""

REASON = HEADER_PREFIX + "reason"
"""On the completed topic: why an event ended without a sink record."""

MOVED_TO_CLASS = "moved"
"""Reason of an event that went on as one of another class; see `topology.Topic`."""

ENDED_AT = HEADER_PREFIX + "ended"
"""Beside `REASON` where there are several sinks: the stages, by commas, whose sinks get nothing of the event."""

REPLAY = HEADER_PREFIX + "replay"
"""A dead letter sent again: how often so far. It travels on, so that no join takes the event for a duplicate."""

MOVED = HEADER_PREFIX + "moved"
"""On a part of a join that was appended again: where its partition's reader stood, so that no later reader takes it for
a part of an event that was finished because the offset which it had before is complete."""

FALLBACK = HEADER_PREFIX + "fallback"
"""The stages, by commas, whose fallback has made something of the event. It travels on, into the sink."""

SENT_AGAIN = HEADER_PREFIX + "sent_again"
"""On a note beside the dead letters: partition and offset of a letter that was sent again."""

TRACEBACK = ERRORS_PREFIX + "traceback"
"""On a dead letter: where the stage raised."""

CUT_BYTES = ERRORS_PREFIX + "cut_bytes"
"""On a dead letter whose value was left out: how long that was."""

_OURS_BYTES = 8 * 1024
"""More than the value of any header that we write, tracebacks aside."""

EVENT_ID_BYTES = 256
"""Longest event id that a record may name; a longer one counts as missing, since every later record would carry it."""

_PLACES_BYTES = 128
"""So much longer may the id of one of many results be: a slash and its place, for each time."""

_MOST_LEVELS = 16

MOST_REPLAYS = 9_999
"""Largest replay count that is believed."""

_LARGEST_OFFSET = (1 << 63) - 1

LATEST_MS = 253_402_300_799_000
"""End of the year 9999. A later time is none: dates and floats would have to hold it."""

RESTORED_MS = 12 * 3600 * 1000
"""A record that is written again has its own timestamp, unless that is older than this: its topic may keep no more than
a day, and Kafka's retention deletes by timestamps, however short the record has been there."""

LETTERS_KEEP = frozenset((ENTRY_TIME, VERSION, PARENT, SKIPPED, OF, PART, DEAD, REPLAY, FALLBACK))
"""Headers of ours that a dead letter of an inner topic keeps as they were read, so that it can be sent again."""

_OURS = LETTERS_KEEP | {EVENT_ID, REASON, ENDED_AT}


def version_value(structure: Structure) -> bytes:
    """What records carry: the version of headers and records, and that of the topology that wrote them."""
    return f"{WIRE_VERSION}.{structure.version}".encode()


class ReadHeaders(NamedTuple):
    """What a record's headers say. `own` are the user's: every name of ours is taken out of them.

    `dead` is how the event died upstream, 0 where it lives; `replay` counts how often it was sent again after that.
    `moved` grows each time that a part is appended again. `of` and `part` are those of `lineage`.
    """

    event_id: bytes | None
    entry_us: int | None
    version: bytes | None
    parent: str | None
    skipped: tuple[str, ...]
    dead: int
    replay: int
    own: list[Header]
    moved: int = 0
    of: tuple[int, ...] = ()
    part: tuple[int, int] | None = None
    fallback: bytes = b""


_NO_HEADERS = ReadHeaders(None, None, None, None, (), 0, 0, [])


def read_headers(headers: Sequence[Header], *, entry: bool = False) -> ReadHeaders:
    """Take headers apart, whatever bytes they hold: what is not well-formed counts as missing.

    Args:
        headers: of a record.
        entry: at a pipeline's entry anyone may have written them. Only an event id and a replay count are believed
            there, and with such a count the entry time: a dead letter that is sent again to the source needs them.
    """
    if not headers:  # usual where the pipeline begins
        return _NO_HEADERS
    event_id = entry_us = version = parent = None
    skipped: tuple[str, ...] = ()
    dead = replay = moved = 0
    fallback = b""
    own: list[Header] = []
    of: tuple[int, ...] = ()
    part: tuple[int, int] | None = None
    for header in headers:
        name, value = header
        if not name.startswith(HEADER_PREFIX):
            own.append(header)
        elif name == EVENT_ID:
            if value and len(value) <= EVENT_ID_BYTES + (0 if entry else _PLACES_BYTES):
                event_id = value
        elif name == REPLAY:
            replay = number(value, MOST_REPLAYS) or replay
        elif name == ENTRY_TIME:
            entry_us = number(value, LATEST_MS * 1000)
        elif entry:
            continue
        elif name == VERSION:
            version = value
        elif name == PARENT:
            parent = (value or b"").decode("utf-8", "replace")
        elif name == SKIPPED:
            skipped = tuple((value or b"").decode("utf-8", "replace").split(","))
        elif name == MOVED:
            moved = number(value, _LARGEST_OFFSET) or 0
        elif name == OF:
            of = _numbers(value) or ()
        elif name == PART:
            found = _numbers(value) or ()
            part = (found[0], found[1]) if len(found) == 2 and found[0] < max(1, found[1]) else None
        elif name == FALLBACK:
            fallback = value if value and len(value) <= _OURS_BYTES else b""
        elif name == DEAD:
            dead = LETTERED if value == b"2" else DROPPED
    if entry and not replay:
        entry_us = None
    return ReadHeaders(event_id, entry_us, version, parent, skipped, dead, replay, own, moved, of, part, fallback)


def bound_id(topic: str, event_id: bytes) -> bytes:
    """Return the id that an event has in a pipeline of several source topics: bound to the topic that it came by.

    Anyone who may write to one source topic may name any id. Sinks and joins drop an id that they have seen, so an id
    that was named for the events of another source would make those vanish. An id that begins with the name of its own
    topic stays as it is: one that is made from a place, or that is bound already. Names of topics have neither ``/``
    nor ``@``, so ids of two topics never meet.

    Args:
        topic: full name of the source topic.
        event_id: as the record names it.
    """
    own = topic.encode()
    if event_id.startswith((own + b"/", own + b"@")):
        return event_id
    bound = b"%b/%b" % (own, event_id)
    if len(bound) <= EVENT_ID_BYTES:
        return bound
    return b"%b/%b" % (own, hashlib.blake2b(event_id, digest_size=16).hexdigest().encode())


def _numbers(value: bytes | None) -> tuple[int, ...] | None:
    """Return counts or places of results as we write them; None for anything else."""
    found = [number(each, MOST_RESULTS) for each in (value or b"").split(b"/")]
    known = tuple(each for each in found if each is not None)
    return known if len(known) == len(found) <= _MOST_LEVELS else None


def number(value: bytes | None, most: int) -> int | None:
    """Return a whole number as we write it, in digits alone; None for anything else, and for more than `most`."""
    if value and len(value) <= 18 and value.isdigit() and (found := int(value)) <= most:
        return found
    return None


def event_headers(found: ReadHeaders, event_id: bytes, entry_us: int, version: bytes | None) -> list[Header]:
    """Headers that an event's records carry: the user's own, and those that name the event.

    An entry time that an earlier pipeline left on the record does not count: this pipeline's clock starts here.
    """
    headers = [*found.own, (EVENT_ID, event_id), (ENTRY_TIME, b"%d" % entry_us)]
    if version is not None:
        headers.append((VERSION, version))
    if found.of:
        headers.append((OF, b"/".join(b"%d" % count for count in found.of)))
    if found.replay:
        headers.append((REPLAY, b"%d" % found.replay))
    if found.fallback:
        headers.append((FALLBACK, found.fallback))
    return headers


def with_fallback(headers: Sequence[Header], *stages: bytes) -> list[Header]:
    """Return an event's headers that also name stages whose fallback has made something of it."""
    before = [stage for name, value in headers if name == FALLBACK for stage in (value or b"").split(b",")]
    named = b",".join(dict.fromkeys((*before, *stages)))
    return [*(header for header in headers if header[0] != FALLBACK), (FALLBACK, named)]


def letter_headers(headers: Sequence[Header], event_id: bytes, *, entry: bool) -> list[Header]:
    """Headers that a dead letter keeps of its record: the user's own, the event id, and what a replay needs of ours.

    Why it died is added to them. No header that came with the record can pass for that, or for a note of ours.
    """
    keep: Collection[str] = LETTERS_KEEP
    if entry:
        replayed = any(name == REPLAY and number(value, MOST_REPLAYS) for name, value in headers)
        keep = (REPLAY, ENTRY_TIME) if replayed else ()
    kept = [header for header in headers if not header[0].startswith(HEADER_PREFIX) or header[0] in keep]
    return [*kept, (EVENT_ID, event_id)]


def our_headers(headers: Iterable[Header]) -> list[Header]:
    """Return our own headers, each once; a long one was none of ours, nor is one that only has a name like them."""
    ours = [h for h in headers if (h[0] in _OURS or h[0].startswith(ERRORS_PREFIX)) and len(h[1] or b"") <= _OURS_BYTES]
    return list({header[0]: header for header in ours}.values())


def cut_letter(
    key: bytes | None, value: bytes | None, headers: list[Header], limit_bytes: int
) -> tuple[bytes | None, bytes | None, list[Header]]:
    """Return key, value and headers of a letter that its topic takes: the traceback goes first, then the value.

    Where that is not enough, the user's own headers go too, and the key.

    Args:
        key: of the record that died.
        value: of that record.
        headers: of the letter.
        limit_bytes: largest batch of one record that the topic takes.
    """
    if record_bytes(key, value, headers) <= limit_bytes:
        return key, value, headers
    headers = [header for header in headers if header[0] != TRACEBACK]
    if record_bytes(key, value, headers) <= limit_bytes:
        return key, value, headers
    if value is not None:
        headers = [*headers, (CUT_BYTES, b"%d" % len(value))]
    if record_bytes(key, None, headers) > limit_bytes:
        headers = our_headers(headers)
    return (key if record_bytes(key, None, headers) <= limit_bytes else None), None, headers


def timestamp_us(headers: Iterable[Header], name: str) -> int | None:
    """A header that holds milliseconds since the epoch, in µs; None where it is missing or no such number."""
    for found, value in headers:
        if found == name:
            try:
                time_ms = float(value)
            except (ValueError, TypeError):
                return None
            return int(time_ms * 1000) if 0 <= time_ms <= LATEST_MS else None
    return None


def join_headers(own: list[Header], parent: str | None, skipped: Sequence[str], *, dead: int = 0) -> list[Header]:
    """Headers of a record to a join."""
    headers = list(own)
    if parent is not None:
        headers.append((PARENT, parent.encode()))
    if skipped:
        headers.append((SKIPPED, ",".join(skipped).encode()))
    if dead:
        headers.append((DEAD, b"%d" % dead))
    return headers
