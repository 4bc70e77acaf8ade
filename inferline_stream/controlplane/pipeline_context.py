"""A running pipeline by its names, and whether anything is left in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.dataplane.process_specs import Delivery
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.controller_client import OffsetReader
from inferline_stream.pipeline.names import Names
from inferline_stream.settings import Settings


@dataclass(frozen=True, slots=True)
class PipelineContext:
    """What a controller is given of its pipeline.

    Args:
        names: of topics and groups.
        source: full name of the source topic.
        sink: full name of the sink topic.
        entries: stages that read the source topic.
        kafka: opens clients.
        settings: periods and time limits.
        advisory: decide without acting.
        delivery: how results get into the sink.
        arrivals: where the source's arrivals are seen; see `Topic`.
        decoder: reads what the pipeline keeps in Kafka, and counts what cannot be read.
    """

    names: Names
    source: str
    sink: str
    entries: frozenset[str]
    kafka: KafkaCluster
    settings: Settings
    advisory: bool = False
    delivery: Delivery = "at_least_once"
    arrivals: str = "offsets"
    decoder: RecordDecoder = field(default_factory=RecordDecoder)

    @property
    def bootstrap_servers(self) -> str:
        """Where Kafka answers: host:port, comma separated."""
        return self.kafka.bootstrap_servers

    def topic(self, stage: str) -> str:
        """Input topic of a stage."""
        return self.source if stage in self.entries else self.names.stage_topic(stage)


async def drained(
    offsets: OffsetReader, context: PipelineContext, partitions: Mapping[str, int], source_end: Sequence[int]
) -> bool:
    """Whether nothing that was in the source topic before ``source_end`` is left in any stage.

    Committed offsets are read before end offsets. A stage commits an event only after its results are in
    the next topic, so if nothing is left by these numbers, nothing is left anywhere.

    Args:
        offsets: to read them.
        context: names.
        partitions: of the input topic of each stage that should be empty.
        source_end: end offsets of the source topic up to which entry stages must have come.
    """
    committed = {
        stage: await offsets.committed(context.names.group(stage), context.topic(stage), n)
        for stage, n in partitions.items()
    }
    inner = {context.topic(stage): n for stage, n in partitions.items() if stage not in context.entries}
    ends = {context.source: tuple(source_end), **(await offsets.ends(inner) if inner else {})}
    return all(
        max(0, done.offset) >= end
        for stage in partitions
        for done, end in zip(committed[stage], ends[context.topic(stage)], strict=True)
    )


async def lags(offsets: OffsetReader, context: PipelineContext, partitions: Mapping[str, int]) -> dict[str, int]:
    """Records that are not finished, by consumer group."""
    left = {}
    for stage, n in partitions.items():
        topic = context.topic(stage)
        committed = await offsets.committed(context.names.group(stage), topic, n)
        ends = (await offsets.ends({topic: n}))[topic]
        left[context.names.group(stage)] = sum(done.unfinished(end) for done, end in zip(committed, ends, strict=True))
    return left
