"""What was learned of a consumer group from what Kafka shows of it, and how sure each figure is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Source = Literal["commits", "busy", "metric"]
"""Where a group's throughput is known from: the times of its commits, spans in which it was surely busy, or a figure
that its workers publish."""

RebalanceProtocol = Literal["eager", "cooperative", "kip848", "share"]
"""How a group shares its partitions out at a change: all stop, or those that move; by KIP-848 upon a heartbeat. A share
group (KIP-932) does as KIP-848, and may have more members than partitions: they then take from the same ones."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A figure with its doubt.

    Args:
        value: the estimate.
        error: its standard error, relative to the value.
        count: of independent observations behind it.
    """

    value: float
    error: float
    count: int


@dataclass(frozen=True, slots=True)
class Rebalance:
    """What a change of a group's members costs: a hole in which partitions are not served.

    Args:
        protocol: how partitions are shared out; by it, whether all stop or those that move.
        pause_s: mean hole.
        longest_s: longest hole that was seen.
    """

    protocol: RebalanceProtocol
    pause_s: Learned
    longest_s: float


UNSEEN = Rebalance("eager", Learned(3.0, 1.0, 0), 3.0)
"""What a change is taken to cost where none was seen: a client that stops as a whole learns of it by its heartbeat, 3 s
by default."""

UNSEEN_SHARE = Rebalance("share", Learned(2.5, 1.0, 0), 5.0)
"""The same of a share group: a member learns of its partitions by its heartbeat, 5 s by default."""

MOST_SHARING = 200
"""Members that Kafka lets a share group have, by default (``group.share.max.size``)."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How the members of a group share the partitions of its topic.

    Args:
        partitions: of the topic.
        rebalance: what a change of members costs; None where one that moves waits only for the batch in hand.
    """

    partitions: int
    rebalance: Rebalance | None = None

    @property
    def shares(self) -> bool:
        """Whether it is a share group."""
        return self.rebalance is not None and self.rebalance.protocol == "share"

    @property
    def most(self) -> int:
        """Members of which each can have something to do."""
        return MOST_SHARING if self.shares else self.partitions

    def queues(self, members: int) -> int | None:
        """Return how many queues have an owner each: the partitions; None where all members take from one queue.

        In a share group with no more members than partitions each has partitions of its own. With more, ⌈members /
        partitions⌉ take from each partition, and each from up to two or three: a chain that nearly does what one queue
        does (Jordan and Graves 1995). So Apache Kafka 4.4 assigns them.
        """
        return None if self.shares and members > self.partitions else self.partitions

    def moved_share(self, before: int, after: int) -> float:
        """Share of the partitions that stand still at a change from so many members to so many."""
        if self.rebalance is not None and self.rebalance.protocol == "eager":
            return 1.0
        before, after = sorted((min(before, self.partitions), min(after, self.partitions)))
        return 1.0 if before == 0 else 1 - before / after

    def excess_s(self, slack_s: float) -> float:
        """Mean time by which the hole of a change is longer than what an event may wait for, where it is longer.

        By KIP-848 an owner learns of a partition by its next heartbeat: its hole is uniform up to the longest.
        """
        if self.rebalance is None:
            return 0.0
        longest_s = self.rebalance.longest_s
        if self.rebalance.protocol not in ("kip848", "share"):
            return max(self.rebalance.pause_s.value - slack_s, 0.0)
        return max(longest_s - max(slack_s, 0.0), 0.0) ** 2 / (2 * longest_s) if longest_s > 0 else 0.0

    def useful(self, members: int) -> int:
        """The fewest members, no fewer than these, whose fullest has fewer partitions than with any less: ⌈P/k⌉.

        With numbers in between the fullest member has as many, so that they are hardly faster. Where all take from one
        queue, each number is of use.
        """
        if self.queues(members) is None:
            return min(members, self.most)
        fullest = math.ceil(self.partitions / max(1, min(members, self.partitions)))
        fewest = math.ceil(self.partitions / fullest)
        return fewest if fewest >= min(members, self.partitions) else math.ceil(self.partitions / (fullest - 1))


def owned_queues(sharing: Mapping[str, Sharing], members: Mapping[str, int]) -> dict[str, int]:
    """Return how many queues there are of those groups whose members own them, as `simulation.simulate` takes it."""
    found = {name: own.queues(members[name]) for name, own in sharing.items()}
    return {name: queues for name, queues in found.items() if queues is not None}


@dataclass(frozen=True, slots=True)
class GroupProfile:
    """One worker of a group, and the group as it was seen.

    A batch of b takes ``fixed_s + per_event_s · b`` on average; its standard deviation over its mean is ``spread``.

    Args:
        group: the declared name.
        partitions: of its topic.
        workers: members when it was looked at.
        max_batch_size: most records that a worker was seen to take at once.
        fixed_s: of a batch, however small.
        per_event_s: of each event in it.
        spread: coefficient of variation of a batch's time.
        throughput: events per second of one busy worker at full batches; None while that is not known yet.
        source: where the throughput is known from; None while it is not.
        latency_p99_s: from append to commit, as it was.
        start_up_s: from a member's join to its first commit; None where none has joined yet.
        rebalance: None where no change of members was seen.
        visit_ratio: records of its topic per event that enters the pipeline.
    """

    group: str
    partitions: int
    workers: int
    max_batch_size: int
    fixed_s: float
    per_event_s: float
    spread: float
    throughput: Learned | None
    source: Source | None
    latency_p99_s: Learned | None = None
    start_up_s: Learned | None = None
    rebalance: Rebalance | None = None
    visit_ratio: Learned | None = None

    def reporting(self, throughput: Learned | None) -> GroupProfile:
        """Return it with the throughput that its workers report, where they do: they take one event after another."""
        if throughput is None:
            return self
        return replace(
            self,
            max_batch_size=1,
            fixed_s=0.0,
            per_event_s=1 / throughput.value,
            throughput=throughput,
            source="metric",
        )
