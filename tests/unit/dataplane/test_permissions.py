import shlex

from inferline_stream.dataplane.permissions import Permission, permission_commands, permissions, topic_commands
from inferline_stream.dataplane.topics import topics_of
from inferline_stream.pipeline.topology import Pipeline, Stage, Topic


def same(values: list[int]) -> list[int]:
    return values


def pipeline() -> Pipeline:
    first = Stage("first", same, hardware="cpu-1")
    last = Stage("last", same, hardware="cpu-1", after=[first])
    return Pipeline("p", slo="1s", source=Topic("in"), sink=Topic("out"), stages=[first, last])


def operations(of: str, *, verb: str = "run") -> set[str]:
    return {
        operation
        for found in permissions(pipeline(), "x.")
        if found.name == of and found.needed_by == verb and found.resource == "topic"
        for operation in found.operations
    }


def test_a_pipeline_may_read_what_it_reads_and_write_what_it_writes():
    assert operations("x.in") == {"Read"}
    assert operations("x.p.last") == {"DescribeConfigs", "Read", "Write"}
    assert operations("x.in.dlq") == {"DescribeConfigs", "Write"}
    assert operations("x.in", verb="dlq replay") == {"Write"}
    assert operations("x.in.dlq", verb="dlq replay") == {"Read"}
    run = [found for found in permissions(pipeline(), "x.") if found.needed_by == "run"]
    groups = {(found.name, found.prefixed) for found in run if found.resource == "group"}
    assert groups == {("x.p.first", False), ("x.p.last", False), ("x.p-control-", True)}
    transactions = {(found.name, found.prefixed) for found in run if found.resource == "transactional-id"}
    assert transactions == {("x.p.first-", True), ("x.p.last-", True), ("x.p-controller", False)}


def test_every_topic_of_the_pipeline_is_created_with_its_settings_and_granted():
    wanted = topics_of(pipeline(), "x.", {"last": 5})
    commands = [shlex.split(command) for command in topic_commands(wanted)]
    created = {command[command.index("--topic") + 1]: command for command in commands}
    assert created.keys() == {topic.name for topic in wanted}
    last = created["x.p.last"]
    assert last[last.index("--partitions") + 1] == "5"
    assert last[last.index("--replication-factor") + 1] == "3"
    assert {"retention.ms=-1", "min.insync.replicas=2"} <= set(last)
    granted = {
        found.name
        for found in permissions(pipeline(), "x.")
        if found.resource == "topic" and found.needed_by != "profile"
    }
    assert granted == created.keys()


def test_rights_become_one_command_for_all_things_with_the_same_ones():
    rights = [Permission("topic", "a", False, ("Read",)), Permission("topic", "b c", False, ("Read",))]
    rights.append(Permission("group", "g.", True, ("Read",), "dlq replay"))
    comment, both, verb, prefixed = permission_commands(rights, "User:me")
    assert (comment, verb) == ("# run", "# dlq replay")
    assert shlex.split(both)[3:] == ["--add", "--allow-principal", "User:me", "--operation", "Read",
                                     "--topic", "a", "--topic", "b c"]  # fmt: skip
    assert shlex.split(prefixed)[-4:] == ["--group", "g.", "--resource-pattern-type", "prefixed"]
