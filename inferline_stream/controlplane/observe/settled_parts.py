"""Which parts in a join can get no others: every stage before the join has finished what others could come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class SettledParts:
    """Follows the offsets of the stages before a join, round by round.

    A round notes where the join's topic ends. Then, stage by stage in topological order, it notes where the stage's
    topic ends and waits until the stage has committed so much. An event with a part in the join when the round began
    has by then left every stage that another part of it could have come from, so such a part is in the join's topic.
    A join may have moved parts that wait in it beyond what it had to commit, so nothing may wait there either.
    Offsets that were asked for before the step that they are for began are not looked at. While a stage stands still,
    so does the round: nothing is settled.

    Args:
        join: the stage.
        upstream: every stage before it, in topological order.
    """

    def __init__(self, join: str, upstream: Sequence[str]) -> None:
        self._join = join
        self._upstream = tuple(upstream)
        self._since_s = float("-inf")
        """When the present step began."""
        self._began: Sequence[int] | None = None
        """Where the join's topic ended when the round began."""
        self._stage = 0
        self._wanted: Sequence[int] | None = None
        """What the present stage has to commit."""
        self.settled: dict[int, tuple[int, int]] = {}
        """By the join's partition; see `Grant.settled`."""

    def ends(self, asked_s: float, now_s: float, ends: Mapping[str, Sequence[int]]) -> None:
        """Take in where every stage's topic ended.

        Args:
            asked_s: when that was asked for.
            now_s: when it was answered, on the same clock.
            ends: by stage and partition.
        """
        if asked_s < self._since_s or self._wanted is not None:
            return
        if self._began is None:
            self._began, self._stage = ends[self._join], 0
            self._since_s = now_s
        elif self._stage < len(self._upstream):
            self._wanted = ends[self._upstream[self._stage]]
        else:
            self.settled = dict(enumerate(zip(self._began, ends[self._join], strict=False)))
            self._began = None

    def committed(self, now_s: float, stage: str, offsets: Sequence[int], *, waits: bool = False) -> None:
        """Take in what a stage has committed, by partition.

        Args:
            now_s: on the clock of `ends`.
            stage: which one.
            offsets: -1 for none.
            waits: whether parts may wait in it, if it is a join.
        """
        wanted = self._wanted
        if wanted is None or waits or stage != self._upstream[self._stage] or len(offsets) < len(wanted):
            return
        if all(offset >= end or not end for offset, end in zip(offsets, wanted, strict=False)):
            self._stage, self._wanted, self._since_s = self._stage + 1, None, now_s
