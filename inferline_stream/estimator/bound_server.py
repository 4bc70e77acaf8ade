"""A stage whose partitions stay with their replicas, being simulated: as `server.Server`, with other kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inferline_stream.estimator.batch_order import Batches, Sorting
from inferline_stream.estimator.bound_partitions import Bound, Desk, Line, Task, Waiting
from inferline_stream.estimator.kernels import Account, Ints, Tokens
from inferline_stream.estimator.merger import NONE
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
        self._station = station
        replicas = station.replicas
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
        self._desk = _desk(station, 0)
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

    def _make_room(self, room: int) -> None:
        left = int(self._bound.left_begin[-1])
        times, events = np.empty(room), np.empty(room, dtype=np.int32)
        times[:left], events[:left] = self._bound.left_times[:left], self._bound.left_events[:left]
        self._bound = self._bound._replace(left_times=times, left_events=events)
        self._desk = _desk(self._station, room)
        in_flight = self._station.replicas * self._station.width
        self._out = Tokens(np.empty(room + in_flight), np.empty(room + in_flight, dtype=np.int32))


def _desk(station: Station, room: int) -> Desk:
    assert station.owners is not None
    replicas, partitions = station.replicas, station.owners.size
    leaves = power_of_two(replicas)
    batches = room + replicas
    return Desk(
        Line(
            times=np.empty(room),
            events=np.empty(2 * room + replicas * station.width, dtype=np.int32),
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
