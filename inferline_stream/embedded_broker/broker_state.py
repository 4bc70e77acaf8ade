"""What the broker holds, and the two ways in which its answers are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aiokafka.errors import BrokerResponseError

from inferline_stream.embedded_broker.groups import Groups
from inferline_stream.embedded_broker.topics import Topics
from inferline_stream.embedded_broker.transactions import Transactions
from inferline_stream.embedded_broker.wire import Fields

NODE_ID = 1


class Broker:
    """Everything that the one node holds, and where clients find it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.topics = Topics()
        self.groups = Groups()
        self.transactions = Transactions(self.topics, self.groups)


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks."""

    id: str
    host: str


def answered(act: Callable[[], Fields | None]) -> Fields:
    """What an act answers; or Kafka's code and a text for why it was refused."""
    try:
        return act() or {}
    except BrokerResponseError as error:
        return {"error_code": error.errno, "error_message": str(error.args[0]) if error.args else error.description}


def each_partition(topics: Iterable[Fields], act: Callable[[str, int, Fields], Fields | None]) -> list[Fields]:
    """Act on each partition of a request; each is answered for itself, under every name that answers have for it."""

    def one(name: str, part: Fields | int) -> Fields:
        fields = part if isinstance(part, dict) else {"partition": part}
        number: int = fields["partition"]
        return {"partition": number, **answered(lambda: act(name, number, fields))}

    answers = []
    for topic in topics:
        name, parts = topic["topic"], [one(topic["topic"], part) for part in topic["partitions"]]
        answers.append({"topic": name, "topics": name, "partitions": parts, "partition_errors": parts})
    return answers
