"""Topics that a pipeline needs: their settings, creating and verifying them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from inferline_stream.errors import InvalidInput, Unreachable
from inferline_stream.kafka.connection import client_options, closed, in_time, unreachable
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.shape import shape_of
from inferline_stream.pipeline.topology import DEFAULT_PARTITIONS, Pipeline, Topic
from inferline_stream.pipeline.units import count_of

logger = logging.getLogger(__name__)

REPLICATION = 3
"""Copies of a created topic; fewer, with a warning, where there are fewer brokers."""

_LARGEST = "max.message.bytes"
_OWN_HEADERS_BYTES = 16 * 1024
_DAY_MS = 24 * 3600 * 1000
_CONTROL = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "segment.ms": "600000"}
_DELETE = {"cleanup.policy": "delete"}
"""Records without a key go there too, which a compacted topic refuses: its writer would try again for ever."""

_HOUR = {**_DELETE, "retention.ms": str(3600 * 1000)}
_TRANSIENT = {**_DELETE, "retention.ms": str(_DAY_MS)}
_WEEK = {**_DELETE, "retention.ms": str(7 * _DAY_MS)}

INNER_BYTES = 4 * 1024**3
"""Kept of each partition between stages. Only the pipeline itself writes there, so that it fills only while a
controller runs, which alerts at half: see `InferlineInnerTopicFills`."""

_INNER = {
    **_DELETE,
    "retention.ms": "-1",
    "retention.bytes": str(INNER_BYTES),
    "segment.bytes": str(64 * 1024**2),
}
"""By bytes, not by time: however long an outage is, what was under way is still there after it."""


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic as the pipeline wants it.

    Args:
        name: prefix included.
        partitions: of a topic that has to be created; one that exists may have any number.
        purpose: what it is for, in words.
        settings: the topic's own, by Kafka's names.
    """

    name: str
    partitions: int
    purpose: str
    settings: Mapping[str, str] = field(default_factory=dict)


def topics_of(pipeline: Pipeline, prefix: str = "", partitions: Mapping[str, int] | None = None) -> list[WantedTopic]:
    """Every topic of a pipeline.

    Args:
        pipeline: a valid pipeline.
        prefix: before each name.
        partitions: by stage, of the topics that have to be created; entry stages give the source topic's, those
            that feed a sink its, and the completed topic's. `Topic.partitions` wins, `DEFAULT_PARTITIONS` is for the
            rest.
    """
    names = Names(pipeline.name, prefix)
    own = [
        WantedTopic(names.assignments, 1, "leadership and which dispatcher serves which slot", _CONTROL),
        WantedTopic(names.decisions, 1, "plans and decisions", _CONTROL),
        WantedTopic(names.control, 1, "overrides by people", _CONTROL),
    ]
    if pipeline.groups:  # all others are theirs
        return own
    wanted = dict(partitions or {})
    of_sinks = {stage: wanted.get(stage, DEFAULT_PARTITIONS) for stage in pipeline.sinks}

    def of_source(topic: Topic) -> int:
        entries = [stage.name for stage in pipeline.stages if pipeline.enters(stage, topic)]
        given = topic.partitions or (pipeline.source.partitions if topic in pipeline.listed else None)
        return given or max((wanted.get(entry, DEFAULT_PARTITIONS) for entry in entries), default=1)

    sources = {
        names.topic(topic.name): WantedTopic(
            names.topic(topic.name),
            of_source(topic),
            "source: background events" if topic.background else "source: events arrive here",
            _takes(topic.max_bytes),
        )
        for topic in (pipeline.source, *pipeline.others)
    }
    stage_topics = {
        names.stage_topic(stage.name, "" if topic is pipeline.source else topic.name): (stage, topic)
        for topic in (pipeline.source, *pipeline.others)
        for stage in pipeline.stages
        if not pipeline.enters(stage, topic)
    }
    ways = {id(topic): _reached(pipeline, topic) for topic in (pipeline.source, *pipeline.others)}
    found = [
        *sources.values(),
        *(
            WantedTopic(
                topic,
                wanted.get(stage.name, DEFAULT_PARTITIONS) if stage.name in ways[id(of)] else 1,
                f"input of stage {stage.name}" + _of_class(pipeline, of, idle=stage.name not in ways[id(of)]),
                _INNER,
            )
            for topic, (stage, of) in stage_topics.items()
        ),
        *(
            WantedTopic(
                names.topic(topic.name),
                topic.partitions or of_sinks[stage],
                f"sink: results of stage {stage}",
                _takes(topic.max_bytes),
            )
            for stage, topic in pipeline.sinks.items()
        ),
        WantedTopic(
            names.completed, max(of_sinks.values()), "events that ended without a result, with the reason", _WEEK
        ),
        *(
            WantedTopic(
                names.dead_letters(topic),
                1,
                f"records of {topic} that could not be processed",
                {**_WEEK, **(sources[topic].settings if topic in sources else {})},
            )
            for topic in (*sources, *stage_topics)
        ),
        own[0],
        WantedTopic(names.stage_stats, 1, "what dispatchers report", _HOUR),
        WantedTopic(names.arrivals, 1, "log growth of the source topic", _TRANSIENT),
        *own[1:],
    ]
    return list({topic.name: topic for topic in reversed(found)}.values())[::-1]


