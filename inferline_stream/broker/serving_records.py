"""Produce, Fetch and ListOffsets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from aiokafka.errors import BrokerResponseError, InvalidRequiredAcksError, UnknownTopicOrPartitionError

from inferline_stream.broker.batch import Batch
from inferline_stream.broker.log import PartitionLog
from inferline_stream.broker.producer_state import Appended
from inferline_stream.broker.state import Broker, Client
from inferline_stream.broker.transactions import Holder
from inferline_stream.broker.wire import Fields

_LATEST, _EARLIEST = -1, -2  # timestamps that stand for an end of the log


async def produce(broker: Broker, request: Fields, client: Client) -> Fields | None:
    """Append batches. Without acknowledgements there is no answer."""
    topics = [
        {
            "topic": topic["topic"],
            "partitions": [_produce(broker, request, topic["topic"], part) for part in topic["partitions"]],
        }
        for topic in request["topics"]
    ]
    return {"topics": topics} if request["required_acks"] != 0 else None


def _produce(broker: Broker, request: Fields, topic: str, part: Fields) -> Fields:
    error_code, message, place, start_offset = 0, None, Appended(-1, -1), -1
    try:
        if request["required_acks"] not in (0, 1, -1):
            raise InvalidRequiredAcksError
        log = broker.topics.partition(topic, part["partition"])
        batch = Batch.parse(part["messages"] or b"")
        if batch.is_transactional:
            who = Holder(request["transactional_id"], batch.producer_id, batch.producer_epoch)
            broker.transactions.check_produce(who, (topic, part["partition"]))
        place, start_offset = log.append(batch), log.start_offset
    except BrokerResponseError as error:
        error_code, message = error.errno, error.description
    return {
        "partition": part["partition"],
        "error_code": error_code,
        "offset": place.base_offset,
        "timestamp": place.timestamp_ms,
        "log_start_offset": start_offset,
        "record_errors": [],
        "error_message": message,
    }


async def fetch(broker: Broker, request: Fields, client: Client) -> Fields:
    """Read batches; waits until there are `min_bytes` of them, an error, or `max_wait_time` has passed."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + request["max_wait_time"] / 1000
    while True:
        topics, size_bytes, failed = _read(broker, request)
        left_s = deadline_s - loop.time()
        if failed or size_bytes >= request["min_bytes"] or left_s <= 0:
            return {"error_code": 0, "session_id": 0, "topics": topics}
        await _change(list(_logs(broker, request)), left_s)


async def _change(logs: list[PartitionLog], longest_s: float) -> None:
    """Wait for a change of any of the logs."""
    loop = asyncio.get_running_loop()
    change = loop.create_future()
    for log in logs:
        log.watchers.add(change)
    try:
        await asyncio.wait([change], timeout=longest_s)
    finally:
        for log in logs:
            log.watchers.discard(change)


def _logs(broker: Broker, request: Fields) -> Iterator[PartitionLog]:
    for topic in request["topics"]:
        for part in topic["partitions"]:
            yield broker.topics.partition(topic["topic"], part["partition"])


def _read(broker: Broker, request: Fields) -> tuple[list[Fields], int, bool]:
    """What there is now: the answer's topics, bytes of batches, and whether a partition failed."""
    topics, size_bytes, failed = [], 0, False
    for topic in request["topics"]:
        parts = []
        for part in topic["partitions"]:
            read = _read_partition(broker, request, topic["topic"], part, request["max_bytes"] - size_bytes)
            size_bytes += len(read["message_set"])
            failed = failed or bool(read["error_code"])
            parts.append(read)
        topics.append({"topics": topic["topic"], "partitions": parts})
    return topics, size_bytes, failed


def _read_partition(broker: Broker, request: Fields, topic: str, part: Fields, left_bytes: int) -> Fields:
    fields: Fields = {
        "partition": part["partition"],
        "error_code": 0,
        "highwater_offset": -1,
        "last_stable_offset": -1,
        "log_start_offset": -1,
        "aborted_transactions": None,
        "preferred_read_replica": -1,
        "message_set": b"",
    }
    committed = request["isolation_level"] == 1
    try:
        log = broker.topics.partition(topic, part["partition"])
        read = log.read(
            part["fetch_offset"],
            min(part["max_bytes"], left_bytes),
            committed=committed,
            at_least_one=left_bytes == request["max_bytes"],
        )
    except BrokerResponseError as error:
        return {**fields, "error_code": error.errno}
    if committed:
        fields["aborted_transactions"] = [
            {"producer_id": one.producer_id, "first_offset": one.first_offset} for one in read.aborted
        ]
    fields["message_set"] = read.data
    fields["highwater_offset"] = log.end_offset
    fields["last_stable_offset"] = log.last_stable_offset
    fields["log_start_offset"] = log.start_offset
    return fields


async def list_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Offsets of the ends of partitions, and of the first record at or after a time."""
    committed = request.get("isolation_level", 0) == 1
    topics = [
        {
            "topic": topic["topic"],
            "partitions": [_offset(broker, topic["topic"], part, committed=committed) for part in topic["partitions"]],
        }
        for topic in request["topics"]
    ]
    return {"topics": topics}


def _offset(broker: Broker, topic: str, part: Fields, *, committed: bool) -> Fields:
    fields: Fields = {"partition": part["partition"], "error_code": 0, "timestamp": -1, "offset": -1}
    try:
        log = broker.topics.partition(topic, part["partition"])
    except UnknownTopicOrPartitionError as error:
        return {**fields, "error_code": error.errno}
    if part["timestamp"] == _LATEST:
        fields["offset"] = log.last_stable_offset if committed else log.end_offset
    elif part["timestamp"] == _EARLIEST:
        fields["offset"] = log.start_offset
    elif (found := log.offset_at(part["timestamp"])) is not None:
        fields["timestamp"], fields["offset"] = found
    return fields
