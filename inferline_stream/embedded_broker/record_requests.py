"""Produce, Fetch and ListOffsets; producer ids and transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiokafka.errors import InvalidRequiredAcksError

from inferline_stream.embedded_broker.broker_state import Broker, Client, each_partition
from inferline_stream.embedded_broker.groups import GroupOffset
from inferline_stream.embedded_broker.log import PartitionLog
from inferline_stream.embedded_broker.record_batch import RecordBatch
from inferline_stream.embedded_broker.transactions import ProducerClaim
from inferline_stream.embedded_broker.wire import Fields

_READ_COMMITTED = 1
_LATEST, _EARLIEST = -1, -2  # timestamps that stand for an end of the log


async def produce(broker: Broker, request: Fields, client: Client) -> Fields | None:
    """Append batches. Where no acknowledgement is wanted there is no answer."""

    def append(topic: str, number: int, part: Fields) -> Fields:
        if request["required_acks"] not in (0, 1, -1):
            raise InvalidRequiredAcksError
        log, batch = broker.topics.partition(topic, number), RecordBatch.parse(part["messages"] or b"")
        if batch.is_transactional:
            who = ProducerClaim(request["transactional_id"], batch.producer_id, batch.producer_epoch)
            broker.transactions.check_produce(who, (topic, number))
        place = log.append(batch)
        return {"offset": place.base_offset, "timestamp": place.timestamp_ms, "log_start_offset": log.start_offset}

    topics = each_partition(request["topics"], append)
    return {"topics": topics} if request["required_acks"] != 0 else None


async def fetch(broker: Broker, request: Fields, client: Client) -> Fields:
    """Read batches; waits until there are `min_bytes` of them, an error, or `max_wait_time` has passed."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + request["max_wait_time"] / 1000
    changed = True
    while changed:
        topics = _read(broker, request)
        parts = [part for topic in topics for part in topic["partitions"]]
        if any("error_code" in part for part in parts):
            break
        if sum(len(part["message_set"]) for part in parts) >= request["min_bytes"]:
            break
        wanted = [(topic["topic"], part["partition"]) for topic in topics for part in topic["partitions"]]
        changed = await _change([broker.topics.partition(*one) for one in wanted], deadline_s - loop.time())
    return {"session_id": 0, "topics": topics}


def _read(broker: Broker, request: Fields) -> list[Fields]:
    """What there is now; at least one batch, however large, so that a consumer gets past it."""
    left_bytes = request["max_bytes"]
    committed = request["isolation_level"] == _READ_COMMITTED

    def read(topic: str, number: int, part: Fields) -> Fields:
        nonlocal left_bytes
        log = broker.topics.partition(topic, number)
        at_most = min(part["max_bytes"], left_bytes)
        first = left_bytes == request["max_bytes"]
        found = log.read(part["fetch_offset"], at_most, committed=committed, at_least_one=first)
        left_bytes -= len(found.data)
        aborted = [{"producer_id": one.producer_id, "first_offset": one.first_offset} for one in found.aborted]
        return {
            "highwater_offset": log.end_offset,
            "last_stable_offset": log.last_stable_offset,
            "log_start_offset": log.start_offset,
            "aborted_transactions": aborted,
            "message_set": found.data,
        }

    return each_partition(request["topics"], read)


async def _change(logs: Sequence[PartitionLog], longest_s: float) -> bool:
    """Wait for a change of any of the logs; whether there was one in time."""
    change = asyncio.get_running_loop().create_future()
    for log in logs:
        log.watchers.add(change)
    try:
        await asyncio.wait([change], timeout=max(longest_s, 0.0))
        return change.done()
    finally:
        for log in logs:
            log.watchers.discard(change)


async def list_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Offsets of the ends of partitions, and of the first record at or after a time."""

    def find(topic: str, number: int, part: Fields) -> Fields | None:
        log = broker.topics.partition(topic, number)
        if part["timestamp"] == _LATEST:
            committed = request.get("isolation_level") == _READ_COMMITTED
            return {"offset": log.last_stable_offset if committed else log.end_offset}
        if part["timestamp"] == _EARLIEST:
            return {"offset": log.start_offset}
        found = log.offset_at(part["timestamp"])
        return None if found is None else {"timestamp": found[0], "offset": found[1]}

    return {"topics": each_partition(request["topics"], find)}


async def init_producer_id(broker: Broker, request: Fields, client: Client) -> Fields:
    """A producer's id and epoch."""
    timeout_s = request["transaction_timeout_ms"] / 1000
    producer_id, epoch = broker.transactions.init_producer(request["transactional_id"], timeout_s)
    return {"producer_id": producer_id, "producer_epoch": epoch}


async def add_partitions(broker: Broker, request: Fields, client: Client) -> Fields:
    """Add partitions to a transaction."""

    def add(topic: str, number: int, part: Fields) -> None:
        broker.transactions.add_partition(_who(request), (topic, number))

    return {"errors": each_partition(request["topics"], add)}


async def add_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Add a group to a transaction."""
    broker.transactions.add_group(_who(request), request["group_id"])
    return {}


async def commit_offsets_in_transaction(broker: Broker, request: Fields, client: Client) -> Fields:
    """Commit offsets with a transaction."""

    def commit(topic: str, number: int, part: Fields) -> None:
        broker.topics.partition(topic, number)
        kept = GroupOffset(part["offset"], part["metadata"] or "")
        broker.transactions.add_offset(_who(request), request["group_id"], (topic, number), kept)

    return {"errors": each_partition(request["topics"], commit)}


async def end_transaction(broker: Broker, request: Fields, client: Client) -> Fields:
    """Commit or abort a transaction."""
    broker.transactions.end(_who(request), committed=request["transaction_result"])
    return {}


def _who(request: Fields) -> ProducerClaim:
    return ProducerClaim(request["transactional_id"], request["producer_id"], request["producer_epoch"])
