"""Rebalances of one group, without a network."""

import asyncio

import pytest
from aiokafka.errors import UnknownMemberIdError

from inferline_stream.embedded_broker.groups import Member, Membership, State
from tests.support.virtual_time import in_virtual_time


def member(name="", protocols=("range",), session_timeout_s=30.0, rebalance_timeout_s=30.0):
    return Member(name, "client", "/host", session_timeout_s, rebalance_timeout_s, {one: b"meta" for one in protocols})


@pytest.fixture
async def group():
    group = Membership()
    yield group
    group.close()


async def soon(task):
    async with asyncio.timeout(5):
        return await task


async def test_a_member_that_asks_again_is_answered_again_without_a_rebalance(group):
    first = await group.join(member(), "consumer")
    again = await group.join(member(first.member_id), "consumer")
    assert again == first
    assert group.generation == 1


@in_virtual_time
async def test_a_member_that_does_not_join_again_in_time_is_left_behind():
    group = Membership()
    first = await group.join(member(rebalance_timeout_s=10.0), "consumer")
    await group.sync(first.member_id, 1, {})
    second = await group.join(member(rebalance_timeout_s=10.0), "consumer")
    assert [name for name, _ in second.members] == [second.member_id]
    with pytest.raises(UnknownMemberIdError):
        group.heartbeat(first.member_id, 1)


@in_virtual_time
async def test_a_silent_member_is_removed_and_one_that_speaks_or_waits_for_us_is_not():
    group = Membership()
    silent = await group.join(member(session_timeout_s=15.0, rebalance_timeout_s=60.0), "consumer")
    await group.sync(silent.member_id, 1, {})
    # Longer than its own session, for the silent one has to be given up first.
    joined = await group.join(member(session_timeout_s=5.0, rebalance_timeout_s=60.0), "consumer")
    assert [name for name, _ in joined.members] == [joined.member_id]
    for _ in range(4):
        await asyncio.sleep(4.9)
        group.heartbeat(joined.member_id, joined.generation)
    await asyncio.sleep(4.9)
    assert group.members.keys() == {joined.member_id}
    await asyncio.sleep(0.2)
    assert group.members == {}
    assert group.state is State.EMPTY


async def test_a_protocol_is_chosen_that_everybody_speaks(group):
    first = await group.join(member(protocols=("sticky", "range")), "consumer")
    assert first.protocol == "sticky"
    joining = asyncio.create_task(group.join(member(protocols=("range",)), "consumer"))
    await asyncio.sleep(0)
    await group.join(member(first.member_id, protocols=("sticky", "range")), "consumer")
    assert (await soon(joining)).protocol == "range"
