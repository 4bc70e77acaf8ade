"""The one door to the records that a pipeline keeps of itself: what cannot be read is skipped, counted and logged.

These topics are compacted or kept for days, so one such record would else be met again at every start.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from inferline_stream.errors import UNREADABLE, InvalidFile
from inferline_stream.kafka.records import Record
from inferline_stream.pipeline.units import count_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOG_AGAIN_S = 60.0
"""How often the log says that a topic holds records that cannot be read."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A record that could be read. No value deletes its key."""

    key: str
    value: T | None
    record: Record


@dataclass(slots=True)
class RecordDecoder:
    """Reads records, and counts those that cannot be read: each once, however often it is met."""

    counts: Counter[str] = field(default_factory=Counter)
    """Records that were skipped, by topic."""
    _newest: dict[tuple[str, int], int] = field(default_factory=dict)
    """Offset of the newest one that was counted, by topic and partition."""
    _logged_s: dict[str, float] = field(default_factory=dict)

    def decoded(self, records: Iterable[Record], decode: Callable[[bytes], T]) -> Iterator[Entry[T]]:
        """Yield the records that can be read, in their order.

        Args:
            records: each partition's in order.
            decode: makes a value of bytes; raises ValueError where it cannot.
        """
        return self.decoded_by_key(records, lambda key, value: decode(value))

    def decoded_by_key(self, records: Iterable[Record], decode: Callable[[str, bytes], T]) -> Iterator[Entry[T]]:
        """Likewise, where what a value should be depends on its key."""
        for record in records:
            try:
                key = (record.key or b"").decode()
                value = None if record.value is None else decode(key, record.value)
            except (*UNREADABLE, InvalidFile) as error:
                self._skip(record, error)
            else:
                yield Entry(key, value, record)

    def _skip(self, record: Record, error: Exception) -> None:
        at = (record.topic, record.partition)
        if record.offset <= self._newest.get(at, -1):
            return
        self._newest[at] = record.offset
        self.counts[record.topic] += 1
        now_s = time.monotonic()
        if now_s - self._logged_s.get(record.topic, float("-inf")) >= _LOG_AGAIN_S:
            self._logged_s[record.topic] = now_s
            logger.error(
                "topic %s: skipped %s that cannot be read, the newest at partition %d, offset %d: %.200s; "
                "a newer release or another program writes there",
                record.topic, count_of(self.counts[record.topic], "record"), record.partition, record.offset,
                repr(str(error)),
            )  # fmt: skip
