"""What a dispatcher knows of the pipeline around its stage, and where events go from there. None of the users' code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import msgspec

from inferline_stream.dataplane.headers import version_value
from inferline_stream.errors import InvalidTopology
from inferline_stream.kafka.records import Header
from inferline_stream.pipeline.event_classes import CLASS_STRIDE, class_of
from inferline_stream.pipeline.keys import keeps_order
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import Arrow, Shape, shape_of
from inferline_stream.pipeline.topology import Pipeline, Topic
from inferline_stream.pipeline.units import duration_s
from inferline_stream.pipeline.version import structure_of

OnExpired = Literal["process", "drop", "dlq"]


@dataclass(frozen=True, slots=True)
class Send:
    """One record for a child, or for a join further down.

    Args:
        stage: whose input topic it goes to.
        result: whether it carries this stage's result; otherwise it only says what was skipped.
        skipped: parents of that join which this event will not visit.
    """

    stage: str
    result: bool
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Follow:
    """What to do once a stage is through with an event.

    Args:
        sends: records, in topological order of their stages.
        to_sink: whether the result goes to the stage's sink.
        ended: stages whose sinks get no result of the event, as is known here.
    """

    sends: tuple[Send, ...]
    to_sink: bool = False
    ended: tuple[str, ...] = ()


def follow(shape: Shape, stage: str, taken: Iterable[str] | None, *, empty: bool = False) -> Follow:
    """What follows from a stage's result, or from its having none.

    A stage all of whose parents were skipped is skipped. That is decided here for stages with one parent, which
    need not see the event; a join learns it from a marker and decides when it has heard of every parent.

    A stage that gathers hears of every result. Of an event that is given none it hears that; of one that does not even
    reach the stage which gives many it hears nothing, and is skipped like any other stage.

    Args:
        shape: the pipeline's DAG.
        stage: the stage that is through with the event.
        taken: children whose arrow the result takes; None where there is no result (skipped, dead), which takes none.
        empty: whether the stage, one that gives many results, has given none.
    """
    at = shape.stages.index(stage)
    scopes = shape.scopes()
    scope = scopes[at] if taken is None else shape.scope_after(at)
    apart = (*scope, at) if empty else scope
    finals = shape.finals()
    children = set(taken or ())
    skipped: set[int] = set()
    sends: list[Send] = []
    ended = [stage] if at in finals and taken is None else []
    for child in range(at + 1, len(shape.stages)):
        parents = [shape.arrows[arrow].parent for arrow in shape.parents(child)]
        name = shape.stages[child]
        result = at in parents and name in children
        if shape.gathers(child):
            waits = shape.scope_after(parents[0]) == apart
        else:
            waits = len(parents) > 1 and scopes[child] == scope
        passed_by = tuple(
            shape.stages[parent] for parent in parents if parent in skipped or (parent == at and not result)
        )
        if waits:
            if result or passed_by:
                sends.append(Send(name, result, passed_by))
        elif result:
            sends.append(Send(name, result=True))
        elif passed_by:
            skipped.add(child)
            if child in finals:
                ended.append(name)
    return Follow(tuple(sends), at in finals and taken is not None, tuple(ended))


class ClassTopic(msgspec.Struct, frozen=True):
    """The source topic of a further class: its name without prefix, and what `Topic` says of its events."""

    name: str
    slo_s: float | None = None
    """Of live events; None for background ones."""
    weight: float = 1.0
    rate: float = 0.0
    timestamp_header: str | None = None
    max_bytes: int | None = None
    entries: tuple[int, ...] = ()
    """Positions of the stages at which its events enter."""
    header: tuple[str, str] | None = None
    """By which events of the first class are moved to it."""


class Routes(msgspec.Struct, frozen=True, dict=True):
    """A stage's place in its pipeline, as JSON carries it. Made by `routes_of`.

    Args:
        pipeline: the pipeline's name.
        prefix: of every topic and group.
        stage: the stage's name.
        source: the source topic's name, without prefix.
        sink: name, without prefix, of the topic that the stage's results go to; empty where they go to none.
        stages: every stage in topological order.
        arrows: (parent, child, conditional) by position in ``stages``, as in `Shape`.
        ordered: joins that keep the order of a key.
        keys_in_order: whether events of one key are computed in their order and never in two batches at once.
        slo_s: the declared SLO.
        on_expired: what becomes of an event that is past it before its batch begins.
        version: of the topology, as records carry it.
        entry_time_header: at an entry stage, a header that holds the entry time.
        source_max_bytes: largest record taken from the source; None for what Kafka takes.
        sink_max_bytes: largest result; None for what Kafka takes.
        server_budget_s: longest that a replica may take over a batch that it asks a server for; 0 without a server.
        deadline_order: whether what can no longer be on time is served last; else in order of entry.
        others: source topics of further classes of events.
        of_class: whose events these are the routes of; empty for the first class.
        many: stages that give an event many results, by position in ``stages``.
        gathering: stages that gather, by position.
        most: results that this stage may give for an event; 0 where it gives one.
        fills: whether this stage gathers None in the place of a part that died.
        beside: stages with children that feed a sink, by position.
        entries: stages at which events of the class enter, by position.
    """

    pipeline: str
    prefix: str
    stage: str
    source: str
    sink: str
    stages: tuple[str, ...]
    arrows: tuple[tuple[int, int, bool], ...]
    ordered: tuple[str, ...]
    keys_in_order: bool
    slo_s: float
    on_expired: OnExpired
    version: bytes
    entry_time_header: str | None = None
    source_max_bytes: int | None = None
    sink_max_bytes: int | None = None
    server_budget_s: float = 0.0
    deadline_order: bool = True
    others: tuple[ClassTopic, ...] = ()
    of_class: str = ""
    many: tuple[int, ...] = ()
    gathering: tuple[int, ...] = ()
    most: int = 0
    fills: bool = False
    beside: tuple[int, ...] = ()
    entries: tuple[int, ...] = ()

    @cached_property
    def classes(self) -> tuple[Routes, ...]:
        """The routes of every class of events: their places are the numbers of the classes."""
        entry = self.is_entry
        others = (
            msgspec.structs.replace(
                self,
                source=topic.name,
                of_class=topic.name,
                slo_s=self.slo_s if topic.slo_s is None else topic.slo_s,
                entry_time_header=topic.timestamp_header if entry else None,
                source_max_bytes=topic.max_bytes if entry else None,
                entries=topic.entries,
            )
            for topic in self.others
        )
        return (self, *others)

    def place(self, partition: int) -> str:
        """Return topic and partition of a number that a dispatcher has for a partition."""
        return f"{self.classes[class_of(partition)].input_topic}/{partition % CLASS_STRIDE}"

    @cached_property
    def backgrounds(self) -> dict[int, ClassTopic]:
        """The classes of background events, by number."""
        return {number: topic for number, topic in enumerate(self.others, start=1) if topic.slo_s is None}

    @cached_property
    def moves(self) -> dict[Header, int]:
        """At an entry stage of the first class: headers of events that are of another class, and its number."""
        if self.of_class or not self.is_entry:
            return {}
        numbered = enumerate(self.others, start=1)
        return {(of.header[0], of.header[1].encode()): number for number, of in numbered if of.header is not None}

    @cached_property
    def live_topics(self) -> dict[str, float]:
        """Source topic of each live class, and its SLO in seconds; empty where there is one."""
        further = {topic.name: topic.slo_s for topic in self.others if topic.slo_s is not None}
        return {self.source: self.slo_s, **further} if further else {}

    @cached_property
    def shortest_slo_s(self) -> float:
        """Of any live class: so long may a batch take, and the rest of its way."""
        return min([self.slo_s, *self.live_topics.values()])

    @cached_property
    def names(self) -> Names:
        """Names in Kafka."""
        return Names(self.pipeline, self.prefix)

    @cached_property
    def shape(self) -> Shape:
        """The pipeline's DAG."""
        arrows = (Arrow(*arrow, arrow[1] in self.gathering) for arrow in self.arrows)
        return Shape(self.stages, tuple(arrows), self.many, self.beside)

    @cached_property
    def parents(self) -> tuple[str, ...]:
        """The stage's parents, in the order of their edges."""
        at = self.stages.index(self.stage)
        return tuple(self.stages[parent] for parent, child, _ in self.arrows if child == at)

    @cached_property
    def heard(self) -> tuple[str, ...]:
        """The parents that events of the class may come to: a join waits for these."""
        reached = self.shape.downstream(*self.entries)
        return tuple(parent for parent in self.parents if self.stages.index(parent) in reached)

    @cached_property
    def children(self) -> tuple[str, ...]:
        """The stage's children in topological order; an edge's position here is its bit in `frames.Done.edges`."""
        at = self.stages.index(self.stage)
        return tuple(self.stages[child] for parent, child, _ in self.arrows if parent == at)

    @cached_property
    def is_entry(self) -> bool:
        """Whether the stage reads the source topic."""
        return not self.parents

    @cached_property
    def is_join(self) -> bool:
        """Whether parts of an event wait for each other in the stage: of several parents, or gathered."""
        return self.stage in self.joins

    @cached_property
    def gathers(self) -> bool:
        """Whether the stage gathers the many results of an event."""
        return self.stages.index(self.stage) in self.gathering

    @cached_property
    def gatherers(self) -> frozenset[str]:
        """Stages that gather."""
        return frozenset(self.stages[at] for at in self.gathering)

    @cached_property
    def finals(self) -> tuple[str, ...]:
        """Stages that feed a sink."""
        return tuple(self.stages[at] for at in self.shape.finals())

    @cached_property
    def ends_at(self) -> tuple[str, ...]:
        """Stages whose sinks get nothing of what ends here; none where a stage on the way waits for other parts."""
        scopes, at = self.shape.scopes(), self.stages.index(self.stage)
        after = self.shape.downstream(at).intersection(self.shape.finals())
        return tuple(self.stages[final] for final in sorted(after) if set(scopes[at]) <= set(scopes[final]))

    @cached_property
    def joins(self) -> frozenset[str]:
        """Stages in which parts of an event wait for each other."""
        return frozenset(self.stages[at] for at in self.shape.joins())

    @cached_property
    def key_is_fixed(self) -> bool:
        """Whether results have to keep their event's key: by it an ordered join meets parts that came another way."""
        at = self.stages.index(self.stage)
        after, beside = {at}, set[int]()
        for child in range(len(self.stages)):
            parents = {parent for parent, to, _ in self.arrows if to == child}
            if parents & after:
                after.add(child)
            if child != at and (not parents or parents & beside):
                beside.add(child)
        return any(self.stages.index(join) in after & beside for join in self.ordered)

    @cached_property
    def group(self) -> str:
        """The stage's consumer group."""
        return self.names.group(self.stage, self.of_class)

    @cached_property
    def input_topic(self) -> str:
        """The topic that the stage reads."""
        return self.topic_of(self.stage)

    @cached_property
    def sink_topic(self) -> str:
        """Full name of the topic that the stage's results go to; empty where they go to none."""
        return self.names.topic(self.sink) if self.sink else ""

    def topic_of(self, stage: str) -> str:
        """The topic that a stage reads: the source where events of the class enter, its own for all others."""
        entry = self.stages.index(stage) in self.entries
        return self.names.topic(self.source) if entry else self.names.stage_topic(stage, self.of_class)

    @cached_property
    def _follows(self) -> dict[int | None, Follow]:
        return {}

    def follow(self, edges: int | None) -> Follow:
        """What follows from a result that takes these edges (a bit each), or from having no result."""
        found = self._follows.get(edges)
        if found is None and edges is not None and edges >> len(self.children):
            return self.follow(edges & ((1 << len(self.children)) - 1))  # a replica may claim any number
        if found is None:
            taken = None if edges is None else [c for bit, c in enumerate(self.children) if edges >> bit & 1]
            found = self._follows[edges] = follow(self.shape, self.stage, taken)
        return found

    @cached_property
    def follow_none(self) -> Follow:
        """What follows where the stage, which gives many results, gives none."""
        return follow(self.shape, self.stage, None, empty=True)

    @cached_property
    def topics_written(self) -> tuple[str, ...]:
        """Every topic that the stage's dispatcher may write to for the class, control topics aside."""
        sends = (*self.follow(None).sends, *(self.follow_none.sends if self.most else ()))
        stages = {*self.children, *(send.stage for send in (*sends, *self.follow(0).sends))}
        topics = {self.topic_of(stage) for stage in stages} | ({self.sink_topic} if self.sink else set())
        topics |= {self.classes[number].input_topic for number in self.moves.values()}
        return (*sorted(topics), self.names.completed, self.names.dead_letters(self.input_topic))


