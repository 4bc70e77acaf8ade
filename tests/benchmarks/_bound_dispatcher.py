"""A dispatcher whose replicas have a queue each, for comparison: every event is bound to one replica as it arrives.

``python -m tests.benchmarks._bound_dispatcher [NAMES] CHANNEL`` in place of `inferline_stream.dataplane.dispatcher`;
`bind` has a supervisor start it. Everything but the choice of the replica is the dispatcher's own code. Each event
draws its replica evenly by its id, which is the best that keys and partitions could do for queues of their own.
"""

from __future__ import annotations

import os
import runpy
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from inferline_stream.actuators import children
from inferline_stream.actuators.supervisor import Supervisor
from inferline_stream.dataplane.dispatcher import dispatcher, process, session
from inferline_stream.dataplane.dispatcher.event import Event
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.pooled_replica import PooledReplica
from inferline_stream.dataplane.dispatcher.queue import StageQueue, Taken, rank
from inferline_stream.isolation.confinement import Confinement
from inferline_stream.isolation.enforced import Enforced
from inferline_stream.pipeline.isolation import Isolation

MODULE = "tests.benchmarks._bound_dispatcher"


class BoundPool(Pool):
    """Gives a replica work only from its own queue. Those that are ready are members; events are dealt out again when
    one comes or goes."""

    def __init__(self, batch_deadline_s: float, least_deadline_s: float) -> None:
        super().__init__(batch_deadline_s, least_deadline_s)
        self.members: list[PooledReplica] = []
        BoundQueue.pool = self

    def ready(self, name: str, now_s: float) -> None:
        super().ready(name, now_s)
        self._regroup()

    def retire(self, name: str) -> None:
        super().retire(name)
        self._regroup()

    def detach(self, name: str) -> None:
        super().detach(name)
        self._regroup()

    def _regroup(self) -> None:
        members = [each for each in self.replicas.values() if each.ready and not each.leaving]
        if members != self.members:
            self.members = members
            if BoundQueue.queue is not None:
                BoundQueue.queue.deal_out()

    def choose(self, now_s: float, queued: int) -> PooledReplica | None:
        queue = BoundQueue.queue
        assert queue is not None, "what waits, waits in one"
        for number, replica in enumerate(self.members):
            if not replica.hands and queue.part(number).eligible:
                queue.chosen = number
                return replica
        return None


class BoundQueue:
    """`StageQueue` in parts, one for each member; `take` takes from the part that the pool has chosen."""

    pool: BoundPool
    queue: BoundQueue | None = None
    """The newest one."""

    def __init__(self, slo_us: int, *, keys_in_order: bool) -> None:
        self._made = (slo_us, keys_in_order)
        self._parts: list[StageQueue] = []
        self._of: dict[Event, StageQueue] = {}
        self.hurries = False

        self.chosen = 0
        BoundQueue.queue = self

    def part(self, number: int) -> StageQueue:
        """Return a member's own queue."""
        while len(self._parts) <= number:
            self._parts.append(StageQueue(self._made[0], keys_in_order=self._made[1]))
        return self._parts[number]

    def deal_out(self) -> None:
        """Give what waits to the members that there are now; what is in hand stays with who has it."""
        before, self._parts = self._parts, []
        for part in before:
            for event in part.take(len(part)).events:
                self.add(event)

    @property
    def eligible(self) -> int:
        return sum(part.eligible for part in self._parts)

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def bytes_of(self, partition: int) -> int:
        return sum(part.bytes_of(partition) for part in self._parts)

    def first(self) -> Event | None:
        found = [event for part in self._parts if (event := part.first()) is not None]
        return min(found, key=lambda event: rank(event, self._made[0]), default=None)

    def due_ms(self, limit: int, hold_ms: float) -> float:
        return self.part(self.chosen).due_ms(limit, hold_ms)

    def add(self, event: Event) -> None:
        number = zlib.crc32(event.event_id) % max(1, len(self.pool.members))
        part = self._of[event] = self.part(number)
        part.add(event)

    def take(self, limit: int, *_: object) -> Taken:
        """Always in order of entry."""
        return self.part(self.chosen).take(limit)

    def hopeless(self) -> Iterator[Event]:
        return iter(())

    def put_back(self, events: Sequence[Event], limit: int = 0) -> None:
        for event in reversed(events):
            if self._of[event] in self._parts:
                self._of[event].put_back([event], limit)
            else:
                self.add(event)

    def release(self, events: Sequence[Event]) -> None:
        for event in events:
            self._of.pop(event).release([event])

    def drop(self, partition: int) -> list[Event]:
        return [event for part in self._parts for event in part.drop(partition)]


def bind(supervisor: Supervisor) -> None:
    """Let a supervisor start this module."""
    started_by = supervisor._children
    started_by.start_dispatcher = unsealed()(started_by.start_dispatcher)  # type: ignore[method-assign]  # of this supervisor only


@contextmanager
def unsealed() -> Iterator[None]:
    """Dispatchers started within, or by a function decorated with it, are not sealed.

    A sealed one may read only its own package.
    """
    confinement = Confinement(Isolation("none"), "")
    with (
        mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])),
        mock.patch.object(children, "dispatcher_confinement", return_value=confinement),
    ):
        yield


if __name__ == "__main__":
    from tests.benchmarks import _bound_dispatcher  # not as ``__main__``: classes must exist once

    with (
        # A process that was started without a seal may be using what the seal takes away.
        mock.patch.object(process, "seal", return_value=Enforced()),
        mock.patch.object(dispatcher, "Pool", _bound_dispatcher.BoundPool),
        mock.patch.object(session, "StageQueue", _bound_dispatcher.BoundQueue),
    ):
        runpy.run_module("inferline_stream.dataplane.dispatcher", run_name="__main__")
