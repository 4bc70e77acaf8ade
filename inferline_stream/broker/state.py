"""What the broker holds, and how its answers name what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiokafka.errors import BrokerResponseError

from inferline_stream.broker.groups import Groups
from inferline_stream.broker.topics import Topics
from inferline_stream.broker.transactions import Transactions
from inferline_stream.broker.wire import Fields

NODE_ID = 1
CLUSTER_ID = "embedded-keeps-nothing"


@dataclass(frozen=True, slots=True)
class Broker:
    """Everything that the one node holds, and where clients find it."""

    host: str
    port: int
    topics: Topics
    groups: Groups
    transactions: Transactions


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks."""

    id: str
    host: str


def failure(action: Callable[[], object]) -> tuple[int, str | None]:
    """Do something; Kafka's code and the text of what went wrong, or 0 and None."""
    try:
        action()
    except BrokerResponseError as error:
        return error.errno, str(error.args[0]) if error.args else error.description
    return 0, None


def each_partition(topic: Fields, action: Callable[[str, Fields], object], answer: str = "partitions") -> Fields:
    """Do something to each partition of a topic in a request; the codes of what went wrong."""
    name = topic["topic"]

    def code(part: Fields) -> Fields:
        return {"partition": part["partition"], "error_code": failure(lambda: action(name, part))[0]}

    return {"topic": name, answer: [code(part) for part in topic["partitions"]]}
