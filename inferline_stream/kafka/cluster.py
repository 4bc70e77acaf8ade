"""What a controller opens at one Kafka cluster, in one place: its loop runs on another one in memory, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from inferline_stream.kafka.controller_client import OffsetReader, TopicFollower, delete_groups, fence
from inferline_stream.kafka.pipeline_topics import retentions
from inferline_stream.kafka.record_producer import RecordProducer


@dataclass(frozen=True, slots=True)
class KafkaCluster:
    """Opens clients; each is entered by the one who asked for it.

    Args:
        bootstrap_servers: host:port, comma separated.
    """

    bootstrap_servers: str

    def follow(
        self,
        topic: str,
        start: Mapping[int, int] | Literal["beginning", "end"] | float = "beginning",
        *,
        partitions: int = 1,
        committed_only: bool = True,
    ) -> TopicFollower:
        """Return a reader of a topic; see `TopicFollower`."""
        servers = self.bootstrap_servers
        return TopicFollower(servers, topic, start, partitions=partitions, committed_only=committed_only)

    def offsets(self) -> OffsetReader:
        """Return a reader of end offsets and committed offsets."""
        return OffsetReader(self.bootstrap_servers)

    def producer(self) -> RecordProducer:
        """Return a producer of records outside transactions."""
        return RecordProducer(self.bootstrap_servers)

    async def delete_groups(self, chosen: Callable[[str], bool]) -> None:
        """Delete the consumer groups whose names are chosen; see `controller_client.delete_groups`."""
        await delete_groups(self.bootstrap_servers, chosen)

    async def retentions(self, topics: Iterable[str]) -> dict[str, float]:
        """Return for how many seconds topics keep a record; see `topics.retentions`."""
        return await retentions(self.bootstrap_servers, topics)

    async def fence(self, transactional_id: str) -> None:
        """End what a producer of this id was about to commit; see `controller_client.fence`."""
        await fence(self.bootstrap_servers, transactional_id)
