"""Consumer groups share partitions and keep offsets: on Apache Kafka and on the embedded broker."""

import asyncio

import pytest
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import NewPartitions
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    GroupIdNotFound,
    GroupLoadInProgressError,
    IllegalGenerationError,
    IllegalStateError,
    InconsistentGroupProtocolError,
    NonEmptyGroup,
    NotCoordinatorForGroupError,
    UnknownMemberIdError,
)
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest

from tests.support.deadlines import until

PROMPT = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 100}
# What a commit meets whose partition was taken away: the broker knows, or the client does already.
TAKEN_AWAY = (CommitFailedError, UnknownMemberIdError, IllegalGenerationError, IllegalStateError)


def partitions_of(consumer):
    return {partition.partition for partition in consumer.assignment()}


async def share(consumers, partitions):
    """Wait until these consumers, and nobody else, hold all partitions, each of them some."""

    def shared():
        held = [partitions_of(consumer) for consumer in consumers]
        return all(held) and sorted(number for some in held for number in some) == list(range(partitions))

    await until(shared, f"{len(consumers)} members share {partitions} partitions")


async def test_members_share_the_partitions_and_take_over_from_one_that_leaves(clients):
    topic, group = await clients.topic(4), clients.unique("group")
    first = await clients.consumer(topic, group_id=group, **PROMPT)
    await share([first], 4)
    second = await clients.consumer(topic, group_id=group, **PROMPT)
    third = await clients.consumer(topic, group_id=group, **PROMPT)
    await share([first, second, third], 4)
    await first.stop()
    await share([second, third], 4)
    await second.stop()
    await share([third], 4)


async def test_every_record_is_read_once_by_the_group_while_it_grows_and_shrinks(clients):
    topic, group = await clients.topic(4), clients.unique("group")
    producer = await clients.producer()
    seen = []

    async def follow(consumer, ended):
        # A record counts when its commit has been acknowledged, so that nothing is read twice on purpose.
        while not ended.is_set():
            for partition, records in (await consumer.getmany(timeout_ms=100)).items():
                try:
                    await consumer.commit({partition: records[-1].offset + 1})
                except TAKEN_AWAY:
                    continue  # taken away meanwhile: its new owner reads these records
                seen.extend(record.value for record in records)

    async def send(numbers):
        for number in numbers:
            await producer.send_and_wait(topic, b"%d" % number, partition=number % 4)

    first_ended, second_ended = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as following:
        first = await clients.consumer(topic, group_id=group, **PROMPT)
        leaving = following.create_task(follow(first, first_ended))
        await send(range(40))
        second = await clients.consumer(topic, group_id=group, **PROMPT)
        following.create_task(follow(second, second_ended))
        await asyncio.gather(send(range(40, 80)), share([first, second], 4))
        first_ended.set()
        await leaving
        await first.stop()
        await send(range(80, 120))
        await share([second], 4)
        await until(lambda: len(set(seen)) >= 120, "all records are read")
        second_ended.set()
    assert sorted(int(value) for value in seen) == list(range(120))


async def test_a_member_that_falls_silent_loses_its_partitions(clients):
    topic, group = await clients.topic(2), clients.unique("group")
    quick = {"session_timeout_ms": 1000, "heartbeat_interval_ms": 100}
    joined = await join(clients, group, session_ms=1000, protocol="roundrobin")
    await clients.send(SyncGroupRequest(group, joined.generation_id, joined.member_id, None, [(joined.member_id, b"")]))
    consumer = await clients.consumer(topic, group_id=group, rebalance_timeout_ms=60_000, **quick)
    await share([consumer], 2)  # the first member never joins again: its session ends