def _reached(pipeline: Pipeline, topic: Topic) -> frozenset[str]:
    """Stages that events of a source topic may come to."""
    shape = shape_of(pipeline)
    entries = [at for at, name in enumerate(shape.stages) if pipeline.enters(pipeline.stage(name), topic)]
    return frozenset(shape.stages[at] for at in shape.downstream(*entries))


def _of_class(pipeline: Pipeline, topic: Topic, *, idle: bool) -> str:
    if idle:
        return f", to which no event of {topic.name} comes"
    if topic is pipeline.source:
        return ""
    return f", {'background ' if topic.background else ''}events of {topic.name}"


def _takes(max_bytes: int | None) -> dict[str, str]:
    """Setting of a topic that takes records of so many bytes, and what we add to their headers."""
    return {} if max_bytes is None else {_LARGEST: str(max_bytes + _OWN_HEADERS_BYTES)}


@dataclass(frozen=True, slots=True)
class Durability:
    """Copies of a created topic, and how many of them must have a record before it counts as written."""

    copies: int
    in_sync: int
    warning: str = ""


def durability(replication: int, brokers: int) -> Durability:
    """As many copies as are asked for or as there are brokers; a write survives the loss of all but one in sync.

    One copy may always be missing, so that a broker can restart without stopping the pipeline.
    """
    copies = min(replication, brokers)
    warning = ""
    if copies < replication:
        lost = "one that is lost takes events with it" if copies == 1 else "no write waits for a second copy"
        warning = f"topics are created with replication {copies}, not {replication}, for want of brokers: {lost}"
    return Durability(copies, max(1, min(2, copies - 1)), warning)


@dataclass(frozen=True, slots=True)
class Difference:
    """How topics differ from what is wanted.

    Args:
        text: what and which, in words, with the remedy.
        blocks: whether the pipeline cannot run on it.
    """

    text: str
    blocks: bool


