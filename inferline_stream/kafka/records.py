"""Records as the data plane reads and sends them, limits, and how sending fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from inferline_stream.errors import InferlineError

Header = tuple[str, bytes]

PRODUCE_BATCH_BYTES = 512 * 1024
"""Bytes per partition and produce request; a topic's `max.message.bytes` is 1 MiB by default."""

TRANSACTION_TIMEOUT_MS = 10_000
"""A transaction holds sends only, never the stage's work. What a dead dispatcher left open hides what comes after it
from readers for at most this long, if nobody fences it before."""


class Fenced(InferlineError):
    """Another producer has initialised this transactional id: whatever this one does from now on is void."""


class KafkaFailed(InferlineError):
    """Kafka refuses something for good, so that trying again is no use."""


class FetchedRecord(Protocol):
    """A record as it was read: what is used of aiokafka's `ConsumerRecord`."""

    partition: int
    offset: int
    timestamp: int | None
    """Milliseconds since the epoch; None in formats older than Kafka 0.10."""
    key: bytes | None
    value: bytes | None
    """`fetched_batches.SkippedBatch`, in the place of a batch that could not be unpacked."""
    headers: Sequence[Header]


class Message(NamedTuple):
    """One record to send."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp_ms: int | None = None


Outgoing = Mapping[tuple[str, int], Sequence[Message]]
"""Records by topic and partition."""
