"""How large a record is to Kafka, which limits batches of records topic by topic."""

from __future__ import annotations

from collections.abc import Iterable

from inferline_stream.kafka.records import Header

LIMIT_BYTES = 1_048_588
"""Kafka's `max.message.bytes` by default: the largest batch, even of one record, that a topic takes."""

_BATCH_BYTES, _HEADER_BYTES = 128, 10
"""What a batch of one record, and each of its headers, take beyond their contents, at most."""


def record_bytes(key: bytes | None, value: bytes | None, headers: Iterable[Header]) -> int:
    """Most bytes that a batch of this one record has."""
    size_bytes = _BATCH_BYTES + len(key or b"") + len(value or b"")
    for name, content in headers:
        size_bytes += len(name) + len(content or b"") + _HEADER_BYTES
    return size_bytes