async def create_topics(
    bootstrap_servers: str, wanted: Iterable[WantedTopic], *, replication: int = REPLICATION, timeout_s: float = 10.0
) -> list[Difference]:
    """Create what is missing; what exists is kept as it is.

    Returns:
        Fewer copies than asked for, and differences of topics that exist.

    Raises:
        Unreachable: Kafka does not answer in time, or refuses.
    """
    topics = list(wanted)
    async with _admin(bootstrap_servers, timeout_s) as admin:
        how = durability(replication, len(admin._client.cluster.brokers()))
        existing = set(await admin.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        if missing:
            await _create(admin, missing, how, timeout_s)
        found = await _differences(admin, [topic for topic in topics if topic.name in existing])
        return [Difference(how.warning, blocks=False), *found] if missing and how.warning else found


async def verify_topics(bootstrap_servers: str, wanted: Iterable[WantedTopic]) -> list[Difference]:
    """Each difference between what exists and what is wanted; nothing is changed.

    Raises:
        Unreachable: Kafka does not answer in time, or refuses.
    """
    topics = list(wanted)
    async with _admin(bootstrap_servers) as admin:
        existing = set(await admin.list_topics())
        missing = [
            Difference(
                f"topic {topic.name} does not exist: create it with {count_of(topic.partitions, 'partition')}"
                + "".join(f", {name}={value}" for name, value in topic.settings.items()),
                blocks=True,
            )
            for topic in topics
            if topic.name not in existing
        ]
        return missing + await _differences(admin, [topic for topic in topics if topic.name in existing])


class RecordRules(NamedTuple):
    """What topics take, as far as we may see their settings."""

    limits: dict[str, int]
    """`max.message.bytes` by topic."""
    compacted: frozenset[str] = frozenset()
    """Topics that take no record without a key."""


async def record_rules(bootstrap_servers: str, topics: Iterable[str], timeout_s: float = 10.0) -> RecordRules:
    """Return what topics take.

    Raises:
        Unreachable: Kafka does not answer in time.
    """
    async with _admin(bootstrap_servers, timeout_s) as admin:
        settings = await _settings(admin, list(topics))
    return RecordRules(
        {topic: int(found[_LARGEST]) for topic, found in settings.items() if _LARGEST in found},
        frozenset(topic for topic, found in settings.items() if "compact" in found.get("cleanup.policy", "")),
    )


async def retentions(bootstrap_servers: str, topics: Iterable[str]) -> dict[str, float]:
    """Return for how many seconds topics keep a record, of those that do not keep it for ever.

    Raises:
        Unreachable: Kafka does not answer in time.
    """
    async with _admin(bootstrap_servers) as admin:
        settings = await _settings(admin, list(topics))
    kept_ms = {topic: int(found.get("retention.ms", "-1")) for topic, found in settings.items()}
    return {topic: ms / 1e3 for topic, ms in kept_ms.items() if ms > 0}


async def ready_topics(
    bootstrap_servers: str, wanted: Iterable[WantedTopic], *, create: bool, replication: int = REPLICATION
) -> list[str]:
    """Create what is missing, or only look; returns what people should know.

    Raises:
        InvalidInput: each topic that cannot be run on; without ``create``, each that is missing too.
        Unreachable: Kafka does not answer in time, or refuses.
    """
    if create:
        found = await create_topics(bootstrap_servers, wanted, replication=replication)
    else:
        found = await verify_topics(bootstrap_servers, wanted)
    if blocking := [difference.text for difference in found if difference.blocks]:
        raise InvalidInput(*blocking)
    return [difference.text for difference in found]


async def delete_topics(bootstrap_servers: str, names: Sequence[str]) -> None:
    """Delete topics that were made for a measurement. One that stays behind is empty and harms nobody: no error."""
    with suppress(KafkaError, Unreachable):
        async with _admin(bootstrap_servers) as admin:
            await admin.delete_topics(list(names))


@asynccontextmanager
async def _admin(bootstrap_servers: str, timeout_s: float = 10.0) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(**client_options(bootstrap_servers), request_timeout_ms=30_000)
    await in_time(bootstrap_servers, client.start(), timeout_s, client)
    try:
        yield client
    except KafkaError as error:
        silent = f"Kafka at {bootstrap_servers} does not answer ({error!r}); is it running?"
        raise await unreachable(bootstrap_servers, silent) from error
    finally:
        await closed(client)


async def _create(admin: AIOKafkaAdminClient, topics: Sequence[WantedTopic], how: Durability, timeout_s: float) -> None:
    response = await admin.create_topics(
        [
            NewTopic(
                topic.name,
                topic.partitions,
                how.copies,
                topic_configs={**topic.settings, "min.insync.replicas": str(how.in_sync)},
            )
            for topic in topics
        ],
        timeout_ms=round(timeout_s * 1000),
    )
    for name, code, *rest in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise Unreachable(f"topic {name} cannot be created: {(rest and rest[0]) or error.__name__}")
    deadline = asyncio.get_running_loop().time() + timeout_s
    names = [topic.name for topic in topics]
    while True:  # created is not yet led: a client that uses a topic before that waits for a metadata refresh
        described = await admin.describe_topics(names)
        led = [all(p["leader"] >= 0 for p in topic["partitions"]) and topic["partitions"] for topic in described]
        if len(led) == len(names) and all(led):
            return
        if asyncio.get_running_loop().time() > deadline:
            raise Unreachable(f"topics {', '.join(names)} have no leader {timeout_s:g} s after they were created")
        await asyncio.sleep(0.05)


async def _differences(admin: AIOKafkaAdminClient, topics: Sequence[WantedTopic]) -> list[Difference]:
    if not topics:
        return []
    settings = await _settings(admin, [topic.name for topic in topics if topic.settings])
    found = []
    for topic in topics:
        for name, value in topic.settings.items():
            actual = settings.get(topic.name, {}).get(name)
            fits = name == _LARGEST and actual is not None and int(actual) >= int(value)
            if actual is not None and actual != value and not fits:
                # Assignments that a retention limit deletes would be forgotten while they still hold, and a compacted
                # topic refuses records without a key.
                blocks = name == "cleanup.policy" and ("compact" in actual) != ("compact" in value)
                advised = "is needed" if blocks else "is advised"
                found.append(Difference(f"topic {topic.name} has {name}={actual}, {value} {advised}", blocks))
    return found


async def _settings(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    found: dict[str, dict[str, str]] = {}
    for response in responses:
        for _code, _message, _kind, name, entries in response.resources:
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found
