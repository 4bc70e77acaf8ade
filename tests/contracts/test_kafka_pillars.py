"""What the data plane is built on, shown before anything is built on it.

Leadership: `InitProducerId` on a transactional id fences the producer that held it. Zombies: a commit by a consumer
that assigns partitions itself cannot be refused, so at-least-once needs leases; in exactly-once the transactional id
fences it.
Offsets of a group without members expire, unless they are committed again.
"""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import ProducerFenced
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

from tests.support.deadlines import until


@pytest.mark.parametrize("moment", ["idle", "sending", "committing"])
async def test_a_new_leader_fences_the_old_one_whatever_that_is_doing(clients, moment):
    decisions, name = await clients.topic(), clients.unique("pipeline-controller")
    old = await clients.producer(transactional_id=name)
    async with old.transaction():
        await old.send_and_wait(decisions, b"old, in time")
    if moment != "idle":
        await old.begin_transaction()
        await old.send_and_wait(decisions, b"old, not finished")
    new = await clients.producer(transactional_id=name)

    async def go_on():
        if moment == "idle":
            await old.begin_transaction()
        if moment != "committing":
            await old.send_and_wait(decisions, b"old, too late")
        await old.commit_transaction()

    with pytest.raises(ProducerFenced):
        await go_on()
    async with new.transaction():
        await new.send_and_wait(decisions, b"new")
    follower = await clients.reader(decisions, isolation_level="read_committed")
    assert [record.value for record in await clients.read(follower, 2)] == [b"old, in time", b"new"]
    await clients.nothing_more(follower)


async def test_fencing_is_a_token_and_not_an_election_so_a_fenced_leader_must_exit(clients):
    name = clients.unique("pipeline-controller")
    first = await clients.producer(transactional_id=name)
    second = await clients.producer(transactional_id=name)
    again = await clients.producer(transactional_id=name)  # the first one, had it only tried again: nobody refuses it
    decisions = await clients.topic()
    for fenced in (first, second):
        with pytest.raises(ProducerFenced):
            async with fenced.transaction():
                await fenced.send_and_wait(decisions, b"fenced")
    async with again.transaction():
        await again.send_and_wait(decisions, b"leads")


async def test_a_zombie_with_manual_assignment_can_rewind_the_offset_so_it_needs_a_lease(clients):
    topic, group = await clients.topic(), clients.unique("stage")
    partition = TopicPartition(topic, 0)
    zombie, owner = [await clients.reader(topic, group_id=group) for _ in range(2)]
    await zombie.commit({partition: 5})
    await owner.commit({partition: 10})
    await zombie.commit({partition: OffsetAndMetadata(6, "zombie")})  # accepted: the group has no members to check
    assert await owner.committed(partition) == 6
    # The owner can see that it was rewound, and puts it right.
    await owner.commit({partition: OffsetAndMetadata(10, "owner")})
    offsets = await (await clients.admin()).list_consumer_group_offsets(group)
    assert offsets[partition] == OffsetAndMetadata(10, "owner")


async def test_in_exactly_once_a_zombie_is_fenced_before_its_partition_is_granted_again(clients):
    source, sink, group = await clients.topic(), await clients.topic(), clients.unique("stage")
    partition, name = TopicPartition(source, 0), clients.unique("stage-0-1")
    zombie = await clients.producer(transactional_id=name)
    async with zombie.transaction():
        await zombie.send_offsets_to_transaction({partition: 5}, group)
    await zombie.begin_transaction()
    await zombie.send_and_wait(sink, b"zombie")
    await zombie.send_offsets_to_transaction({partition: 8}, group)
    await clients.producer(transactional_id=name)  # the controller, which has no other use for it
    successor = await clients.reader(source, group_id=group)
    assert await successor.committed(partition) == 5
    with pytest.raises(ProducerFenced):
        await zombie.commit_transaction()
    assert await successor.committed(partition) == 5
    await clients.nothing_more(await clients.reader(sink, isolation_level="read_committed"))


async def test_offsets_of_a_group_without_members_outlive_the_consumers_that_committed_them(clients):
    topic, group = await clients.topic(), clients.unique("stage")
    partition = TopicPartition(topic, 0)
    for offset in (3, 4):
        consumer = await clients.reader(topic, group_id=group)
        await consumer.commit({partition: offset})
        await consumer.stop()
    successor = await clients.reader(topic, group_id=group)
    assert await successor.committed(partition) == 4


async def test_offsets_live_so_long_that_committing_them_daily_keeps_them(apache_clients):
    admin = await apache_clients.admin()
    node = (await admin.describe_cluster())["controller_id"]
    resource = ConfigResource(ConfigResourceType.BROKER, str(node), {"offsets.retention.minutes": ""})
    (answer,) = await admin.describe_configs([resource])
    ((_, _, _, _, ((name, minutes, *_),)),) = answer.resources
    assert name == "offsets.retention.minutes"
    assert int(minutes) >= 2 * 24 * 60  # Kafka's default is seven days


async def test_an_offset_expires_unless_it_is_committed_again(own_clients):
    clients = own_clients
    topic, group = await clients.topic(2), clients.unique("stage")
    renewed, left = TopicPartition(topic, 0), TopicPartition(topic, 1)
    retention_ms = 1500  # given with the commit, as the broker's own setting counts in minutes

    async def commit(*partitions):
        wanted = [(topic, [(partition.partition, 7, "") for partition in partitions])]
        answer = await clients.send(OffsetCommitRequest(group, -1, "", retention_ms, wanted))
        return {code for _, codes in answer.topics for _, code in codes} == {0}

    async def offsets():
        found = await (await clients.admin()).list_consumer_group_offsets(group)
        return {partition: kept.offset for partition, kept in found.items()}

    assert await (await clients.reader(topic, group_id=group)).committed(left) is None  # the coordinator is there
    await until(lambda: commit(renewed, left), "a coordinator that has loaded takes the commit")
    assert await offsets() == {renewed: 7, left: 7}

    async def only_the_renewed_is_there():
        assert await commit(renewed)
        found = await offsets()
        assert found[renewed] == 7
        return left not in found

    async with asyncio.timeout(60):
        while not await only_the_renewed_is_there():
            await asyncio.sleep(0.1)

    async def all_gone():
        return not await offsets()

    await until(all_gone, "the group has no offsets left")
