"""A sample's two files: arrivals as CSV and events as JSONL, either of them gzipped if its name ends in ``.gz``."""

from __future__ import annotations

import gzip
import io
import zlib
from codecs import BOM_UTF8
from pathlib import Path

import msgspec

from inferline_stream.errors import InvalidFile
from inferline_stream.pipeline.trace import Trace, trace_from_csv

_BYTES_PER_LINE = 250
"""What a line of CSV takes while it is read, about."""

_BYTES_PER_ARRIVAL = 24
"""What an arrival that is only counted takes while the trace is made, about."""

_MEMORY = Path("/proc/meminfo")

_READ_AT_ONCE = 1 << 24


def read_arrivals(path: str | Path) -> Trace:
    """Arrivals of a CSV file of timestamps or counts (see `trace_from_csv`).

    Raises:
        InvalidFile: the file cannot be read, or holds something that is no arrival.
    """
    data = _contents(Path(path))
    lines, free = data.count(b"\n"), free_memory_bytes()
    if free is not None and lines * _BYTES_PER_LINE > free:
        raise InvalidFile(
            f"{path}: reading {lines:,} lines needs about {lines * _BYTES_PER_LINE / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; give a part of it, or counts per second"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}: is no UTF-8 text ({error}); give a CSV file of arrivals") from None
    return trace_from_csv(text, str(path), lambda events: _check_counted(events, path))


def _check_counted(events: int, path: str | Path) -> None:
    """Refuse counts of more arrivals than there is memory for."""
    needed, free = events * _BYTES_PER_ARRIVAL, free_memory_bytes()
    if free is not None and needed > free:
        raise InvalidFile(
            f"{path}: counts {events:,} arrivals, which need about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; give a part of it, such as its busiest hour"
        )


def free_memory_bytes() -> int | None:
    """Memory that this machine can still give, that of cached files included; None where that is unknown."""
    try:
        with _MEMORY.open() as lines:
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    except OSError:
        return None


def read_events(path: str | Path) -> list[bytes]:
    """Events of a JSONL file, one JSON value a line, as the bytes that stand there; empty lines are left out.

    Raises:
        InvalidFile: the file cannot be read, holds no event, or a line is no JSON; names the line.
    """
    events = []
    for number, line in enumerate(_contents(Path(path)).removeprefix(BOM_UTF8).split(b"\n"), start=1):
        event = line.strip()
        if not event:
            continue
        try:
            msgspec.json.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidFile(f"{path}:{number}: {event[:60]!r} is no JSON ({error})") from None
        events.append(event)
    if not events:
        raise InvalidFile(f"{path}: holds no events; give one JSON value a line")
    return events


def keyed(event: bytes, field: str) -> bytes:
    """The record key that an event has in a field: a text as UTF-8, anything else as JSON.

    Raises:
        InvalidFile: the event is no object with that field.
    """
    value = msgspec.json.decode(event)
    if not isinstance(value, dict) or field not in value:
        raise InvalidFile(f"event {event[:80]!r} has no field {field!r}; name another, or none")
    return value[field].encode() if isinstance(value[field], str) else msgspec.json.encode(value[field])


def _contents(path: Path) -> bytes:
    """Return what a file holds, unpacked; one that ends nowhere, or unpacks to more than fits, is refused."""
    held, free = io.BytesIO(), free_memory_bytes()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while part := file.read(_READ_AT_ONCE):
                held.write(part)
                if free is not None and held.tell() > free:
                    raise InvalidFile(f"{path}: holds more than the {free / 1e9:.1f} GB of memory that are free")
    except (OSError, ValueError, EOFError, MemoryError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InvalidFile(f"{path}: cannot be read ({reason})") from None
    return held.getvalue()
