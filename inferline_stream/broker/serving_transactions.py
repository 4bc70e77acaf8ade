"""Producer ids and transactions."""

from __future__ import annotations

from aiokafka.errors import BrokerResponseError

from inferline_stream.broker.groups import Committed
from inferline_stream.broker.state import Broker, Client, each_partition, failure
from inferline_stream.broker.transactions import Holder
from inferline_stream.broker.wire import Fields


async def init_producer_id(broker: Broker, request: Fields, client: Client) -> Fields:
    """A producer's id and epoch."""
    try:
        producer_id, epoch = broker.transactions.init_producer(
            request["transactional_id"], request["transaction_timeout_ms"] / 1000
        )
    except BrokerResponseError as error:
        return {"error_code": error.errno, "producer_id": -1, "producer_epoch": -1}
    return {"error_code": 0, "producer_id": producer_id, "producer_epoch": epoch}


async def add_partitions(broker: Broker, request: Fields, client: Client) -> Fields:
    """Add partitions to a transaction."""
    who = _who(request)

    def add(topic: str, part: Fields) -> None:
        broker.transactions.add_partition(who, (topic, part["partition"]))

    topics = [
        {"topic": topic["topic"], "partitions": [{"partition": number} for number in topic["partitions"]]}
        for topic in request["topics"]
    ]
    return {"errors": [each_partition(topic, add, "partition_errors") for topic in topics]}


async def add_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Add a group to a transaction."""
    return {"error_code": failure(lambda: broker.transactions.add_group(_who(request), request["group_id"]))[0]}


async def commit_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Commit offsets with a transaction."""

    def commit(topic: str, part: Fields) -> None:
        broker.topics.partition(topic, part["partition"])
        kept = Committed(part["offset"], part["metadata"] or "")
        broker.transactions.add_offset(_who(request), request["group_id"], (topic, part["partition"]), kept)

    return {"errors": [each_partition(topic, commit, "partition_errors") for topic in request["topics"]]}


async def end_transaction(broker: Broker, request: Fields, client: Client) -> Fields:
    """Commit or abort a transaction."""
    committed = request["transaction_result"]
    return {"error_code": failure(lambda: broker.transactions.end(_who(request), committed=committed))[0]}


def _who(request: Fields) -> Holder:
    return Holder(request["transactional_id"], request["producer_id"], request["producer_epoch"])
