"""One queue and the replicas that serve it from the beginning to the end: `shared_queue`, with its buffers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inferline_stream.estimator.kernels import Account, Ints, Queue, Service, Tokens
from inferline_stream.estimator.shared_queue import SharedState
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload

NO_LOTS = np.empty(0, dtype=np.uint16)
"""Of a stage whose service times do not vary."""

_NEEDED = 3  # place in `marks` of the first position still needed


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
        kinds = station.limits.size
        self.account = Account(np.zeros(kinds * station.width, dtype=np.int64), np.zeros(2))
        self._station = station
        self._service = service_of(workload, stage, station, code)
        self._entry_s = workload.entry_s
        self._times = np.empty(0)
        self._events = np.empty(0, dtype=np.int32)
        self._out = Tokens(np.empty(0), np.empty(0, dtype=np.int32))
        self._base = 0
        self._serve = code.serve_choosing if kinds > 1 else code.serve_shared
        self._state = _unused(station)

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
        in_flight = self._station.replicas * self._station.width
        if self._out.times.size < room + in_flight:
            self._out = Tokens(np.empty(room + in_flight), np.empty(room + in_flight, dtype=np.int32))
        return held


def moved(array: Any, first: int, held: int, room: int) -> Any:
    """What is held from ``first`` on, at the front of an array that has the room."""
    if first == 0 and room == array.size:
        return array
    target = array if room == array.size else np.empty(room, dtype=array.dtype)
    target[:held] = array[first : first + held]
    return target


def _unused(station: Station) -> SharedState:
    """No replica was ever used."""
    slots = power_of_two(station.replicas)
    kinds = _ints(slots)
    kinds[: station.replicas] = station.kinds
    marks = _ints(6)
    marks[1] = station.replicas
    never = np.full(slots, -math.inf)
    return SharedState(marks, np.full(1, -math.inf), never, _ints(slots), _ints(slots), kinds)


def _ints(size: int) -> Ints:
    return np.zeros(size, dtype=np.int64)


def service_of(workload: Workload, stage: int, station: Station, code: Any) -> Service:
    """How a station serves batches, as the kernels take it."""
    return Service(
        station.limits,
        station.table,
        station.varying,
        workload.lots(stage, code=code) if station.varies else NO_LOTS,
        station.hold_s,
        workload.hop_s,
        station.order_slo_s,
    )


def power_of_two(least: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (least - 1).bit_length()
