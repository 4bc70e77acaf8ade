"""What each role of a pipeline may do in Kafka, and not more: for clusters where rights are granted."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from inferline_stream.dataplane.routes import Routes, every_route
from inferline_stream.kafka.pipeline_topics import REPLICATION, WantedTopic, durability, topics_of
from inferline_stream.kafka.wire.coordinator_records import TOPIC as COORDINATORS_TOPIC
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline

Resource = Literal["topic", "group", "transactional-id"]
Role = Literal["controller", "dispatcher", "source-connector", "sink-connector", "viewer", "operator"]

ROLES: tuple[Role, ...] = get_args(Role)
"""Who connects to Kafka; replicas do not."""

_RUN, _EXACTLY_ONCE, _FEED, _PROFILE = "run", "run --delivery exactly_once", "run --replay", "profile"
_STATUS, _OVERRIDES = "status, explain", "scale, pause, resume, deploy"


@dataclass(frozen=True, slots=True)
class Permission:
    """A right of one role's principal, as Kafka's ACLs name it. Reading and writing imply describing.

    Args:
        role: whose.
        resource: kind of thing.
        name: of the thing, or what its name begins with.
        prefixed: whether ``name`` is only the beginning.
        operations: Kafka's names.
        needed_by: commands and options, or connectors, that cannot do without.
    """

    role: Role
    resource: Resource
    name: str
    prefixed: bool
    operations: tuple[str, ...]
    needed_by: str


def permissions(pipeline: Pipeline, prefix: str = "") -> list[Permission]:
    """Return the least rights of each role where the topics exist, role by role.

    Creating topics (`run` without ``--no-create-topics``) takes the controller Create on them as well. Further topics
    and groups that a connector is given on its command line take rights of their own.
    """
    names = Names(pipeline.name, prefix)
    if pipeline.groups:
        return list(_of_groups(pipeline, names))
    routes = [of_class for route in every_route(pipeline, prefix).values() for of_class in route.classes]
    return [
        *_controller(pipeline, names, routes),
        *_dispatcher(names, routes),
        *_connectors(pipeline, names, routes),
        *_people(pipeline, names, routes),
    ]


def _of_groups(pipeline: Pipeline, names: Names) -> Iterator[Permission]:
    """Consumer groups that run already are looked at, and led; what their coordinator writes is listed apart."""
    roles: tuple[tuple[Role, str], ...] = (("viewer", "advise"), ("controller", _RUN))
    for role, needed_by in (*roles, ("viewer", _STATUS)):
        for topic in dict.fromkeys(group.topic for group in pipeline.groups):
            yield Permission(role, "topic", topic, False, ("Describe",), needed_by)
        for group in pipeline.groups:
            yield Permission(role, "group", group.group, False, ("Describe",), needed_by)
    own, wanted = (names.assignments, names.decisions), _to_verify(pipeline, names)
    for topic in (*own, names.control):
        wanted[topic].add("Read")
    for topic in own:
        wanted[topic].add("Write")
    yield from _on_topics("controller", wanted, _RUN)
    yield from _leads(names)
    yield Permission("controller", "topic", names.control, False, ("Write",), "run --ui-token")
    yield from _on_topics("viewer", {topic: {"Read"} for topic in (*own, names.control)}, _STATUS)
    yield from _verifies_and_overrides(pipeline, names)
    for role, needed_by in roles:
        why = f"{needed_by}: throughput without overload; shows the offsets of all groups"
        yield Permission(role, "topic", COORDINATORS_TOPIC, False, ("Read",), why)


def _controller(pipeline: Pipeline, names: Names, routes: Sequence[Routes]) -> Iterator[Permission]:
    source = names.topic(pipeline.source.name)
    wanted = _to_verify(pipeline, names)
    for route in routes:  # to commit where a group starts takes the right to read its topic
        wanted[route.input_topic].add("Read")
    for topic in (source, *_sinks(pipeline, names), names.completed, names.stage_stats, names.control):
        wanted[topic].add("Read")
    for topic in (names.assignments, names.arrivals, names.decisions):
        wanted[topic] |= {"Read", "Write"}
    yield from _on_topics("controller", wanted, _RUN)
    yield from (Permission("controller", "group", route.group, False, ("Read",), _RUN) for route in routes)
    yield from _leads(names)
    yield from _slots("controller", names, routes)  # it ends what a dead dispatcher has left open
    for topic in dict.fromkeys((source, *(names.topic(own.name) for own in pipeline.own_sources.values()))):
        yield Permission("controller", "topic", topic, False, ("Write",), _FEED)
    yield Permission("controller", "topic", names.control, False, ("Write",), "run --ui-token")
    probe = "inferline-hop-"
    yield Permission("controller", "topic", probe, True, ("Create", "Delete", "Read", "Write"), _PROFILE)
    yield Permission("controller", "group", probe, True, ("Read",), _PROFILE)


def _dispatcher(names: Names, routes: Sequence[Routes]) -> Iterator[Permission]:
    wanted: dict[str, set[str]] = defaultdict(set)
    for route in routes:
        wanted[route.input_topic].add("Read")
        for topic in route.topics_written:
            wanted[topic] |= {"Write", "DescribeConfigs"}  # how large its records may be
    wanted[names.assignments].add("Read")
    wanted[names.stage_stats].add("Write")
    yield from _on_topics("dispatcher", wanted, _RUN)
    yield from (Permission("dispatcher", "group", route.group, False, ("Read",), _RUN) for route in routes)
    yield from _slots("dispatcher", names, routes)


def _connectors(pipeline: Pipeline, names: Names, routes: Sequence[Routes]) -> Iterator[Permission]:
    sources = _live_sources(pipeline, names)
    for topic in sources:
        yield Permission("source-connector", "topic", topic, False, ("Write",), "sources")
    for sink in _sinks(pipeline, names):
        yield Permission("source-connector", "topic", sink, False, ("Read",), "http --results")
    for route in routes:
        if route.input_topic in sources:
            yield Permission("source-connector", "group", route.group, False, ("Describe",), "http --most-behind")
    for sink in _sinks(pipeline, names):
        yield Permission("sink-connector", "topic", sink, False, ("Read",), "sinks")
        yield Permission("sink-connector", "group", f"{sink}-to-", True, ("Read",), "sinks")


def _people(pipeline: Pipeline, names: Names, routes: Sequence[Routes]) -> Iterator[Permission]:
    inputs = sorted({route.input_topic for route in routes})
    ends = (*inputs, *_sinks(pipeline, names), names.completed)
    seen: dict[str, set[str]] = {topic: {"Describe"} for topic in ends}
    for topic in (
        *(*_live_sources(pipeline, names), names.arrivals, names.stage_stats),
        *(names.assignments, names.decisions, names.control),
    ):
        seen[topic] = {"Read"}
    yield from _on_topics("viewer", seen, _STATUS)
    yield from (Permission("viewer", "group", route.group, False, ("Describe",), _STATUS) for route in routes)
    yield from _verifies_and_overrides(pipeline, names)
    letters = [names.dead_letters(topic) for topic in inputs]
    yield from _on_topics("operator", {topic: {"Read"} for topic in letters}, "dlq")
    yield from _on_topics("operator", {topic: {"Write"} for topic in (*inputs, *letters)}, "dlq replay")
    yield Permission("operator", "transactional-id", names.transactional_id("dlq"), False, ("Write",), "dlq replay")


def _leads(names: Names) -> Iterator[Permission]:
    leader = f"{names.prefix}{names.pipeline}-controller"
    yield Permission("controller", "transactional-id", leader, False, ("Write",), _RUN)


def _verifies_and_overrides(pipeline: Pipeline, names: Names) -> Iterator[Permission]:
    yield from _on_topics("viewer", _to_verify(pipeline, names), "topics --bootstrap-servers")
    overridden = {names.assignments: {"Read"}, names.decisions: {"Read"}, names.control: {"Read", "Write"}}
    yield from _on_topics("operator", overridden, _OVERRIDES)


def _sinks(pipeline: Pipeline, names: Names) -> list[str]:
    return [names.topic(topic.name) for topic in pipeline.sinks.values()]


def _live_sources(pipeline: Pipeline, names: Names) -> list[str]:
    """The topics that live events arrive on."""
    further = [topic for topic in pipeline.others if not topic.background]
    return [names.topic(topic.name) for topic in (pipeline.source, *further)]


def _to_verify(pipeline: Pipeline, names: Names) -> dict[str, set[str]]:
    """Operations that comparing the topics with what is wanted takes."""
    found = topics_of(pipeline, names.prefix)
    return {topic.name: {"Describe", *(["DescribeConfigs"] if topic.settings else [])} for topic in found}


def _on_topics(role: Role, wanted: Mapping[str, set[str]], needed_by: str) -> Iterator[Permission]:
    for topic, operations in wanted.items():
        implied = {"Describe"} if operations & {"Read", "Write"} else set()
        yield Permission(role, "topic", topic, False, tuple(sorted(operations - implied)), needed_by)


def _slots(role: Role, names: Names, routes: Sequence[Routes]) -> Iterator[Permission]:
    for stage in dict.fromkeys(route.stage for route in routes):
        slot = names.transactional_id(f"{stage}-")
        yield Permission(role, "transactional-id", slot, True, ("Write",), _EXACTLY_ONCE)


def topic_commands(topics: Iterable[WantedTopic]) -> list[str]:
    """Commands that create the topics; the cluster's address comes from the variable KAFKA."""
    in_sync = durability(REPLICATION, REPLICATION).in_sync
    commands = []
    for topic in topics:
        settings = {**topic.settings, "min.insync.replicas": str(in_sync)}
        configs = "".join(f" --config {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
        commands.append(
            f'kafka-topics.sh --bootstrap-server "$KAFKA" --create --if-not-exists --topic {shlex.quote(topic.name)}'
            f" --partitions {topic.partitions} --replication-factor {REPLICATION}{configs}"
        )
    return commands


def permission_commands(wanted: Sequence[Permission], principals: Mapping[Role, str]) -> list[str]:
    """Commands that grant the rights, a comment before those of each role and command.

    Args:
        wanted: role by role.
        principals: Kafka's user of each role.
    """
    grouped: dict[tuple[Role, str], dict[tuple[Resource, bool, tuple[str, ...]], list[str]]] = {}
    for found in wanted:
        alike = grouped.setdefault((found.role, found.needed_by), {})
        alike.setdefault((found.resource, found.prefixed, found.operations), []).append(found.name)
    commands = []
    for (role, needed_by), rights in grouped.items():
        commands.append(f"# {role}: {needed_by}")
        for (resource, prefixed, operations), names in rights.items():
            what = " ".join(f"--{resource} {shlex.quote(name)}" for name in names)
            how = " ".join(f"--operation {operation}" for operation in operations)
            pattern = " --resource-pattern-type prefixed" if prefixed else ""
            commands.append(
                f'kafka-acls.sh --bootstrap-server "$KAFKA" --add --allow-principal {shlex.quote(principals[role])}'
                f" {how} {what}{pattern}"
            )
    return commands
