import shlex

import pytest

from inferline_stream.dataplane.kafka_permissions import (
    ROLES,
    Permission,
    permission_commands,
    permissions,
    topic_commands,
)
from inferline_stream.kafka.pipeline_topics import topics_of
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic


def same(values: list[int]) -> list[int]:
    return values


def pipeline() -> Pipeline:
    first = Stage("first", same, hardware="cpu-1")
    last = Stage("last", same, hardware="cpu-1", after=[first])
    return Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, last])


def topics(role: str, operation: str, verb: str | None = None) -> set[str]:
    """Topics on which a role has a right, for one verb or for any."""
    return {
        found.name
        for found in permissions(pipeline(), "x.")
        if (found.role, found.resource) == (role, "topic")
        and operation in found.operations
        and verb in (None, found.needed_by)
    }


def others(role: str, resource: str) -> set[tuple[str, bool, tuple[str, ...], str]]:
    """A role's rights on other things than topics."""
    return {
        (found.name, found.prefixed, found.operations, found.needed_by)
        for found in permissions(pipeline(), "x.")
        if (found.role, found.resource) == (role, resource)
    }


@pytest.mark.parametrize(
    ("role", "reads", "writes"),
    [
        (
            "controller",
            {"x.in", "x.p.last", "x.out", "x.p.completed", "x.p.stage-stats", "x.p.control",
             "x.p.assignments", "x.p.arrivals", "x.p.decisions", "inferline-hop-"},
            {"x.p.assignments", "x.p.arrivals", "x.p.decisions", "x.in", "x.p.control", "inferline-hop-"},
        ),
        (
            "dispatcher",
            {"x.in", "x.p.last", "x.p.assignments"},
            {"x.p.last", "x.out", "x.p.completed", "x.in.dlq", "x.p.last.dlq", "x.p.stage-stats"},
        ),
        ("source-connector", {"x.out"}, {"x.in"}),
        ("sink-connector", {"x.out"}, set()),
        (
            "viewer",
            {"x.in", "x.p.arrivals", "x.p.stage-stats", "x.p.assignments", "x.p.decisions", "x.p.control"},
            set(),
        ),
        (
            "operator",
            {"x.p.assignments", "x.p.decisions", "x.p.control", "x.in.dlq", "x.p.last.dlq"},
            {"x.p.control", "x.in", "x.p.last", "x.in.dlq", "x.p.last.dlq"},
        ),
    ],
)  # fmt: skip
def test_a_role_reads_and_writes_its_own_topics_alone(role, reads, writes):
    assert (topics(role, "Read"), topics(role, "Write")) == (reads, writes)


def test_the_controller_feeds_and_takes_the_pages_commands_by_rights_that_can_be_left_out():
    assert topics("controller", "Write", "run") == {"x.p.assignments", "x.p.arrivals", "x.p.decisions"}
    assert topics("controller", "Write", "run --replay") == {"x.in"}
    assert topics("controller", "Write", "run --ui-token") == {"x.p.control"}
    assert topics("operator", "Write", "scale, pause, resume, deploy") == {"x.p.control"}


def test_groups_and_transactional_ids_belong_to_who_commits_with_them():
    slots = {(f"x.p.{stage}-", True, ("Write",), "run --delivery exactly_once") for stage in ("first", "last")}
    groups = {(f"x.p.{stage}", False, ("Read",), "run") for stage in ("first", "last")}
    assert others("dispatcher", "group") == groups
    assert others("dispatcher", "transactional-id") == slots
    assert others("controller", "group") == groups | {
        ("inferline-hop-", True, ("Read",), "profile"),
    }
    assert others("controller", "transactional-id") == slots | {("x.p-controller", False, ("Write",), "run")}
    assert others("source-connector", "group") == {("x.p.first", False, ("Describe",), "http --most-behind")}
    assert others("sink-connector", "group") == {("x.out-to-", True, ("Read",), "sinks")}
    assert others("operator", "transactional-id") == {("x.p.dlq", False, ("Write",), "dlq replay")}


def test_a_role_that_verifies_topics_sees_every_one_of_them():
    every = {topic.name for topic in topics_of(pipeline(), "x.")}
    implied = {"Read", "Write", "Describe"}
    for role, verb in (("controller", "run"), ("viewer", "topics --bootstrap-servers")):
        assert set().union(*(topics(role, operation, verb) for operation in implied)) == every
        assert topics(role, "DescribeConfigs", verb) == {t.name for t in topics_of(pipeline(), "x.") if t.settings}


def test_every_topic_of_the_pipeline_is_created_with_its_settings():
    wanted = topics_of(pipeline(), "x.", {"last": 5})
    commands = [shlex.split(command) for command in topic_commands(wanted)]
    created = {command[command.index("--topic") + 1]: command for command in commands}
    assert created.keys() == {topic.name for topic in wanted}
    last = created["x.p.last"]
    assert last[last.index("--partitions") + 1] == "5"
    assert last[last.index("--replication-factor") + 1] == "3"
    assert {"retention.ms=-1", "min.insync.replicas=2"} <= set(last)


def test_rights_become_one_command_for_all_things_of_a_role_with_the_same_ones():
    rights = [Permission("dispatcher", "topic", name, False, ("Read",), "run") for name in ("a", "b c")]
    rights.append(Permission("operator", "group", "g.", True, ("Read",), "dlq"))
    principals = {role: f"User:{role}" for role in ROLES}
    comment, both, verb, prefixed = permission_commands(rights, principals)
    assert (comment, verb) == ("# dispatcher: run", "# operator: dlq")
    assert shlex.split(both)[3:] == ["--add", "--allow-principal", "User:dispatcher", "--operation", "Read",
                                     "--topic", "a", "--topic", "b c"]  # fmt: skip
    assert shlex.split(prefixed)[-4:] == ["--group", "g.", "--resource-pattern-type", "prefixed"]


def test_each_source_of_a_stage_has_partitions_and_rights_of_its_own():
    ends = {"a": Topic("in", partitions=1), "b": Topic("returns")}
    stages = [
        Stage(name, same, hardware="cpu-1", source=source, sink=Topic(f"{name}s")) for name, source in ends.items()
    ]
    both = Pipeline("p", slo="1s", stages=stages)
    assert {topic.name: topic.partitions for topic in topics_of(both, "", {"b": 5})}["returns"] == 5
    rights = permissions(both)
    assert len(rights) == len(set(rights))
    describes = {each.name for each in rights if (each.role, each.resource) == ("source-connector", "group")}
    assert describes == {"p.a", "p.b.returns"}
