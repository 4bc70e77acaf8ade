"""The seam to the Kafka client: what a replica asks of one.

Two clients implement it: aiokafka in `reading` and `sending`, confluent-kafka in `librdkafka_reading` and
`librdkafka_sending`; `choosing` gives the one that is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from inferline_stream.dataplane.headers import Header
from inferline_stream.errors import InferlineError

PRODUCE_BATCH_BYTES = 512 * 1024
"""Bytes per partition and produce request; a topic's `max.message.bytes` is 1 MiB by default."""

TRANSACTION_TIMEOUT_MS = 15_000
"""A transaction holds sends only, never the stage's work. What a dead replica left open hides what comes after it
from readers for at most this long, if nobody fences it before."""


class Fenced(InferlineError):
    """Another producer has initialised this transactional id: whatever this one does from now on is void."""


class KafkaFailed(InferlineError):
    """Kafka refuses something for good, so that trying again is no use."""


class Message(NamedTuple):
    """One record to send."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]
    timestamp_ms: int | None = None


Outgoing = Mapping[tuple[str, int], Sequence[Message]]
"""Records by topic and partition."""


class Fetched(NamedTuple):
    """What one fetch brought.

    Args:
        records: by partition.
        control: records of the assignments topic, and of the handovers topic.
        positions: next offset of each held partition; beyond its last record where transaction markers follow it.
        lost: partitions out of range, and the offset that Kafka no longer has.
    """

    records: Mapping[int, Sequence[Any]]
    control: Sequence[Any]
    positions: Mapping[int, int]
    lost: Mapping[int, int]


class Reader(Protocol):
    """What reads held partitions of one topic, and assignments and handovers, and commits to the stage's group."""

    partitions: int

    async def start(self, timeout_s: float) -> None:
        """Connect and look at the topic; `Unreachable` without an answer in time, or without the topic."""

    async def stop(self) -> None:
        """Close the connections."""

    async def fetch(self, full: Collection[int], wait_s: float) -> Fetched:
        """Wait for records, except of partitions that are full."""

    def suspend(self) -> None:
        """Fetch nothing until `hold`, so that it need not wait for a fetch under way."""

    def hold(self, positions: Mapping[int, int]) -> None:
        """Read these partitions too, from these offsets; ends `suspend`."""

    def release(self, partitions: Iterable[int]) -> None:
        """Read these partitions no more: none of their records is returned from here on."""

    async def committed(self, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Offset and metadata that the group has committed, none of them of a pending transaction."""

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Commit to the group; tries again while the error may pass; `KafkaFailed` where it cannot."""

    async def beginnings(self, partitions: Iterable[int]) -> dict[int, int]:
        """Lowest offset that Kafka still has."""

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """End offset now."""

    def offsets_for_transaction(self, offsets: Mapping[int, tuple[int, str]]) -> Any:
        """The same offsets as the `Sender` of the same client wants them; false where there are none."""


class Sender(Protocol):
    """What sends results with acks=all and idempotence; within transactions where it has a transactional id."""

    transactional: bool

    async def start(self, timeout_s: float) -> None:
        """Connect; a transactional id fences whoever had it before."""

    async def stop(self) -> None:
        """Close the connections, what was sent first."""

    async def partitions_of(self, topic: str) -> int:
        """Partitions of a topic, which must exist."""

    async def send(self, outgoing: Outgoing) -> None:
        """Send records and wait for every acknowledgement; `Fenced`, or `KafkaFailed` where one is refused."""

    async def begin(self) -> None:
        """Begin a transaction."""

    async def commit(self, offsets: Any, group: str) -> None:
        """Make a group's offsets part of the transaction, and commit it; `Fenced` or `KafkaFailed`."""
