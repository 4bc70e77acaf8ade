"""End-to-end latency of consumer groups, estimated: what each takes from append to commit, summed along the groups.

Nobody carries an event's time of entry through them. So each event that a last group has committed is taken to have
spent, in every group before it, what some event spent there lately: as if the groups were independent.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from inferline_stream.observability.latency_histogram import latency_bounds_s
from inferline_stream.observability.stage_counts import StageCounts
from inferline_stream.pipeline.consumer_group import ConsumerGroup

_LATELY_S = 10.0

Spent = Sequence[tuple[float, float]]
"""Seconds from append to commit, and how many events they stand for."""


class GroupLatencies:
    """Estimates in small steps.

    Args:
        groups: of the pipeline; each has one before it, or none.
        slo_s: that the topology declares: a bound of the buckets.
    """

    def __init__(self, groups: Sequence[ConsumerGroup], slo_s: float) -> None:
        parents = {parent.name for group in groups for parent in group.after}
        self._lasts = [group for group in groups if group.name not in parents]
        self._bounds_s = latency_bounds_s(slo_s)
        self._rng = np.random.default_rng(0)
        self._lately: dict[str, deque[tuple[float, Spent]]] = {group.name: deque() for group in groups}

    def take(self, now_s: float, fresh: Mapping[str, Spent]) -> Iterator[tuple[str, StageCounts]]:
        """Yield, by last group, what its events took end to end that were committed since the last call.

        Args:
            now_s: now.
            fresh: what was committed since, by group.
        """
        for name, spent in fresh.items():
            known = self._lately[name]
            if spent:
                known.append((now_s, spent))
            while len(known) > 1 and known[0][0] < now_s - _LATELY_S:
                known.popleft()
        for group in self._lasts:
            before = [self._lately[each.name] for each in _before(group)]
            if (spent := fresh.get(group.name, ())) and all(before):
                yield group.name, self._counts(spent, before)

    def _counts(self, spent: Spent, before: Sequence[deque[tuple[float, Spent]]]) -> StageCounts:
        total_s = np.array([latency_s for latency_s, _ in spent])
        for known in before:
            latency_s, weights = np.array([each for _, part in known for each in part]).T
            total_s += self._rng.choice(latency_s, total_s.size, p=weights / weights.sum())
        counts = StageCounts(latency_buckets=[0] * (len(self._bounds_s) + 1))
        for each_s, (_, events) in zip(total_s.tolist(), spent, strict=True):
            counts.latency_buckets[bisect.bisect_left(self._bounds_s, each_s)] += round(events)
            counts.latency_sum_s += each_s * events
        return counts


def _before(group: ConsumerGroup) -> Iterator[ConsumerGroup]:
    for parent in group.after[:1]:
        yield parent
        yield from _before(parent)
