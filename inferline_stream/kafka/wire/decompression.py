"""Decompression of record batches with a bound: a few kilobytes may stand for gigabytes, and anyone may produce them.

aiokafka's codecs allocate whatever a batch expands to. These never hold more than the limit. Clients use them too.
"""

from __future__ import annotations

import mmap
import struct
import zlib

import cramjam

LIMIT_BYTES = 16 * 1024 * 1024
"""Largest size of a batch's records. Producers fill a batch to 16 KiB and compress it then; a topic takes 1 MiB
compressed, unless it says otherwise, and ordinary records shrink to a tenth."""

_GZIP, _SNAPPY, _LZ4, _ZSTD = 1, 2, 3, 4
_GZIP_WINDOW = 31  # zlib's number for a gzip header and the largest window
_XERIAL = b"\x82SNAPPY\x00"  # Kafka's snappy is in blocks, as the Java library xerial writes them
_XERIAL_HEAD_BYTES = 16
_KEPT_BYTES = 1024 * 1024


class TooLarge(Exception):
    """The records of a batch exceed the limit."""


class Undecodable(Exception):
    """The bytes are not what their codec writes."""


class Decompressor:
    """Decompresses into one buffer of its own.

    Args:
        limit_bytes: the most that is ever decompressed.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = mmap.mmap(-1, limit_bytes + 1)  # takes memory only where it is written to

    def decompress(self, codec: int, data: bytes) -> bytes:
        """Return the records of a batch.

        Args:
            codec: its number in the batch's attributes.
            data: the batch after its header.

        Raises:
            TooLarge: they exceed the limit.
            Undecodable: the data is damaged, or the codec unknown.
        """
        if codec == _GZIP:
            return self._gunzip(data)
        if codec == _SNAPPY:
            return self._unsnap(data)
        if codec in (_LZ4, _ZSTD):
            return self._into_buffer(cramjam.lz4 if codec == _LZ4 else cramjam.zstd, data)
        raise Undecodable(f"codec {codec} is unknown")

    def _gunzip(self, data: bytes) -> bytes:
        found: list[bytes] = []
        left = self.limit_bytes + 1
        if not data:
            raise Undecodable("there is no gzip data")
        while data:  # a gzip file may be several in a row
            member = zlib.decompressobj(_GZIP_WINDOW)
            try:
                found.append(member.decompress(data, left))
            except zlib.error as error:
                raise Undecodable(str(error)) from None
            left -= len(found[-1])
            if left <= 0:
                raise TooLarge
            if not member.eof:
                raise Undecodable("the gzip data is cut off")
            data = member.unused_data
        return b"".join(found)

    def _unsnap(self, data: bytes) -> bytes:
        blocks = [data]
        if data.startswith(_XERIAL):
            blocks, at = [], _XERIAL_HEAD_BYTES
            while at < len(data):
                if at + 4 > len(data):
                    raise Undecodable("the snappy data is cut off")
                (size,) = struct.unpack_from(">i", data, at)
                if not 0 < size <= len(data) - at - 4:
                    raise Undecodable(f"a snappy block of {size} bytes")
                blocks.append(data[at + 4 : at + 4 + size])
                at += 4 + size
        found: list[bytes] = []
        left = self.limit_bytes
        for block in blocks:
            try:
                left -= cramjam.snappy.decompress_raw_len(block)
                if left < 0:
                    raise TooLarge
                found.append(bytes(cramjam.snappy.decompress_raw(block)))
            except cramjam.DecompressionError as error:
                raise Undecodable(str(error)) from None
        return b"".join(found)

    def _into_buffer(self, codec: object, data: bytes) -> bytes:
        size = self.limit_bytes + 1
        try:
            size = codec.decompress_into(data, self._buffer)  # type: ignore[attr-defined]  # a module without types
        except cramjam.DecompressionError as error:
            if "whole buffer" in str(error):
                raise TooLarge from None
            raise Undecodable(str(error)) from None
        finally:
            found = b"" if size > self.limit_bytes else self._buffer[:size]
            if size > _KEPT_BYTES:
                self._buffer.madvise(mmap.MADV_DONTNEED)
        if size > self.limit_bytes:
            raise TooLarge
        return found
