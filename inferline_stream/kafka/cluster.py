"""What a controller opens at one Kafka cluster, in one place: its loop runs on another one in memory, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import retentions
from inferline_stream.kafka.record_producer import RecordProducer
from inferline_stream.kafka.topic_follower import Start, TopicFollower
from inferline_stream.kafka.writer import fence


@dataclass(frozen=True, slots=True)
class KafkaCluster:
    """Opens clients; each is entered by the one who asked for it.

    Args:
        bootstrap_servers: host:port, comma separated.
    """

    bootstrap_servers: str

    def follow(self, topic: str, start: Start = "earliest", *, committed_only: bool = True) -> TopicFollower:
        """Return a reader of a topic; see `TopicFollower`."""
        return TopicFollower(self.bootstrap_servers, topic, start, committed_only=committed_only)

    def offsets(self) -> Offsets:
        """Return a reader of end offsets and committed offsets."""
        return Offsets(self.bootstrap_servers)

    def producer(self) -> RecordProducer:
        """Return a producer of records outside transactions."""
        return RecordProducer(self.bootstrap_servers)

    async def retentions(self, topics: Iterable[str]) -> dict[str, float]:
        """Return for how many seconds topics keep a record; see `pipeline_topics.retentions`."""
        return await retentions(self.bootstrap_servers, topics)

    async def fence(self, transactional_id: str) -> None:
        """End what a producer of this id was about to commit; see `writer.fence`."""
        await fence(self.bootstrap_servers, transactional_id)
