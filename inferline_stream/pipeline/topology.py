"""What a `topology.py` declares: stages, the edges between them, and the pipeline they form.

These objects accept what is written and are judged together by `pipeline.validation`, so that one
`check` reports every mistake of a file at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from inferline_stream.pipeline.consumer_group import ConsumerGroup, faust_group
from inferline_stream.pipeline.declared_at import declared_at
from inferline_stream.pipeline.hardware import Hardware
from inferline_stream.pipeline.isolation import Isolation, isolation_of
from inferline_stream.pipeline.model_server import ModelServer
from inferline_stream.pipeline.schedule import Every, On, TrafficSchedule
from inferline_stream.pipeline.units import duration_s, share


@dataclass(frozen=True, slots=True)
class Codec:
    """A format of one's own, given as ``Topic("in", codec=...)`` beside ``"json"``, ``"msgpack"`` and ``"raw"``.

    Each replica builds it with its topology, before it is sealed. `registry_codec` makes those of a schema registry.

    Args:
        name: for people, and in the version of the topology: another name is another format.
        encode: a result to bytes; raises `ValueError` or `TypeError` for what it cannot represent.
        decoder: given the type that the stage takes, a function from bytes to a value of it; what that raises makes the
            record a dead letter.
    """

    name: str
    encode: Callable[[Any], bytes]
    decoder: Callable[[Any], Callable[[bytes], Any]]


_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Result(Generic[_Value]):
    """A result whose record has a key or headers of its own; a stage returns it in place of the value.

    Args:
        value: the result.
        key: of its record, text or bytes; by default its event's.
        headers: text or bytes by name, beside those that its event's records carry; one of a name replaces theirs.
    """

    value: _Value
    key: str | bytes | None = None
    headers: Mapping[str, str | bytes] = field(default_factory=dict)


if TYPE_CHECKING:
    from inferline_stream.pipeline.emulation import Emulated

DEFAULT_MAX_BATCH_SIZE = 64

ORDERS = ("deadline", "entry")
"""In which a stage's queue may be served, see `Pipeline`."""

DEFAULT_PARTITIONS = 8
"""Of topics that have to be created. They bound how many slots a stage can have, not how many replicas."""

DEFAULT_MOST = 1000
"""Results that a stage may give for one event, where it gives many."""

MOST_IN_HAND = 100_000
"""Events of a batch, or batches that a replica runs at once, at most."""

MOST_RESULTS = 100_000
"""Results of one event that a stage may declare, at most."""

DEFAULT_FALLBACK_SHARE = "5%"

