"""Send the lines of files, or of every file of a folder, into a topic: JSONL and CSV, gzipped ones too.

    python -m inferline_stream.connectors.sources.files --bootstrap-servers 127.0.0.1:9092 \
        --topic posts --path inbox/ --follow

A line of JSONL is an event, byte for byte; a row of CSV is one object, its names from the first row, its values texts
unless ``--numbers`` names their column. A row of another length than the first is sent as a list, and one that is no
CSV or no UTF-8 as a list of its text: the pipeline makes a dead letter of it. A line of more than 16 MiB is an event
that Kafka will never take; see ``--skip-refused``. A file of a folder that cannot be read, such as a broken archive,
is named and holds up no other; the exit status is 3 then. With ``--follow`` it waits for lines to be finished and for
files to come, in the order of their names; without, it ends at the end.

**Once.** An event's id is ``<file name>:<byte where it begins>``, the same however often it is read. Where each file
has been read to is noted in ``--state``, after Kafka has acknowledged; after a crash the last second is sent again, by
the same ids, which joins and sinks know. Another source with the same state waits for the end of the first one.

**Rotation.** Files only grow. One that holds something else than what was read from it, since it was rewritten, cut
off or replaced, is another one: a warning says so, and it is read from its beginning, as ``<file name>~1:…``. A file
that was renamed within a folder given as ``--path`` is read on under its new name, by the ids of the old one, and so is
what comes by that name later. What was added to a file and cut off again before it was seen is lost, as is the rest of
one that was moved away or packed: to rotate, begin a new name.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import gzip
import logging
import os
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from inferline_stream.connectors import sealed_connector
from inferline_stream.connectors.sources import delivery
from inferline_stream.connectors.sources.delivery import Delivery, SourceCounts, SourceEvent, key_of
from inferline_stream.connectors.sources.file_events import FileEvent, lines_of, rows_of
from inferline_stream.connectors.sources.file_positions import FilePosition, FilePositions
from inferline_stream.errors import InvalidFile
from inferline_stream.kafka.record_producer import RecordProducer

logger = logging.getLogger(__name__)

_MODULE = "inferline_stream.connectors.sources.files"
_PATTERNS = ("*.jsonl", "*.ndjson", "*.csv", "*.jsonl.gz", "*.ndjson.gz", "*.csv.gz")
_AT_ONCE = 500
_BYTES_AT_ONCE = 16 << 20
_LOOK_AGAIN_S = 0.5
_NOTE_S = 1.0
_DAMAGE = (OSError, EOFError, zlib.error)


class Files:
    """Reads what is new in files.

    Args:
        path: a file, or a folder.
        patterns: names of the folder's files that count.
        state: where each has been read to.
        numbers: columns of CSV files that hold numbers.
        key_field: field of each event that becomes its key.
    """

    def __init__(
        self,
        path: Path,
        patterns: Sequence[str],
        state: FilePositions,
        *,
        numbers: Sequence[str] = (),
        key_field: str | None = None,
    ) -> None:
        self._path = path
        self._patterns = patterns
        self._state = state
        self._numbers = frozenset(numbers)
        self._key_field = key_field
        self._ended: dict[str, tuple[FilePosition, tuple[int, int, int]]] = {}
        """Where each file held nothing more, and its inode, size and last change then; until one of them is another."""

    def names(self) -> list[str]:
        """Files that are there now, by name.

        Raises:
            InvalidFile: the file or folder cannot be read.
        """
        try:
            if not self._path.is_dir():
                if not stat.S_ISREG(self._path.stat().st_mode):  # a pipe would be waited for, for ever
                    raise InvalidFile(f"{self._path}: is no file or folder that can be read again; give another --path")
                return [self._path.name]
            with os.scandir(self._path) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if self._counts(entry.name)
                    and not entry.name.startswith(".")
                    and entry.is_file(follow_symlinks=False)
                )
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._path.name in self._state.places:
                return []  # about to be replaced
            raise InvalidFile(f"{self._path}: cannot be read ({error.strerror}); give another --path") from None

    def _counts(self, name: str) -> bool:
        """Whether a file is of the patterns, or has a name that one of them was given: more may have come by it."""
        return name in self._state.places or any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns)

    def read(self, place: FilePosition, *, whole: bool) -> Iterator[tuple[list[SourceEvent], FilePosition]]:
        """Events of a file from a place on, some hundreds at a time, and the place after them; it stays open meanwhile.

        What holds something else than what was read ends with the place where that begins, and no events.

        Raises:
            InvalidFile: the file cannot be read.
        """
        path = self._path / place.file if self._path.is_dir() else self._path
        if not _is_text(place.file):
            raise InvalidFile(f"{str(path)!a}: its name is no UTF-8 text, as ids of events are; rename it")
        try:
            # Twice, since an archive that is asked for what it held before unpacks all of it again.
            with _opened(path, place) as file, _opened(path, place) as marked:
                found = os.fstat(file.fileno())
                held = found.st_ino, found.st_size, found.st_mtime_ns
                if not os.path.samestat(found, os.fstat(marked.fileno())):
                    return  # replaced just now
                if self._ended.get(place.file) == (place, held):
                    return
                coming = self._events(file, place.read_by, place.offset, whole=whole)
                damage: Exception | None = None
                same = place.is_of(marked)
                while same:
                    events, end = list[SourceEvent](), place.offset
                    try:
                        for one in coming:
                            identity = f"{place.known}:{one.begin}".encode()
                            key = key_of(one.value, self._key_field)
                            events.append(SourceEvent(identity, one.value, key, refusal=one.refusal))
                            end = one.end
                            if len(events) == _AT_ONCE or end - place.offset > _BYTES_AT_ONCE:
                                break
                    except _DAMAGE as error:
                        damage = None if isinstance(error, EOFError) and not whole else error  # or still compressed
                    if events:
                        yield events, (place := place.at(end, marked))
                    if damage is not None:
                        raise damage
                    if not events:
                        self._ended[place.file] = place, held
                        return
                    same = place.packed or place.is_of(marked)
                yield [], place.begun_again()
        except FileNotFoundError:
            return  # it was moved away; what it held has been sent as far as we came
        except _DAMAGE as error:
            if isinstance(error, EOFError) and not whole:
                return  # it may still be being compressed
            if isinstance(error, PermissionError) and place.file in self._state.places:
                raise InvalidFile(
                    f"{path}: is another file than at the start, which the sealed process may not open; start it "
                    f"again, or give its folder as --path and its name as --pattern"
                ) from None
            raise InvalidFile(f"{path}: cannot be read ({error}); repair it or take it away") from None

    def _renamed(self) -> list[FilePosition]:
        """Files of the folder that have another name now, and the beginnings of what comes by their old ones."""
        if not self._path.is_dir():
            return []
        with os.scandir(self._path) as entries:
            text = (entry for entry in entries if _is_text(entry.name) and entry.is_file(follow_symlinks=False))
            inodes = {entry.name: entry.inode() for entry in text}
        names = {inode: name for name, inode in inodes.items()}
        places = [place for place in self._state.places.values() if place.mark]
        stayed = {place.inode for place in places if inodes.get(place.file) == place.inode}
        begun, found = {}, {}
        for place in places:
            name = names.get(place.inode)
            if name is not None and place.inode not in stayed:
                with contextlib.suppress(*_DAMAGE), _opened(self._path / name, place) as file:
                    if place.is_of(file):  # the system gives the numbers of files that are gone to others
                        begun[place.file] = place.begun_again()
                        found[name] = place.renamed(name, self._state.places.get(name))
        return list((begun | found).values())

    async def _note_renamed(self) -> None:
        renamed = await asyncio.to_thread(self._renamed)
        for place in renamed:
            if place.offset:
                logger.info("%s is called %s now; it is read on", place.known, place.file)
        if renamed:
            self._state.note(*renamed)

    def _events(self, file: IO[bytes], name: str, begin: int, *, whole: bool) -> Iterator[FileEvent]:
        if name.removesuffix(".gz").endswith(".csv"):
            return rows_of(file, begin, whole=whole, numbers=self._numbers)
        return lines_of(file, begin, whole=whole)

    async def send(self, delivery: Delivery, stop: asyncio.Event, *, follow: bool) -> None:
        """Send what is new; until the end, or until stopped.

        Raises:
            InvalidFile: a file cannot be read; where it is one of a folder, the others have been.
            Unreachable: stopped while Kafka was away.
        """
        unreadable: dict[str, InvalidFile] = {}
        while not stop.is_set():
            sent = 0
            await self._note_renamed()
            looked_s = time.monotonic()
            names = await asyncio.to_thread(self.names)
            for name in sorted(names, key=lambda name: not self._place(name).origin):  # what was renamed is older
                if time.monotonic() > looked_s + _LOOK_AGAIN_S:  # sending those before has taken a while
                    await self._note_renamed()
                    looked_s = time.monotonic()
                try:
                    sent += await self._send(self._place(name), delivery, stop, follow=follow)
                    unreadable.pop(name, None)
                except InvalidFile as error:
                    if not self._path.is_dir():
                        raise
                    if name not in unreadable:
                        logger.error("%s; the other files go on", error)
                    unreadable[name] = error
            if not follow:
                break
            if not sent:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await stop.wait()
        if unreadable:
            raise next(iter(unreadable.values()))

    def _place(self, name: str) -> FilePosition:
        return self._state.places.get(name, FilePosition(name))

    async def _begun_again(self, place: FilePosition) -> FilePosition:
        """Note that another file has a file's name now, which may have another one; return where the new one begins."""
        self._state.note(place)
        await self._note_renamed()
        if self._state.places[place.file] == place:
            self._state.note(again := place.begun_again())
            logger.warning(
                "%s: holds something else than what was read up to byte %d (cut off, rewritten or replaced); "
                "it is read from its beginning, as %s", place.file, place.offset, again.known,
            )  # fmt: skip
        return self._state.places[place.file]

    async def _send(self, place: FilePosition, delivery: Delivery, stop: asyncio.Event, *, follow: bool) -> int:
        """Send what is new in one file."""
        sent = 0
        noted_s = time.monotonic()
        reading = self.read(place, whole=not follow)
        try:
            while not stop.is_set() and (found := await asyncio.to_thread(next, reading, None)) is not None:
                events, after = found
                if after.generation != place.generation:
                    place = await self._begun_again(place)
                    reading = self.read(place, whole=not follow)
                    continue
                await delivery.deliver(events)
                sent, place = sent + len(events), after
                if time.monotonic() - noted_s > _NOTE_S:
                    await asyncio.to_thread(self._state.note, place)
                    noted_s = time.monotonic()
            self._state.places.setdefault(place.file, place)  # seen: if it goes, it is about to be replaced
        finally:
            if sent:
                self._state.note(place)
        return sent


