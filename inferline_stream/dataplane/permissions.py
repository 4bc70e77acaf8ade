"""What a pipeline may do in Kafka, and not more: for clusters where another team creates topics and grants rights."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from inferline_stream.dataplane.routes import every_route
from inferline_stream.dataplane.topics import REPLICATION, TopicSettings, durability
from inferline_stream.pipeline.names import Names
from inferline_stream.pipeline.topology import Pipeline

Resource = Literal["topic", "group", "transactional-id"]

_RUN, _FEED, _PROFILE, _REPLAY, _OVERRIDES = "run", "run --replay", "profile", "dlq replay", "scale, pause, resume"


@dataclass(frozen=True, slots=True)
class Permission:
    """A right of the pipeline's principal, as Kafka's ACLs name it. Reading and writing imply describing.

    Args:
        resource: kind of thing.
        name: of the thing, or what its name begins with.
        prefixed: whether ``name`` is only the beginning.
        operations: Kafka's names.
        needed_by: verbs that cannot do without.
    """

    resource: Resource
    name: str
    prefixed: bool
    operations: tuple[str, ...]
    needed_by: str = _RUN


def permissions(pipeline: Pipeline, prefix: str = "") -> list[Permission]:
    """The least rights that let a pipeline run where its topics exist, and those of the verbs beside it.

    The controller and the dispatchers use them; replicas have no Kafka client.

    Creating topics (`run` without ``--no-create-topics``) takes Create and DescribeConfigs on them as well.
    """
    names = Names(pipeline.name, prefix)
    routes = every_route(pipeline, prefix)
    source, sink = names.topic(pipeline.source.name), names.topic(pipeline.sink.name)
    wanted: dict[str, set[str]] = defaultdict(set)
    for route in routes.values():
        wanted[route.input_topic].add("Read")
        for topic in route.topics_written:
            wanted[topic] |= {"Write", "DescribeConfigs"}  # how large its records may be
    for topic in (sink, names.completed):  # the report accounts for every event
        wanted[topic].add("Read")
    for topic in (names.assignments, names.stage_stats, names.arrivals, names.decisions):
        wanted[topic] |= {"Read", "Write"}
    wanted[names.control].add("Read")
    letters = {names.dead_letters(route.input_topic) for route in routes.values()}
    found = [Permission("topic", topic, False, tuple(sorted(operations))) for topic, operations in wanted.items()]
    found += [Permission("group", route.group, False, ("Read",)) for route in routes.values()]
    slots = [names.transactional_id(f"{stage}-") for stage in routes]  # exactly once
    found += [
        Permission("group", names.control_groups, True, ("Read", "Delete")),
        Permission("transactional-id", f"{prefix}{pipeline.name}-controller", False, ("Write",)),
        *(Permission("transactional-id", slot, True, ("Write",)) for slot in slots),
        Permission("topic", source, False, ("Write",), _FEED),
        Permission("topic", "inferline-hop-", True, ("Create", "Delete", "Read", "Write"), _PROFILE),
        Permission("group", "inferline-hop-", True, ("Read",), _PROFILE),
        Permission("topic", source, False, ("Write",), _REPLAY),
        *(Permission("topic", topic, False, ("Read",), _REPLAY) for topic in sorted(letters)),
        Permission("topic", names.control, False, ("Write",), _OVERRIDES),
    ]
    return found


def topic_commands(topics: Iterable[TopicSettings]) -> list[str]:
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


def permission_commands(wanted: Sequence[Permission], principal: str) -> list[str]:
    """Commands that grant the rights, a comment before each verb's own."""
    grouped: dict[tuple[str, Resource, bool, tuple[str, ...]], list[str]] = defaultdict(list)
    for found in wanted:
        grouped[found.needed_by, found.resource, found.prefixed, found.operations].append(found.name)
    commands, needed_by = [], ""
    for (verb, resource, prefixed, operations), names in grouped.items():
        if verb != needed_by:
            needed_by = verb
            commands.append(f"# {verb}")
        what = " ".join(f"--{resource} {shlex.quote(name)}" for name in names)
        how = " ".join(f"--operation {operation}" for operation in operations)
        pattern = " --resource-pattern-type prefixed" if prefixed else ""
        commands.append(
            f'kafka-acls.sh --bootstrap-server "$KAFKA" --add --allow-principal {shlex.quote(principal)}'
            f" {how} {what}{pattern}"
        )
    return commands
