"""Write a topic's events to a JSONL file, each once.

    python -m inferline_stream.connectors.sinks.jsonl --bootstrap-servers 127.0.0.1:9092 \
        --topic verdicts --path verdicts.jsonl

A line is ``{"event_id": ..., "timestamp_ms": ..., "value": ...}``. The event id is the pipeline's, from the
record's header; a record without one is known by ``topic/partition/offset``.

**Durability.** Records that arrive within a fifth of a second are written together, the file is flushed and
fsynced, and only then are their offsets committed. So what is committed is on disk; what was on
disk but not yet committed when the process died is read again, recognised by its event id (the ids are
read back from the file at the start) and dropped. A line that was torn by a crash is cut off
at the start; its record was not committed, so it comes again. Each event is in the file exactly once.

While the file takes nothing (the disk is full), nothing is committed: the sink says so once, cuts off what was torn,
and tries the same records again each second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from inferline_stream.dataplane.following import Record, RecordFollower
from inferline_stream.errors import InferlineError, InvalidTopology, Unreachable
from inferline_stream.pipeline.names import EVENT_ID
from inferline_stream.settings import from_environment

logger = logging.getLogger(__name__)

_GATHER_S = 0.2  # an fsync takes milliseconds: at most five a second
_AGAIN_S = 1.0


class SinkCounts(msgspec.Struct):
    """What became of the topic's records."""

    written: int = 0
    """Events written by this process."""
    duplicates: int = 0
    """Records dropped because their event is in the file already."""
    undecodable: int = 0
    """Records dropped because their value is no JSON."""


class _Line(msgspec.Struct):
    event_id: str
    timestamp_ms: int
    value: msgspec.Raw


class _LineId(msgspec.Struct):
    event_id: str


class JsonlFile:
    """The file and the ids of the events in it; append-only.

    Memory grows with the ids, about 100 bytes per event.

    Args:
        path: opened for appending, created if missing.

    Raises:
        InvalidTopology: it cannot be opened, or a line in it is none of ours; names the line.
    """

    def __init__(self, path: Path) -> None:
        self.counts = SinkCounts()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise InvalidTopology(f"{path}: cannot be opened ({error.strerror}); give another path") from None
        try:
            self._seen, self._size_bytes = _seen(self._file, path)
        except InvalidTopology:
            self._file.close()
            raise

    def append(self, records: Iterable[Record], topic: str) -> None:
        """Write the records whose events are new, and fsync.

        Raises:
            OSError: not all could be written; the file is as it was before, and it may be tried again.
        """
        lines: dict[str, bytes] = {}
        duplicates = undecodable = 0
        for record in records:
            event_id = _event_id(record, topic)
            if event_id in self._seen or event_id in lines:
                duplicates += 1
            elif (line := _encoded(event_id, record)) is None:
                undecodable += 1
            else:
                lines[event_id] = line
        if lines:
            self._write(b"".join(lines.values()))
        self._seen.update(lines)
        self.counts.written += len(lines)
        self.counts.duplicates += duplicates
        self.counts.undecodable += undecodable

    def _write(self, data: bytes) -> None:
        file, written = self._file.fileno(), 0  # not the buffer above it: that keeps what could not be written
        try:
            while written < len(data):
                written += os.write(file, data[written:])
            os.fsync(file)
        except OSError:
            os.ftruncate(file, self._size_bytes)
            raise
        self._size_bytes += len(data)

    def close(self) -> None:
        """Close the file; everything appended is on disk already."""
        self._file.close()


def _event_id(record: Record, topic: str) -> str:
    given = record.headers.get(EVENT_ID, b"").decode(errors="backslashreplace")
    return given or f"{topic}/{record.partition}/{record.offset}"


def _encoded(event_id: str, record: Record) -> bytes | None:
    value = b"null" if record.value is None else record.value
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    # JSON may hold line breaks between its tokens, never inside a string: without them it means the same.
    raw = msgspec.Raw(value.replace(b"\r", b" ").replace(b"\n", b" "))
    return msgspec.json.encode(_Line(event_id, record.timestamp_ms, raw)) + b"\n"


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
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidTopology(f"{path}:{number}: is no line of this sink ({error}); give another path") from None
        whole_bytes += len(line)
    file.truncate(whole_bytes)
    return seen, whole_bytes


