"""What was learned of a consumer group from what Kafka shows of it, and how sure each figure is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["commits", "busy", "metric"]
"""Where a group's throughput is known from: the times of its commits, spans in which it was surely busy, or a figure
that its workers publish."""

RebalanceProtocol = Literal["eager", "cooperative", "kip848"]
"""How a group shares its partitions out at a change: all stop, or those that move; by KIP-848 upon a heartbeat."""


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
