"""Kafka headers that the data plane reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from inferline_stream.pipeline.names import ENTRY_TIME, EVENT_ID, HEADER_PREFIX, PARENT, SKIPPED, VERSION, WIRE_VERSION
from inferline_stream.pipeline.version import Structure

DEAD = HEADER_PREFIX + "dead"
"""Beside `SKIPPED`: the event died upstream, so a join must not run for it. `DROPPED` or `LETTERED`."""

DROPPED, LETTERED = 1, 2
"""How an event died: nothing of it is kept, or its record is among the dead letters and may be sent again."""

REASON = HEADER_PREFIX + "reason"
"""On the completed topic: why an event ended without a sink record."""

REPLAY = HEADER_PREFIX + "replay"
"""A dead letter sent again: how often so far. It travels on, so that no join takes the event for a duplicate."""

_NAMING = frozenset((EVENT_ID, ENTRY_TIME, VERSION))


def version_value(structure: Structure) -> bytes:
    """What records carry: the version of headers and records, and that of the topology that wrote them."""
    return f"{WIRE_VERSION}.{structure.version}".encode()


Header = tuple[str, bytes]


class Found(NamedTuple):
    """What a record's headers say. `onward` are those its successors carry: all but parent and skipped.

    `dead` is how the event died upstream, 0 where it lives; `replay` counts how often it was sent again after that.
    """

    event_id: bytes | None
    entry_us: int | None
    version: bytes | None
    parent: str | None
    skipped: tuple[str, ...]
    dead: int
    replay: int
    onward: list[Header]


def read_headers(headers: Iterable[Header]) -> Found:
    """Take headers apart. An entry time that is no number counts as missing."""
    event_id = entry_us = version = parent = None
    skipped: tuple[str, ...] = ()
    dead = replay = 0
    onward: list[Header] = []
    for header in headers:
        name, value = header
        if name.startswith(HEADER_PREFIX):
            if name == EVENT_ID:
                event_id = value
            elif name == ENTRY_TIME:
                try:
                    entry_us = int(value)
                except (ValueError, TypeError):
                    continue
            elif name == VERSION:
                version = value
            elif name == PARENT:
                parent = (value or b"").decode("utf-8", "replace")
                continue
            elif name == SKIPPED:
                skipped = tuple((value or b"").decode("utf-8", "replace").split(","))
                continue
            elif name == DEAD:
                dead = LETTERED if value == b"2" else DROPPED
                continue
            elif name == REPLAY:
                try:
                    replay = int(value)
                except (ValueError, TypeError):
                    continue
        onward.append(header)
    return Found(event_id, entry_us, version, parent, skipped, dead, replay, onward)


def entry_headers(found: Found, event_id: bytes, entry_us: int, version: bytes) -> list[Header]:
    """Headers of an event that enters the pipeline: the user's own, and those that name it.

    An entry time that an earlier pipeline left on the record is replaced: this pipeline's clock starts here.
    """
    own = [header for header in found.onward if header[0] not in _NAMING]
    return [*own, (EVENT_ID, event_id), (ENTRY_TIME, b"%d" % entry_us), (VERSION, version)]


def timestamp_us(headers: Iterable[Header], name: str) -> int | None:
    """A header that holds milliseconds since the epoch, in µs; None where it is missing or no number."""
    for found, value in headers:
        if found == name:
            try:
                return int(float(value) * 1000)
            except (ValueError, TypeError, OverflowError):
                return None
    return None


def join_headers(onward: list[Header], parent: str | None, skipped: Sequence[str], *, dead: int = 0) -> list[Header]:
    """Headers of a record to a join."""
    headers = list(onward)
    if parent is not None:
        headers.append((PARENT, parent.encode()))
    if skipped:
        headers.append((SKIPPED, ",".join(skipped).encode()))
    if dead:
        headers.append((DEAD, b"%d" % dead))
    return headers