def routes_of(pipeline: Pipeline, stage: str, prefix: str = "") -> Routes:
    """The routes of one stage of a valid pipeline.

    Raises:
        InvalidTopology: the pipeline has no such stage, or annotations cannot be resolved.
    """
    shape = shape_of(pipeline)
    declared = {each.name: each for each in pipeline.stages}
    if stage not in declared:
        raise InvalidTopology(f"pipeline {pipeline.name!r} has no stage {stage!r}; it has {', '.join(declared)}")
    if pipeline.on_expired not in ("process", "drop", "dlq"):
        raise InvalidTopology(f"on_expired={pipeline.on_expired!r}: use process, drop or dlq")
    try:
        version = version_value(structure_of(pipeline))
    except TypeError as error:
        raise InvalidTopology(f"stage {stage!r}: {error}") from error
    own, sink = declared[stage], pipeline.sinks.get(stage)

    def entries(topic: Topic) -> tuple[int, ...]:
        return tuple(at for at, name in enumerate(shape.stages) if pipeline.enters(declared[name], topic))

    return Routes(
        pipeline=pipeline.name,
        prefix=prefix,
        stage=stage,
        source=pipeline.source.name,
        sink="" if sink is None else sink.name,
        stages=shape.stages,
        arrows=tuple((arrow.parent, arrow.child, arrow.conditional) for arrow in shape.arrows),
        ordered=tuple(each.name for each in pipeline.stages if each.is_join and each.ordered),
        keys_in_order=keeps_order(own),
        slo_s=pipeline.slo_s,
        on_expired=cast("OnExpired", pipeline.on_expired),
        version=version,
        entry_time_header=pipeline.source.timestamp_header if not own.after else None,
        source_max_bytes=pipeline.source.max_bytes if not own.after else None,
        sink_max_bytes=None if sink is None else sink.max_bytes,
        server_budget_s=0.0 if own.server is None else own.server.budget_s,
        deadline_order=pipeline.order == "deadline",
        others=tuple(
            ClassTopic(
                topic.name,
                None if topic.background else duration_s(topic.slo or pipeline.slo),
                topic.weight,
                topic.rate,
                topic.timestamp_header,
                topic.max_bytes,
                entries(topic),
                topic.header,
            )
            for topic in pipeline.others
        ),
        many=shape.many,
        gathering=tuple(at for at in range(len(shape.stages)) if shape.gathers(at)),
        most=own.most if own.many else 0,
        fills=own.gathers is not None and own.gathers.fills,
        beside=shape.beside,
        entries=entries(pipeline.source),
    )


def every_route(pipeline: Pipeline, prefix: str = "") -> Mapping[str, Routes]:
    """The routes of every stage of a valid pipeline."""
    return {stage.name: routes_of(pipeline, stage.name, prefix) for stage in pipeline.stages}


def input_topics(pipeline: Pipeline, names: Names, stage: str) -> list[str]:
    """Return the topics that a stage reads, by class: a source where its events enter, its own for all others."""
    own, classes = pipeline.stage(stage), {"": pipeline.source} | {topic.name: topic for topic in pipeline.others}
    return [
        names.topic(topic.name) if pipeline.enters(own, topic) else names.stage_topic(stage, of)
        for of, topic in classes.items()
    ]
