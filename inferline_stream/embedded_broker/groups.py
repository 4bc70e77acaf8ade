"""Consumer groups: the offsets that they commit, the members that share their partitions, and their rebalances.

A rebalance (Kafka's classic protocol) is two barriers. *Join*: everybody states the protocols it speaks; once all have,
a new generation begins and one member leads it. *Sync*: the leader hands in everybody's assignment, and each member
gets its own.

What a member may not do is refused with one of aiokafka's `BrokerResponseError`s, whose code the client receives.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from aiokafka.errors import (
    BrokerResponseError,
    GroupIdNotFound,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidGroupIdError,
    InvalidSessionTimeoutError,
    NonEmptyGroup,
    OffsetMetadataTooLargeError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

LONGEST_SESSION_S = 1800.0
T = TypeVar("T")


class State(StrEnum):
    """Where a group is between two generations, by Kafka's names."""

    EMPTY = "Empty"
    JOINING = "PreparingRebalance"
    SYNCING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(frozen=True, slots=True)
class Joined:
    """What a member learns when a generation begins; only its leader learns of the others."""

    generation: int
    protocol: str
    leader_id: str
    member_id: str
    members: Sequence[tuple[str, bytes]]


@dataclass(slots=True, eq=False)
class Member:
    """A member: who it is, how long it may be silent, and what it waits for."""

    id: str
    client_id: str
    client_host: str
    session_timeout_s: float
    rebalance_timeout_s: float
    protocols: Mapping[str, bytes]
    assignment: bytes = b""
    joining: asyncio.Future[Joined] | None = None
    syncing: asyncio.Future[bytes] | None = None
    session: asyncio.TimerHandle | None = None


class Membership:
    """Members and generation of one group. The first member of an empty one waits for nobody."""

    def __init__(self) -> None:
        self.state = State.EMPTY
        self.generation = 0
        self.protocol_type = ""
        self.protocol = ""
        self.leader_id = ""
        self.members: dict[str, Member] = {}
        self._rebalance: asyncio.TimerHandle | None = None

    async def join(self, member: Member, protocol_type: str) -> Joined:
        """Join (an empty id stands for a new member) or join again; returns once the next generation begins."""
        if not 0 < member.session_timeout_s <= LONGEST_SESSION_S:
            raise InvalidSessionTimeoutError
        if member.id and member.id not in self.members:
            raise UnknownMemberIdError
        self._check_protocols(member, protocol_type)
        known = self.members.get(member.id)
        if known is not None and self._nothing_changes(known, member):
            self._touch(known)
            return self._joined(known)
        if known is not None:
            self._forget(known)  # the client gave up what still waits under this id
        member.id = member.id or f"{member.client_id}-{uuid.uuid4()}"
        member.joining = answer = asyncio.get_running_loop().create_future()
        self.members[member.id] = member
        self.protocol_type = protocol_type
        if self.state is State.JOINING:
            self._begin_generation_if_all_joined()
        else:
            self._begin_rebalance()
        joined: Joined = await answer
        return joined

    async def sync(self, member_id: str, generation: int, assignments: Mapping[str, bytes]) -> bytes:
        """The member's assignment of this generation, once its leader has handed in everybody's."""
        member = self._checked(member_id, generation)
        if self.state is State.JOINING:
            raise RebalanceInProgressError
        if self.state is State.SYNCING and member_id != self.leader_id:
            member.syncing = asyncio.get_running_loop().create_future()
            return await member.syncing
        if self.state is State.SYNCING:
            self.state = State.STABLE
            for other in self.members.values():
                other.assignment = assignments.get(other.id, b"")
                _resolve(other.syncing, other.assignment)
        return member.assignment

    def heartbeat(self, member_id: str, generation: int) -> None:
        """The member lives; it is refused where it should join a rebalance."""
        self._checked(member_id, generation)
        if self.state is State.JOINING:
            raise RebalanceInProgressError

    def check_commit(self, member_id: str, generation: int) -> None:
        """Refuse a commit by a former member, or while assignments are being made."""
        self._checked(member_id, generation)
        if self.state is State.SYNCING:
            raise RebalanceInProgressError

    def leave(self, member_id: str) -> None:
        """The member goes; the others share its partitions."""
        if member_id not in self.members:
            raise UnknownMemberIdError
        self._remove(self.members[member_id])

    def close(self) -> None:
        """Stop every timer."""
        for timer in [self._rebalance, *(member.session for member in self.members.values())]:
            if timer is not None:
                timer.cancel()

    def _check_protocols(self, member: Member, protocol_type: str) -> None:
        others = [other for other in self.members.values() if other.id != member.id]
        agrees = not others or (protocol_type == self.protocol_type and self._spoken([*others, member]))
        if not member.protocols or not protocol_type or not agrees:
            raise InconsistentGroupProtocolError

    def _nothing_changes(self, known: Member, member: Member) -> bool:
        """A member that asks again, as its answer was lost or because it rejoins needlessly, causes no rebalance."""
        settled = self.state is State.SYNCING or (self.state is State.STABLE and known.id != self.leader_id)
        return settled and known.protocols == member.protocols

    def _begin_rebalance(self) -> None:
        self.state = State.JOINING
        for member in self.members.values():
            _refuse(member.syncing, RebalanceInProgressError())
        longest_s = max(member.rebalance_timeout_s for member in self.members.values())
        self._rebalance = asyncio.get_running_loop().call_later(longest_s, self._begin_generation)
        self._begin_generation_if_all_joined()

    def _begin_generation_if_all_joined(self) -> None:
        if all(member.joining for member in self.members.values()):
            self._begin_generation()

    def _begin_generation(self) -> None:
        if self._rebalance is not None:
            self._rebalance.cancel()
        for member in [member for member in self.members.values() if member.joining is None]:
            self._forget(member)
        self.generation += 1
        if not self.members:
            self.state, self.protocol, self.leader_id = State.EMPTY, "", ""
            return
        self.state = State.SYNCING
        self.protocol = self._spoken(list(self.members.values()))[0]
        if self.leader_id not in self.members:
            self.leader_id = next(iter(self.members))
        for member in self.members.values():
            _resolve(member.joining, self._joined(member))
            member.joining = None
            self._touch(member)

    def _joined(self, member: Member) -> Joined:
        leads = member.id == self.leader_id
        others = [(other.id, other.protocols[self.protocol]) for other in self.members.values()] if leads else []
        return Joined(self.generation, self.protocol, self.leader_id, member.id, others)

    @staticmethod
    def _spoken(members: Sequence[Member]) -> list[str]:
        """Protocols that everybody speaks, in the order in which the first member prefers them."""
        return [name for name in members[0].protocols if all(name in member.protocols for member in members)]

    def _checked(self, member_id: str, generation: int) -> Member:
        """The member of this generation, which thereby shows that it lives."""
        if member_id not in self.members:
            raise UnknownMemberIdError
        if generation != self.generation:
            raise IllegalGenerationError
        self._touch(self.members[member_id])
        return self.members[member_id]

    def _touch(self, member: Member) -> None:
        """Count the member's silence from now on; while it waits for us it need not speak."""
        if member.session is not None:
            member.session.cancel()
        if member.joining is None:
            member.session = asyncio.get_running_loop().call_later(member.session_timeout_s, self._remove, member)

    def _remove(self, member: Member) -> None:
        self._forget(member)
        if self.state is State.JOINING:
            self._begin_generation_if_all_joined()
        elif self.members:
            self._begin_rebalance()
        else:
            self._begin_generation()

    def _forget(self, member: Member) -> None:
        self.members.pop(member.id, None)
        if member.session is not None:
            member.session.cancel()
        _refuse(member.joining, UnknownMemberIdError())
        _refuse(member.syncing, UnknownMemberIdError())


