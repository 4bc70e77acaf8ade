"""Consumer groups: membership, offsets and what tools ask about them."""

from __future__ import annotations

from aiokafka.errors import BrokerResponseError

from inferline_stream.broker.groups import Committed, Group
from inferline_stream.broker.membership import Member
from inferline_stream.broker.state import NODE_ID, Broker, Client, each_partition, failure
from inferline_stream.broker.wire import Fields


async def find_coordinator(broker: Broker, request: Fields, client: Client) -> Fields:
    """The coordinator of a group or transactional id: the one broker."""
    node = {"coordinator_id": NODE_ID, "host": broker.host, "port": broker.port}
    return {"error_code": 0, "error_message": None, **node}


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
    fields: Fields = {"generation_id": -1, "group_protocol": "", "leader_id": "", "member_id": "", "members": []}
    try:
        membership = broker.groups.group(request["group"]).membership
        joined = await membership.join(member, request["protocol_type"])
    except BrokerResponseError as error:
        return {**fields, "error_code": error.errno, "member_id": request["member_id"]}
    return {
        "error_code": 0,
        "generation_id": joined.generation,
        "group_protocol": joined.protocol,
        "leader_id": joined.leader_id,
        "member_id": joined.member_id,
        "members": [{"member_id": member_id, "member_metadata": metadata} for member_id, metadata in joined.members],
    }


async def sync_group(broker: Broker, request: Fields, client: Client) -> Fields:
    """Hand in everybody's assignment, or wait for one's own."""
    handed_in = {one["member_id"]: one["member_metadata"] for one in request["group_assignment"]}
    try:
        membership = broker.groups.group(request["group"]).membership
        assignment = await membership.sync(request["member_id"], request["generation_id"], handed_in)
    except BrokerResponseError as error:
        return {"error_code": error.errno, "member_assignment": b""}
    return {"error_code": 0, "member_assignment": assignment}


async def heartbeat(broker: Broker, request: Fields, client: Client) -> Fields:
    """A member lives."""
    name, member_id, generation = request["group"], request["member_id"], request["generation_id"]
    return {"error_code": failure(lambda: broker.groups.group(name).membership.heartbeat(member_id, generation))[0]}


async def leave_group(broker: Broker, request: Fields, client: Client) -> Fields:
    """A member goes."""
    name, member_id = request["group"], request["member_id"]
    return {"error_code": failure(lambda: broker.groups.group(name).membership.leave(member_id))[0]}


async def commit_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Commit offsets of a group; each partition succeeds or fails for itself."""
    generation, member_id = request["consumer_group_generation_id"], request["consumer_id"]

    def commit(topic: str, part: Fields) -> None:
        group = broker.groups.group(request["consumer_group"])
        group.check_commit(generation, member_id)
        broker.topics.partition(topic, part["partition"])
        group.commit((topic, part["partition"]), Committed(part["offset"], part["metadata"] or ""))

    return {"topics": [each_partition(topic, commit) for topic in request["topics"]]}


async def fetch_offsets(broker: Broker, request: Fields, client: Client) -> Fields:
    """Committed offsets of a group, -1 where there is none; all that there are where no partition is named."""
    group = broker.groups.by_name.get(request["consumer_group"])
    offsets = group.offsets if group else {}
    nothing = Committed(-1, "")

    def found(topic: str, number: int) -> Fields:
        kept = offsets.get((topic, number), nothing)
        return {"partition": number, "offset": kept.offset, "metadata": kept.metadata, "error_code": 0}

    wanted = {topic["topic"]: topic["partitions"] for topic in request["topics"] or []}
    if request["topics"] is None:
        for topic, number in sorted(offsets):
            wanted.setdefault(topic, []).append(number)
    topics = [
        {"topic": topic, "partitions": [found(topic, number) for number in numbers]}
        for topic, numbers in wanted.items()
    ]
    return {"error_code": 0, "topics": topics}


async def list_groups(broker: Broker, request: Fields, client: Client) -> Fields:
    """All groups; those without members have no protocol."""
    groups = [
        {"group": group.name, "protocol_type": group.membership.protocol_type}
        for group in broker.groups.by_name.values()
    ]
    return {"error_code": 0, "groups": groups}


async def describe_groups(broker: Broker, request: Fields, client: Client) -> Fields:
    """State and members of groups; one that does not exist is dead."""
    dead = {"error_code": 0, "state": "Dead", "protocol_type": "", "protocol": "", "members": []}
    known = broker.groups.by_name
    return {
        "groups": [_described(known[name]) if name in known else {**dead, "group": name} for name in request["groups"]]
    }


def _described(group: Group) -> Fields:
    membership = group.membership
    return {
        "error_code": 0,
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

    def result(name: str) -> Fields:
        return {"group_id": name, "error_code": failure(lambda: broker.groups.delete(name))[0]}

    return {"results": [result(name) for name in request["groups_names"]]}
