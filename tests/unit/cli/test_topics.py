"""`topics`: who gets the rights that it prints."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import inferline_stream.cli
from inferline_stream.cli.main import app
from inferline_stream.dataplane.kafka_permissions import ROLES

STARTER = str(Path(inferline_stream.cli.__file__).parent / "starter-topology" / "topology.py")


def granted(*principals: str) -> dict[str, set[str]]:
    """Users that the printed commands grant rights to, by the role in the comment before them."""
    options = [option for principal in principals for option in ("--principal", principal)]
    done = CliRunner().invoke(app, ["topics", STARTER, "--print", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    role, found = "", {}
    for line in done.stdout.splitlines():
        if line.startswith("# "):
            role = line.removeprefix("# ").partition(":")[0]
        elif line.startswith("kafka-acls.sh"):
            words = shlex.split(line)
            found.setdefault(role, set()).add(words[words.index("--allow-principal") + 1])
    return found


def test_each_role_is_a_user_of_its_own_where_none_is_named():
    assert granted() == {role: {f"User:inferline-{role}"} for role in ROLES}


def test_one_user_has_every_role_but_those_that_are_given_another():
    everyone = {role: {"User:alice"} for role in ROLES}
    assert granted("User:alice") == everyone
    found = granted("User:alice", "dispatcher=User:CN=moves,O=us")
    assert found == {**everyone, "dispatcher": {"User:CN=moves,O=us"}}


@pytest.mark.parametrize("given", [("alice",), ("mover=User:alice",), ("User:alice", "User:bob")])
def test_what_is_no_role_and_no_user_is_named_with_what_to_give(given):
    options = [option for principal in given for option in ("--principal", principal)]
    done = CliRunner().invoke(app, ["topics", STARTER, *options])
    assert done.exit_code == 2
    assert "--principal" in done.stderr
    assert given[0] in done.stderr


def test_json_names_the_role_of_each_right():
    done = CliRunner().invoke(app, ["topics", STARTER, "--output", "json"], catch_exceptions=False)
    assert {right["role"] for right in json.loads(done.stdout)["permissions"]} == set(ROLES)


def test_of_groups_that_run_already_reading_what_their_coordinator_writes_is_a_right_apart(tmp_path):
    (tmp_path / "topology.py").write_text(
        "from inferline_stream import ConsumerGroup, Pipeline\n"
        'rank = ConsumerGroup("rank", group="rank-v1", topic="posts")\n'
        'pipeline = Pipeline("adopted", slo="5s", stages=[rank])\n'
    )

    done = CliRunner().invoke(app, ["topics", str(tmp_path), "--output", "json"], catch_exceptions=False)

    document = json.loads(done.stdout)
    advised = [r for r in document["permissions"] if r["needed_by"].startswith("advise")]
    rights = [(r["resource"], r["name"], r["operations"]) for r in advised]
    assert [topic["name"] for topic in document["topics"]] == [
        f"adopted.{own}" for own in ("assignments", "decisions", "control")
    ]
    assert rights[:2] == [("topic", "posts", ["Describe"]), ("group", "rank-v1", ["Describe"])]
    assert rights[2:] == [("topic", "__consumer_offsets", ["Read"])]
    verified = [r for r in document["permissions"] if r["needed_by"] == "topics --bootstrap-servers"]
    assert {r["name"] for r in verified if "DescribeConfigs" in r["operations"]} == {
        topic["name"] for topic in document["topics"] if topic["settings"]
    }
    apart = {r["needed_by"] for r in document["permissions"] if r["name"] == "__consumer_offsets"}
    assert apart.isdisjoint(r["needed_by"] for r in document["permissions"] if r["name"] != "__consumer_offsets")


@pytest.mark.parametrize("arguments", [[], ["--group", ""], ["topology.py", "--group", "rank-v1"]])
def test_advise_wants_a_topology_or_groups_to_declare_and_not_both(arguments):
    done = CliRunner().invoke(app, ["advise", *arguments, "--bootstrap-servers", "127.0.0.1:1"])

    assert done.exit_code == 2
    assert "not both" in done.stderr
