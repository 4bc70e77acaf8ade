"""Consumer groups: membership, offsets and what tools ask about them."""

from __future__ import annotations

from functools import partial

from inferline_stream.embedded_broker.broker_state import NODE_ID, Broker, Client, answered, each_partition
from inferline_stream.embedded_broker.groups import Group, GroupOffset, Member, Membership
from inferline_stream.embedded_broker.wire import Fields
from inferline_stream.kafka.wire.later_requests import UNSTABLE


async def find_coordinator(broker: Broker, request: Fields, client: Client) -> Fields:
    """The coordinator of a group or transactional id: the one broker."""
    return {"coordinator_id": NODE_ID, "host": broker.host, "port": broker.port}


def _membership(broker: Broker, request: Fields) -> Membership:
    return broker.groups.get(request["group"]).membership


async def join_group(broker: Broker, request: Fields, client: Client) -> Fields:
    """Join a group; the answer comes when its next generation begins."""
    member = Member(
        id=request["member_id"],
        client_id=client.id,
        client_host=client.host,
        session_timeout_s=request["session_timeout"] / 1000,
        rebalance_timeout_s=request["rebalance_timeout"] / 1000,
        protocols={one["protocol_name"]: one["protocol_metadata"] for one in request["group_protocols"]},
    )
    joined = await _membership(broker, request).join(member, request["protocol_type"])
    return {
        "generation_id": joined.generation,
        "group_protocol": joined.protocol,
        "leader_id": joined.leader_id,
        "member_id": joined.member_id,
        "members": [{"member_id": name, "member_metadata": metadata} for name, metadata in joined.members],
    }


async def sync_group(broker: Broker, request: Fields, client: Client) -> Fields:
    """Hand in everybody's assignment, or wait for one's own."""
    handed_in = {one["member_id"]: one["member_metadata"] for one in request["group_assignment"]}
    membership = _membership(broker, request)
    return {"member_assignment": await membership.sync(request["member_id"], request["generation_id"], handed_in)}


async def heartbeat(broker: Broker, request: Fields, client: Client) -> Fields:
    """A member lives."""
    _membership(broker, request).heartbeat(request["member_id"], request["generation_id"])
    return {}


async def leave_group(broker: Broker, request: Fields, client: Client) -> Fields:
    """A member goes."""
    _membership(broker, request).leave(request["member_id"])
    return {}


async def commit_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Commit offsets of a group."""

    def commit(topic: str, number: int, part: Fields) -> None:
        group = broker.groups.get(request["consumer_group"])
        group.check_commit(request["consumer_id"], request["consumer_group_generation_id"])
        broker.topics.partition(topic, number)
        group.commit((topic, number), GroupOffset(part["offset"], part["metadata"] or ""))

    return {"topics": each_partition(request["topics"], commit)}


async def fetch_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Committed offsets of a group, -1 where there is none; all that there are where no partition is named.

    A client that asks for stable offsets gets `UNSTABLE` for each that an open transaction may change.
    """
    group_name = request["consumer_group"]
    group = broker.groups.by_name.get(group_name)
    offsets = group.offsets if group else {}
    every: dict[str, list[int]] = {}
    for topic, number in sorted(offsets):
        every.setdefault(topic, []).append(number)

    def find(topic: str, number: int, part: Fields) -> Fields:
        if request.get("require_stable") and broker.transactions.has_under_way(group_name, (topic, number)):
            return {"offset": -1, "metadata": "", "error_code": UNSTABLE}
        kept = offsets.get((topic, number), GroupOffset(-1, ""))
        return {"offset": kept.offset, "metadata": kept.metadata}

    wanted = request["topics"]
    if wanted is None:
        wanted = [{"topic": topic, "partitions": numbers} for topic, numbers in every.items()]
    return {"topics": each_partition(wanted, find)}


async def list_groups(broker: Broker, request: Fields, client: Client) -> Fields:
    """All groups; one that never had members has no protocol."""
    groups = broker.groups.by_name.values()
    return {"groups": [{"group": group.name, "protocol_type": group.membership.protocol_type} for group in groups]}


async def describe_groups(broker: Broker, request: Fields, client: Client) -> Fields:
    """State and members of groups; one that does not exist is dead."""
    known = broker.groups.by_name
    return {
        "groups": [
            _described(known[name]) if name in known else {"group": name, "state": "Dead"} for name in request["groups"]
        ]
    }


def _described(group: Group) -> Fields:
    membership = group.membership
    return {
        "group": group.name,
        "state": str(membership.state),
        "protocol_type": membership.protocol_type,
        "protocol": membership.protocol,
        "members": [
            {
                "member_id": member.id,
                "client_id": member.client_id,
                "client_host": member.client_host,
                "member_metadata": member.protocols.get(membership.protocol, b""),
                "member_assignment": member.assignment,
            }
            for member in membership.members.values()
        ],
    }


async def delete_groups(broker: Broker, request: Fields, client: Client) -> Fields:
    """Forget groups without members, and their offsets."""
    names = request["groups_names"]
    return {"results": [{"group_id": name, **answered(partial(broker.groups.delete, name))} for name in names]}
