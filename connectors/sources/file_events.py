"""The events that a file holds: lines of JSONL, rows of CSV, each with the bytes between which it lies."""

from __future__ import annotations

import contextlib
import csv
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import msgspec

from inferline_stream.errors import InvalidFile

_LONGEST_LINE = 16 << 20


@dataclass(frozen=True, slots=True)
class FileEvent:
    """One event of a file: where it begins, where the next one does, its value, and why it cannot be sent, if so."""

    begin: int
    end: int
    value: bytes
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class _FileLine:
    """A line of a file, at most `_LONGEST_LINE` of it; its size; and whether it is there to its end."""

    text: bytes
    size: int
    ended: bool

    @property
    def refusal(self) -> str:
        return f"its line has more than {_LONGEST_LINE >> 20} MiB" if self.size > len(self.text) else ""


def _line(file: IO[bytes]) -> _FileLine:
    part = text = file.readline(_LONGEST_LINE)
    size = len(text)
    while len(part) == _LONGEST_LINE and not part.endswith(b"\n"):
        part = file.readline(_LONGEST_LINE)
        size += len(part)
    return _FileLine(text, size, part.endswith(b"\n"))


def lines_of(file: IO[bytes], begin: int, *, whole: bool) -> Iterator[FileEvent]:
    """Lines of JSONL from a byte on; empty ones are left out.

    Args:
        file: opened, seekable.
        begin: the first byte.
        whole: whether nothing more is to come, so that a last line may lack its end.
    """
    file.seek(begin)
    while (line := _line(file)).size and (line.ended or whole):
        end = begin + line.size
        if line.text.strip():
            yield FileEvent(begin, end, line.text.strip(), line.refusal)
        begin = end


def rows_of(file: IO[bytes], begin: int, *, whole: bool, numbers: frozenset[str] = frozenset()) -> Iterator[FileEvent]:
    """Rows of CSV from a byte on, as objects; the names come from the first row.

    A row that is no strict CSV is its first line alone, as a list of that text, and the next line begins another row.

    Args:
        file: opened, seekable.
        begin: the first byte; 0 for the row after the first.
        whole: whether nothing more is to come, so that a last row may lack its end.
        numbers: names of columns that hold numbers.

    Raises:
        InvalidFile: the first row is no CSV.
    """
    csv.field_size_limit(_LONGEST_LINE)  # of the whole process; by default it is 128 KiB
    file.seek(0)
    taken: list[_FileLine] = []  # of the row that is being read
    again: deque[_FileLine] = deque()  # to be read before the file goes on
    ended = False

    def texts() -> Iterator[str]:
        nonlocal ended
        while (line := again.popleft() if again else _line(file)).size and (line.ended or whole):
            taken.append(line)
            if line.refusal:
                raise csv.Error(line.refusal)
            yield line.text.decode("utf-8", "surrogateescape")
        ended = True

    try:
        names = next(csv.reader((text.removeprefix("\ufeff") for text in texts()), strict=True), None)
        "".join(names or ()).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        if ended and not whole:
            return  # within quotes: the rest of the row is still to come
        raise InvalidFile(f"{file.name}: its first row is no CSV of UTF-8 text ({error}); repair it") from None
    if names is None or (ended and not whole):
        return
    if begin > (first := sum(line.size for line in taken)):
        file.seek(first := begin)
    rows = csv.reader(texts(), strict=True)
    while True:
        taken.clear()
        try:
            row = next(rows, None)
            value = _row(names, row, numbers) if row else b""
        except csv.Error:
            if ended and not whole:
                return
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            value, rows = _raw(taken), csv.reader(texts(), strict=True)
        except UnicodeEncodeError:
            value = _raw(taken)
        if not taken:
            return
        end = first + sum(line.size for line in taken)
        if value:
            yield FileEvent(first, end, value, taken[0].refusal)
        first = end


def _raw(lines: Sequence[_FileLine]) -> bytes:
    """A row that cannot be taken apart, as a list of its text."""
    text = b"".join(line.text for line in lines).decode("utf-8", "backslashreplace")
    return msgspec.json.encode([text.rstrip("\r\n")])


def _row(names: list[str], row: list[str], numbers: frozenset[str]) -> bytes:
    if len(row) != len(names):
        return msgspec.json.encode(row)
    return msgspec.json.encode(
        {name: _number(text) if name in numbers else text for name, text in zip(names, row, strict=True)}
    )


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
