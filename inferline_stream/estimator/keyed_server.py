"""A stage that keeps the order of keys, or whose replicas run several batches at once: as `server.Server`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Account, Ints, Queue, Tokens
from inferline_stream.estimator.keyed_queue import Crews, Heap, KeyedState, Lanes
from inferline_stream.estimator.server import moved, power_of_two, service_of
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload

_FREE, _ARRIVED, _ELIGIBLE = 2, 3, 4  # places in `marks`


class KeyedServer:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on.

    Args:
        workload: keys of the events, overhead of a hop, keys of the draws.
        stage: position in the shape.
        station: what serves it, from one queue.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, station: Station, code: Any) -> None:
        self.arrivals = 0
        self.account = Account(_ints(station.table.shape[0]), np.zeros(2))
        self._service = service_of(workload, stage, station, code)
        self._serve = code.serve_keyed
        self._entry_s = workload.entry_s
        self._times = np.empty(0)
        self._events = np.empty(0, dtype=np.int32)
        self._out = Tokens(np.empty(0), np.empty(0, dtype=np.int32))
        self._base = 0
        heap = Heap(np.empty(0), _ints(0), _ints(0), _ints(1))
        self._state = _idle(station, lanes_of(workload, stage), heap)

    def receive(self, sent: Tokens) -> None:
        """Records that were sent to the stage, none before any received earlier."""
        first = int(self._state.marks[_ARRIVED]) - self._base
        held = self.arrivals - self._base - first
        more = sent.times.size
        room = self._times.size
        if held + more > room:
            room = max(held + more, room * 3 // 2)
        self._times = moved(self._times, first, held, room)
        self._events = moved(self._events, first, held, room)
        self._times[held : held + more] = sent.times
        self._events[held : held + more] = sent.events
        self._base += first
        self.arrivals += more
        self._make_room(held + more)

    def advance(self, horizon_s: float) -> Tokens:
        """Departures before the horizon that were not given yet; every record that arrives before it was received.

        The arrays are reused by the next call.
        """
        queue = Queue(self._times, self._events, self.arrivals, self._base, horizon_s, self._entry_s)
        n = self._serve(queue, self._service, self.account, self._state, self._out)
        return Tokens(self._out.times[:n], self._out.events[:n])

    def _make_room(self, coming: int) -> None:
        """For all that may wait, and may leave, while so many arrive. An arrival may leave an outdated entry behind."""
        heap, lanes = self._state.heap, self._state.lanes
        waiting = int(heap.size[0])
        entries = waiting + 2 * coming + lanes.first.size
        if heap.item.size < entries:
            room = entries * 3 // 2
            rank_s, number, item = (moved(array, 0, waiting, room) for array in heap[:3])
            self._state = self._state._replace(heap=Heap(rank_s, number, item, heap.size))
        leaving = int(self._state.marks[_ELIGIBLE]) + int(lanes.waiting.sum()) + coming + self._state.members.size
        if self._out.times.size < leaving:
            self._out = Tokens(np.empty(leaving * 3 // 2), np.empty(leaving * 3 // 2, dtype=np.int32))


def lanes_of(workload: Workload, stage: int) -> Lanes:
    """A lane for each key that keeps its order at a stage; nothing waits."""
    lane_of = workload.lanes(stage)
    if not lane_of.size:  # no key keeps its order
        lane_of = np.zeros(len(workload), dtype=np.uint16)
    events, lanes = len(workload), int(lane_of.max(initial=0)) + 1
    return Lanes(
        lane_of=lane_of,
        following=np.empty(events, dtype=np.int32),
        sent_s=np.empty(events),
        number=_ints(events),
        first=_ints(lanes),
        last=_ints(lanes),
        waiting=_ints(lanes),
        in_hand=_ints(lanes),
        rank_s=np.zeros(lanes),
        falls=_ints(lanes),
    )


def _idle(station: Station, lanes: Lanes, heap: Heap) -> KeyedState:
    """No replica was ever used."""
    of_replicas = station.at_once
    places = int(of_replicas.sum())
    slots = power_of_two(places)
    kinds, rows = _ints(slots), _ints(slots)
    kinds[:places] = np.repeat(station.kinds, of_replicas)
    rows[:places] = np.arange(places)
    marks = _ints(5)
    marks[1] = marks[_FREE] = places
    members = np.zeros(places * station.width, dtype=np.int32)
    never = np.full(slots, -math.inf)
    replica_of = np.repeat(np.arange(station.replicas, dtype=np.int64), of_replicas)
    crews = Crews(replica_of, station.kinds, of_replicas, _ints(station.replicas))
    return KeyedState(
        marks, np.array([math.inf, -math.inf]), never, rows, _ints(slots), kinds, members, lanes, heap, crews
    )


def _ints(size: int) -> Ints:
    return np.zeros(size, dtype=np.int64)
