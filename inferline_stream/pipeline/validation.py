"""Every mistake of a declared pipeline at once, each with the file, the stage and the remedy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from inferline_stream.errors import InvalidTopology
from inferline_stream.pipeline.annotations import (
    StageTypes,
    accepts,
    check_code_name,
    condition_type,
    describe,
    join_fields,
    types_of,
    without_none,
)
from inferline_stream.pipeline.emulation import Emulated, by_kind, declared_times, emulated_s
from inferline_stream.pipeline.end_topics import problems_of_sinks, problems_of_sources
from inferline_stream.pipeline.event_classes import CLASS_STRIDE, problems_of_classes
from inferline_stream.pipeline.fallback_declaration import problems_of_fallbacks
from inferline_stream.pipeline.group_declaration import problems_of_groups
from inferline_stream.pipeline.hardware import (
    EMULATED_PREFIX,
    MOST_REPLICAS,
    SHARING_LABEL,
    Catalogue,
    Hardware,
    catalogue,
    divided,
)
from inferline_stream.pipeline.idle import problems_of_idle
from inferline_stream.pipeline.isolation import LEVELS, RUNTIME_CLASSES, Isolation, no_level
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.names import Names, nearest, problems_of_name
from inferline_stream.pipeline.schedule import problems_of_schedule
from inferline_stream.pipeline.shape import find_cycle, maybe_missing, shape_of, topological
from inferline_stream.pipeline.spot import is_spot, on_demand
from inferline_stream.pipeline.topology import (
    MOST_IN_HAND,
    MOST_RESULTS,
    ORDERS,
    Codec,
    Edge,
    Pipeline,
    Sample,
    Stage,
    Topic,
    is_asynchronous,
)
from inferline_stream.pipeline.units import is_whole
from inferline_stream.pipeline.version import format_between

CODECS = ("json", "msgpack", "raw")

LEAST_SLO_WINDOW_S = 60.0
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_LONGEST_TOPIC = 230  # leaves room for a prefix and `.dlq`


def problems(pipeline: Pipeline) -> tuple[str, ...]:
    """Everything that must be corrected before the pipeline can run, ``file:line: what; remedy`` each.

    Looks at the declaration alone: whether files exist and stages can be constructed is not known here.
    """
    listed: dict[int, Stage] = {id(stage): stage for stage in pipeline.stages if isinstance(stage, Stage)}
    stages = list(listed.values())
    found = [f"{pipeline.declared}: {problem}" for problem in _of_pipeline(pipeline, stages)]
    for stage in stages:
        kinds = catalogue(kind for kind in pipeline.hardware if isinstance(kind, Hardware))
        for problem in (*_of_stage(stage, kinds), *_of_parents(stage, listed)):
            found.append(f"{stage.declared}: stage {stage.name!r}: {problem}")
    if pipeline.groups:
        return (*found, *problems_of_groups(pipeline))
    found += problems_of_fallbacks(pipeline)
    if not all(isinstance(stage.name, str) for stage in stages):
        return tuple(found)  # what follows looks stages up by their names
    # Types are compared only along edges that lead from stage to stage.
    found += _of_types(stages, pipeline)
    return tuple(found)


def validated(pipeline: Pipeline) -> Pipeline:
    """The pipeline itself, once it is known to be sound.

    Raises:
        InvalidTopology: it is not; carries all problems.
    """
    found = problems(pipeline)
    if found:
        raise InvalidTopology(*found)
    return pipeline


def _of_pipeline(pipeline: Pipeline, stages: Sequence[Stage]) -> Iterator[str]:
    yield from problems_of_name(pipeline.name, "pipeline")
    try:
        if pipeline.slo_s <= 0:
            yield f"SLO {pipeline.slo!r} must be above 0"
    except ValueError as error:
        yield f"SLO {error}"
    try:
        if pipeline.slo_window_s < LEAST_SLO_WINDOW_S:
            yield f"slo_window {pipeline.slo_window!r} must be a minute or more: shorter ones hold too few events"
    except ValueError as error:
        yield f"slo_window {error}"
    objective: Any = pipeline.objective
    if isinstance(objective, bool) or not isinstance(objective, int | float) or not 0 < objective < 1:
        yield f"objective {objective!r} must lie between 0 and 1, e.g. 0.99 for a P99 within the SLO"
    if pipeline.order not in ORDERS:
        yield f"order {pipeline.order!r} is none; use {' or '.join(map(repr, ORDERS))}"
    yield from problems_of_idle(pipeline)
    yield from problems_of_schedule(pipeline.schedule, pipeline.zone)
    yield from _of_own_hardware(pipeline.hardware)
    if pipeline.groups:
        return
    yield from _of_topics(pipeline)
    yield from problems_of_sinks(pipeline, stages)
    yield from problems_of_sources(pipeline, stages)
    sample: Any = pipeline.sample
    if sample is not None and not isinstance(sample, Sample):
        yield f'sample {sample!r} is no Sample; write Sample(arrivals="arrivals.csv", events="events.jsonl")'
    elif sample is not None and not (sample.key is None or (isinstance(sample.key, str) and sample.key)):
        yield f'sample key {sample.key!r} must be the name of a field of its events, e.g. key="user"'
    yield from _of_stage_list(pipeline.stages)
    if cycle := find_cycle(stages, lambda stage: [e.parent for e in _edges(stage) if isinstance(e.parent, Stage)]):
        yield f"stages form a cycle: {' → '.join(stage.name for stage in cycle)}; remove one of these edges"


def _of_stage_list(stages: Sequence[Any]) -> Iterator[str]:
    if not stages:
        yield "has no stages; list them in stages=[...]"
    for stray in (stage for stage in stages if not isinstance(stage, Stage)):
        yield f"stages holds {stray!r}, which is no Stage"
    objects = [stage for stage in stages if isinstance(stage, Stage)]
    for ident, times in Counter(map(id, objects)).items():
        if times > 1:
            name = next(stage.name for stage in objects if id(stage) == ident)
            yield f"stage {name!r} is listed {times} times; list it once"
    distinct = {id(stage): stage for stage in objects}.values()
    names = Counter(stage.name for stage in distinct if isinstance(stage.name, str))
    for name, times in names.items():
        if times > 1:
            yield f"{times} stages are called {name!r}; give each a name of its own"


def _of_topics(pipeline: Pipeline) -> Iterator[str]:
    names = Names(str(pipeline.name))
    own = names.own | {names.stage_topic(str(getattr(stage, "name", ""))) for stage in pipeline.stages}
    yield from problems_of_classes(pipeline)
    sinks = [sink for sink in (pipeline.sink, *(getattr(stage, "sink", None) for stage in pipeline.stages)) if sink]
    end: Any
    for role, end in (*(("source", source) for source in pipeline.sources), *(("sink", sink) for sink in sinks)):
        if not isinstance(end, Topic):
            yield f'{role} {end!r} is no Topic; write Topic("{end if isinstance(end, str) else role}")'
            continue
        name: Any = end.name
        if not isinstance(name, str) or not _TOPIC.fullmatch(name) or set(name) == {"."} or len(name) > _LONGEST_TOPIC:
            remedy = f"use letters, digits, '.', '_' and '-', at most {_LONGEST_TOPIC}"
            yield f"{role} topic {name!r} is no name for a Kafka topic: {remedy}"
        elif name in own:
            yield f"{role} topic {name!r} is a name that the pipeline uses itself; rename it"
        if not isinstance(end.codec, Codec) and end.codec not in CODECS:
            yield f"{role} topic {name!r}: unknown codec {end.codec!r}{nearest(end.codec, CODECS)}"
        numbers = (("max_bytes", end.max_bytes, 2**31 - 1), ("partitions", end.partitions, CLASS_STRIDE))
        for what, given, most in numbers:
            if given is not None and not is_whole(given, 1, most):
                yield f"{role} topic {name!r}: {what} {given!r} must be a whole number, 1 to {most}"
        if end.arrivals not in ("offsets", "timestamps"):
            yield f"{role} topic {name!r}: arrivals {end.arrivals!r} must be 'offsets' or 'timestamps'"
        header: Any = end.timestamp_header
        if header is not None and not (isinstance(header, str) and header):
            yield f"{role} topic {name!r}: timestamp_header {header!r} must be the name of a header"
    fed = [sink.name for sink in sinks if isinstance(sink, Topic)]
    for source in pipeline.sources:
        if isinstance(source, Topic) and source.name in fed:
            yield f"source and sink are both topic {source.name!r}; results would come back as events"


def _of_own_hardware(kinds: Sequence[Any]) -> Iterator[str]:
    for stray in (kind for kind in kinds if not isinstance(kind, Hardware)):
        yield f'hardware holds {stray!r}, which is no Hardware; write Hardware("name", price_per_hour=...)'
    for name, times in Counter(kind.name for kind in kinds if isinstance(kind, Hardware)).items():
        if times > 1:
            yield f"hardware {name!r} is declared {times} times; declare it once"


def _of_server(stage: Stage) -> Iterator[str]:
    if not isinstance(stage.server, ModelServer):
        return  # reported with its types, which it has none of
    if stage.run is not None:
        yield "has code and a server; a server gives the results in place of code: leave one of them out"
    yield from stage.server.problems()
    level = stage.isolation.level if isinstance(stage.isolation, Isolation) else stage.isolation
    if stage.server.command and level != "none":
        yield "a server that replicas start needs isolation='none': a sealed process starts no other program"
    if stage.server.command and isinstance(stage.isolation, Isolation) and stage.isolation.forked:
        yield "a server that replicas start cannot be shared by a fork: leave isolation's forked=True out"


def _of_stage(stage: Stage, kinds: Catalogue) -> Iterator[str]:
    yield from problems_of_name(stage.name, "stage")
    bounds = (("max_batch_size", 1, MOST_IN_HAND), ("most", 1, MOST_RESULTS), ("standby", 0, MOST_REPLICAS))
    for argument, least, most in bounds:
        if not is_whole(value := getattr(stage, argument), least, most):
            yield f"{argument} {value!r} must be a whole number, {least} to {most}"
    at_once = stage.concurrency
    waits = isinstance(stage.run, str) or stage.server is not None or is_asynchronous(stage.run)
    if at_once is not None and not is_whole(at_once, 1, MOST_IN_HAND):
        yield f"concurrency {at_once!r} must be a whole number, 1 to {MOST_IN_HAND}"
    elif at_once is not None and at_once > 1 and not waits:
        yield f"concurrency {at_once} needs `async def`: a plain function runs one batch at a time"
    if stage.ordered not in (None, True, False):
        yield f"ordered {stage.ordered!r} must be True, False or None"
    if stage.many not in (True, False):
        yield f"many {stage.many!r} must be True or False"
    yield from problems_of_idle(stage)
    if stage.server is not None:
        yield from _of_server(stage)
    try:
        types_of(stage)
    except TypeError as error:
        yield str(error)
    if not isinstance(stage.run, str) and (stage.takes is not None or stage.returns is not None):
        yield "takes= and returns= are for code given by name; annotate the function, remove them here"
    if not stage.hardware:
        yield 'has no hardware; name at least one kind, e.g. hardware=["cpu-1"]'
    for kind in stage.hardware:
        if isinstance(kind, Hardware):
            yield f"hardware {kind.name!r} is given as an object; give its name here, the object to Pipeline(hardware=)"
        elif not isinstance(kind, str):
            yield f"hardware {kind!r} is not the name of a hardware kind; write one such as 'cpu-1'"
        elif is_spot(kind) and kind in kinds and on_demand(kind) not in stage.hardware:
            yield f"hardware {kind!r} may be taken away: add {on_demand(kind)!r}, which takes over then"
        elif kind not in kinds:
            yield f"unknown hardware {kind!r}{nearest(kind, kinds)}"
    cost: Any = stage.cost
    if cost is not None and not isinstance(cost, str) and not callable(cost):
        yield f"cost {cost!r} is neither a function of one event nor the name of one"
    elif isinstance(cost, str):
        try:
            check_code_name(cost)
        except TypeError as error:
            yield f"cost: {error}"
    yield from _of_emulation(stage, kinds)
    isolation: Any = stage.isolation
    if isinstance(isolation, str) and isolation in RUNTIME_CLASSES:
        yield no_level(isolation)
    elif isinstance(isolation, str) and isolation not in LEVELS:
        yield f"unknown isolation {isolation!r}{nearest(isolation, LEVELS)}"
    elif not isinstance(isolation, str | Isolation):
        yield f"isolation {isolation!r} is neither a level ({', '.join(LEVELS)}) nor an Isolation"
    elif (isolation.level if isinstance(isolation, Isolation) else isolation) != "none":
        for device in (kinds[name] for name in stage.hardware if name in kinds):
            if device.shares_gpu and device.by_mps:
                yield (
                    f"hardware {device.name!r} shares GPUs by MPS, and a sealed replica connects to no daemon: write "
                    f"isolation='none', or name nodes that have {SHARING_LABEL} time-slicing"
                )


def _of_emulation(stage: Stage, kinds: Catalogue) -> Iterator[str]:
    times: Any = declared_times(stage.emulated)
    if times is not None and not isinstance(times, Mapping):
        yield f'emulated {times!r} must be a mapping; give emulated={{1: "20ms", 8: "60ms"}}'
        return
    emulated = [kind for kind in stage.hardware if isinstance(kind, str) and kind.startswith(EMULATED_PREFIX)]
    if isinstance(stage.emulated, Emulated):
        yield from _of_emulated_variation(stage.emulated)
    said: set[str] = set()
    for kind in emulated:
        if kind in kinds:
            try:
                emulated_s(stage.emulated, kind)
            except ValueError as error:
                if str(error) not in said:  # one table for all kinds is wrong once
                    yield str(error)
                said.add(str(error))
    if by_kind(times):
        for declared in times or ():
            if declared not in (*stage.hardware, *(divided(kind)[0] for kind in emulated)):
                near = nearest(declared, emulated)
                yield f"emulated service times for {declared!r}, which is not among its hardware{near}"
    elif times and not emulated:
        yield f"emulated service times, but none of its hardware {list(stage.hardware)} starts with {EMULATED_PREFIX!r}"


def _of_emulated_variation(emulated: Emulated) -> Iterator[str]:
    cv: Any = emulated.cv
    if isinstance(cv, bool) or not isinstance(cv, int | float) or not 0 <= cv < math.inf:
        yield f"emulated cv {cv!r} must be a number, 0 or more: σ²/µ² of the times"
    if emulated.weight is not None and not callable(emulated.weight):
        yield f"emulated weight {emulated.weight!r} must be a function of one event"


def _of_parents(stage: Stage, listed: dict[int, Stage]) -> Iterator[str]:
    seen: set[int] = set()
    for entry in stage.after:
        edge = entry if isinstance(entry, Edge) else Edge(entry)
        parent: Any = edge.parent
        if not isinstance(parent, Stage):
            yield f"parent {parent!r} is no Stage; give the Stage object itself"
            continue
        if id(parent) not in listed:
            yield (
                f"parent {parent.name!r} ({parent.declared}) is not among the pipeline's stages; "
                "add it to stages=[...] or remove the edge"
            )
        if id(parent) in seen:
            yield f"parent {parent.name!r} is given twice; keep one edge"
        seen.add(id(parent))
        if not isinstance(entry, Edge):
            yield f"a bare stage was put into `after` later; put in Edge({parent.name})"
        if edge.condition is not None:
            yield from _of_condition(parent, edge.condition)


def _of_condition(parent: Stage, condition: Callable[[Any], bool] | str) -> Iterator[str]:
    try:
        judged = condition_type(condition)
    except TypeError as error:
        yield f"edge from {parent.name!r}: {error}"
        return
    returned = _types(parent).returns
    if not accepts(judged, returned):
        name = getattr(condition, "__name__", repr(condition))
        yield (
            f"edge from {parent.name!r}: condition {name} judges {describe(judged)}, but {parent.name!r} returns "
            f"{describe(returned)}"
        )


def _of_types(stages: Sequence[Stage], pipeline: Pipeline) -> Iterator[str]:
    """Results along every edge against what the next stage takes, and raw topics at the ends."""
    sound = [stage for stage in stages if all(_is_stage_edge(edge) for edge in stage.after)]
    order = topological(sound) if len(sound) == len(stages) else []
    listed, names = {id(stage) for stage in stages}, {stage.name for stage in stages}
    known = all(id(edge.parent) in listed for stage in sound for edge in stage.after)
    topics = all(isinstance(source, Topic) for source in pipeline.sources)
    if known and topics and len(order) == len(names) == len(pipeline.stages):
        try:
            shape_of(pipeline).scopes()
        except ValueError as error:
            yield f"{pipeline.declared}: {error}"
    for stage in stages:
        for problem in (*_of_input(stage, order), *_of_raw(stage, stages, pipeline)):
            yield f"{stage.declared}: stage {stage.name!r}: {problem}"


def _of_input(stage: Stage, order: Sequence[Stage]) -> Iterator[str]:
    parents = [edge.parent for edge in _edges(stage) if isinstance(edge.parent, Stage)]
    takes = _types(stage).takes
    if stage.gathers is not None:
        yield from _of_gather(stage, stage.gathers, takes)
    elif len(parents) == 1:
        returned = _types(parents[0]).returns
        if not accepts(takes, returned):
            yield (
                f"takes list[{describe(takes)}], but its parent {parents[0].name!r} returns "
                f"list[{describe(returned)}]; annotate both with the same type"
            )
    elif len(parents) > 1:
        yield from _of_join(stage, parents, takes, order)


def _of_gather(stage: Stage, edge: Edge, takes: Any) -> Iterator[str]:
    if len(stage.after) > 1:
        yield "gathers and joins; gather in a stage of its own, and join what that gives"
    if stage.ordered:
        yield "ordered=True where it gathers: results of an event may have several keys; leave it out"
    if not isinstance(edge.parent, Stage):
        return
    part = _types(edge.parent).returns
    given = list[part | None] if edge.fills else list[part]  # type: ignore[valid-type]
    if not accepts(takes, given):
        yield (
            f"takes list[{describe(takes)}] and gathers results of {edge.parent.name!r}, which are "
            f"{describe(given)} of each event; annotate list[{describe(given)}]"
        )


def _of_join(stage: Stage, parents: Sequence[Stage], takes: Any, order: Sequence[Stage]) -> Iterator[str]:
    if isinstance(stage.run, str) and takes is Any:
        return
    fields = join_fields(takes)
    if fields is None:
        names = ", ".join(parent.name for parent in parents)
        yield (
            f"joins {len(parents)} parents and takes list[{describe(takes)}]; a join takes a msgspec Struct with one "
            f"field per parent ({names})"
        )
        return
    # Where the order is unknown (a cycle, a foreign parent) nothing can be said about branches.
    known = all(any(stage is other for other in order) for stage in (stage, *parents))
    missing = maybe_missing(order, stage) if known else frozenset()
    for position, parent in enumerate(parents):
        if parent.name not in fields:
            yield f"{describe(takes)} has no field for parent {parent.name!r}{nearest(parent.name, fields)}"
            continue
        kept, optional = without_none(fields[parent.name])
        returned = _types(parent).returns
        if not accepts(kept, returned) and not accepts(fields[parent.name], returned):
            yield (
                f"field {describe(takes)}.{parent.name} is {describe(fields[parent.name])}, but parent {parent.name!r} "
                f"returns list[{describe(returned)}]"
            )
        if position in missing and not optional and not accepts(fields[parent.name], None):
            yield (
                f"the branch through {parent.name!r} may not be taken; annotate field {describe(takes)}.{parent.name} "
                f"as `{describe(fields[parent.name])} | None`"
            )
    for field in sorted(fields.keys() - {parent.name for parent in parents}):
        near = nearest(field, [parent.name for parent in parents])
        yield f"field {describe(takes)}.{field} belongs to no parent{near}; remove it"


def _of_raw(stage: Stage, stages: Sequence[Stage], pipeline: Pipeline) -> Iterator[str]:
    """A raw topic holds bytes, and only bytes can go to one."""
    types = _types(stage)
    if (
        not stage.after
        and getattr(stage.source or pipeline.source, "codec", None) == "raw"
        and not accepts(types.takes, bytes)
    ):
        yield f"takes list[{describe(types.takes)}], but the source topic is raw; take list[bytes]"
    codec, inner = getattr(pipeline.sinks.get(stage.name), "codec", None), format_between(types.returns)
    if codec == "raw" and not accepts(bytes, types.returns):
        yield f"returns list[{describe(types.returns)}], but the sink topic is raw; return list[bytes]"
    elif stage.sink and codec != inner and any(edge.parent is stage for each in stages for edge in _edges(each)):
        yield (
            f"its sink has the codec {codec!r}, and the next stage takes its results as {inner!r}; give the sink that "
            "codec, or to a stage of its own after this one"
        )


def _types(stage: Stage) -> StageTypes:
    """What a stage takes and returns; unknown where its annotations are a problem reported elsewhere."""
    try:
        return types_of(stage)
    except TypeError:
        return StageTypes(Any, Any)


def _edges(stage: Stage) -> list[Edge]:
    return [edge if isinstance(edge, Edge) else Edge(edge) for edge in stage.after]


def _is_stage_edge(edge: Any) -> bool:
    return isinstance(edge, Edge) and isinstance(edge.parent, Stage)
