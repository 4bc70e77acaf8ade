"""What a compacted topic keeps: the last committed record of every key."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka.record.default_records import DefaultRecord

from inferline_stream.embedded_broker.record_batch import RecordBatch
from inferline_stream.embedded_broker.transaction_index import Aborted, is_aborted


def compacted(
    batches: Sequence[RecordBatch], aborted: Sequence[Aborted], tombstones_before_ms: int
) -> list[RecordBatch]:
    """Batches with only the last record of each key; offsets stay as they are.

    Args:
        batches: decided batches of one partition in order, whose transactions have all ended.
        aborted: aborted transactions among them; their records go, and do not hide what they would have replaced.
        tombstones_before_ms: records without a value go as well, once they are older than this.
    """
    kept = [(batch, batch.records()) for batch in batches if not batch.is_control and not is_aborted(batch, aborted)]
    last = {record.key: record.offset for _, records in kept for record in records}

    def stays(record: DefaultRecord) -> bool:
        return last[record.key] == record.offset and (
            record.value is not None or record.timestamp >= tombstones_before_ms
        )

    result = []
    for batch, records in kept:
        staying = [record for record in records if stays(record)]
        if len(staying) == len(records):
            result.append(batch)
        elif staying:
            result.append(batch.only(staying))
    return result