class JsonlSink:
    """Follows a topic and appends its events to a file, in the background while entered.

    Args:
        bootstrap_servers: ``host:port``, or several of them, separated by commas.
        topic: the topic as Kafka knows it; it must exist.
        path: the file.
        group: consumer group that holds how far the file has come; one group per file.

    Raises:
        Unreachable: on entering, Kafka does not answer or has no such topic; on leaving, it failed later.
        InvalidTopology: the file is none of this sink's.
    """

    def __init__(self, bootstrap_servers: str, *, topic: str, path: Path, group: str) -> None:
        self._topic = topic
        self._path = path
        self._file = JsonlFile(path)
        self._follower = RecordFollower(
            bootstrap_servers, topic, group, connect_timeout_s=from_environment().connect_timeout_s
        )
        self._stop = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._stored = asyncio.Condition()
        self._reached: dict[int, int] = {}  # by partition, offset below which everything is on disk and committed

    @property
    def counts(self) -> SinkCounts:
        """What became of the records so far."""
        return self._file.counts

    async def __aenter__(self) -> Self:
        try:
            await self._follower.__aenter__()
        except BaseException:
            self._file.close()
            raise
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._following is not None
        self._stop.set()
        try:
            await self._following
        finally:
            await self._follower.__aexit__(kind, error, at)
            self._file.close()

    async def caught_up(self) -> None:
        """Wait until everything that is in the topic now is on disk and committed.

        Raises:
            Unreachable: Kafka failed meanwhile.
        """
        assert self._following is not None
        ends = await self._follower.ends()
        waiting = asyncio.create_task(self._until_stored(ends))
        await asyncio.wait((waiting, self._following), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            await self._following  # raises what ended it

    async def failed(self) -> None:
        """Wait until it can no longer follow the topic; raises why.

        Raises:
            Unreachable: Kafka failed.
        """
        assert self._following is not None
        await asyncio.shield(self._following)

    async def _until_stored(self, ends: dict[int, int]) -> None:
        async with self._stored:
            await self._stored.wait_for(lambda: all(self._reached.get(p, 0) >= end for p, end in ends.items()))

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            until = loop.time() + _GATHER_S
            records = []
            while (left_s := until - loop.time()) > 0 and not self._stop.is_set():
                records += await self._follower.batch(left_s)
            if records:
                await self._append(records)
                await self._follower.commit()
            async with self._stored:
                self._reached = await self._follower.positions()
                self._stored.notify_all()

    async def _append(self, records: list[Record]) -> None:
        """Write for as long as it takes; told to stop meanwhile, the records are left uncommitted."""
        said = False
        while True:
            try:
                return await asyncio.to_thread(self._file.append, records, self._topic)
            except OSError as error:
                if self._stop.is_set():
                    raise Unreachable(f"{self._path}: {len(records)} records not written: {error.strerror}") from None
                if not said:
                    logger.warning("%s: %s; trying again until it can be written", self._path, error.strerror)
                said = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    await self._stop.wait()


async def _run(sink: JsonlSink) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with sink:
        stopping, failing = asyncio.create_task(stop.wait()), asyncio.create_task(sink.failed())
        await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        failing.cancel()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m inferline_stream.connectors.sinks.jsonl", description="Write a topic's events to a JSONL file."
    )
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--path", required=True, type=Path, help="the file; appended to if it is this sink's")
    parser.add_argument("--group", help="consumer group (default: <topic>-to-<file name>)")
    options = parser.parse_args(arguments)
    group = options.group or f"{options.topic}-to-{options.path.name}"
    try:
        with asyncio.Runner() as runner:
            sink = JsonlSink(options.bootstrap_servers, topic=options.topic, path=options.path, group=group)
            runner.run(_run(sink))
    except InferlineError as error:
        sys.stderr.write(f"{Path(__file__).stem}: {error}\n")
        return error.exit_code
    sys.stdout.buffer.write(msgspec.json.encode(sink.counts) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
