"""Consumer groups: the offsets that they commit and the members that share their partitions."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiokafka.errors import (
    GroupIdNotFound,
    InvalidGroupIdError,
    NonEmptyGroup,
    OffsetMetadataTooLargeError,
    UnknownMemberIdError,
)

from inferline_stream.embedded_broker.membership import Membership

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

    def __init__(self, rebalance_delay_s: float) -> None:
        self.by_name: dict[str, Group] = {}
        self._rebalance_delay_s = rebalance_delay_s

    def get(self, name: str) -> Group:
        """A group by its name, made on first use."""
        if not name:
            raise InvalidGroupIdError
        if name not in self.by_name:
            self.by_name[name] = Group(name, Membership(self._rebalance_delay_s))
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
