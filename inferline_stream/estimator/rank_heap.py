"""A heap of what waits, in order of rank and, of equal ranks, of arrival."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import ONE, ZERO, Floats, Ints


class Heap(NamedTuple):
    """Entries, the least rank and number first: ``item`` is an event, or a lane below 0. ``size`` is (1,)."""

    rank_s: Floats
    number: Ints
    item: Ints
    size: Ints


def push(heap: Heap, end: np.uint64, entry: tuple[float, np.int64, np.int64]) -> None:
    """Put an entry into the heap, which has so many."""
    rank_s, number, item = entry
    place = end
    while place > ZERO:
        above = (place - ONE) >> ONE
        if heap.rank_s[above] < rank_s or (heap.rank_s[above] == rank_s and heap.number[above] < number):
            break
        heap.rank_s[place] = heap.rank_s[above]
        heap.number[place] = heap.number[above]
        heap.item[place] = heap.item[above]
        place = above
    heap.rank_s[place] = rank_s
    heap.number[place] = number
    heap.item[place] = item


def drop_first(heap: Heap, end: np.uint64) -> None:
    """Take the first entry out of the heap, which has so many without it: the last one finds its place."""
    rank_s = heap.rank_s[end]
    number = heap.number[end]
    item = heap.item[end]
    place = ZERO
    below = ONE
    while below < end:
        beside = below + ONE
        if beside < end and (
            heap.rank_s[beside] < heap.rank_s[below]
            or (heap.rank_s[beside] == heap.rank_s[below] and heap.number[beside] < heap.number[below])
        ):
            below = beside
        if rank_s < heap.rank_s[below] or (rank_s == heap.rank_s[below] and number < heap.number[below]):
            break
        heap.rank_s[place] = heap.rank_s[below]
        heap.number[place] = heap.number[below]
        heap.item[place] = heap.item[below]
        place = below
        below = (place << ONE) + ONE
    heap.rank_s[place] = rank_s
    heap.number[place] = number
    heap.item[place] = item
