"""Which transactions of a partition were aborted, so that consumers can skip their records."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from inferline_stream.embedded_broker.record_batch import RecordBatch


@dataclass(frozen=True, slots=True)
class Aborted:
    """An aborted transaction of a partition: its first record and its marker."""

    producer_id: int
    first_offset: int
    last_offset: int


def aborted_among(aborted: Sequence[Aborted], first_offset: int, last_offset: int) -> list[Aborted]:
    """The aborted transactions, ordered by their markers, that touch a range of offsets, both ends included."""
    begin = bisect_left(aborted, first_offset, key=attrgetter("last_offset"))
    return [one for one in aborted[begin:] if one.first_offset <= last_offset]


def is_aborted(batch: RecordBatch, aborted: Sequence[Aborted]) -> bool:
    """Whether a batch belongs to an aborted transaction."""
    return batch.is_transactional and any(
        one.producer_id == batch.producer_id for one in aborted_among(aborted, batch.base_offset, batch.last_offset)
    )
