"""Which result of which event an event is: what its id and its headers say where stages give many results.

Result i of n of the event E is an event with the id ``E/i``. The header `OF` holds n, behind those of the events that E
came from, so that anyone who has seen all results of an event knows that: each stands for 1/n of it, and those of an
event together for the whole (`share`). A part of what is gathered has its parent's id, and its own place in `PART`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import prod

from inferline_stream.dataplane.headers import read_headers
from inferline_stream.kafka.records import Header
from inferline_stream.pipeline.names import EVENT_ID, OF, PART

_LINEAGE = frozenset((EVENT_ID, OF, PART))


def results_headers(event_id: bytes, headers: Sequence[Header], count: int) -> Iterator[tuple[bytes, list[Header]]]:
    """Yield the id and the headers of each of an event's results.

    Args:
        event_id: of the event.
        headers: what its successors carry.
        count: of its results.
    """
    before = _value(headers, OF)
    of = b"%d" % count if before is None else b"%b/%d" % (before, count)
    rest = [header for header in headers if header[0] not in _LINEAGE]
    for at in range(count):
        name = b"%b/%d" % (event_id, at)
        yield name, [*rest, (EVENT_ID, name), (OF, of)]


def part_headers(event_id: bytes, headers: Sequence[Header]) -> tuple[bytes, list[Header]]:
    """Return the id of the event that a result belongs to, and the headers with which the result is gathered.

    Args:
        event_id: of the result.
        headers: of its record to the stage that gathers.
    """
    parent, _, at = event_id.rpartition(b"/")
    *above, count = (_value(headers, OF) or b"1").split(b"/")
    rest = [header for header in headers if header[0] not in _LINEAGE]
    if above:
        rest.append((OF, b"/".join(above)))
    return parent, [*rest, (EVENT_ID, parent), (PART, b"%b/%b" % (at, count))]


def no_part_headers(headers: Sequence[Header]) -> list[Header]:
    """Return the headers that say of an event, where it is gathered, that it has no results."""
    return [*headers, (PART, b"0/0")]


def with_own(headers: Sequence[Header], own: Sequence[Header]) -> list[Header]:
    """Return headers with those that a result has of its own, which replace others of the name."""
    names = {name for name, _ in own}
    return [*(header for header in headers if header[0] not in names), *own]


def gathered(parts: Mapping[int, bytes], dead: frozenset[int]) -> list[bytes | None]:
    """Return what the stage that gathers gets of an event: its results in order.

    Args:
        parts: results by their place; those that were filtered are missing.
        dead: places of results that died, and have None in their place.
    """
    return [parts.get(at) for at in sorted({*parts, *dead})]


def root(event_id: bytes, levels: int) -> bytes:
    """Return the id of the source's event that a result comes from.

    Args:
        event_id: of the result.
        levels: how often an event was given many results on its way: the counts that `OF` has.
    """
    return event_id.rsplit(b"/", levels)[0] if levels else event_id


def root_of(headers: Sequence[Header]) -> bytes | None:
    """Return the id of the source's event that a record comes from; None where its headers do not say."""
    found = read_headers(headers)
    return None if found.event_id is None else root(found.event_id, len(found.of))


def share(of: Sequence[int]) -> Fraction:
    """Return the part of a source's event that one result is, so that those of an event sum to 1."""
    return Fraction(1, prod(max(1, count) for count in of))


def _value(headers: Sequence[Header], wanted: str) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)
