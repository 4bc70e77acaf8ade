"""Write a topic's events to a JSONL file, each once.

    python -m inferline_stream.connectors.sinks.jsonl --bootstrap-servers 127.0.0.1:9092 \
        --topic verdicts --path verdicts.jsonl

A line is ``{"event_id": ..., "timestamp_ms": ..., "value": ...}``. The event id is the pipeline's, from the
record's header; a record without one is known by its topic, the topic id, partition and offset.

**Durability.** Records that arrive within a fifth of a second are written together, the file is flushed and
fsynced, and only then are their offsets committed. So what is committed is on disk; what was on
disk but not yet committed when the process died is read again, recognised by its event id (the ids are
read back from the file at the start) and dropped. A line that was torn by a crash is cut off
at the start; its record was not committed, so it comes again. Each event is in the file exactly once.

One process at a time has the file. Another waits for its end, and goes on with what that one has written and committed,
so that a restart may begin the new process before it ends the old one.

To rotate, rename the file and start again. It may also be copied and emptied, but what is written between the two is
lost. A sink whose file is deleted, or cut off elsewhere than at its beginning, ends with its next events, which come
again.

While the file takes nothing (the disk is full), nothing is committed: the sink says so once, cuts off what was torn,
and tries the same records again each second. A value that is no JSON goes to ``--dead-letters``; without one the sink
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sinks import topic_sink
from inferline_stream.connectors.sinks.topic_sink import Away, Refusal, SinkCounts, event_id, no_json
from inferline_stream.errors import InvalidFile
from inferline_stream.kafka.records import Record

_MODULE = "inferline_stream.connectors.sinks.jsonl"
_AGAIN_S = 1.0


class _Line(msgspec.Struct):
    event_id: str
    timestamp_ms: int
    value: msgspec.Raw


class _LineId(msgspec.Struct):
    event_id: str


class JsonlFile:
    """The file and the ids of the events in it; append-only, and only once it was taken: on entering, or by `take`.

    Memory grows with the ids, about 100 bytes per event.

    Args:
        path: opened for appending, created if missing.

    Raises:
        InvalidFile: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.counts = SinkCounts()
        self._path = path
        self._writing = threading.Lock()
        self._seen: set[str] = set()
        self._size_bytes = 0
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise InvalidFile(f"{path}: cannot be opened ({error.strerror}); give another path") from None

    async def __aenter__(self) -> Self:
        try:
            await sealed_connector.taken(self.take, f"{self._path}: another sink has this file")
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def take(self) -> bool:
        """Lock the file until it is closed, and read what is in it; return False while another has it.

        Raises:
            InvalidFile: it cannot be locked, or a line in it is none of ours; names the line.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise InvalidFile(f"{self._path}: cannot be locked ({error.strerror}); give another path") from None
        self._seen, self._size_bytes = _seen(self._file, self._path)
        return True

    async def store(self, records: Sequence[Record], ids_from: str) -> list[Refusal]:
        """Append in a thread; see `Store.store`."""
        try:
            return await asyncio.to_thread(self.append, records, ids_from)
        except OSError as error:
            raise Away(error.strerror or str(error)) from None

    def append(self, records: Iterable[Record], ids_from: str) -> list[Refusal]:
        """Write the records whose events are new, and fsync; return those that no line can hold.

        Raises:
            OSError: not all could be written; the file is as it was before, and it may be tried again.
            InvalidFile: it was deleted, or cut off.
        """
        lines: dict[str, bytes] = {}
        refusals: list[Refusal] = []
        duplicates = 0
        for record in records:
            known, value = event_id(record, ids_from), b"null" if record.value is None else record.value
            if known in self._seen or known in lines:
                duplicates += 1
            elif reason := no_json(value):
                refusals.append(Refusal(record, reason))
            else:
                lines[known] = _line(known, record.time_ms, value)
        if lines:
            with self._writing:
                self._write(b"".join(lines.values()))
        self._seen.update(lines)
        self.counts.written += len(lines)
        self.counts.duplicates += duplicates
        return refusals

    def _write(self, data: bytes) -> None:
        file, written = self._file.fileno(), 0  # not the buffer above it: that keeps what could not be written
        found = os.fstat(file)
        if not found.st_nlink or 0 < found.st_size < self._size_bytes:
            raise InvalidFile(f"{self._path}: was deleted or cut off by somebody else; start again to begin it again")
        self._size_bytes = min(self._size_bytes, found.st_size)  # emptied, as a rotation by copying does
        try:
            os.ftruncate(file, self._size_bytes)  # some file systems need room to cut off what was torn before
            while written < len(data):
                written += os.write(file, data[written:])
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file, self._size_bytes)
            raise
        self._size_bytes += len(data)

    def close(self) -> None:
        """Close the file; everything appended is on disk already, but for what is being written: it is waited for."""
        with self._writing:
            self._file.close()


def _line(known: str, timestamp_ms: int, value: bytes) -> bytes:
    # JSON may hold line breaks between its tokens, never inside a string: without them it means the same.
    raw = msgspec.Raw(value.replace(b"\r", b" ").replace(b"\n", b" "))
    return msgspec.json.encode(_Line(known, timestamp_ms, raw)) + b"\n"


def _seen(file: BinaryIO, path: Path) -> tuple[set[str], int]:
    """Ids of the events in the file, and its size."""
    file.seek(0)
    seen = set()
    whole_bytes = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            break
        try:
            seen.add(msgspec.json.decode(line, type=_LineId).event_id)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidFile(f"{path}:{number}: is no line of this sink ({error}); give another path") from None
        whole_bytes += len(line)
    file.truncate(whole_bytes)
    return seen, whole_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = topic_sink.parser_of(_MODULE, "Write a topic's events to a JSONL file.", "<topic>-to-<file name>")
    parser.add_argument("--path", required=True, type=Path, help="the file; appended to if it is this sink's")
    options = parser.parse_args(arguments)

    async def work(seal: sealed_connector.Seal) -> None:
        path, group = options.path, f"{options.topic}-to-{options.path.name}"
        await topic_sink.run(
            options, JsonlFile(path), seal, what=str(path), usual_group=group, again_at_most_s=_AGAIN_S
        )

    needs = sealed_connector.Needs(writes=(options.path,))
    return sealed_connector.run(_MODULE, arguments, options, needs=needs, work=work)


if __name__ == "__main__":
    sys.exit(main())
