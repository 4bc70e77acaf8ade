"""Topics by name: creating, growing, configuring and deleting them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiokafka.errors import (
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

from inferline_stream.embedded_broker.log import PartitionLog
from inferline_stream.embedded_broker.topic_settings import topic_settings

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass(slots=True)
class BrokerTopic:
    """A topic: its settings, and its partitions by number."""

    given: dict[str, str | None]
    partitions: list[PartitionLog] = field(default_factory=list)
    id: bytes = field(default_factory=lambda: uuid.uuid4().bytes)
    """Never the same again, not even for a topic of the same name."""

    def __len__(self) -> int:
        return len(self.partitions)

    def grow(self, partitions: int) -> None:
        """Add partitions up to a number of them."""
        settings = topic_settings(self.given)
        self.partitions += [PartitionLog(settings) for _ in range(partitions - len(self))]

    def configure(self, given: Mapping[str, str | None], *, validate_only: bool) -> None:
        """Replace the topic's settings."""
        settings = topic_settings(given)
        if not validate_only:
            self.given = dict(given)
            for partition in self.partitions:
                partition.settings = settings


class Topics:
    """All topics of the broker."""

    def __init__(self) -> None:
        self.by_name: dict[str, BrokerTopic] = {}

    def create(
        self, name: str, partitions: int, replication: int, given: Mapping[str, str | None], *, validate_only: bool
    ) -> None:
        """Create a topic."""
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise InvalidTopicError(f"{name!r} is no name of a topic; use letters, digits, '.', '_' and '-'")
        if name in self.by_name:
            raise TopicAlreadyExistsError(f"Topic '{name}' already exists.")
        if partitions < 1:
            raise InvalidPartitionsError(f"{partitions} partitions; at least 1 is needed")
        if replication != 1:
            raise InvalidReplicationFactorError(f"{replication} copies of each partition; there is 1 broker")
        topic = BrokerTopic(dict(given))
        topic.grow(partitions)
        if not validate_only:
            self.by_name[name] = topic

    def grow(self, name: str, partitions: int, *, validate_only: bool) -> None:
        """Add partitions to a topic."""
        topic = self.get(name)
        if partitions <= len(topic):
            raise InvalidPartitionsError(f"{name} has {len(topic)} partitions already, {partitions} wanted")
        if not validate_only:
            topic.grow(partitions)

    def delete(self, name: str) -> None:
        """Delete a topic and tell those who wait for its records."""
        topic = self.get(name)
        del self.by_name[name]
        for partition in topic.partitions:
            partition.wake()

    def get(self, name: str) -> BrokerTopic:
        """A topic by its name."""
        if (topic := self.by_name.get(name)) is None:
            raise UnknownTopicOrPartitionError(f"there is no topic {name!r}")
        return topic

    def partition(self, name: str, number: int) -> PartitionLog:
        """The log of a partition."""
        topic = self.get(name)
        if not 0 <= number < len(topic):
            raise UnknownTopicOrPartitionError(f"topic {name!r} has {len(topic)} partitions, none is {number}")
        return topic.partitions[number]
