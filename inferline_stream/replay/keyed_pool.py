"""The replicas of a stage that keeps the order of keys, or whose replicas run several batches at once, and its queue.

The Estimator's kernel serves the queue. A replica that leaves keeps the batches that it has in hand and takes no other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import Account, Events, Floats, Ints, Queue, Service, Tokens, Varying
from inferline_stream.estimator.keyed_queue import Crews, Heap, KeyedState
from inferline_stream.estimator.keyed_server import lanes_of
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.server import NO_LOTS, power_of_two
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload
from inferline_stream.replay.plant_state import PlantState

_HEAD, _PLACES, _FREE = 0, 1, 2  # places in `marks`


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


class KeyedPool:
    """The replicas of one queue.

    Args:
        plant_state: what all pools share.
        queue: its row of the tables.
        stage: position of the stage.
        workload: keys of the events, keys of the draws.
        serving: how a replica of each kind serves.
    """

    def __init__(self, plant_state: PlantState, queue: int, stage: int, workload: Workload, serving: Station) -> None:
        x, s = plant_state.tables, stage
        rows, kinds = serving.table.size, serving.limits.size
        drawn, drawn_kinds = (rows, kinds) if serving.varies else (0, 0)
        self._plant_state, self._queue = plant_state, queue
        self._serve = compiled().serve_keyed
        self._entry_s = workload.entry_s
        self._account = Account(x.batches[s, :rows], x.totals[s])
        varying = Varying(
            x.fixed_s[s, :drawn],
            x.per_unit_s[s, :drawn],
            x.factors[s, :drawn],
            x.units[s, :drawn_kinds],
            x.largest[s, :drawn_kinds],
        )
        self._service = Service(
            x.limits[s, :kinds],
            x.table[s, :rows],
            varying,
            x.lots[s] if serving.varies else NO_LOTS,
            serving.hold_s,
            workload.hop_s,
            plant_state.slo_s,
        )
        self._at_once = np.ones(kinds, np.int64) if serving.concurrency is None else serving.concurrency
        events, lanes = len(workload), lanes_of(workload, stage)
        # An event comes to the heap as it arrives, a key whenever one of its events has left: twice an event at most.
        room = 2 * events
        heap = Heap(np.empty(room), np.empty(room, np.int64), np.empty(room, np.int64), np.zeros(1, np.int64))
        nobody = np.empty(0, np.int64)
        self._state = KeyedState(
            np.zeros(5, np.int64),
            np.array([math.inf, -math.inf]),
            *(np.empty(0), nobody, nobody, nobody, np.empty((0, serving.width), np.int32)),
            lanes,
            heap,
            Crews(nobody, nobody, nobody, nobody),
        )
        self._width = serving.width
        self._left = np.zeros(events, np.bool_)  # by event, of those looked at by `oldest_s`
        self._seen_left = self._oldest = 0

    def advance(self, until_s: float) -> None:
        """Serve what has arrived up to that time, that instant excluded."""
        if not self._state.marks[_PLACES]:
            return
        x, q = self._plant_state.tables, self._queue
        gone = int(x.sent_count[q])
        queue = Queue(x.arrived[q], x.arrived_event[q], int(x.arrived_count[q]), 0, until_s, self._entry_s)
        out = Tokens(x.sent[q, gone:], x.sent_event[q, gone:])
        x.sent_count[q] += self._serve(queue, self._service, self._account, self._state, out)

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

    def oldest_s(self) -> float:
        """When the oldest record that has not left was sent; there must be one."""
        x, q = self._plant_state.tables, self._queue
        arrived, gone = int(x.arrived_count[q]), int(x.sent_count[q])
        self._left[x.sent_event[q, self._seen_left : gone]] = True
        self._seen_left = gone
        self._oldest += int(self._left[x.arrived_event[q, self._oldest : arrived]].argmin())
        return float(x.arrived[q, self._oldest])

    def _in_hand(self) -> InHand:
        marks, _, ring_time, ring_row, ring_size, _, members, _, _, crews = self._state
        head = int(marks[_HEAD])
        order = np.arange(head, head + int(marks[_PLACES])) & (ring_time.size - 1)
        rows = ring_row[order]
        batches = members.reshape(-1, self._width)[rows]
        return InHand(ring_time[order], ring_size[order], crews.replica_of[rows], batches)

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
        unused = (0, power_of_two(max(count, 1)) - count)
        self._state = self._state._replace(
            ring_time=np.pad(places.ends_s, unused),
            ring_row=np.pad(np.arange(count), unused),
            ring_size=np.pad(places.sizes, unused),
            ring_kind=np.pad(kinds[replica_of], unused),
            members=places.members.ravel(),
            crews=Crews(replica_of, kinds, at_once, in_hand),
        )
