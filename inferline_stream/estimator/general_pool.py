"""One queue with everything and the replicas that serve it: `general_queue`, with its buffers.

A replica that comes has all its places free. One that leaves keeps the batches that it has in hand and takes no other.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from inferline_stream.estimator.general_queue import HOPELESS, LARGEST, PLACES, Crews, Fates, GeneralState, Lanes
from inferline_stream.estimator.kernels import Account, Events, Flags, Floats, FloatTable, Ints, Queue, Tokens
from inferline_stream.estimator.shared_pool import moved, no_heap, power_of_two, service_of, with_rest, with_room
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import NO_KEYS, Workload
from inferline_stream.pipeline.fallback import TOTAL

_HEAD, _PLACES, _FREE, _ARRIVED, _ELIGIBLE = range(5)  # places in `marks`


_NOTHING = np.empty(0)
_NEVER = np.empty((0, 2))


class InHand(NamedTuple):
    """What replicas have in hand, place by place in the ring's order: first the free ones, then as batches end.

    Args:
        ends_s: (places,) when the batch in hand ends.
        sizes: (places,) its events.
        replicas: (places,) whose place it is.
        members: (places, width) the batch's events.
    """

    ends_s: Floats
    sizes: Ints
    replicas: Ints
    members: Events


class GeneralPool:
    """Takes arrivals in order, gives departures in order, up to a horizon that moves on.

    Args:
        workload: events' entry, overhead of a hop, keys of the draws.
        stage: position in the shape.
        station: what serves it; it begins with none of the replicas if it is not ``staffed``.
        lanes: see `lanes_of`.
        code: the kernels.
        staffed: whether the station's replicas are there from the beginning.
    """

    def __init__(
        self, workload: Workload, stage: int, station: Station, lanes: Lanes, code: Any, *, staffed: bool = True
    ) -> None:
        self.arrivals = 0
        self.account = Account(_ints(station.table.shape[0]), np.zeros(2))
        self._service, self._profiled = service_of(workload, stage, station, code), (station.table, station.varying)
        self._varies, self._triages = station.varies, station.triages
        self._fallback_s = self._service.fallback.table
        self._serve = code.serve_in_turn
        first, end = workload.span(stage)
        # By an SLO it is of account which class an event is of, not in order of arrival.
        self._entry_s = (workload.due_s if station.order_slo_s > 0 else workload.entry_s)[:end]
        self._at_once = np.ones_like(station.limits) if station.concurrency is None else station.concurrency
        self._width = station.width
        self._times = np.empty(0)
        self._events = np.empty(0, dtype=np.int32)
        self._out = Tokens(np.empty(0), np.empty(0, dtype=np.int32))
        self._base = 0
        nobody = _ints(0)
        self._state = GeneralState(
            _ints(5),
            np.array([math.inf, -math.inf]),
            *(nobody, np.empty(0), nobody, nobody, np.empty(0, dtype=np.int32)),
            lanes,
            no_heap(),
            no_heap(),
            _ints(5),
            Fates(
                np.zeros(len(workload) if station.triages and not staffed else 0, dtype=np.uint8),
                workload.class_of,
                np.full(1 + int(workload.class_of.max(initial=0)), first, dtype=np.int64),
            ),
            Crews(nobody, nobody, nobody, nobody),
        )
        kinds = station.kinds if staffed else nobody
        at_once = self._at_once[kinds]
        replicas = np.repeat(np.arange(kinds.size, dtype=np.int64), at_once)
        idle = np.full(replicas.size, -math.inf)
        places = InHand(idle, np.zeros_like(replicas), replicas, np.zeros((replicas.size, self._width), dtype=np.int32))
        self._lay_out(places, replicas.size, Crews(replicas, kinds, at_once, np.zeros_like(kinds)), -math.inf)
        self._state.clock[0] = math.inf

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
        return self.advance_in_turn(np.array([horizon_s]), np.empty((1, 4)))

    def advance_in_turn(self, until_s: Floats, spent_s: FloatTable, rests_s: FloatTable = _NEVER) -> Tokens:
        """As `advance`, up to the last of several instants, with R and R' - R until each, if they change.

        What is spent is written, see `serve_in_turn`.
        """
        queue = Queue(self._times, self._events, self.arrivals, self._base, 0.0, self._entry_s)
        spent = (spent_s, self._profiled[0] if self._varies else _NOTHING)
        n = self._serve(queue, self._service, self.account, self._state, (self._out, until_s, rests_s, spent))
        if rests_s.size:
            fallback = self._service.fallback._replace(longer_s=float(rests_s[-1, 1]))
            self._service = self._service._replace(rest_s=float(rests_s[-1, 0]), fallback=fallback)
        return Tokens(self._out.times[:n], self._out.events[:n])

    @property
    def largest(self) -> int:
        """See `SharedPool.largest`."""
        return int(self._state.tally[LARGEST])

    def slow(self, factor: float) -> None:
        """Batches that begin from now on take so many times what they take as profiled."""
        table, varying = self._profiled
        drawn = varying._replace(fixed_s=varying.fixed_s * factor, per_unit_s=varying.per_unit_s * factor)
        fallback = self._service.fallback
        fallback = fallback._replace(table=self._fallback_s * factor)
        slower = self._service._replace(table=table * factor, varying=drawn, fallback=fallback)
        self._service, self._varies = with_rest(slower, slower.rest_s), True

    @property
    def degraded(self) -> int:
        """Events that have gone to the fallback."""
        return int(self._service.fallback.window[TOTAL])

    @property
    def made(self) -> Flags:
        """By event, whether the fallback made its result; empty without a fallback."""
        return self._service.fallback.made

    @property
    def fate(self) -> Flags:
        """By event, see `Fates`; of a pool that was not staffed from the beginning, in order of the deadline."""
        return self._state.fates.of

    def add(self, kind: int, now_s: float) -> None:
        """A replica that is ready now, with all its places free."""
        crews, places, free = self._state.crews, self._in_hand(), int(self._state.marks[_FREE])
        more = int(self._at_once[kind])
        grown = InHand(
            np.insert(places.ends_s, free, np.full(more, now_s)),
            np.insert(places.sizes, free, np.zeros(more, np.int64)),
            np.insert(places.replicas, free, np.full(more, crews.kinds.size)),
            np.insert(places.members, free, np.zeros((more, self._width), np.int32), axis=0),
        )
        crews = crews._replace(
            kinds=np.append(crews.kinds, kind),
            at_once=np.append(crews.at_once, more),
            in_hand=np.append(crews.in_hand, 0),
        )
        self._lay_out(grown, free + more, crews, now_s)

    def leave(self, kind: int, now_s: float) -> float:
        """The replica of this kind that is done first takes no other batch. Returns when it is done."""
        crews, places, free = self._state.crews, self._in_hand(), int(self._state.marks[_FREE])
        done_s = np.full(crews.kinds.size, now_s)
        np.maximum.at(done_s, places.replicas[free:], places.ends_s[free:])
        stays = np.flatnonzero((crews.kinds == kind) & (crews.at_once > 0))
        chosen = stays[::-1][np.argmin(done_s[stays[::-1]])]  # of equal ones the last: batches go to the first
        kept = places.replicas != chosen
        free_kept = int(kept[:free].sum())
        kept[free:] = True
        at_once = crews.at_once.copy()
        at_once[chosen] = 0
        staying = InHand(*(array[kept] for array in places))
        self._lay_out(staying, free_kept, crews._replace(at_once=at_once), now_s)
        return float(done_s[chosen])

    def ends_s(self, now_s: float) -> float:
        """When the last batch in hand ends; now if there is none."""
        return float(self._in_hand().ends_s[int(self._state.marks[_FREE]) :].max(initial=now_s))

    def withdraw(self, now_s: float) -> Tokens:
        """Take back all records that are in no batch yet, in no order, where no key keeps its order.

        What is received then is served from now on, whenever it was sent.
        """
        marks, heap = self._state.marks, self._state.heap
        waiting = heap.item[: heap.size[0]].astype(np.int32)
        coming = slice(int(marks[_ARRIVED]) - self._base, self.arrivals - self._base)
        heap.size[0] = marks[_ELIGIBLE] = self._state.tally[PLACES] = 0
        self.arrivals = int(marks[_ARRIVED])
        self._state.clock[1] = now_s
        return Tokens(
            np.concatenate([self._state.lanes.sent_s[waiting], self._times[coming]]),
            np.concatenate([waiting, self._events[coming]]),
        )

    def _make_room(self, coming: int) -> None:
        """For all that may wait, and may leave, while so many arrive. An arrival may leave an outdated entry behind."""
        state, lanes = self._state, self._state.lanes
        entries = int(state.heap.size[0]) + 2 * coming + lanes.first.size
        heap = with_room(state.heap, entries)
        aside = with_room(state.aside, entries + int(state.aside.size[0])) if self._triages else state.aside
        self._state = state._replace(heap=heap, aside=aside)
        in_lanes = int(lanes.waiting.sum()) if lanes.lane_of.size else 0
        waiting = int(state.marks[_ELIGIBLE] + state.tally[HOPELESS]) + in_lanes
        leaving = waiting + coming + state.members.size
        if self._out.times.size < leaving:
            self._out = Tokens(np.empty(leaving * 3 // 2), np.empty(leaving * 3 // 2, dtype=np.int32))

    def _in_hand(self) -> InHand:
        state, marks = self._state, self._state.marks
        head = int(marks[_HEAD])
        rows = state.ring[np.arange(head, head + int(marks[_PLACES])) & (state.ring.size - 1)]
        batches = state.members.reshape(-1, self._width)[rows]
        return InHand(state.free_s[rows], state.size_of[rows], state.crews.replica_of[rows], batches)

    def _lay_out(self, places: InHand, free: int, crews: Crews, now_s: float) -> None:
        """Set places and replicas, without those that have left; what waits is looked at again at once.

        Args:
            places: in the ring's order.
            free: how many of the first ones are.
            crews: the replicas; `places` say whose they are.
            now_s: the present.
        """
        here = (crews.at_once > 0) | (crews.in_hand > 0)
        kinds, at_once, in_hand = (array[here] for array in crews[1:])
        replica_of = (np.cumsum(here) - 1)[places.replicas]
        marks, clock = self._state.marks, self._state.clock
        count = replica_of.size
        marks[[_HEAD, _PLACES, _FREE]] = 0, count, free
        clock[:] = min(clock[0], now_s), now_s
        self._state = self._state._replace(
            ring=np.pad(np.arange(count), (0, power_of_two(max(count, 1)) - count)),
            free_s=places.ends_s,
            size_of=places.sizes,
            kind_of=kinds[replica_of],
            members=places.members.ravel(),
            crews=Crews(replica_of, kinds, at_once, in_hand),
        )


def lanes_of(workload: Workload, stage: int, station: Station) -> Lanes:
    """A lane for each key that keeps its order at a stage; nothing waits. All slots of the stage share it.

    A slot of a consumer group keeps every order by itself.
    """
    lane_of = NO_KEYS if station.partitions else workload.lanes(stage)
    keyed, lanes = lane_of.size, int(lane_of.max(initial=0)) + 1
    return Lanes(
        lane_of=lane_of,
        following=np.empty(keyed, dtype=np.int32),
        sent_s=np.empty(len(workload) if keyed or station.hold_s > 0 or station.partitions or station.triages else 0),
        number=_ints(keyed),
        first=_ints(lanes),
        last=_ints(lanes),
        waiting=_ints(lanes),
        in_hand=_ints(lanes),
        rank_s=np.zeros(lanes),
        falls=_ints(lanes),
        aside=_ints(lanes),
    )


def _ints(size: int) -> Ints:
    return np.zeros(size, dtype=np.int64)
