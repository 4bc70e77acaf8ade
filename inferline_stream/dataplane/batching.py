"""Events that wait for a stage, and which of them form the next batch: in order of entry, partitions merged."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """Queues by partition, merged by the time at which events entered the pipeline.

    The order within a partition is kept always; between partitions, the head that entered first is taken first.

    Args:
        entered: entry time of an event, any unit.
        size_bytes: what an event counts towards `size_bytes`.
    """

    def __init__(self, entered: Callable[[T], int], size_bytes: Callable[[T], int]) -> None:
        self._entered = entered
        self._size_bytes = size_bytes
        self._queues: dict[int, deque[T]] = {}
        self._sizes: dict[int, int] = {}
        self._heads: list[tuple[int, int]] = []
        self._count = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return self._count

    def bytes_of(self, partition: int) -> int:
        """Bytes that wait in one partition."""
        return self._sizes.get(partition, 0)

    def larger_than(self, limit_bytes: float) -> frozenset[int]:
        """Partitions with more bytes waiting."""
        return frozenset(partition for partition, size in self._sizes.items() if size > limit_bytes)

    def add(self, partition: int, event: T) -> None:
        """Append to a partition's queue."""
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
            self._sizes[partition] = 0
        if not queue:
            heapq.heappush(self._heads, (self._entered(event), partition))
        queue.append(event)
        size = self._size_bytes(event)
        self._sizes[partition] += size
        self.size_bytes += size
        self._count += 1

    def drop(self, partition: int) -> list[T]:
        """Forget a partition; returns what waited in it."""
        dropped = self._queues.pop(partition, None)
        if not dropped:
            self._sizes.pop(partition, None)
            return []
        self.size_bytes -= self._sizes.pop(partition)
        self._count -= len(dropped)
        self._heads = [head for head in self._heads if head[1] != partition]
        heapq.heapify(self._heads)
        return list(dropped)

    def take(self, limit: int) -> list[T]:
        """Remove and return up to ``limit`` events, earliest entry first."""
        batch: list[T] = []
        while self._heads and len(batch) < limit:
            _, partition = self._heads[0]
            queue = self._queues[partition]
            # A queue keeps its turn for as long as its head is older than every other queue's.
            bound = min((head[0] for head in self._heads[1:3]), default=None)
            size = 0
            while queue and len(batch) < limit and (bound is None or self._entered(queue[0]) <= bound):
                event = queue.popleft()
                size += self._size_bytes(event)
                batch.append(event)
            self._sizes[partition] -= size
            self.size_bytes -= size
            if queue:
                heapq.heapreplace(self._heads, (self._entered(queue[0]), partition))
            else:
                heapq.heappop(self._heads)
        self._count -= len(batch)
        return batch