DEFAULT_CONCURRENCY = 16
"""Of stages declared with ``async def``."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A Kafka topic that the pipeline reads from or writes to.

    Args:
        name: the topic's name as Kafka knows it (the pipeline's prefix is put before it).
        partitions: partitions if the topic has to be created; None takes the advised count.
        codec: ``"json"``, ``"msgpack"`` or ``"raw"``, or a `Codec` of one's own.
        timestamp_header: a header that holds the entry time as milliseconds since the epoch, in
            place of the record's timestamp.
        max_bytes: largest record, key and headers included; larger events and results become dead letters. By default
            what Kafka takes (`max.message.bytes`); a topic that has to be created is made to take so much.
        arrivals: of the first source: what shows how many came. ``"offsets"``, growth of the log, reads no record;
            ``"timestamps"`` reads the records, and is needed where producers write in transactions.
        background: of a source beside the live one: its events are served where no live event waits, from the topic's
            beginning on. They have no SLO, and nothing is planned or scaled for them.
        weight: of a background topic among several: they share what live events leave idle in this proportion.
        rate: of a background topic: events per second that are served also where live events wait.
        finish_by: of a background topic: when it should be done, such as ``"2026-12-01T06:00:00+01:00"``. Replicas are
            started for it where what live events leave idle is not enough.
        header: of a further class: name and value, such as ``("priority", "batch")``. Events of the pipeline's source
            whose record has it are moved here by the first stages.
        slo: of a live source beside that of the pipeline's own SLO: the target of its events, such as ``"200ms"``.
            Stages serve first what has the least time left.
        share: of such a source: its part of the sample's events, by which plans are made. By default all live sources
            that have none have the same.
        sample: of a source of an entry stage's own (`Stage`): its arrivals and events.
    """

    name: str
    partitions: int | None = None
    codec: str | Codec = "json"
    timestamp_header: str | None = None
    arrivals: str = "offsets"
    max_bytes: int | None = None
    background: bool = False
    weight: float = 1.0
    rate: float = 0.0
    finish_by: str | None = None
    header: tuple[str, str] | None = None
    slo: str | None = None
    share: float | None = None
    sample: Sample | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Sample arrivals and events, the Planner's picture of the traffic.

    Args:
        arrivals: CSV file of arrival timestamps or of counts, beside the topology. It spans at most 366 days.
        events: JSONL file with one event a line, beside the topology; used in turn.
        replay: arrivals that `run` replays when it feeds the source topic itself; by default the
            sample's own.
        key: field of the events that becomes their records' key. Plans then know busy keys, whose events stages process
            one batch after the other.

    Raises:
        TypeError: a file is not given by its name.
    """

    arrivals: str
    events: str
    replay: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        given: Any
        for name, given in (("arrivals", self.arrivals), ("events", self.events), ("replay", self.replay)):
            if not (isinstance(given, str) or hasattr(given, "__fspath__") or (name == "replay" and given is None)):
                raise TypeError(f'{name} {given!r} must be the name of a file, e.g. {name}="{name}.csv"')


class Stage:
    """A vertex of the pipeline: a function or class that maps a batch of events to their results.

    Args:
        name: unique in the pipeline; names the stage's topic, consumer group and metrics.
        run: a function ``list[X] -> list[Y]``, or a class whose construction loads the model once
            per replica and whose instances are such functions. Or its name, ``"module:name"``: then only replicas
            of this stage import the module, which lies beside the topology or is installed. It may be asynchronous.
            None where a server gives the results.
        hardware: names of the hardware kinds that it may run on.
        after: parents, or their conditional edges (`Stage.when`); none for an entry stage, two or
            more make a join.
        max_batch_size: largest batch that may be profiled and planned.
        concurrency: most batches that one replica runs at once, profiled and planned up to it; above 1 only of a stage
            declared with ``async def``, which waits for others rather than computing. By default 16 of such a stage,
            and 1 of code given by name.
        emulated: for `emulated-*` hardware, service time by batch size, for all such kinds
            (``{1: "20ms", 8: "60ms"}``) or by kind (``{"emulated-cpu": {1: "20ms"}}``); an `Emulated` where they vary.
        cost: what an event asks of the stage, as a function of it that returns a number: tokens, pixels, seconds. Or
            its name, ``"module:function"``. Plans then take events as they are in the sample, large and small; without
            it, what they ask for is how long they took alone when they were profiled.
        ordered: whether events of one key are processed in order. By default plain stages keep the order in which
            they read a key's events, and joins do not. False lifts it at a plain stage. True at a join: events of
            one key are processed in the order in which they entered the pipeline, so that a complete one waits for
            those of its key before it.
        standby: replicas beyond those that work, with the model loaded and nothing to do: one of them takes
            over within 0.1 s where another has died. They cost what any replica costs, and stay while a stage with
            ``idle`` sleeps: for less where their model server sleeps, too.
        isolation: how far its replicas are kept from what is not theirs: a level (``"none"``, ``"sandbox"``), or
            an `Isolation` that says what they may touch.
        takes: type of an event, for a stage given by name; others have it from their annotations. By default the
            plain values of the JSON: dicts, lists, strings, numbers; at a join a dict with one entry per parent.
        returns: type of a result, for a stage given by name.
        fallback: a faster version of the stage, which takes the same events and returns the same type. A batch runs on
            it where it would be late otherwise, and on time by it. Like ``run``; or, of a stage with a server, another
            model there. Each replica loads both.
        fallback_share: of the events of an hour that it may make, a percentage; ``"5%"`` by default.
        server: what is asked for the results, in place of ``run``: `OpenInference`, `TensorFlowServing`, `OpenAI` or
            `RayServe`. One replica asks it, or each starts its own (``command``); how many requests it has under way is
            planned.
        many: whether it gives each event a list of results, perhaps an empty one, in place of one result. Each is an
            event of its own from there on, until a stage gathers them (`gathered`).
        most: results of one event, where it gives many; an event with more becomes a dead letter.
        idle: after so long without a record no replica of it is left, such as ``"15m"``; the next record starts one. In
            place of the pipeline's.
        source: topic that an entry stage reads in place of the pipeline's. Its events enter at this stage only.
        sink: topic that its results go to. A stage with children sends them there as well; a final stage sends them
            there in place of the pipeline's sink.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any] | str | None = None,
        *,
        hardware: Iterable[str],
        after: Iterable[Stage | Edge] = (),
        max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
        concurrency: int | None = None,
        emulated: Mapping[int, str] | Mapping[str, Mapping[int, str]] | Emulated | None = None,
        cost: Callable[[Any], float] | str | None = None,
        ordered: bool | None = None,
        standby: int = 0,
        isolation: str | Isolation = "none",
        takes: Any = None,
        returns: Any = None,
        server: ModelServer | None = None,
        many: bool = False,
        most: int = DEFAULT_MOST,
        fallback: Callable[..., Any] | str | ModelServer | None = None,
        fallback_share: str | None = None,
        idle: str | None = None,
        source: Topic | None = None,
        sink: Topic | None = None,
    ) -> None:
        self.name = name
        self.run = run
        self.server = server
        self.hardware = (hardware,) if isinstance(hardware, str) else _each("hardware", hardware)
        self.after = [parent if isinstance(parent, Edge) else Edge(parent) for parent in _each("after", after)]
        by_event = isinstance(server, ModelServer) and not server.batches
        self.max_batch_size = 1 if by_event else max_batch_size
        self.concurrency = concurrency
        self.emulated = emulated
        self.cost = cost
        self.ordered = ordered
        self.standby = standby
        self.isolation = isolation
        self.takes = takes
        self.returns = returns
        self.many = many
        self.most = most
        self.fallback = fallback
        self.fallback_share = fallback_share
        self.idle = idle
        self.source = source
        self.sink = sink
        self.declared = declared_at()

    @property
    def is_join(self) -> bool:
        """Whether parts of an event wait in it for each other: those of several parents, or of one that is gathered."""
        return len(self.after) > 1 or self.gathers is not None

    @property
    def gathers(self) -> Edge | None:
        """The edge whose results it gathers, if it does."""
        return next((edge for edge in self.after if isinstance(edge, Edge) and edge.gathers), None)

    @property
    def most_at_once(self) -> int:
        """Batches that a replica may run at once."""
        if self.concurrency is not None:
            return self.concurrency
        return DEFAULT_CONCURRENCY if self.server is not None or is_asynchronous(self.run) else 1

    @property
    def degraded_share(self) -> float:
        """Share of its events that the fallback may make; 0 without one.

        Raises:
            ValueError: `fallback_share` is no percentage.
        """
        if self.fallback is None:
            return 0.0
        return share(DEFAULT_FALLBACK_SHARE if self.fallback_share is None else self.fallback_share)

    @property
    def most_replicas(self) -> int | None:
        """Replicas that are of use: one asks somebody else's server for as much as it gives; None for any number."""
        return None if self.server is None or self.server.command else 1

    @property
    def confined(self) -> Isolation:
        """How its replicas are isolated, with what asking a server takes.

        Raises:
            ValueError: no such level of isolation.
        """
        declared = isolation_of(self.isolation)
        if self.server is None or self.server.command:
            return declared
        servers = [each for each in (self.server, self.fallback) if isinstance(each, ModelServer)]
        ports = tuple(dict.fromkeys((*declared.ports, *(server.port for server in servers))))
        return replace(declared, ports=ports, reads=(*declared.reads, *(f for each in servers for f in each.files)))

    def when(self, condition: Callable[[Any], bool] | str) -> Edge:
        """Return the edge out of this stage that results take for which the condition holds.

        Args:
            condition: a function of one result, or its name, ``"module:function"``, which only replicas of this stage
                import.
        """
        return Edge(self, condition)

    def gathered(self, missing: EllipsisType | None = ...) -> Edge:
        """Return the edge that gathers: the next stage gets the list of all results of one event, in their order.

        Those are the results of the event that a stage before, or this one, gave many results. Results that were
        filtered on the way are not in the list, which may be empty.

        Args:
            missing: None to have None in the place of a result that died on the way; its type is then ``Y | None``. By
                default the next stage does not run for an event one of whose results died until that is sent again.
        """
        return Edge(self, gathers=True, fills=missing is None)

    def __repr__(self) -> str:
        return f"Stage({self.name!r})"


