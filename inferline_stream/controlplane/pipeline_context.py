"""The pipeline by its names in Kafka."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from inferline_stream.controlplane.record_decoder import RecordDecoder
from inferline_stream.controlplane.run_options import RecordOptions
from inferline_stream.kafka.cluster import KafkaCluster
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.pipeline.live_classes import live_classes
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import Shape, innermost, shape_of
from inferline_stream.pipeline.topology import Pipeline
from inferline_stream.settings import Settings


@dataclass(frozen=True)
class PipelineContext:
    """A pipeline on its Kafka: what everything that follows or leads it is given.

    Args:
        pipeline: as declared.
        kafka: opens clients.
        settings: periods and time limits.
        records: prefix of its names, and how results get into the sink.
        decoder: reads what the pipeline keeps in Kafka, and counts what cannot be read.
    """

    pipeline: Pipeline
    kafka: KafkaCluster
    settings: Settings
    records: RecordOptions = field(default_factory=RecordOptions)
    decoder: RecordDecoder = field(default_factory=RecordDecoder)

    @cached_property
    def names(self) -> Names:
        """Of topics and groups."""
        return Names(self.pipeline.name, self.records.prefix)

    @cached_property
    def shape(self) -> Shape:
        """The DAG."""
        return shape_of(self.pipeline)

    @cached_property
    def source(self) -> str:
        """Full name of the source topic."""
        name = self.pipeline.source.name
        return name if self.pipeline.groups else self.names.topic(name)

    @cached_property
    def sinks(self) -> dict[str, str]:
        """By stage that feeds one, full name of the topic that its results go to."""
        return {stage: self.names.topic(topic.name) for stage, topic in self.pipeline.sinks.items()}

    @cached_property
    def entries(self) -> frozenset[str]:
        """Stages that read a source topic."""
        return frozenset(self.shape.stages[s] for s in self.shape.entries())

    @cached_property
    def _entries(self) -> dict[str, frozenset[str]]:
        pipeline = self.pipeline
        if pipeline.groups:
            return {"": self.entries}
        return {
            of: frozenset(stage.name for stage in pipeline.stages if pipeline.enters(stage, topic))
            for of, topic in zip(("", *self.others), (pipeline.source, *pipeline.others), strict=True)
        }

    def entries_of(self, of_class: str = "") -> frozenset[str]:
        """Stages at which events of a class enter."""
        return self._entries[of_class]

    def sinks_of(self, of_class: str = "") -> tuple[str, ...]:
        """Stages that feed a sink which events of a class may reach."""
        entries = map(self.shape.stages.index, self.entries_of(of_class))
        reached = {self.shape.stages[at] for at in self.shape.downstream(*entries)}
        return tuple(stage for stage in self.sinks if stage in reached)

    def levels_of(self, of_class: str = "") -> int:
        """How often events of a class are given many results on their way to what all their sinks get something of."""
        at = map(self.shape.stages.index, self.sinks_of(of_class))
        return len(innermost(map(self.shape.scope_after, at)))

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Source topics of further classes, without prefix: each is the name of a class."""
        return tuple(topic.name for topic in self.pipeline.others)

    @cached_property
    def live(self) -> dict[str, float]:
        """Further classes whose events are live: how much longer their SLO is than the pipeline's."""
        return {each.topic: each.longer_s for each in live_classes(self.pipeline)}

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Full names of the topics that live events arrive on, that of the first class first."""
        return (self.source, *map(self.names.topic, self.live))

    def topic(self, stage: str, of_class: str = "") -> str:
        """Input topic of a stage, for events of the first class or of another one; of a group, the one it reads."""
        if self.pipeline.groups:
            return next(group.topic for group in self.pipeline.groups if group.name == stage)
        if stage not in self.entries_of(of_class):
            return self.names.stage_topic(stage, of_class)
        return self.names.topic(of_class) if of_class else self.source


async def input_partitions(offsets: Offsets, context: PipelineContext) -> dict[str, dict[str, int]]:
    """Return the partitions of each stage's input topic, by class of events: empty for the first one."""
    return {
        of: {stage: await offsets.partitions(context.topic(stage, of)) for stage in context.shape.stages}
        for of in ("", *context.others)
    }


async def drained(
    offsets: Offsets,
    context: PipelineContext,
    partitions: Mapping[str, int],
    source_end: Sequence[int],
    of_class: str = "",
) -> bool:
    """Whether nothing of a class that was in its source topic before ``source_end`` is left in any stage.

    Committed offsets are read before end offsets. A stage commits an event only after its results are in
    the next topic, so if nothing is left by these numbers, nothing is left anywhere.

    Args:
        offsets: to read them.
        context: names.
        partitions: of the input topic of each stage that should be empty.
        source_end: end offsets of the source topic up to which entry stages must have come.
        of_class: class of the events; by default the first one.
    """
    topics = {stage: context.topic(stage, of_class) for stage in partitions}
    committed = {
        stage: await offsets.committed(context.names.group(stage, of_class), topics[stage], n)
        for stage, n in partitions.items()
    }
    inner = {topics[stage]: n for stage, n in partitions.items() if stage not in context.entries_of(of_class)}
    ends = await offsets.ends(inner) if inner else {}
    return all(
        max(0, done.offset) >= end
        for stage in partitions
        # The source may have been given partitions since its end was looked at.
        for done, end in zip(committed[stage], ends.get(topics[stage], source_end), strict=False)
    )


async def lags(
    offsets: Offsets,
    context: PipelineContext,
    partitions: Mapping[str, int],
    topic_of: Callable[[str], str] | None = None,
    of_class: str = "",
) -> dict[str, int]:
    """Records of a class that are not finished, by consumer group; each stage's topic is the context's, or given."""
    left = {}
    for stage, n in partitions.items():
        group, topic = (
            context.names.group(stage, of_class),
            (topic_of or partial(context.topic, of_class=of_class))(stage),
        )
        committed = await offsets.committed(group, topic, n)
        ends = (await offsets.ends({topic: n}))[topic]
        left[group] = sum(done.unfinished(end) for done, end in zip(committed, ends, strict=True))
    return left
