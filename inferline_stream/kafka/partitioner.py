"""Which partition of a topic a record goes to: the Java client's hash of its key."""

from __future__ import annotations

import struct

_M = 0x5BD1E995
_SEED = 0x9747B28C
_MASK = 0xFFFFFFFF
_words = [struct.Struct(f"<{count}I").unpack_from for count in range(65)]


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 of a key (org.apache.kafka.common.utils.Utils.murmur2), unsigned."""
    length = len(data)
    count = length >> 2
    words = _words[count](data) if count < len(_words) else struct.unpack_from(f"<{count}I", data)
    h = _SEED ^ length
    for word in words:
        k = word * _M & _MASK
        h = (h * _M & _MASK) ^ ((k ^ k >> 24) * _M & _MASK)
    if rest := length & 3:
        h = (h ^ int.from_bytes(data[length - rest :], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner of the Java client gives a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
