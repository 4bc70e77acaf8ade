"""The transaction coordinator: producer ids and epochs, what each transaction touches, and how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto

from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTransactionTimeout,
    InvalidTxnState,
    UnknownTopicOrPartitionError,
)

from inferline_stream.embedded_broker.groups import GroupOffset, Groups, Partition, check_metadata
from inferline_stream.embedded_broker.topics import Topics

LONGEST_TRANSACTION_S = 900.0
_LAST_EPOCH = 2**15 - 2  # an id is not used up to its very last epoch: ending its transaction needs one more


@dataclass(frozen=True, slots=True)
class ProducerClaim:
    """Who claims to hold a transactional id."""

    transactional_id: str | None
    producer_id: int
    epoch: int


class _TransactionState(Enum):
    IDLE = auto()
    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


@dataclass(slots=True)
class _Producer:
    """A transactional id: the producer that holds it, and its transaction."""

    producer_id: int
    epoch: int
    timeout_s: float
    state: _TransactionState = _TransactionState.IDLE
    partitions: set[Partition] = field(default_factory=set)
    offsets: dict[str, dict[Partition, GroupOffset]] = field(default_factory=dict)
    """Offsets to commit with the transaction, by consumer group."""
    timer: asyncio.TimerHandle | None = None


class Transactions:
    """All transactional ids of the broker."""

    def __init__(self, topics: Topics, groups: Groups) -> None:
        self._topics = topics
        self._groups = groups
        self._producers: dict[str, _Producer] = {}
        self._next_producer_id = 0

    def init_producer(self, transactional_id: str | None, timeout_s: float) -> tuple[int, int]:
        """A producer's id and epoch. A transactional id fences its last producer and aborts what that one left open."""
        if transactional_id is None:
            return self._new_producer_id(), 0
        if not 0 < timeout_s <= LONGEST_TRANSACTION_S:
            raise InvalidTransactionTimeout
        producer = self._producers.get(transactional_id)
        if producer is not None:
            self._fence(producer)
        if producer is None or producer.epoch >= _LAST_EPOCH:
            producer = self._producers[transactional_id] = _Producer(self._new_producer_id(), 0, timeout_s)
        producer.state, producer.timeout_s = _TransactionState.IDLE, timeout_s
        return producer.producer_id, producer.epoch

    def add_partition(self, who: ProducerClaim, partition: Partition) -> None:
        """Note that the transaction writes a partition; the first one opens it."""
        producer = self._checked(who)
        self._topics.partition(*partition)
        self._open(producer)
        producer.partitions.add(partition)

    def add_group(self, who: ProducerClaim, group: str) -> None:
        """Note that the transaction commits offsets of a consumer group."""
        producer = self._checked(who)
        self._open(producer)
        producer.offsets.setdefault(group, {})

    def add_offset(self, who: ProducerClaim, group: str, partition: Partition, committed: GroupOffset) -> None:
        """Commit an offset with the transaction: it counts once the transaction is committed."""
        producer = self._checked(who)
        if producer.state is not _TransactionState.OPEN or group not in producer.offsets:
            raise InvalidTxnState
        check_metadata(committed)
        producer.offsets[group][partition] = committed

    def has_under_way(self, group: str, partition: Partition) -> bool:
        """Return whether a transaction that has not ended may change what a group has committed."""
        return any(partition in producer.offsets.get(group, ()) for producer in self._producers.values())

    def check_produce(self, who: ProducerClaim, partition: Partition) -> None:
        """Whether a producer may write transactional records to a partition now."""
        producer = self._checked(who)
        if producer.state is not _TransactionState.OPEN or partition not in producer.partitions:
            raise InvalidTxnState

    def end(self, who: ProducerClaim, *, committed: bool) -> None:
        """Commit or abort the transaction; asking twice for the same changes nothing."""
        producer = self._checked(who)
        result = _TransactionState.COMMITTED if committed else _TransactionState.ABORTED
        if producer.state is result:
            return
        if producer.state is not _TransactionState.OPEN:
            raise InvalidTxnState
        self._end(producer, result)

    def close(self) -> None:
        """Stop every timer."""
        for producer in self._producers.values():
            if producer.timer is not None:
                producer.timer.cancel()

    def _new_producer_id(self) -> int:
        self._next_producer_id += 1
        return self._next_producer_id - 1

    def _checked(self, who: ProducerClaim) -> _Producer:
        producer = self._producers.get(who.transactional_id or "")
        if producer is None or producer.producer_id != who.producer_id:
            raise InvalidProducerIdMapping
        if producer.epoch != who.epoch:
            raise InvalidProducerEpoch
        return producer

    def _open(self, producer: _Producer) -> None:
        if producer.state is not _TransactionState.OPEN:
            producer.state = _TransactionState.OPEN
            producer.timer = asyncio.get_running_loop().call_later(producer.timeout_s, self._fence, producer)

    def _fence(self, producer: _Producer) -> None:
        """Shut out the producer that holds the id, and abort what it left open."""
        producer.epoch += 1
        if producer.state is _TransactionState.OPEN:
            self._end(producer, _TransactionState.ABORTED)

    def _end(self, producer: _Producer, result: _TransactionState) -> None:
        committed = result is _TransactionState.COMMITTED
        for partition in producer.partitions:
            try:
                log = self._topics.partition(*partition)
            except UnknownTopicOrPartitionError:
                continue  # deleted meanwhile, with all its records
            log.end_transaction(producer.producer_id, producer.epoch, committed=committed)
        if committed:
            for group, offsets in producer.offsets.items():
                self._groups.get(group).offsets.update(offsets)
        if producer.timer is not None:
            producer.timer.cancel()
        producer.state, producer.partitions, producer.offsets, producer.timer = result, set(), {}, None
