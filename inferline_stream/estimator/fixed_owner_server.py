"""A stage whose partitions stay with their replicas, being simulated: as `server.Server`, with other kernels.

Replicas may come and go between two calls, as members of a consumer group do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from inferline_stream.estimator.batch_order import Batches, Sorting
from inferline_stream.estimator.fixed_owner_kernels import Bound, Desk, Line, Task, Waiting
from inferline_stream.estimator.join_arrivals import NONE
from inferline_stream.estimator.kernels import Account, Ints, Tokens
from inferline_stream.estimator.server import power_of_two, service_of
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload


class BoundServer:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on.

    Args:
        workload: partitions of the events, overhead of a hop, keys of the draws.
        stage: position in the shape.
        station: what serves it; every partition has its owner.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, station: Station, code: Any) -> None:
        assert station.owners is not None
        self.arrivals = 0
        self.account = Account(_ints(station.limits.size * station.width), np.zeros(2))
        self._service = service_of(workload, stage, station, code)
        self._serve = code.serve_bound
        self._arrived: Tokens = NONE
        self._width = station.width
        self.members = replicas = station.replicas
        self._bound = Bound(
            partition_of=workload.partition_of(stage, station.owners.size, code=code),
            owner=station.owners,
            kind_of=station.kinds,
            free_s=np.full(replicas, -math.inf),
            flight_start=np.zeros(replicas),
            flight_size=_ints(replicas),
            members=np.zeros((replicas, station.width), dtype=np.int32),
            left_times=np.empty(0),
            left_events=np.empty(0, dtype=np.int32),
            left_begin=_ints(replicas + 1),
        )
        self._desk = _desk(self._bound, 0)
        self._out = NONE

    def receive(self, sent: Tokens) -> None:
        """Records that were sent to the stage, none before any received earlier; `advance` must follow."""
        # A trace is read-only, which would be another type to the compiled kernels, and another compilation.
        self._arrived = sent if sent.times.flags.writeable else sent._replace(times=sent.times.copy())
        self.arrivals += sent.times.size

    def advance(self, horizon_s: float) -> Tokens:
        """Departures before the horizon that were not given yet; every record that arrives before it was received.

        The arrays are reused by the next call.
        """
        needed = int(self._bound.left_begin[-1]) + self._arrived.times.size
        if needed > self._bound.left_times.size:
            self._make_room(needed * 3 // 2)
        task = Task(horizon_s, self._service, self.account)
        n = self._serve(self._arrived, task, self._bound, self._desk, self._out)
        return Tokens(self._out.times[:n], self._out.events[:n])

    def join(self, now_s: float) -> None:
        """A member of the one kind there is, ready now: it gets its share of the partitions."""
        self._regroup([*range(self.members), None], now_s)
        self.members += 1

    def leave(self, now_s: float) -> float:
        """The member that came last gives up its partitions. Returns when what it has in hand is done."""
        self.members -= 1
        busy = self._bound.flight_size[self.members] > 0
        free_s = float(self._bound.free_s[self.members]) if busy else now_s
        self._regroup([*range(self.members)], now_s)
        return free_s

    def _regroup(self, stay: Sequence[int | None], now_s: float) -> None:
        """Deal the partitions out to these members, by their places of before; None is a new one.

        Behind them stand those that have left with a batch in hand, and without any member one that is never free.
        A partition that moves waits until its owner of before has done what it has in hand.
        """
        old = self._bound
        gone = [r for r in range(len(stay), old.kind_of.size) if r not in stay and old.flight_size[r]]
        places = [*stay, *gone] if stay else [*gone, None]
        owner = _shared_out(old.owner, stay) if stay else np.full(old.owner.size, len(gone), dtype=np.int64)
        came_from = np.array([-1 if r is None else r for r in places], dtype=np.int64)
        new, free_s = came_from < 0, old.free_s[came_from]
        free_s[new] = now_s if stay else math.inf
        left = int(old.left_begin[-1])
        times, events = old.left_times[:left].copy(), old.left_events[:left].copy()
        before = np.repeat(np.arange(old.kind_of.size), np.diff(old.left_begin))
        after = owner[old.partition_of[events]]
        moved = came_from[after] != before
        until_s = np.where(old.flight_size > 0, old.free_s, -math.inf)[before]
        times[moved] = np.maximum(times[moved], np.maximum(until_s[moved], now_s))
        order = np.lexsort((events, times, after))
        room = old.left_times.size
        self._bound = Bound(
            partition_of=old.partition_of,
            owner=owner,
            kind_of=_ints(len(places)),
            free_s=free_s,
            flight_start=old.flight_start[came_from],
            flight_size=np.where(new, 0, old.flight_size[came_from]),
            members=old.members[came_from],
            left_times=times[order],
            left_events=events[order],
            left_begin=np.searchsorted(after[order], np.arange(len(places) + 1)).astype(np.int64),
        )
        self._make_room(room)

    def _make_room(self, room: int) -> None:
        left = int(self._bound.left_begin[-1])
        times, events = np.empty(room), np.empty(room, dtype=np.int32)
        times[:left], events[:left] = self._bound.left_times[:left], self._bound.left_events[:left]
        self._bound = self._bound._replace(left_times=times, left_events=events)
        self._desk = _desk(self._bound, room)
        in_flight = self._bound.members.size
        self._out = Tokens(np.empty(room + in_flight), np.empty(room + in_flight, dtype=np.int32))


def _desk(bound: Bound, room: int) -> Desk:
    replicas, partitions = bound.kind_of.size, bound.owner.size
    leaves = power_of_two(replicas)
    batches = room + replicas
    return Desk(
        Line(
            times=np.empty(room),
            events=np.empty(2 * room + bound.members.size, dtype=np.int32),
            begin=_ints(replicas + 1),
            replica_of=_ints(room),
        ),
        Batches(
            finish=np.empty(batches),
            start=np.empty(batches),
            size=_ints(batches),
            first=_ints(batches),
            begin=_ints(replicas + 1),
            end=_ints(replicas),
        ),
        Waiting(
            keys=np.empty(room, dtype=np.int32),
            places=_ints(room),
            last_key=np.empty(partitions, dtype=np.int32),
            counts=_ints(partitions),
            is_left=np.zeros(room, dtype=np.uint8),
        ),
        Sorting(
            order=_ints(batches),
            bucket_of=_ints(batches),
            bucket_counts=_ints(batches + 1),
            ends=np.empty(leaves),
            losers=_ints(leaves),
            winners=_ints(2 * leaves),
        ),
    )


def _ints(size: int) -> Ints:
    return np.zeros(size, dtype=np.int64)


def _shared_out(owner: Ints, stay: Sequence[int | None]) -> Ints:
    """Owner of each partition among those that stay: evenly, and as few as possible move."""
    least, more = divmod(owner.size, len(stay))
    place_of = {r: place for place, r in enumerate(stay) if r is not None}
    shared: Ints = np.full(owner.size, -1, dtype=np.int64)
    owned = [0] * len(stay)
    for partition, before in enumerate(owner.tolist()):
        place = place_of.get(before)
        if place is not None and owned[place] < least + (sum(n > least for n in owned) < more):
            shared[partition] = place
            owned[place] += 1
    for partition in np.flatnonzero(shared < 0).tolist():
        shared[partition] = place = owned.index(min(owned))
        owned[place] += 1
    return shared
