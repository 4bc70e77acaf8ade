"""Topics are created, grown, configured, compacted and deleted: on Apache Kafka and on the embedded broker."""

import asyncio

import pytest
from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidConfigurationError,
    InvalidPartitionsError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

from tests.support.deadlines import until

AT_ONCE = {"segment_ms": "100", "min_cleanable_dirty_ratio": "0.01", "delete_retention_ms": "100"}


async def create(clients, topic, **options):
    admin = await clients.admin()
    answer = await admin.create_topics([topic], **options)
    ((name, code, _),) = answer.topic_errors
    assert name == topic.name
    return code


async def test_a_topic_is_created_once_and_described(clients):
    admin = await clients.admin()
    topic = await clients.topic(3)
    assert topic in await admin.list_topics()
    (described,) = await admin.describe_topics([topic])
    assert (described["error_code"], described["topic"]) == (0, topic)
    assert sorted(part["partition"] for part in described["partitions"]) == [0, 1, 2]
    assert await create(clients, NewTopic(topic, 3, 1)) == TopicAlreadyExistsError.errno


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"name": "no spaces"}, InvalidTopicError),
        ({"num_partitions": 0}, InvalidPartitionsError),
        ({"replication_factor": 3}, InvalidReplicationFactorError),
        ({"topic_configs": {"no.such.setting": "1"}}, InvalidConfigurationError),
        ({"topic_configs": {"retention.ms": "soon"}}, InvalidConfigurationError),
        ({"topic_configs": {"cleanup.policy": "burn"}}, InvalidConfigurationError),
    ],
)
async def test_a_topic_that_cannot_be_is_refused(clients, changes, error):
    wanted = {"name": clients.unique("topic"), "num_partitions": 1, "replication_factor": 1, **changes}
    assert await create(clients, NewTopic(**wanted)) == error.errno
    assert wanted["name"] not in await (await clients.admin()).list_topics()


async def test_validating_a_topic_does_not_create_it(clients):
    name = clients.unique("topic")
    assert await create(clients, NewTopic(name, 1, 1), validate_only=True) == 0
    assert name not in await (await clients.admin()).list_topics()


async def test_a_topic_grows_and_never_shrinks(clients):
    admin = await clients.admin()
    topic = await clients.topic(2)
    producer = await clients.producer()
    await producer.send_and_wait(topic, b"old", partition=1)
    await admin.create_partitions({topic: NewPartitions(4)})
    await clients.until_partitions(topic, 4)
    with pytest.raises(InvalidPartitionsError):
        await admin.create_partitions({topic: NewPartitions(3)})
    with pytest.raises(UnknownTopicOrPartitionError):
        await admin.create_partitions({clients.unique("missing"): NewPartitions(3)})
    newer = await clients.producer()
    await newer.send_and_wait(topic, b"new", partition=3)
    records = await clients.read(await clients.reader(topic, 0, 1, 2, 3), 2)
    assert sorted((record.partition, record.value) for record in records) == [(1, b"old"), (3, b"new")]


async def test_a_deleted_topic_is_gone_and_may_be_created_again_empty(clients):
    admin = await clients.admin()
    topic = await clients.topic()
    await (await clients.producer()).send_and_wait(topic, b"value")
    answer = await admin.delete_topics([topic])
    assert list(answer.topic_error_codes) == [(topic, 0)]

    async def gone():
        (described,) = await admin.describe_topics([topic])
        return described["error_code"] == UnknownTopicOrPartitionError.errno

    await until(gone, "the topic is gone")
    answer = await admin.delete_topics([topic])
    assert list(answer.topic_error_codes) == [(topic, UnknownTopicOrPartitionError.errno)]
    assert await create(clients, NewTopic(topic, 1, 1)) == 0
    await clients.until_partitions(topic, 1)
    await (await clients.producer()).send_and_wait(topic, b"again")
    (record,) = await clients.read(await clients.reader(topic), 1)
    assert (record.offset, record.value) == (0, b"again")


async def settings_of(clients, topic, *names):
    admin = await clients.admin()
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names, "") or None)
    (answer,) = await admin.describe_configs([resource])
    ((code, _, _, name, entries),) = answer.resources
    assert name == topic
    return code, {entry[0]: entry[1] for entry in entries}


