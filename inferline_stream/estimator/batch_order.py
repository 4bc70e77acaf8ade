"""Batches of many replicas put in order of time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import ONE, ZERO, Floats, Index, Ints

MOST_PER_BUCKET = 64
"""Beyond this, sorting a bucket by insertion takes longer than a tree of losers."""


class Batches(NamedTuple):
    """Batches, replica after replica, of no meaning between calls: (capacity + replicas,) unless said otherwise.

    Args:
        finish: their ends.
        start: their starts.
        size: how many events each has.
        first: place of the first of them in the line's ``events``.
        begin: (replicas + 1,) where each replica's begin.
        end: (replicas,) where they end.
    """

    finish: Floats
    start: Floats
    size: Ints
    first: Ints
    begin: Ints
    end: Ints


class Sorting(NamedTuple):
    """Batches in order of time, of no meaning between calls.

    Args:
        order: (capacity + replicas,) the batches.
        bucket_of: (capacity + replicas,) the bucket of time in which a batch ends.
        bucket_counts: (capacity + replicas + 1,) batches by bucket.
        ends: (2^k,) end of each replica's next batch, inf without one.
        losers: (2^k,) tree of replicas: at a node the one that lost there.
        winners: (2^k · 2,) the same while it is planted.
    """

    order: Ints
    bucket_of: Ints
    bucket_counts: Ints
    ends: Floats
    losers: Ints
    winners: Ints


def starts_before(a: int, b: int, batches: Batches) -> bool:
    """Whether a batch comes before another one that ends at the same instant; they are listed replica by replica."""
    return bool(batches.start[a] < batches.start[b] or (batches.start[a] == batches.start[b] and a < b))


def sort_in_buckets(replicas: int, batches: Batches, sorting: Sorting) -> int:
    """Put all batches in order of (end, start, replica), by buckets of time.

    Returns how many, or -1 if too many fall into one bucket.
    """
    begin, end, finish = batches.begin, batches.end, batches.finish
    counts, order = sorting.bucket_counts, sorting.order
    total = 0
    low_s, high_s = math.inf, -math.inf
    for r in range(replicas):
        if begin[r] < end[r]:
            total += end[r] - begin[r]
            low_s = min(low_s, finish[begin[r]])
            high_s = max(high_s, finish[end[r] - 1])
    if total == 0:
        return 0
    buckets = min(total // 2 + 1, counts.size - 1)
    scale = (buckets - 1) / (high_s - low_s) if high_s > low_s else 0.0
    for k in range(buckets + 1):
        counts[k] = 0
    for r in range(replicas):
        for batch in range(begin[r], end[r]):
            bucket = Index(np.int64((finish[Index(batch)] - low_s) * scale))
            sorting.bucket_of[Index(batch)] = np.int64(bucket)
            counts[bucket + ONE] += 1
    for k in range(buckets):
        if counts[k + 1] > MOST_PER_BUCKET:
            return -1
        counts[k + 1] += counts[k]
    for r in range(replicas):
        for batch in range(begin[r], end[r]):
            bucket = Index(sorting.bucket_of[Index(batch)])
            order[Index(counts[bucket])] = batch
            counts[bucket] += 1
    for i in range(total):
        batch = order[i]
        end_s = finish[Index(batch)]
        slot = Index(i)
        while slot > ZERO:
            other = order[slot - ONE]
            if finish[Index(other)] < end_s or (finish[Index(other)] == end_s and starts_before(other, batch, batches)):
                break
            order[slot] = other
            slot -= ONE
        order[slot] = batch
    return total


def sort_by_tree(replicas: int, batches: Batches, sorting: Sorting) -> int:
    """The same by a tree of losers: for few replicas, and whenever ends cluster."""
    finish, at, last = batches.finish, batches.begin, batches.end
    ends, losers, winners = sorting.ends, sorting.losers, sorting.winners
    leaves = losers.size
    total = 0
    for leaf in range(leaves):
        winners[leaves + leaf] = leaf
        ends[leaf] = math.inf
        if leaf < replicas and at[leaf] < last[leaf]:
            ends[leaf] = finish[at[leaf]]
    for place in range(leaves - 1, 0, -1):
        first, second = winners[2 * place], winners[2 * place + 1]
        if ends[second] < ends[first] or (
            ends[second] == ends[first] and ends[first] < math.inf and starts_before(at[second], at[first], batches)
        ):
            first, second = second, first
        winners[place] = first
        losers[place] = second
    winner = winners[1]
    while ends[winner] < math.inf:
        sorting.order[total] = at[winner]
        total += 1
        r = Index(winner)
        at[r] += 1
        end_s = finish[Index(at[r])] if at[r] < last[r] else math.inf
        ends[r] = end_s
        node = (r + Index(leaves)) >> ONE
        while node > ZERO:
            other = losers[node]
            other_s = ends[Index(other)]
            before = other_s < end_s
            if other_s == end_s and end_s < math.inf:
                before = starts_before(at[other], at[winner], batches)
            losers[node] = winner if before else other
            winner = other if before else winner
            end_s = other_s if before else end_s
            node >>= ONE
    return total
