"""Classes of events, each with a topic of its own: live ones with an SLO, and background ones, which use what is idle.

A class has its own source topic, topics between stages and consumer groups, so that no record of one lies behind one of
another. A stage's dispatchers serve every class by one pool. The first class has the pipeline's own SLO, the others
follow in the order of the declaration. To number the partitions of all classes of a stage, a dispatcher adds
`CLASS_STRIDE` for each class before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from inferline_stream.pipeline.live_classes import MOST_CLASSES
from inferline_stream.pipeline.names import HEADER_PREFIX, Names
from inferline_stream.pipeline.topology import Pipeline, Topic
from inferline_stream.pipeline.units import duration_s, moment_s

CLASS_STRIDE = 1_000_000
"""No topic has so many partitions."""

BACKGROUND_MARGIN = 1.1
"""So much faster than it has to be is what should be done by a time: what live events leave comes and goes."""

BACKLOG_S = 30.0
"""Fewer background events than would be served in so long may be all that came: they are not behind."""

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
    every = [source for source in pipeline.sources if isinstance(source, Topic)]
    sources = [source for source in pipeline.listed if isinstance(source, Topic)]
    if not pipeline.sources:
        yield 'source lists no topic; write Topic("source")'
    live = [source for source in sources if not source.background]
    first = [source for source in live if source.slo is None]
    if sources and not live:
        yield (
            f"source has background topics only ({_names(sources)}); leave background out at the one that the pipeline "
            "is planned for"
        )
    elif live and not first:
        yield f"each live source topic ({_names(live)}) has a slo; leave it out at the one that has the pipeline's"
    elif len(first) > 1:
        yield (
            f"source lists {len(first)} live topics without a slo ({_names(first)}), and one has the pipeline's; write "
            "background=True at those that can wait, or slo=... at those with another one"
        )
    elif (count := sum(not source.background for source in every)) > MOST_CLASSES:
        yield f"{count} live source topics, {MOST_CLASSES} are supported; declare a pipeline for the others"
    for name, times in Counter(source.name for source in every if isinstance(source.name, str)).items():
        if times > 1:
            yield f"source topic {name!r} is listed {times} times; list it once"
    moved = [source for source in sources if source.header is not None]
    for header, times in Counter(repr(source.header) for source in moved).items():
        if times > 1:
            yield f"header {header} is of {times} source topics; an event is moved to one"
    if moved and pipeline.own_sources:
        yield (
            f"events are moved to {_names(moved)} by a header, which is not supported where stages have sources of "
            "their own; leave header out"
        )
    shares = [source.share for source in live if source.share is not None and _is_share(source.share)]
    if sum(shares) >= 1.0:
        yield f"source topics have shares {shares}; all together must be below 1, the rest is the first topic's"
    for source in sources:
        if not isinstance(source.background, bool):
            yield f"source topic {source.name!r}: background {source.background!r} must be True or False"
        elif source.background:
            yield from _of_background(source)
        else:
            yield from _of_live(source)
    for source in moved:
        if not _is_header(source.header):
            yield (
                f"source topic {source.name!r}: header {source.header!r} must be a name and a value, such as "
                f"('priority', 'batch'); no name begins with {HEADER_PREFIX!r}"
            )
    for source in every:
        if source is not pipeline.source:
            yield from _of_further(source, pipeline)


def _of_live(source: Topic) -> Iterator[str]:
    name: Any = source.name
    for of_background, default in (("weight", 1.0), ("rate", 0.0), ("finish_by", None)):
        if getattr(source, of_background) != default:
            yield f"source topic {name!r}: {of_background} is of background topics; leave it out"
    if source.slo is None:
        for of_further in ("share", "header"):
            if (given := getattr(source, of_further)) is not None:
                yield (
                    f"source topic {name!r}: {of_further} {given!r} is for further topics; this one has all other "
                    f"events: leave {of_further} out"
                )
        return
    try:
        slo_s = duration_s(source.slo)
        if slo_s <= 0:
            yield f"source topic {name!r}: slo {source.slo!r} must be above 0"
    except ValueError as error:
        yield f"source topic {name!r}: slo {error}"
    if source.share is not None and not _is_share(source.share):
        yield f"source topic {name!r}: share {source.share!r} must be a number above 0 and below 1"


def _of_background(source: Topic) -> Iterator[str]:
    name: Any = source.name
    if source.slo is not None or source.share is not None:
        what = "slo" if source.slo is not None else "share"
        yield f"source topic {name!r}: background events have no {what}; leave it or background out"
    weight, rate = source.weight, source.rate
    if not _is_number(weight) or not 0 < weight < math.inf:
        yield f"source topic {name!r}: weight {weight!r} must be a number above 0"
    if not _is_number(rate) or not 0 <= rate < math.inf:
        yield f"source topic {name!r}: rate {rate!r} must be a number of events per second"
    if source.finish_by is not None:
        try:
            moment_s(source.finish_by)
        except ValueError as error:
            yield f"source topic {name!r}: finish_by {error}"


def _of_further(source: Topic, pipeline: Pipeline) -> Iterator[str]:
    first, name = pipeline.source, str(source.name)
    if source.codec != first.codec and source in pipeline.listed:
        yield (
            f"source topic {name!r} has the codec {source.codec!r} and {first.name!r} {first.codec!r}; stages read "
            "one: give both the same"
        )
    if source.arrivals != "offsets":
        yield (
            f"source topic {name!r}: arrivals {source.arrivals!r} is for {first.name!r}, and holds for all of them: "
            "leave arrivals out here"
        )
    if name == "dlq" or name.endswith(".dlq"):
        yield f"source topic {name!r}: topics between stages would be called like those of dead letters; rename it"
    inner = [Names(str(pipeline.name)).stage_topic(str(stage.name), name) for stage in pipeline.stages]
    longest = max(inner, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        yield f"topic {longest!r} between stages is longer than {_LONGEST_NAME} characters; rename topic {name!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_header(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, str) and each for each in value)
    return is_pair and not value[0].startswith(HEADER_PREFIX)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _names(topics: list[Topic]) -> str:
    found: list[Any] = [topic.name for topic in topics]
    return ", ".join(map(repr, found))