def _resolve(answer: asyncio.Future[T] | None, value: T) -> None:
    if answer is not None and not answer.done():
        answer.set_result(value)


def _refuse(answer: asyncio.Future[T] | None, error: BrokerResponseError) -> None:
    if answer is not None and not answer.done():
        answer.set_exception(error)


LARGEST_METADATA_BYTES = 4096

Partition = tuple[str, int]
"""Topic and number of a partition."""


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """An offset and whatever the consumer wanted to remember with it."""

    offset: int
    metadata: str


@dataclass(slots=True)
class Group:
    """One consumer group; without members it is merely a place for offsets."""

    name: str
    membership: Membership
    offsets: dict[Partition, GroupOffset] = field(default_factory=dict)

    def check_commit(self, member_id: str, generation: int) -> None:
        """Refuse a commit of somebody who is no member of this generation.

        A consumer that assigns partitions itself commits without a member id, and may do so whenever the group has no
        members: nothing tells an owner from a former owner.
        """
        if member_id or generation >= 0:
            self.membership.check_commit(member_id, generation)
        elif self.membership.members:
            raise UnknownMemberIdError

    def commit(self, partition: Partition, committed: GroupOffset) -> None:
        """Remember an offset."""
        check_metadata(committed)
        self.offsets[partition] = committed


def check_metadata(committed: GroupOffset) -> None:
    """Whether a group may remember this."""
    if len(committed.metadata.encode()) > LARGEST_METADATA_BYTES:
        raise OffsetMetadataTooLargeError


class Groups:
    """All consumer groups of the broker."""

    def __init__(self) -> None:
        self.by_name: dict[str, Group] = {}

    def get(self, name: str) -> Group:
        """A group by its name, made on first use."""
        if not name:
            raise InvalidGroupIdError
        if name not in self.by_name:
            self.by_name[name] = Group(name, Membership())
        return self.by_name[name]

    def delete(self, name: str) -> None:
        """Forget a group and its offsets."""
        if name not in self.by_name:
            raise GroupIdNotFound
        if self.by_name[name].membership.members:
            raise NonEmptyGroup
        del self.by_name[name]

    def forget_topic(self, topic: str) -> None:
        """Drop the offsets of a deleted topic."""
        for group in self.by_name.values():
            group.offsets = {partition: kept for partition, kept in group.offsets.items() if partition[0] != topic}

    def close(self) -> None:
        """Stop every timer."""
        for group in self.by_name.values():
            group.membership.close()
