"""One queue and replicas of one kind that serve it from the beginning to the end: `shared_queue`, with its buffers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Account, Fallback, Floats, Ints, Queue, Service, Tokens
from inferline_stream.estimator.rank_heap import Heap
from inferline_stream.estimator.shared_queue import SharedState, TriagedState
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.deadline_order import batch_cap
from inferline_stream.pipeline.fallback import TOTAL, window_of

_NOTHING = np.empty(0)

NO_LOTS = np.empty(0, dtype=np.uint16)
"""Of a stage whose service times do not vary."""

_NEEDED, _LARGEST = 3, 7  # places in `marks`


class SharedPool:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on.

    Args:
        workload: for the events' entry, the overhead of a hop and the keys of the draws.
        stage: position in the shape.
        station: what serves it.
        code: the kernels.
    """

    def __init__(self, workload: Workload, stage: int, station: Station, code: Any) -> None:
        self.arrivals = 0
        self.account = Account(np.zeros(station.width, dtype=np.int64), np.zeros(2))
        self._station = station
        self._service = service_of(workload, stage, station, code)
        self._entry_s = workload.due_s
        self._times = np.empty(0)
        self._events = np.empty(0, dtype=np.int32)
        self._out = Tokens(np.empty(0), np.empty(0, dtype=np.int32))
        self._base = 0
        self._serve = code.serve_triaged if station.triages else code.serve_shared
        self._state = _unused(station)

    @property
    def largest(self) -> int:
        """The largest batch that has begun, or in order of the deadline that was thought of: a limit above it, or one
        not below it, changes nothing.
        """
        if isinstance(self._state, TriagedState):
            return int(self._state.marks[_LARGEST])
        return largest_batch(self.account)

    @property
    def degraded(self) -> int:
        """Events that have gone to the fallback."""
        return int(self._service.fallback.window[TOTAL])

    def receive(self, sent: Tokens) -> None:
        """Records that were sent to the stage, none before any received earlier."""
        begin = self._make_room(sent.times.size)
        end = begin + sent.times.size
        self._times[begin:end] = sent.times
        self._events[begin:end] = sent.events
        self.arrivals += sent.times.size

    def advance(self, horizon_s: float) -> Tokens:
        """Departures before the horizon that were not given yet; every record that arrives before it was received.

        The arrays are reused by the next call.
        """
        queue = Queue(self._times, self._events, self.arrivals, self._base, horizon_s, self._entry_s)
        n = self._serve(queue, self._service, self.account, self._state, self._out)
        return Tokens(self._out.times[:n], self._out.events[:n])

    def _make_room(self, more: int) -> int:
        """Forget what is no longer needed, grow the buffers if that is not enough; where the new records go."""
        first = int(self._state.marks[_NEEDED]) - self._base
        held = self.arrivals - self._base - first
        room = self._times.size
        if held + more > room:
            room = max(held + more, room * 3 // 2)
        self._times = moved(self._times, first, held, room)
        self._events = moved(self._events, first, held, room)
        self._base += first
        leaving = room + self._station.replicas * self._station.width
        if isinstance(self._state, TriagedState):
            waiting = int(self._state.aside.size[0]) + room
            self._state = self._state._replace(aside=with_room(self._state.aside, waiting))
            leaving += waiting
        if self._out.times.size < leaving:
            self._out = Tokens(np.empty(leaving), np.empty(leaving, dtype=np.int32))
        return held


def moved(array: Any, first: int, held: int, room: int) -> Any:
    """What is held from ``first`` on, at the front of an array that has the room."""
    if first == 0 and room == array.size:
        return array
    target = array if room == array.size else np.empty(room, dtype=array.dtype)
    target[:held] = array[first : first + held]
    return target


def _unused(station: Station) -> SharedState | TriagedState:
    """No replica was ever used."""
    replicas, slots = station.replicas, power_of_two(station.replicas)
    marks = _ints(8)
    marks[1] = replicas
    clock, never = np.full(1, -math.inf), np.full(replicas, -math.inf)
    ring = np.pad(np.arange(replicas), (0, slots - replicas))
    if not station.triages:
        return SharedState(marks, clock, ring, never, _ints(replicas), _ints(replicas))
    members = np.zeros(replicas * (-(-station.width // 8) * 8), dtype=np.int32)
    return TriagedState(marks, clock, ring, never, _ints(replicas), members, no_heap())


def no_heap() -> Heap:
    """An empty one."""
    return Heap(np.empty(0), _ints(0), _ints(0), _ints(1))


def with_room(heap: Heap, entries: int) -> Heap:
    """The same with room for so many."""
    if heap.item.size >= entries:
        return heap
    held, room = int(heap.size[0]), entries * 3 // 2
    rank_s, number, item = (moved(array, 0, held, room) for array in heap[:3])
    return Heap(rank_s, number, item, heap.size)


def largest_batch(account: Account) -> int:
    """Events in the largest batch of replicas of one kind; 0 without any."""
    sizes = np.flatnonzero(account.batches)
    return int(sizes[-1]) if sizes.size else 0


def _ints(size: int) -> Ints:
    return np.zeros(size, dtype=np.int64)


def service_of(workload: Workload, stage: int, station: Station, code: Any) -> Service:
    """How a station serves batches, as the kernels take it."""
    service = Service(
        station.limits,
        station.table,
        station.varying,
        workload.lots(stage, code=code) if station.varies else NO_LOTS,
        station.hold_s,
        workload.hop_s,
        station.order_slo_s,
        station.rest_s,
        np.repeat(station.limits, station.levels),
        station.span,
        station.room,
        station.order_slo_s + workload.shorter_s,
        _fallback(workload, station),
    )
    return with_rest(service, station.rest_s)


def _fallback(workload: Workload, station: Station) -> Fallback:
    """What a slot's pool knows of the stage's other version, as of the beginning."""
    table = station.fallback if station.triages else _NOTHING
    window = window_of([(station.served_before, 0)], 0.0)
    rows, events = (table.size, len(workload)) if table.size else (0, 0)
    return Fallback(
        table, _ints(0), station.fallback_share, np.array(window), _ints(rows), np.zeros(events, dtype=np.uint8), 0.0
    )


def with_rest(service: Service, rest_s: float) -> Service:
    """The same with another R, and the batches that it leaves time for."""
    fallback = service.fallback
    if fallback.table.size:
        fallback = fallback._replace(caps=_caps(service, fallback.table, rest_s))
    return service._replace(rest_s=rest_s, caps=_caps(service, service.table, rest_s), fallback=fallback)


def _caps(service: Service, table: Floats, rest_s: float) -> Ints:
    by_row = table.reshape(service.caps.size, -1)[:, 1:]
    levels = service.caps.size // service.limits.size
    caps = [
        batch_cap(row[:limit], rest_s, service.cap_slo_s) if rest_s > -math.inf else limit
        for row, limit in zip(by_row, np.repeat(service.limits, levels).tolist(), strict=True)
    ]
    return np.array(caps, dtype=np.int64)


def power_of_two(least: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (least - 1).bit_length()
