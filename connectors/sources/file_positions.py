"""Where files have been read to, and whether they are still the same files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from pathlib import Path
from typing import IO

import msgspec

from inferline_stream.errors import InvalidFile

logger = logging.getLogger(__name__)

_MARKED = 1024


class FilePosition(msgspec.Struct, frozen=True):
    """Where a file has been read to; a line of the state."""

    file: str
    """Its name within the folder."""
    offset: int = 0
    """The next byte to read, of what it holds uncompressed."""
    generation: int = 0
    """How often the file has begun again."""
    inode: int = 0
    """The file's, by which it is known under another name; 0 for not known."""
    mark: str = ""
    """Digest of what it holds just before the offset: another one there is another file. Empty for not known."""
    origin: str = ""
    """The name that it was first read by, if it has been renamed."""
    taken: int = 0
    """How often files had begun by its name when it was renamed to that."""
    like: str = ""
    """The name that one before it by its own name was first read by."""

    @property
    def first_name(self) -> str:
        """The name that it was first read by."""
        return self.origin or self.file

    @property
    def read_by(self) -> str:
        """The name that says how it is read; ``a.csv`` of ``a.csv.1``."""
        return self.like or self.first_name

    @property
    def known(self) -> str:
        """What the ids of its events begin with."""
        return f"{self.first_name}~{self.generation}" if self.generation else self.first_name

    @property
    def packed(self) -> bool:
        """Whether it is an archive."""
        return self.read_by.endswith(".gz")

    def at(self, offset: int, file: IO[bytes]) -> FilePosition:
        """The same file, read up to another offset."""
        inode = os.fstat(file.fileno()).st_ino
        return msgspec.structs.replace(self, offset=offset, inode=inode, mark=self._mark(file, offset))

    def is_of(self, file: IO[bytes]) -> bool:
        """Whether an opened file is the one that was read, perhaps longer by now."""
        if self.mark:
            return self.mark == self._mark(file, self.offset)
        return self.packed or os.fstat(file.fileno()).st_size >= self.offset

    def begun_again(self) -> FilePosition:
        """The beginning of another file by that name."""
        return FilePosition(self.file, generation=max(self.generation, self.taken) + 1, like=self.like or self.origin)

    def renamed(self, name: str, before: FilePosition | None) -> FilePosition:
        """The same file by another name, which one before it may have had: no other begins by an id of that one."""
        taken = 0 if before is None else max(before.generation, before.taken)
        return msgspec.structs.replace(self, file=name, origin=self.first_name, taken=taken)

    def _mark(self, file: IO[bytes], offset: int) -> str:
        begin, size = max(0, offset - _MARKED), min(offset, _MARKED)
        if self.packed:
            file.seek(begin)
            held = file.read(size)
        else:
            held = os.pread(file.fileno(), size, begin)  # what it holds now, not what was read ahead of it before
        return hashlib.sha256(held).hexdigest()[:16] if offset else ""


class FilePositions:
    """Where every file has been read to, noted in a file that only grows while it is used, by one source at a time.

    Args:
        path: of the state; may be missing.

    Raises:
        InvalidFile: it cannot be read, or is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.places: dict[str, FilePosition] = {}
        self._noted: dict[str, FilePosition] = {}
        self._file: IO[bytes] | None = None
        self._size_bytes = 0
        self._read()

    def _read(self) -> None:
        path, places, size_bytes = self._path, dict[str, FilePosition](), 0
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        except OSError as error:
            raise InvalidFile(f"{path}: cannot be read ({error.strerror}); give another --state") from None
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a crash; what it said is sent again
            try:
                place = msgspec.json.decode(line, type=FilePosition)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise InvalidFile(f"{path}:{number}: is no state of this source; give another --state") from None
            places[place.file] = place
            size_bytes += len(line)
        self.places, self._noted, self._size_bytes = places, dict(places), size_bytes

    def shorten(self) -> None:
        """Write it again, a line per file, unless a source has it; before it is opened.

        Raises:
            InvalidFile: it cannot be written.
        """
        if not self.open():
            return
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            with beside.open("wb") as file:
                file.writelines(msgspec.json.encode(place) + b"\n" for place in self.places.values())
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._path)
        except OSError as error:
            raise InvalidFile(f"{self._path}: cannot be written ({error.strerror}); give another --state") from None
        finally:
            self.close()

    def open(self) -> bool:
        """Lock the state until it is closed, read it again, and make ready to note; return False while another has it.

        Raises:
            InvalidFile: it cannot be opened or locked, or is none of ours.
        """
        try:
            file = self._path.open("ab", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError as error:
            raise InvalidFile(f"{self._path}: cannot be written ({error.strerror}); give another --state") from None
        if not os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
            file.close()  # another has written it again meanwhile
            return False
        self._file = file
        self._read()
        return True

    def close(self) -> None:
        """Write what the disk did not take before, if it takes it now."""
        if self._file is not None:
            self._write()
            self._file.close()

    def note(self, *places: FilePosition) -> None:
        """Keep places, on disk together once this returns; while it takes none, a restart begins at older ones."""
        self.places |= {place.file: place for place in places}
        self._write()

    def _write(self) -> None:
        assert self._file is not None
        new = {name: place for name, place in self.places.items() if self._noted.get(name) != place}
        lines = b"".join(msgspec.json.encode(place) + b"\n" for place in new.values())
        if not lines:
            return
        try:
            os.ftruncate(self._file.fileno(), self._size_bytes)  # of what it took in part before
            if self._file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            logger.warning("%s: %s; after a restart, events since then are sent again", self._path, error.strerror)
            return
        self._size_bytes += len(lines)
        self._noted |= new
