"""Classes of events: live ones, and background ones of a topic of their own, which use what live ones leave idle.

A class has its own source topic, topics between stages and consumer groups, so that no live record lies behind a
background one. A stage's dispatchers serve every class by one pool: the live one is class 0, the others follow in the
order of the declaration. To number the partitions of all classes of a stage, a dispatcher adds `CLASS_STRIDE` for each
class before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline, Topic

CLASS_STRIDE = 1_000_000
"""No topic has so many partitions."""

_LONGEST_NAME = 229
"""Of an inner topic without a pipeline's prefix: with it and with `.dlq` it has to fit into Kafka's 249 characters."""


def class_of(partition: int) -> int:
    """Return the class of a partition, as dispatchers number them."""
    return partition // CLASS_STRIDE


def numbered(class_number: int, partitions: Collection[int]) -> list[int]:
    """Return partitions of a class's topic as dispatchers number them."""
    return [class_number * CLASS_STRIDE + partition for partition in partitions]


def problems_of_classes(pipeline: Pipeline) -> Iterator[str]:
    """Yield what is wrong with the classes of a declared pipeline, each with the remedy."""
    sources = [source for source in pipeline.sources if isinstance(source, Topic)]
    if not pipeline.sources:
        yield 'source lists no topic; write Topic("source")'
    live = [source for source in sources if not source.background]
    if sources and not live:
        yield (
            f"source has background topics only ({_names(sources)}); leave background out at the one that the pipeline "
            "is planned for"
        )
    elif len(live) > 1:
        yield (
            f"source lists {len(live)} live topics ({_names(live)}), and a pipeline has one; write background=True at "
            "those that can wait, or declare a pipeline for each"
        )
    for name, times in Counter(source.name for source in sources).items():
        if times > 1:
            yield f"source topic {name!r} is listed {times} times; list it once"
    for source in sources:
        if not isinstance(source.background, bool):
            yield f"source topic {source.name!r}: background {source.background!r} must be True or False"
        elif source.background:
            yield from _of_background(source, pipeline)
        elif source.weight != 1.0:
            yield f"source topic {source.name!r}: weight is of background topics; leave it out"
    if isinstance(pipeline.sink, Topic) and pipeline.sink.background:
        yield f"sink topic {pipeline.sink.name!r}: background is of a source; results of all classes go to one sink"


def _of_background(source: Topic, pipeline: Pipeline) -> Iterator[str]:
    live, name = pipeline.source, str(source.name)
    if source.codec != live.codec:
        yield (
            f"source topic {name!r} has the codec {source.codec!r} and {live.name!r} {live.codec!r}; stages read one: "
            "give both the same"
        )
    weight: Any = source.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        yield f"source topic {name!r}: weight {weight!r} must be a number above 0"
    if source.arrivals != "offsets":
        yield f"source topic {name!r}: arrivals are counted of the live topic alone; leave it out"
    if name == "dlq" or name.endswith(".dlq"):
        yield f"source topic {name!r}: topics between stages would be called like those of dead letters; rename it"
    inner = [Names(str(pipeline.name)).stage_topic(str(stage.name), name) for stage in pipeline.stages]
    longest = max(inner, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        yield f"topic {longest!r} between stages is longer than {_LONGEST_NAME} characters; rename topic {name!r}"


def _names(topics: list[Topic]) -> str:
    found: list[Any] = [topic.name for topic in topics]
    return ", ".join(map(repr, found))