async def test_settings_are_described_and_altered(clients):
    topic = await clients.topic(cleanup_policy="compact")
    code, settings = await settings_of(clients, topic)
    assert code == 0
    assert (settings["cleanup.policy"], settings["retention.ms"]) == ("compact", "604800000")
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "3000"})
    await (await clients.admin()).alter_configs([resource])

    async def altered():
        _, seen = await settings_of(clients, topic, "max.message.bytes", "cleanup.policy")
        return seen == {"max.message.bytes": "3000", "cleanup.policy": "delete"}  # all others are as by default again

    await until(altered, "the settings have changed")
    code, _ = await settings_of(clients, clients.unique("missing"))
    assert code == UnknownTopicOrPartitionError.errno


async def test_the_cluster_has_one_broker_that_controls(clients):
    described = await (await clients.admin()).describe_cluster()
    ((node, host, port),) = [(one["node_id"], one["host"], one["port"]) for one in described["brokers"]]
    assert described["controller_id"] == node
    assert f"{host}:{port}" == clients.bootstrap_servers


async def write_until_compacted(clients, producer, topic, is_compacted):
    """Kafka compacts behind the segment that it writes, so it must be made to begin new ones."""

    async def goes_on(number):
        tick = b"%d" % number
        await producer.send_and_wait(topic, tick, key=b"tick")
        consumer = await clients.reader(topic, isolation_level="read_committed")
        records = await clients.read(consumer, 1)
        while records[-1].value != tick:
            records += await clients.read(consumer, 1)
        await consumer.stop()
        return is_compacted(records)

    number = 1000  # a value that no other record of these tests has
    async with asyncio.timeout(180):
        while not await goes_on(number):
            number += 1
            await asyncio.sleep(0.15)


async def test_a_compacted_topic_keeps_the_last_record_of_each_key_at_its_offset(clients):
    topic = await clients.topic(cleanup_policy="compact", **AT_ONCE)
    producer = await clients.producer(compression_type="gzip", linger_ms=50)
    sends = [await producer.send(topic, b"%d" % n, key=b"k%d" % (n % 3), headers=[("n", b"%d" % n)]) for n in range(9)]
    await asyncio.gather(*sends)
    latest = {b"k0": (6, b"6"), b"k1": (7, b"7"), b"k2": (8, b"8")}

    def is_compacted(records):
        found = [record for record in records if record.key != b"tick"]
        assert {record.key: (record.offset, record.value) for record in found} == latest
        assert all(dict(record.headers) == {"n": record.value} for record in found)
        return len(found) == 3

    await write_until_compacted(clients, producer, topic, is_compacted)


async def test_a_record_without_value_removes_its_key(clients):
    topic = await clients.topic(cleanup_policy="compact", **AT_ONCE)
    producer = await clients.producer()
    await producer.send_and_wait(topic, b"value", key=b"gone")
    await producer.send_and_wait(topic, b"value", key=b"kept")
    await producer.send_and_wait(topic, None, key=b"gone")

    def is_compacted(records):
        last = {record.key: record.value for record in records}
        assert last[b"kept"] == b"value"
        assert last.get(b"gone") is None
        return b"gone" not in last

    await write_until_compacted(clients, producer, topic, is_compacted)


async def test_an_aborted_record_does_not_hide_the_committed_one_of_its_key(clients):
    topic = await clients.topic(cleanup_policy="compact", **AT_ONCE)
    plain = await clients.producer()
    transactional = await clients.producer(transactional_id=clients.unique("transactional"))
    await plain.send_and_wait(topic, b"old", key=b"key")
    async with transactional.transaction():
        await transactional.send_and_wait(topic, b"committed", key=b"key")
    await transactional.begin_transaction()
    await transactional.send_and_wait(topic, b"aborted", key=b"key")
    await transactional.abort_transaction()

    def is_compacted(records):
        found = [record.value for record in records if record.key == b"key"]
        assert found[-1] == b"committed"
        return found == [b"committed"]

    await write_until_compacted(clients, plain, topic, is_compacted)
