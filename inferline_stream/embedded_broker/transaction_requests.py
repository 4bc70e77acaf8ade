"""Producer ids and transactions."""

from __future__ import annotations

from inferline_stream.embedded_broker.broker_state import Broker, Client, each_partition
from inferline_stream.embedded_broker.groups import GroupOffset
from inferline_stream.embedded_broker.transactions import ProducerClaim
from inferline_stream.embedded_broker.wire import Fields


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


async def commit_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
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