def _opened(path: Path, place: FilePosition) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if place.packed else path.open("rb")


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8, and not any bytes, which the system lets be a name, too."""
    return name == name.encode(errors="replace").decode()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; runs to the end of the files, or until SIGINT or SIGTERM, then prints its counts as JSON."""
    parser = delivery.parser_of(_MODULE, "Send the lines of files into a topic: JSONL and CSV, gzipped ones too.")
    parser.add_argument("--path", required=True, type=Path, help="a file or a folder")
    parser.add_argument("--pattern", action="append", help=f"of files in a folder (default {' '.join(_PATTERNS)})")
    parser.add_argument("--follow", action="store_true", help="wait for more, rather than end")
    parser.add_argument("--state", type=Path, help="where each file has been read to (default: beside the path)")
    parser.add_argument("--numbers", nargs="*", default=[], metavar="COLUMN", help="columns of CSV that hold numbers")
    parser.add_argument("--key-field", help="field of each event that becomes the record's key")
    options = parser.parse_args(arguments)
    state_file = options.state or options.path.parent / f".{options.path.name}.{options.topic}.state"

    async def work(seal: sealed_connector.Seal) -> None:
        stop = sealed_connector.stopping()
        state = FilePositions(state_file)
        files = Files(
            options.path,
            options.pattern or _PATTERNS,
            state,
            numbers=options.numbers,
            key_field=options.key_field,
        )
        files.names()  # whether they can be read is said before anything is sent
        taking = sealed_connector.taken(state.open, f"{state_file}: another source has this state")
        if not await sealed_connector.done_in_time(waiting := asyncio.create_task(taking), stop, 0.0):
            return sealed_connector.tell(SourceCounts())
        waiting.result()
        with contextlib.closing(state):
            async with RecordProducer(options.bootstrap_servers, options.topic) as producer:
                delivery = Delivery(producer, options.topic, stop, skip_refused=options.skip_refused)
                seal()
                await files.send(delivery, stop, follow=options.follow)
        sealed_connector.tell(delivery.counts)

    def prepare() -> None:
        FilePositions(state_file).shorten()

    needs = sealed_connector.Needs(reads=(options.path,), writes=(state_file,), late=True)
    return sealed_connector.run(_MODULE, arguments, options, needs=needs, work=work, prepare=prepare)


if __name__ == "__main__":
    sys.exit(main())
