"""A pipeline's topics: created, or verified where another team creates them."""

import json
import secrets
import time
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from inferline_stream.dataplane.topology_loader import load_topology
from inferline_stream.errors import InvalidInput
from inferline_stream.kafka.offsets import Offsets
from inferline_stream.kafka.pipeline_topics import (
    create_topics,
    durability,
    ready_topics,
    retentions,
    topics_of,
    verify_topics,
)
from tests.support.forked_command import forked_command


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    forked_command("init", str(tmp_path)).check_returncode()
    return tmp_path / "topology.py"


async def test_a_topics_oldest_record_and_how_long_it_is_kept_are_known(kafka, clients):
    hour, forever = await clients.topic(2, retention_ms="3600000"), await clients.topic(1, retention_ms="-1")
    producer, now_ms = await clients.producer(), round(time.time() * 1e3)
    for partition, age_ms in ((0, 5_000), (1, 60_000), (1, 1_000)):
        await producer.send_and_wait(hour, b"x", partition=partition, timestamp_ms=now_ms - age_ms)
    assert await retentions(kafka.bootstrap_servers, [hour, forever]) == {hour: 3600.0}
    async with Offsets(kafka.bootstrap_servers) as offsets:
        assert await offsets.oldest_s({hour: 2, forever: 1}) == {hour: (now_ms - 60_000) / 1e3}


async def test_each_difference_is_named_and_what_cannot_be_run_on_is_distinguished(kafka, starter):
    pipeline, prefix = load_topology(starter), f"{secrets.token_hex(4)}."
    stage = next(stage.name for stage in pipeline.stages if stage.after)
    wanted = topics_of(pipeline, prefix, {stage: 4})
    missing = await verify_topics(kafka.bootstrap_servers, wanted)
    assert len(missing) == len(wanted)
    assert all(difference.blocks for difference in missing)

    (short,) = [topic for topic in wanted if topic.purpose == f"input of stage {stage}"]
    (kept,) = [topic for topic in wanted if topic.name.endswith(".assignments")]
    async with Admin(kafka.bootstrap_servers) as admin:
        await admin.create_topics([NewTopic(short.name, 2, 1), NewTopic(kept.name, 1, 1)])
        await create_topics(kafka.bootstrap_servers, wanted, replication=1)
        found = {d.text: d.blocks for d in await verify_topics(kafka.bootstrap_servers, wanted)}
        assert found == {
            f"topic {short.name} has retention.ms=604800000, -1 is advised": False,
            f"topic {short.name} has retention.bytes=-1, {4 * 1024**3} is advised": False,
            f"topic {short.name} has segment.bytes={1024**3}, {64 * 1024**2} is advised": False,
            f"topic {kept.name} has cleanup.policy=delete, compact is needed": True,
            **{
                text: False
                for text in found
                if kept.name in text and ("min.cleanable.dirty.ratio" in text or "segment.ms" in text)
            },
        }


async def test_topics_of_ours_that_take_no_record_without_a_key_are_not_run_on(embedded_broker, starter):
    where, wanted = embedded_broker.bootstrap_servers, topics_of(load_topology(starter), f"{secrets.token_hex(4)}.")
    ours = [t for t in wanted if t.purpose.startswith(("input of stage", "events that ended", "records of"))]
    assert {topic.name.split(".", 1)[1] for topic in ours} >= {"reviews.study", "reviews.completed", "reviews-in.dlq"}
    tables = [NewTopic(topic.name, 1, 1, topic_configs={"cleanup.policy": "delete,compact"}) for topic in ours]
    (sink,) = [topic.name for topic in wanted if topic.purpose.startswith("sink")]
    async with Admin(where) as admin:
        await admin.create_topics([*tables, NewTopic(sink, 1, 1, topic_configs={"cleanup.policy": "compact"})])
    needed = [f"topic {topic.name} has cleanup.policy=delete,compact, delete is needed" for topic in ours]
    with pytest.raises(InvalidInput) as raised:
        await ready_topics(where, wanted, create=True, replication=1)
    assert list(raised.value.problems) == needed
    with pytest.raises(InvalidInput) as raised:
        await ready_topics(where, wanted, create=False)
    assert list(raised.value.problems) == needed, "the others have been created"


async def test_topics_of_fewer_brokers_have_fewer_copies_and_a_warning(kafka, starter):
    wanted = topics_of(load_topology(starter), f"{secrets.token_hex(4)}.")
    (warning,) = await create_topics(kafka.bootstrap_servers, wanted)
    assert "replication 1, not 3" in warning.text
    assert await create_topics(kafka.bootstrap_servers, wanted) == []


@pytest.mark.parametrize(
    ("brokers", "copies", "in_sync", "warned"), [(1, 1, 1, True), (2, 2, 1, True), (3, 3, 2, False), (9, 3, 2, False)]
)
def test_a_write_has_as_many_copies_as_one_broker_may_be_missing_from(brokers, copies, in_sync, warned):
    how = durability(3, brokers)
    assert (how.copies, how.in_sync, bool(how.warning)) == (copies, in_sync, warned)


def test_the_verb_compares_and_ends_with_3_where_the_pipeline_could_not_run(embedded_broker, starter):
    where = ["--bootstrap-servers", embedded_broker.bootstrap_servers, "--prefix", f"{secrets.token_hex(4)}."]
    done = forked_command("topics", str(starter), *where, "--output", "json")
    assert done.returncode == 3
    document = json.loads(done.stdout)
    assert len(document["differences"]) == len(document["topics"])
    assert done.stderr.count("does not exist: create it with") == len(document["topics"])


def test_a_run_that_must_not_create_topics_names_those_that_are_missing_and_creates_none(embedded_broker, starter):
    prefix = f"{secrets.token_hex(4)}."
    where = ["--bootstrap-servers", embedded_broker.bootstrap_servers, "--prefix", prefix]
    done = forked_command("run", str(starter), *where, "--no-create-topics", "--no-ui", "--metrics-port", "0")
    assert done.returncode == 3, done.stderr
    assert f"error: topic {prefix}" in done.stderr
    assert "planning" not in done.stderr + done.stdout, "it looks first"
    listed = forked_command("topics", str(starter), *where, "--output", "json")
    document = json.loads(listed.stdout)
    assert len(document["differences"]) == len(document["topics"])


class Admin:
    """An admin client that is closed again."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)

    async def __aenter__(self) -> AIOKafkaAdminClient:
        await self._client.start()
        return self._client

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()
