"""The members of a stage that is an ordinary consumer group: each serves the partitions that it owns.

A member is a slot of one replica. When one comes or leaves, partitions are dealt out evenly again. Only those that move
wait, and no longer than for the batch that their old owner has in hand, as with cooperative rebalancing; the seconds
that a group needs to agree are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from inferline_stream.estimator.kernels import Ints
from inferline_stream.replay.stage_queues import StageQueues


@dataclass(slots=True)
class GroupMembers:
    """Members by the order in which they came; those beyond the partitions are idle.

    Args:
        queues: a slot for each partition.
        partitions: of the stage's input topic.
        members: how many there are.
    """

    queues: StageQueues
    partitions: int
    members: int = 0
    _owner: Ints = field(init=False)

    def __post_init__(self) -> None:
        self._owner = np.zeros(self.partitions, dtype=np.int64)

    def add(self, kind: int, now_s: float) -> None:
        """A member that is ready now: it gets its share of the partitions."""
        self.members += 1
        if self.members <= self.partitions:
            self.queues.add(self.members - 1, kind, now_s)
            self._deal(now_s)

    def leave(self, kind: int, now_s: float) -> float:
        """The member that came last gives up its partitions. Returns when it has done what it has in hand."""
        self.members -= 1
        if self.members >= self.partitions:
            return now_s
        done_s = self.queues.leave(self.members, kind, now_s)
        if self.members:  # what waits for a group without members stays where it is
            self._deal(now_s)
        return done_s

    def _deal(self, now_s: float) -> None:
        self._owner = _shared_out(self._owner, self.members)
        self.queues.deal(self._owner, now_s)


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
