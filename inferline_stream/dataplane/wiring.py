"""One stage of a pipeline as its replica sees it: topics, formats, and the arrows in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from inferline_stream.dataplane.codecs import Decode, Encode, codec
from inferline_stream.dataplane.headers import version_value
from inferline_stream.dataplane.routing import Follow, follow
from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.annotations import join_fields, types_of
from inferline_stream.pipeline.codec import Codec
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import Shape, shape_of
from inferline_stream.pipeline.topology import Pipeline, Stage
from inferline_stream.pipeline.version import format_between, structure_of

Condition = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Arrow:
    """An arrow to a child: taken by every result, or by those for which the condition holds."""

    child: str
    condition: Condition | None


class Wiring:
    """What a replica must know of the pipeline around its stage.

    Args:
        pipeline: a valid pipeline.
        stage: name of the replica's stage.
        prefix: of every topic and group.

    Raises:
        InvalidTopology: the pipeline has no such stage, a codec is unknown, or annotations cannot be resolved.
    """

    def __init__(self, pipeline: Pipeline, stage: str, prefix: str = "") -> None:
        try:
            self.stage: Stage = pipeline.stage(stage)
        except KeyError:
            known = ", ".join(s.name for s in pipeline.stages)
            raise InvalidTopology(f"pipeline {pipeline.name!r} has no stage {stage!r}; it has {known}") from None
        if pipeline.on_expired not in ("process", "drop", "dlq"):
            raise InvalidTopology(f"on_expired={pipeline.on_expired!r}: use process, drop or dlq")
        self.pipeline = pipeline
        self.names = Names(pipeline.name, prefix)
        self.shape: Shape = shape_of(pipeline)
        self.group = self.names.group(stage)
        self.input_topic = input_topic(pipeline, self.names, stage)
        self.sink_topic = self.names.topic(pipeline.sink.name)
        self.entry_time_header = pipeline.source.timestamp_header
        self.parents: tuple[str, ...] = tuple(edge.parent.name for edge in self.stage.after)
        self.is_entry = not self.parents
        self.is_join = len(self.parents) > 1
        self.arrows: tuple[Arrow, ...] = tuple(
            Arrow(child.name, edge.condition)
            for child in pipeline.stages
            for edge in child.after
            if edge.parent is self.stage
        )
        self.is_final = not self.arrows
        self.ordered = frozenset(stage.name for stage in pipeline.stages if stage.ordered)
        self.joins = frozenset(self.shape.stages[at] for at in self.shape.joins())
        self._follows: dict[frozenset[str] | None, Follow] = {}
        try:
            self.takes = types_of(self.stage).takes
            self.encode: Encode = codec(self._result_codec()).encode
            self.decoders: Mapping[str | None, Decode] = self._decoders()
            self.version = version_value(structure_of(pipeline))
        except TypeError as error:
            raise InvalidTopology(f"stage {stage!r}: {error}") from error

    def follow(self, taken: frozenset[str] | None) -> Follow:
        """What follows from a result that takes these arrows, or from there being none."""
        found = self._follows.get(taken)
        if found is None:
            found = self._follows[taken] = follow(self.shape, self.stage.name, taken)
        return found

    def topic_of(self, stage: str) -> str:
        """Input topic of another stage."""
        return input_topic(self.pipeline, self.names, stage)

    def taken(self, result: Any) -> frozenset[str]:
        """Children that a result goes to. Whatever a condition raises is passed on."""
        if self._unconditional is not None:
            return self._unconditional
        return frozenset(a.child for a in self.arrows if a.condition is None or a.condition(result))

    def join_input(self, results: Mapping[str, Any]) -> Any:
        """The join's event: one field per parent, None where the branch was not taken."""
        values = {field: results.get(parent) for field, parent in self._join_fields}
        return values if self.takes is Any else self.takes(**values)

    @cached_property
    def _unconditional(self) -> frozenset[str] | None:
        if any(arrow.condition for arrow in self.arrows):
            return None
        return frozenset(arrow.child for arrow in self.arrows)

    @cached_property
    def _join_fields(self) -> Sequence[tuple[str, str]]:
        """(field, parent): the field whose encoded name is the parent's."""
        if self.takes is Any:
            return [(parent, parent) for parent in self.parents]
        named = {field.encode_name: field.name for field in msgspec.structs.fields(self.takes)}
        missing = [parent for parent in self.parents if parent not in named]
        if missing:
            raise TypeError(f"its input {self.takes.__qualname__} has no field for {', '.join(missing)}; add one each")
        return [(named[parent], parent) for parent in self.parents]

    def _result_codec(self) -> str | Codec:
        return self.pipeline.sink.codec if self.is_final else format_between(types_of(self.stage).returns)

    def _decoders(self) -> dict[str | None, Decode]:
        """By parent; the only decoder of a stage that is no join has key None."""
        if self.is_entry:
            return {None: codec(self.pipeline.source.codec).decoder(self.takes)}
        formats = {edge.parent.name: codec(format_between(types_of(edge.parent).returns)) for edge in self.stage.after}
        if not self.is_join:
            return {None: formats[self.parents[0]].decoder(self.takes)}
        fields = join_fields(self.takes) if self.takes is not Any else {}
        if fields is None:
            raise TypeError("a join's input must be a msgspec Struct with one field per parent")
        assert self._join_fields
        return {parent: formats[parent].decoder(fields.get(parent, Any)) for parent in self.parents}


def input_topic(pipeline: Pipeline, names: Names, stage: str) -> str:
    """The topic that a stage reads: the source for entry stages, its own for all others."""
    return names.stage_topic(stage) if pipeline.stage(stage).after else names.topic(pipeline.source.name)