async def test_added_partitions_are_shared_as_well(clients):
    topic, group = await clients.topic(2), clients.unique("group")
    consumers = [await clients.consumer(topic, group_id=group, metadata_max_age_ms=200, **PROMPT) for _ in range(2)]
    await share(consumers, 2)
    await (await clients.admin()).create_partitions({topic: NewPartitions(5)})
    await share(consumers, 5)
    producer = await clients.producer()
    await producer.send_and_wait(topic, b"value", partition=4)
    reading = [asyncio.create_task(consumer.getone()) for consumer in consumers]
    done, pending = await asyncio.wait(reading, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    assert [task.result().value for task in done] == [b"value"]


async def test_a_listener_learns_what_is_revoked_and_what_is_assigned(clients):
    topic, group = await clients.topic(2), clients.unique("group")
    reported = []

    class Listener(ConsumerRebalanceListener):
        async def on_partitions_revoked(self, revoked):
            reported.append(("revoked", {partition.partition for partition in revoked}))

        async def on_partitions_assigned(self, assigned):
            reported.append(("assigned", {partition.partition for partition in assigned}))

    consumer = await clients.consumer(group_id=group, **PROMPT)
    consumer.subscribe([topic], listener=Listener())
    await share([consumer], 2)
    other = await clients.consumer(topic, group_id=group, **PROMPT)
    await share([consumer, other], 2)
    await until(lambda: len(reported) >= 4, "the listener has been called four times")
    assert [what for what, _ in reported] == ["revoked", "assigned", "revoked", "assigned"]
    assert (reported[1][1], reported[2][1]) == ({0, 1}, {0, 1})
    assert reported[3][1] == partitions_of(consumer)


async def coordinated(clients, group):
    """Wait until a broker answers for a group: the first question creates the topic of groups, in a moment."""
    admin = await clients.admin()

    async def answered():
        try:
            await admin.find_coordinator(group)
        except GroupCoordinatorNotAvailableError:
            return False
        code = (await clients.send(HeartbeatRequest(group, -1, ""))).error_code
        return code not in (NotCoordinatorForGroupError.errno, GroupLoadInProgressError.errno)

    await until(answered, f"there is a coordinator of {group}")


async def join(clients, group, member_id="", session_ms=60_000, protocol="range"):
    """Join a group by hand; brokers may want a new member to ask twice."""
    await coordinated(clients, group)
    answer = await clients.send(
        JoinGroupRequest(group, session_ms, 60_000, member_id, None, "consumer", [(protocol, b"m")])
    )
    if answer.error_code == 79:  # MEMBER_ID_REQUIRED
        return await join(clients, group, answer.member_id, session_ms, protocol)
    return answer


async def test_requests_of_former_generations_and_strangers_are_refused(clients):
    group = clients.unique("group")
    joined = await join(clients, group)
    assert joined.error_code == 0
    assert (joined.leader_id, joined.members[0][0]) == (joined.member_id, joined.member_id)
    stale, member = joined.generation_id - 1, joined.member_id
    synced = await clients.send(SyncGroupRequest(group, joined.generation_id, member, None, [(member, b"mine")]))
    assert (synced.error_code, synced.member_assignment) == (0, b"mine")

    async def code(request):
        return (await clients.send(request)).error_code

    assert await code(HeartbeatRequest(group, joined.generation_id, member)) == 0
    assert await code(HeartbeatRequest(group, stale, member)) == IllegalGenerationError.errno
    assert await code(HeartbeatRequest(group, joined.generation_id, "stranger")) == UnknownMemberIdError.errno
    assert await code(SyncGroupRequest(group, stale, member, None, [])) == IllegalGenerationError.errno
    assert (await join(clients, group, "stranger")).error_code == UnknownMemberIdError.errno
    assert (await join(clients, group, protocol="unheard")).error_code == InconsistentGroupProtocolError.errno
    assert await code(LeaveGroupRequest(group, "stranger")) == UnknownMemberIdError.errno
    assert await code(LeaveGroupRequest(group, member)) == 0
    assert await code(HeartbeatRequest(group, joined.generation_id, member)) == UnknownMemberIdError.errno


async def test_only_members_commit_while_a_group_has_members(clients):
    topic, group = await clients.topic(1), clients.unique("group")
    joined = await join(clients, group)
    member = joined.member_id
    await clients.send(SyncGroupRequest(group, joined.generation_id, member, None, [(member, b"")]))

    async def commit(generation, member_id, offset):
        request = OffsetCommitRequest(group, generation, member_id, -1, [(topic, [(0, offset, "")])])
        ((_, ((_, code),)),) = (await clients.send(request)).topics
        return code

    assert await commit(joined.generation_id, member, 1) == 0
    assert await commit(joined.generation_id - 1, member, 2) == IllegalGenerationError.errno
    assert await commit(-1, "", 3) == UnknownMemberIdError.errno
    await clients.send(LeaveGroupRequest(group, member))
    assert await commit(joined.generation_id, member, 4) == UnknownMemberIdError.errno
    offsets = await (await clients.admin()).list_consumer_group_offsets(group)
    assert offsets[TopicPartition(topic, 0)].offset == 1
    assert await commit(-1, "", 5) == 0


async def test_groups_are_listed_described_and_deleted(clients):
    topic, group, memberless = await clients.topic(2), clients.unique("group"), clients.unique("memberless")
    admin = await clients.admin()
    consumer = await clients.consumer(topic, group_id=group, client_id="somebody", **PROMPT)
    await share([consumer], 2)
    await (await clients.reader(topic, group_id=memberless)).commit({TopicPartition(topic, 0): 0})
    listed = dict(await admin.list_consumer_groups())
    assert (listed[group], listed[memberless]) == ("consumer", "")

    async def described(name):
        (answer,) = await admin.describe_consumer_groups([name])
        (found,) = answer.groups
        return found[2], [member[1] for member in found[5]]  # state, client ids

    assert await described(group) == ("Stable", ["somebody"])
    assert await described(memberless) == ("Empty", [])
    assert await described(clients.unique("nobody")) == ("Dead", [])

    async def delete(name):
        ((_, code),) = (await clients.send(DeleteGroupsRequest([name]))).results
        return code

    assert await delete(group) == NonEmptyGroup.errno
    assert await delete(memberless) == 0
    assert await delete(memberless) == GroupIdNotFound.errno
    assert memberless not in dict(await admin.list_consumer_groups())


async def test_offsets_of_a_group_are_listed_for_all_its_partitions(clients):
    topics, group = [await clients.topic(2), await clients.topic(1)], clients.unique("group")
    consumer = await clients.consumer(group_id=group)
    wanted = {TopicPartition(topics[0], 1): 0, TopicPartition(topics[1], 0): 0}
    consumer.assign(list(wanted))
    await consumer.commit(wanted)
    admin = await clients.admin()
    offsets = await admin.list_consumer_group_offsets(group)
    assert {partition: kept.offset for partition, kept in offsets.items()} == wanted
    await admin.delete_topics([topics[0]])

    async def forgotten():
        left = await admin.list_consumer_group_offsets(group)
        return set(left) == {TopicPartition(topics[1], 0)}

    await until(forgotten, "the deleted topic's offset is gone")


@pytest.mark.parametrize("interval_ms", [50])
async def test_offsets_are_committed_in_the_background(clients, interval_ms):
    topic, group = await clients.topic(1), clients.unique("group")
    producer = await clients.producer()
    await producer.send_and_wait(topic, b"value")
    consumer = await clients.consumer(
        topic, group_id=group, enable_auto_commit=True, auto_commit_interval_ms=interval_ms, **PROMPT
    )
    await clients.read(consumer, 1)

    async def committed():
        offsets = await (await clients.admin()).list_consumer_group_offsets(group)
        return [kept.offset for kept in offsets.values()] == [1]

    await until(committed, "the offset is committed")
