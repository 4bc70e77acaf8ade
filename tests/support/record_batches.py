"""Batches of records as aiokafka's producer makes them."""

from __future__ import annotations

from collections.abc import Iterable

from aiokafka.record.default_records import DefaultRecordBatchBuilder


def record_batch(
    records: Iterable[tuple[int | None, bytes | None, bytes | None, list[tuple[str, bytes | None]]]],
    *,
    codec: int = 0,
    producer: tuple[int, int, int] = (-1, -1, -1),
    transactional: bool = False,
) -> bytes:
    """Records as (timestamp in ms, key, value, headers), of a producer as (id, epoch, sequence of the first)."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, *producer, 1 << 30)
    for offset, record in enumerate(records):
        builder.append(offset, *record)
    return bytes(builder.build())
