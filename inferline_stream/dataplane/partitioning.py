"""Which partition of a topic a record goes to: the Java client's hash of its key, or the less lagged of two."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

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


class LessLagged:
    """Partitions for records without a key: of two random ones, the one with less to do.

    The power of two choices keeps the longest queue exponentially shorter than random choice does (Mitzenmacher
    2001). Lag is what was last published plus what this producer has sent since.

    Args:
        partitions: of the topic.
        rng: source of randomness.
    """

    def __init__(self, partitions: int, rng: random.Random) -> None:
        self._partitions = partitions
        self._lags = [0] * partitions
        self._rng = rng

    def published(self, lags: Sequence[int]) -> None:
        """Lags by partition have been published; what was sent before is in them."""
        self._lags = [*lags, *[0] * (self._partitions - len(lags))][: self._partitions]

    def choose(self) -> int:
        """The partition for the next record, which counts as sent."""
        one = int(self._rng.random() * self._partitions)
        other = int(self._rng.random() * self._partitions)
        chosen = one if self._lags[one] <= self._lags[other] else other
        self._lags[chosen] += 1
        return chosen
