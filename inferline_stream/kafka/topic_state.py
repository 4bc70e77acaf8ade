"""Which incarnation of a topic there is, and how many partitions it has."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request
from aiokafka.protocol.metadata import MetadataRequest_v5

from inferline_stream.kafka.wire.later_requests import LATER_METADATA, METADATA, UUID_BYTES

_WITH_IDS = 10

_CREATED_WITHIN_S = 2.0
"""How long a topic that has just been created may be unknown: brokers learn of it one after another."""

_SHORT = 8
"""Characters of an id that are kept: 48 random bits tell the few incarnations of one topic apart."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as it is now.

    Args:
        id: the beginning of its id as Kafka's tools print it; another one after it was deleted and created again. Empty
            where it is not known.
        partitions: how many it has.
    """

    id: str
    partitions: int

    def replaces(self, topic_id: str) -> bool:
        """Return whether this is another topic than the one of an id; False where either is not known."""
        return bool(topic_id and self.id) and topic_id != self.id


UNKNOWN_TOPIC = TopicState("", 0)


def recreated(before: str, now: str) -> str:
    """Return why partitions are halted of a topic that is not the one whose offsets were committed."""
    return f"the topic was deleted and created again (its id was {before}…, it is {now}…), its old offsets mean nothing"


class _TopicStates(Request[MetadataRequest_v5]):  # type: ignore[misc]  # aiokafka has no types
    """Asks for topics in the version that has ids, where the broker knows it; never creates one."""

    API_KEY = METADATA

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is MetadataRequest_v5:
            return MetadataRequest_v5(self._topics, False)
        topics: list[tuple[bytes, str, dict[int, bytes]]] = [(bytes(UUID_BYTES), name, {}) for name in self._topics]
        return request_struct_class(topics, False, False, False, {})

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        oldest, newest = versions[METADATA]
        return self.build(LATER_METADATA[_WITH_IDS] if oldest <= _WITH_IDS <= newest else MetadataRequest_v5)


async def topic_states(client: AIOKafkaClient, topics: Iterable[str]) -> dict[str, TopicState]:
    """Return the state of those of the topics that exist.

    Args:
        client: bootstrapped.
        topics: their names.

    Raises:
        KafkaError: no answer, or none about one of the topics for now.
    """
    answer = await client.send(client.get_random_node(), _TopicStates(list(topics)))
    found = {}
    for topic in answer.to_object()["topics"]:
        error = for_code(topic["error_code"])
        if error is not NoError and error is not UnknownTopicOrPartitionError:
            raise error(topic["topic"])
        if error is NoError:
            found[topic["topic"]] = TopicState(short_topic_id(topic.get("topic_id", b"")), len(topic["partitions"]))
    return found


async def created_topic(client: AIOKafkaClient, topic: str, patience_s: float) -> TopicState | None:
    """Return the state of a topic that may just have been created; None where there is none.

    Args:
        client: bootstrapped.
        topic: its name.
        patience_s: how long an error that passes is waited for, e.g. that the topic has no leader yet.

    Raises:
        KafkaError: Kafka reports another error, or that one for longer.
    """
    asked_s = time.monotonic()
    while True:
        try:
            if found := (await topic_states(client, [topic])).get(topic):
                return found
            if time.monotonic() > asked_s + _CREATED_WITHIN_S:
                return None
        except KafkaError as error:
            if not error.retriable or time.monotonic() > asked_s + patience_s:
                raise
        await asyncio.sleep(0.1)


def short_topic_id(topic_id: bytes) -> str:
    """Return the beginning of a topic's id as `TopicState` has it; empty where the bytes are none."""
    return base64.urlsafe_b64encode(topic_id).decode()[:_SHORT] if any(topic_id) else ""
