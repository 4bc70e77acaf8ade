"""A stage being simulated: its queue in buffers, its replicas as arrays that the kernels read and write."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Account, Ints, Queue, Service, Tokens
from inferline_stream.estimator.partitioned_queue import LESS_LAGGED, SHARES, UNIFORM, PartitionState
from inferline_stream.estimator.shared_queue import EntryState, SharedState
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload, partition_thresholds

_NEEDED = 3  # place in `marks` of the first position still needed


class Server:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on.

    Args:
        workload: for the overhead of a hop and the keys of the draws.
        stage: position in the shape.
        station: what serves it.
        producers: replicas that write to the stage's topic.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, station: Station, producers: int, code: Any) -> None:
        self.arrivals = 0
        kinds = station.limits.size
        self.account = Account(np.zeros(kinds * station.width, dtype=np.int64), np.zeros(2))
        self._station = station
        self._service = service_of(workload, stage, station)
        self._times = np.empty(0)
        self._events = np.empty(0, dtype=np.int32)
        self._out = Tokens(np.empty(0), np.empty(0, dtype=np.int32))
        self._base = 0
        self._run: Any
        self._state: Any
        if station.owners is not None:
            self._run, self._state = code.serve_partitions, _partitions(workload, stage, station, producers)
        elif station.by_entry:
            self._run, self._state = code.serve_by_entry, _by_entry(station)
        else:
            self._run, self._state = code.serve_by_arrival, _by_arrival(station)

    def receive(self, sent: Tokens) -> None:
        """Records that were sent to the stage, none before any received earlier."""
        begin = self._make_room(sent.times.size)
        end = begin + sent.times.size
        self._times[begin:end] = sent.times
        self._events[begin:end] = sent.events
        if self._station.by_entry and self._station.owners is None:
            self._state.taken[begin:end] = 0
        self.arrivals += sent.times.size

    def advance(self, horizon_s: float) -> Tokens:
        """Departures before the horizon that were not given yet; every record that arrives before it was received.

        The arrays are reused by the next call.
        """
        queue = Queue(self._times, self._events, self.arrivals, self._base, horizon_s)
        n = self._run(queue, self._service, self.account, self._state, self._out)
        return Tokens(self._out.times[:n], self._out.events[:n])

    def _make_room(self, more: int) -> int:
        """Forget what is no longer needed, grow the buffers if that is not enough; where the new records go."""
        first = int(self._state.marks[_NEEDED]) - self._base
        held = self.arrivals - self._base - first
        room = self._times.size
        if held + more > room:
            room = max(held + more, room * 3 // 2)
        self._times = _moved(self._times, first, held, room)
        self._events = _moved(self._events, first, held, room)
        if isinstance(self._state, EntryState):
            # A heap is no list of arrivals: it stays where it is.
            heap, taken = self._state.heap, self._state.taken
            self._state = self._state._replace(heap=_moved(heap, 0, held, room), taken=_moved(taken, first, held, room))
        elif isinstance(self._state, PartitionState):
            self._state = self._state._replace(following=_moved(self._state.following, first, held, room))
        self._base += first
        in_flight = self._station.replicas * self._station.width
        if self._out.times.size < room + in_flight:
            self._out = Tokens(np.empty(room + in_flight), np.empty(room + in_flight, dtype=np.int32))
        return held


def _moved(array: Any, first: int, held: int, room: int) -> Any:
    """What is held from ``first`` on, at the front of an array that has the room."""
    if first == 0 and room == array.size:
        return array
    target = array if room == array.size else np.empty(room, dtype=array.dtype)
    target[:held] = array[first : first + held]
    return target


def _by_arrival(station: Station) -> SharedState:
    """No replica was ever used."""
    slots = power_of_two(station.replicas)
    kinds = _ints(slots)
    kinds[: station.replicas] = station.kinds
    marks = _ints(6)
    marks[1] = station.replicas
    return SharedState(marks, np.full(slots, -math.inf), _ints(slots), _ints(slots), kinds)


def _by_entry(station: Station) -> EntryState:
    """As `_by_arrival`, each replica with a row for the events of its batch."""
    state = _by_arrival(station)
    state.ring_start[: station.replicas] = np.arange(station.replicas)
    return EntryState(
        *state,
        members=np.zeros((station.replicas, station.width), dtype=np.int32),
        clock=np.full(1, -math.inf),
        heap=_ints(0),
        taken=np.zeros(0, dtype=np.uint8),
    )


def _partitions(workload: Workload, stage: int, station: Station, producers: int) -> PartitionState:
    """Empty partitions, each bound to its replica."""
    assert station.owners is not None
    replicas, partitions = station.replicas, station.owners.size
    slots = power_of_two(replicas)
    parents = len(workload.shape.parents(stage))
    lagged = parents == 1 and not station.keyed
    routing = LESS_LAGGED if lagged else UNIFORM if station.shares is None else SHARES
    owned = np.bincount(station.owners, minlength=replicas)
    return PartitionState(
        marks=_ints(6),
        clock=np.array([-math.inf, math.nan]),
        ring_time=np.zeros(slots),
        ring_replica=_ints(slots),
        kind_of=station.kinds,
        state=_ints(replicas),
        queued=_ints(replicas),
        started=np.zeros(replicas),
        size_of=_ints(replicas),
        members=np.zeros((replicas, station.width), dtype=np.int32),
        from_partition=np.zeros((replicas, station.width), dtype=np.int64),
        touched=_ints(replicas),
        is_touched=_ints(replicas),
        owner=station.owners,
        head_of=_ints(partitions, -1),
        tail_of=_ints(partitions, -1),
        region=np.concatenate([_ints(1), np.cumsum(owned)[:-1]]),
        active=_ints(partitions),
        active_event=np.zeros(partitions, dtype=np.int32),
        active_count=_ints(replicas),
        routing=routing,
        thresholds=partition_thresholds(partitions, station.shares),
        route_key=workload.key("route", stage) if lagged else workload.partition_key(stage),
        outstanding=_ints(partitions),
        lag=_ints(partitions),
        sent=np.zeros((producers if lagged else 1, partitions), dtype=np.int64),
        following=_ints(0),
    )


def _ints(size: int, value: int = 0) -> Ints:
    return np.full(size, value, dtype=np.int64)


def service_of(workload: Workload, stage: int, station: Station) -> Service:
    """How a station serves batches, as the kernels take it."""
    return Service(
        station.limits,
        station.table,
        station.levels,
        station.max_wait_s,
        workload.hop_s,
        workload.key("service", stage),
    )


def power_of_two(least: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (least - 1).bit_length()
