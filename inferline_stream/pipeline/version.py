"""Which topology wrote a record, and whether another one can take over what is under way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from inferline_stream.pipeline.annotations import types_of
from inferline_stream.pipeline.topology import Codec, Pipeline

DRAIN_FIRST = (
    "end the running pipeline first: Ctrl-C on its `run`, or SIGTERM, drains what is under way; then run the new one"
)
"""What to do about a change that a running pipeline cannot take."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What records between stages depend on; a stage's code may change without it.

    Args:
        source: topic and codec.
        sinks: topic and codec, by stage that feeds one.
        formats: of each stage's results on the way to the next.
        edges: by stage, its parents; whether the edge is conditional.
        ordered: joins that keep the order of a key.
        others: source topics of further classes of events. What a record holds does not depend on them.
        many: stages that give an event many results.
        gathers: by stage that gathers, the parent whose results it gets.
        own_sources: topic and codec, by entry stage with a source of its own.
    """

    source: tuple[str, str]
    sinks: Mapping[str, tuple[str, str]]
    formats: Mapping[str, str]
    edges: Mapping[str, Mapping[str, bool]]
    ordered: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    gathers: Mapping[str, str] = field(default_factory=dict)
    own_sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[str, ...]:
        """The stages that read a source topic."""
        return tuple(stage for stage, parents in self.edges.items() if not parents)

    def class_of(self, topic: str) -> str:
        """Return the class of a source topic's events."""
        return "" if topic == self.source[0] else topic

    def readers(self, topic: str) -> tuple[str, ...]:
        """Return the stages at which events of a source topic enter."""
        own = {stage: source for stage, (source, _) in self.own_sources.items()}
        if topic in own.values():
            return tuple(stage for stage, source in own.items() if source == topic)
        listed = topic == self.source[0] or topic in self.others
        return tuple(stage for stage in self.entries if listed and stage not in own)

    def read_by(self, stage: str, of_class: str = "") -> str | None:
        """Return the source topic that a stage reads events of a class from; empty where other stages send it those.

        None where there is no such stage or class.
        """
        if stage not in self.edges or of_class not in ("", *self.others):
            return None
        topic = of_class or self.source[0]
        return topic if stage in self.readers(topic) else ""

    @property
    def version(self) -> str:
        """Eight digits that differ where anything of it does that records depend on."""
        canonical = json.dumps(asdict(replace(self, others=())), sort_keys=True).encode()
        return hashlib.blake2s(canonical, digest_size=4).hexdigest()


def structure_of(pipeline: Pipeline) -> Structure:
    """The structure of a valid pipeline.

    Raises:
        TypeError: a stage's annotations cannot be resolved.
    """
    source = pipeline.source
    return Structure(
        source=(source.name, _name(source.codec)),
        sinks={stage: (sink.name, _name(sink.codec)) for stage, sink in pipeline.sinks.items()},
        formats={stage.name: format_between(types_of(stage).returns) for stage in pipeline.stages},
        edges={
            stage.name: {edge.parent.name: edge.condition is not None for edge in stage.after}
            for stage in pipeline.stages
        },
        ordered=tuple(sorted(stage.name for stage in pipeline.stages if stage.ordered and stage.is_join)),
        others=tuple(topic.name for topic in pipeline.others),
        many=tuple(sorted(stage.name for stage in pipeline.stages if stage.many)),
        gathers={stage.name: edge.parent.name for stage in pipeline.stages if (edge := stage.gathers) is not None},
        own_sources={stage: (own.name, _name(own.codec)) for stage, own in pipeline.own_sources.items()},
    )


def format_between(returns: Any) -> str:
    """Name of the codec for a stage's results on the way to the next: bytes as they are, all else JSON."""
    return "raw" if returns is bytes else "json"


def incompatibilities(running: Structure, wanted: Structure) -> list[str]:
    """Why records that are under way in one topology cannot go on in another; none where only code has changed.

    Each reason says what has changed; `DRAIN_FIRST` says what to do.
    """
    found = []
    if running.source != wanted.source:
        found.append(f"the source was {_topic(running.source)} and is {_topic(wanted.source)}")
    for what, old, new in (
        ("sink", running.sinks, wanted.sinks),
        ("source", running.own_sources, wanted.own_sources),
    ):
        for stage in {**old, **new}:
            was, is_ = _topic(old.get(stage)), _topic(new.get(stage))
            if was != is_:
                found.append(f"the {what} of stage {stage} was {was} and is {is_}")
    if running.others != wanted.others:
        was, is_ = _names(running.others), _names(wanted.others)
        found.append(f"the further source topics were {was} and are {is_}")
    before, now = running.edges, wanted.edges
    found += [
        f"stage {stage} is gone: what waits for it would never be processed" for stage in before if stage not in now
    ]
    found += [
        f"stage {stage} is new: events that are past its parents would miss it" for stage in now if stage not in before
    ]
    for stage in now:
        if stage not in before:
            continue
        parents, wanted_parents = before[stage], now[stage]
        if parents.keys() != wanted_parents.keys():
            found.append(
                f"stage {stage} came after {_names(parents)} and comes after {_names(wanted_parents)}: "
                "events that are under way would wait for parents they never meet"
            )
        elif parents != wanted_parents:
            changed = [parent for parent in parents if parents[parent] != wanted_parents[parent]]
            found.append(f"the edge from {_names(changed)} to {stage} is not as conditional as it was")
        if (stage in running.ordered) != (stage in wanted.ordered):
            found.append(f"stage {stage} puts the parts of an event together elsewhere, ordered or not as it was")
        if (stage in running.many) != (stage in wanted.many):
            found.append(f"stage {stage} gives an event many results, or one, other than it did")
        if running.gathers.get(stage) != wanted.gathers.get(stage):
            found.append(f"stage {stage} gathers results, or does not, other than it did")
        if running.formats[stage] != wanted.formats[stage]:
            found.append(f"results of stage {stage} were {running.formats[stage]} and are {wanted.formats[stage]}")
    return found


def _name(codec: str | Codec) -> str:
    return codec.name if isinstance(codec, Codec) else codec


def _topic(end: tuple[str, str] | None) -> str:
    return "not its own" if end is None else f"topic {end[0]} ({end[1]})"


def _names(stages: Any) -> str:
    return ", ".join(sorted(stages)) or "nothing"
