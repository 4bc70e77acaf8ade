"""What Kafka shows of a consumer group from one moment to the next: ends, commits, members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferline_stream.pipeline.group_profile import RebalanceProtocol


@dataclass(frozen=True, slots=True)
class OffsetCommit:
    """A group has committed that a partition is done before an offset.

    Args:
        at_s: when, on the clock of the looks.
        partition: of the group's topic.
        offset: next to be read.
    """

    at_s: float
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who owns which partitions of the group's topic from a moment on.

    Args:
        at_s: from when, on the clock of the looks.
        owners: partitions by the id of the member that has them; members without one are in it, too.
        protocol: how the group shares them out.
    """

    at_s: float
    owners: Mapping[str, frozenset[int]]
    protocol: RebalanceProtocol


@dataclass(frozen=True, slots=True)
class GroupLook:
    """What there was to see of a group since the look before.

    Args:
        at_s: when it was looked.
        ends: end offset of each partition of its topic.
        commits: since the look before, in their order.
        assignments: since the look before, in their order; the first that is ever seen comes with the first look.
        exact: whether Kafka itself says when each commit was made; otherwise a commit has the time of the look that
            has found it, and only spans over many of them have a length.
        past: with the first look, earlier times and the ends then by the records' timestamps, ascending; without
            partitions that were added since.
    """

    at_s: float
    ends: tuple[int, ...]
    commits: tuple[OffsetCommit, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    exact: bool = True
    past: tuple[tuple[float, tuple[int, ...]], ...] = ()