def _each(argument: str, given: Iterable[_Value]) -> tuple[_Value, ...]:
    """What an argument lists.

    Raises:
        TypeError: it is not a list.
    """
    if not isinstance(given, Iterable):
        raise TypeError(f"{argument}= takes a list, not {type(given).__name__}; write {argument}=[...]")
    return tuple(given)


def _listed(source: Any) -> tuple[Any, ...]:
    """What stands for sources, whatever it is: `validation` judges it."""
    return tuple(source) if isinstance(source, list | tuple) else (source,)


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """The arrow from a parent; taken always, or when the condition holds for the parent's result.

    One that ``gathers`` brings all results of an event at once; see `Stage.gathered`, also for ``fills``.
    """

    parent: Stage
    condition: Callable[[Any], bool] | str | None = None
    gathers: bool = False
    fills: bool = False


class Pipeline:
    """A DAG of stages between a source and a sink topic, with an SLO on its P99 latency.

    Args:
        name: names the pipeline's topics, groups and metrics.
        slo: target for the end-to-end P99, a duration such as ``"250ms"``; no duration is longer than ``"36500d"``.
        source: topic that events arrive on; or a list of it, of live topics with an SLO of their own, and of background
            topics, such as an archive, see `Topic`. None where each entry stage has a source of its own. Consumer
            groups have the topic that the first of them read.
        sink: topic that the results of the final stage go to; None where each final stage has a sink of its own.
            Consumer groups have none.
        stages: every stage, in any order; or every consumer group that runs already.
        sample: arrivals and events to profile and plan with.
        hardware: kinds that extend or override the default catalogue.
        objective: share of events that must meet the SLO.
        slo_window: for which the objective holds, such as ``"1d"``: what was not late in it yet may be later.
        on_expired: what becomes of an event that is past the SLO before its batch begins: ``"process"`` it all the
            same, ``"drop"`` it, or ``"dlq"``, drop it and keep its record with the dead letters. It is a miss anyway.
        order: in which order a stage's queue is served. ``"deadline"``: first what can still be on time, so that a
            shortage makes few events late, and those later. ``"entry"``: what entered first, whether late or not.
        idle: after so long without an event no replica is left, such as ``"15m"``: only dispatchers, which wait for the
            next event. That starts the replicas, and is late by the time that takes.
        schedule: what people know of traffic to come, see `Every` and `On`; replicas are held for it in time.
        zone: time zone of the schedule and of the weeks that are learned, such as ``"Europe/Berlin"``.
    """

    def __init__(
        self,
        name: str,
        *,
        slo: str,
        source: Topic | Sequence[Topic] | None = None,
        sink: Topic | None = None,
        stages: Iterable[Stage | ConsumerGroup],
        sample: Sample | None = None,
        hardware: Iterable[Hardware] = (),
        objective: float = 0.99,
        slo_window: str = "1d",
        on_expired: str = "process",
        order: str = "deadline",
        idle: str | None = None,
        schedule: Iterable[Every | On] = (),
        zone: str = "UTC",
    ) -> None:
        self.name = name
        self.slo = slo
        listed = _each("stages", stages)
        self.stages = tuple(each for each in listed if not isinstance(each, ConsumerGroup))
        self.groups = tuple(each for each in listed if isinstance(each, ConsumerGroup))
        """Consumer groups that run already, in place of stages."""
        self.listed: tuple[Topic, ...] = () if source is None else _listed(source)
        if self.groups and source is None:
            self.listed = tuple(map(Topic, dict.fromkeys(group.topic for group in self.groups if not group.after)))
        self.sink = sink
        self.sample = sample
        self.hardware = _each("hardware", hardware)
        self.objective = objective
        self.slo_window = slo_window
        self.on_expired = on_expired
        self.order = order
        self.idle = idle
        self.schedule = _each("schedule", schedule)
        self.zone = zone
        self.declared = declared_at()

    @classmethod
    def from_faust(cls, app: Any, *, slo: str, topic: str | None = None) -> Pipeline:
        """Return the pipeline of a Faust app, which is one consumer group; see `consumer_group.faust_group`.

        Args:
            app: a ``faust.App`` with its agents.
            slo: from a record's append to its commit.
            topic: that its events enter by.
        """
        group = faust_group(app, topic)
        return cls(group.name, slo=slo, stages=[group])

    @property
    def own_sources(self) -> dict[str, Topic]:
        """By stage that has one, the source of its own."""
        own = ((each.name, each.source) for each in self.stages if isinstance(each, Stage))
        return {name: source for name, source in own if source is not None}

    @property
    def sources(self) -> tuple[Topic, ...]:
        """Every source topic: those of the pipeline, then those of stages."""
        return (*self.listed, *self.own_sources.values())

    @property
    def source(self) -> Topic:
        """The topic of the first class: live events whose SLO is the pipeline's."""
        topics = [topic for topic in self.sources if isinstance(topic, Topic)]
        own = (topic for topic in topics if not topic.background and topic.slo is None)
        return next(own, topics[0] if topics else Topic(""))

    @property
    def others(self) -> tuple[Topic, ...]:
        """The other topics, each a class of its own: live ones with an SLO, background ones, and those of stages."""
        return tuple(topic for topic in self.sources if topic is not self.source)

    @property
    def moved(self) -> dict[tuple[str, bytes], Topic]:
        """Headers by which events of the source are moved to a topic of their class, and that."""
        return {(topic.header[0], topic.header[1].encode()): topic for topic in self.others if topic.header}

    @property
    def counts_records(self) -> bool:
        """Whether the sources' records are read to know their arrivals: offsets of the first count others, too."""
        return self.source.arrivals == "timestamps" or bool(self.moved)

    @property
    def samples(self) -> dict[str, Sample | None]:
        """By source topic: the pipeline's sample, and that of each source of a stage's own, by class."""
        own = tuple(self.own_sources.values())
        return {
            topic.name: topic.sample if any(topic is each for each in own) else self.sample
            for topic in (self.source, *(own if self.listed else own[1:]))
        }

    def enters(self, stage: Stage, topic: Topic) -> bool:
        """Whether events of a source topic enter at a stage."""
        return not stage.after and (topic is stage.source if stage.source else topic in self.listed)

    @property
    def entry_partitions(self) -> dict[str, int]:
        """By entry stage, the partitions of its source topic, where they are given."""
        entries = ((stage, stage.source or self.source) for stage in self.stages if not stage.after)
        return {stage.name: topic.partitions for stage, topic in entries if topic.partitions}

    def codec_of(self, stage: Stage) -> str | Codec:
        """The format of the events that enter at an entry stage."""
        return (stage.source or self.source).codec

    @property
    def sinks(self) -> dict[str, Topic]:
        """By stage that feeds one, the topic that its results go to: its own, or of a final stage the pipeline's."""
        stages = [stage for stage in self.stages if isinstance(stage, Stage)]
        parents = {id(getattr(edge, "parent", edge)) for stage in stages for edge in stage.after}
        fed = ((each.name, each.sink or (None if id(each) in parents else self.sink)) for each in stages)
        return {name: topic for name, topic in fed if topic is not None}

    @property
    def slo_s(self) -> float:
        """The SLO in seconds.

        Raises:
            ValueError: the SLO has no number or no unit.
        """
        return duration_s(self.slo)

    @property
    def slo_window_s(self) -> float:
        """The SLO's window in seconds.

        Raises:
            ValueError: it has no number or no unit.
        """
        return duration_s(self.slo_window)

    def scheduled(self, more: Iterable[On] = ()) -> TrafficSchedule:
        """The schedule, with what people have said since.

        Raises:
            ValueError: an entry or a zone cannot be read.
        """
        return TrafficSchedule((*self.schedule, *more), self.zone)

    def stage(self, name: str) -> Stage:
        """The stage of that name.

        Raises:
            KeyError: the pipeline has no stage of that name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def __repr__(self) -> str:
        names = [stage.name for stage in self.stages] + [group.name for group in self.groups]
        return f"Pipeline({self.name!r}, stages={names})"


def is_asynchronous(run: object) -> bool:
    """Whether a stage's function, or the class whose instances are called, is declared with ``async def``."""
    function = getattr(run, "__call__", None) if inspect.isclass(run) else run  # noqa: B004  the class's own function
    return inspect.iscoroutinefunction(function)
