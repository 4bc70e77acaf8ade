"""Background events that wait for replicas: one queue for each class, all of them behind that of live events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.queue import StageQueue
from inferline_stream.pipeline.event_classes import class_of

WAITING_S = 1.0
"""As much background work waits in a dispatcher, and before a stage, as its replicas do in so long. More is of no use,
and less could leave them idle until the controller has seen that they need more."""

WAITING_BYTES = 4 * 1024 * 1024
"""Background events of a class that wait in a dispatcher."""

DELAY_SHARE = 0.05
"""How much of the SLO background batches may take on an event's longest way, one a stage: a live event that comes meets
at most one of them at each stage, where no replica is free. A batch of one event may always take as long as it does."""


class BackgroundQueues:
    """What waits of each background class. The classes share what live events leave, by their weights.

    Args:
        weights: of each class.
        slo_us: orders the events of a class; see `queue.rank`.
        keys_in_order: whether events of one key and class keep their order.
    """

    def __init__(self, weights: Sequence[float], slo_us: int, *, keys_in_order: bool) -> None:
        self.closed = False
        """Whether no more are taken in: a stage after this one has enough of them."""
        self._weights = weights
        self._queues = [StageQueue(slo_us, keys_in_order=keys_in_order) for _ in weights]
        self._turns = [0.0] * len(weights)
        """Events that each class had, over its weight: the lowest is served next."""
        self._turn = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def queue_of(self, partition: int) -> StageQueue:
        """Return the queue of a partition's class."""
        return self._queues[class_of(partition) - 1]

    @property
    def eligible(self) -> int:
        """Events that `take` could return, of all classes."""
        return sum(queue.eligible for queue in self._queues)

    def full(self, partition: int, most: int) -> bool:
        """Return whether no more of a partition's class are to be fetched now: no class keeps out another one.

        Args:
            partition: of the class.
            most: events that may wait for replicas alone. Those that wait for others of their key do not count.
        """
        queue = self.queue_of(partition)
        return self.closed or queue.eligible >= most or queue.size_bytes >= WAITING_BYTES

    def take(self, limit: int) -> list[Event]:
        """Remove and return the next batch, of one class: at most `limit` events, none where none is eligible."""
        waiting = [number for number, queue in zip(count(), self._queues, strict=False) if queue.eligible]
        if not waiting:
            return []
        for number in waiting:  # one that had nothing waiting saves no turns for later
            self._turns[number] = max(self._turns[number], self._turn)
        number = min(waiting, key=self._turns.__getitem__)
        self._turn = self._turns[number]
        batch = self._queues[number].take(limit).events
        self._turns[number] += len(batch) / self._weights[number]
        return batch
