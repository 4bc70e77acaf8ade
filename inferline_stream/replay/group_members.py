"""The members of a stage that is an ordinary consumer group: each serves the partitions that it owns.

A member is a slot of one replica. When one comes or leaves, partitions are dealt out evenly again, and as few as
possible move. What a change costs depends on the group's protocol (`pipeline.group_profile.Rebalance`):

- eager: no partition is served until all have done what they have in hand, and for the pause from then on;
- cooperative: those that move wait for the batch that their old owner has in hand, and for the pause;
- kip848 and share: those that move wait for that batch, and until their new owner's next heartbeat, any time up to
  the longest;
- without a rebalance: those that move wait for that batch alone.

What a member waits for before anything moves counts as its start-up. The members of a share group that has more of them
than partitions take from one queue (`Sharing.queues`), which is the first slot's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from inferline_stream.estimator.kernels import Floats, Ints
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.replay.stage_queues import StageQueues


@dataclass(slots=True)
class GroupMembers:
    """Members by the order in which they came; those beyond the partitions are idle.

    Args:
        queues: a slot for each partition.
        sharing: of the partitions.
        heartbeats: draws when owners learn of partitions, by KIP-848.
        members: how many there are.
    """

    queues: StageQueues
    sharing: Sharing
    heartbeats: np.random.Generator
    members: int = 0
    _owner: Ints = field(init=False)
    _from_s: Floats = field(init=False)
    """By partition, from when on its owner serves it."""
    _free_s: Floats = field(init=False)
    """By partition, when the owner before has done what it had in hand of it."""
    _kinds: list[int] = field(default_factory=list)
    """Of the members."""
    _as_one: bool = False
    """Whether they take from one queue."""

    def __post_init__(self) -> None:
        self._owner = np.zeros(self.sharing.partitions, dtype=np.int64)
        self._from_s = np.full(self.sharing.partitions, -math.inf)
        self._free_s = np.full(self.sharing.partitions, -math.inf)

    def add(self, kind: int, now_s: float) -> None:
        """A member that is ready now: it gets its share of the partitions."""
        self.members += 1
        self._kinds.append(kind)
        if self.sharing.queues(self.members) is None:
            self._gather(now_s)
            self.queues.add(0, kind, now_s)
        elif self.members <= self.sharing.partitions:
            self.queues.add(self.members - 1, kind, now_s)
        self._deal(now_s)

    def leave(self, kind: int, now_s: float) -> float:
        """The member that came last gives up its partitions. Returns when it has done what it has in hand."""
        self.members -= 1
        self._kinds.remove(kind)
        if self._as_one:
            done_s = self.queues.leave(0, kind, now_s)
            self._part(now_s)
        else:
            idle = self.members >= self.sharing.partitions
            done_s = now_s if idle else self.queues.leave(self.members, kind, now_s)
        if self.members:  # what waits for a group without members stays where it is
            self._deal(now_s)
        return done_s

    def _gather(self, now_s: float) -> None:
        """All members serve the first slot's queue. What they have in hand is done beside it."""
        for slot, kind in enumerate([] if self._as_one else self._kinds[:-1]):
            if slot:
                self.queues.leave(slot, kind, now_s)
                self.queues.add(0, kind, now_s)
        self._as_one = True

    def _part(self, now_s: float) -> None:
        """Each member serves its own slot again, once there are no more of them than partitions."""
        if self.sharing.queues(self.members) is None:
            return
        for slot, kind in enumerate(self._kinds):
            if slot:
                self.queues.leave(0, kind, now_s)
                self.queues.add(slot, kind, now_s)
        self._as_one = False

    def _deal(self, now_s: float) -> None:
        if self._as_one:
            self._owner = np.zeros(self.sharing.partitions, dtype=np.int64)
            self._from_s = np.full(self.sharing.partitions, -math.inf)
            self.queues.deal(self._owner, self._from_s, now_s)
            return
        owner = _shared_out(self._owner, min(self.members, self.sharing.partitions))
        ends_s, rebalance = self.queues.ends_s(now_s), self.sharing.rebalance
        moves = owner != self._owner
        # Of a partition that nobody serves yet, nobody has anything in hand but the owner before.
        served = self._from_s <= now_s
        self._free_s = np.where(served, ends_s[self._owner], np.maximum(self._free_s, now_s))
        if rebalance is not None and rebalance.protocol == "eager":
            self._from_s = np.full(owner.size, self._free_s.max() + rebalance.pause_s.value)
        elif moves.any():
            pause_s = np.zeros(owner.size)
            if rebalance is not None and rebalance.protocol == "cooperative":
                pause_s += rebalance.pause_s.value
            elif rebalance is not None:
                pause_s = self.heartbeats.uniform(0.0, rebalance.longest_s, owner.size)[owner]
            self._from_s = np.where(moves, self._free_s + pause_s, self._from_s)
        self._owner = owner
        self.queues.deal(owner, self._from_s, now_s)


def _shared_out(owner: Ints, members: int) -> Ints:
    """Owner of each partition among so many members: evenly, and as few as possible move."""
    least, more = divmod(owner.size, members)
    shared: Ints = np.full(owner.size, -1, dtype=np.int64)
    owned = [0] * members
    for partition, before in enumerate(owner.tolist()):
        if before < members and owned[before] < least + (sum(n > least for n in owned) < more):
            shared[partition] = before
            owned[before] += 1
    for partition in np.flatnonzero(shared < 0).tolist():
        shared[partition] = member = owned.index(min(owned))
        owned[member] += 1
    return shared
