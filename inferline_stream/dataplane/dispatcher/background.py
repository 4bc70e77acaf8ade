"""Background events that wait for replicas: one queue for each class, all of them behind that of live events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.queue import StageQueue
from inferline_stream.dataplane.routes import ClassTopic
from inferline_stream.pipeline.event_classes import class_of

WAITING_S = 1.0
"""As much background work waits in a dispatcher, and before a stage, as its replicas do in so long. More is of no use,
and less could leave them idle until the controller has seen that they need more."""

WAITING_BYTES = 4 * 1024 * 1024
"""Background events of a class that wait in a dispatcher."""

DELAY_SHARE = 0.05
"""How much of the SLO background batches may take on an event's longest way, one a stage: a live event that comes meets
at most one of them at each stage, where no replica is free. A batch of one event may always take as long as it does."""

OWED_S = 0.2
"""So much of a guaranteed rate, or a batch, may be made up for: live events meet no burst of a class that was idle."""


@dataclass(slots=True)
class _Class:
    """What is kept of a class."""

    topic: ClassTopic
    queue: StageQueue
    turns: float = 0.0
    """Events that it had, over its weight: the lowest is served next."""
    owed: float = 0.0
    """Events that its rate guarantees by now, and that it did not have."""

    def take(self, limit: int) -> list[Event]:
        batch = self.queue.take(limit).events
        self.turns += len(batch) / self.topic.weight
        self.owed = max(0.0, self.owed - len(batch))
        return batch


class BackgroundQueues:
    """What waits of each background class. The classes share what live events leave, by their weights.

    One with a rate has that of its events served before live ones, however many of these wait.

    Args:
        topics: of each class, by its number.
        slo_us: orders the events of a class; see `queue.rank`.
        keys_in_order: whether events of one key and class keep their order.
    """

    def __init__(self, topics: Mapping[int, ClassTopic], slo_us: int, *, keys_in_order: bool) -> None:
        self.closed = False
        """Whether no more are taken in: a stage after this one has enough of them."""
        self.slots = 1
        """Of the stage: each has its part of a rate."""
        self._classes = {
            number: _Class(topic, StageQueue(slo_us, keys_in_order=keys_in_order)) for number, topic in topics.items()
        }
        self._turn = 0.0
        self._owed_s: float | None = None

    def __len__(self) -> int:
        return sum(len(each.queue) for each in self._classes.values())

    def queue_of(self, partition: int) -> StageQueue:
        """Return the queue of a partition's class."""
        return self._classes[class_of(partition)].queue

    @property
    def eligible(self) -> int:
        """Events that `take` could return, of all classes."""
        return sum(each.queue.eligible for each in self._classes.values())

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
        waiting = [each for each in self._classes.values() if each.queue.eligible]
        if not waiting:
            return []
        for each in waiting:  # one that had nothing waiting saves no turns for later
            each.turns = max(each.turns, self._turn)
        first = min(waiting, key=lambda each: each.turns)
        self._turn = first.turns
        return first.take(limit)

    def take_owed(self, limit: int, now_s: float) -> list[Event]:
        """Remove and return a batch that goes before live events: of the class that its rate owes most."""
        since_s, self._owed_s = self._owed_s, now_s
        for each in self._classes.values():
            each.owed += each.topic.rate / self.slots * (now_s - (now_s if since_s is None else since_s))
            each.owed = min(each.owed, max(limit, OWED_S * each.topic.rate / self.slots))
        owed = [each for each in self._classes.values() if each.owed >= 1.0 and each.queue.eligible]
        first = max(owed, key=lambda each: each.owed, default=None)
        return [] if first is None else first.take(min(limit, int(first.owed)))

    @property
    def guarantees(self) -> bool:
        """Whether any class has a rate."""
        return any(each.topic.rate for each in self._classes.values())
