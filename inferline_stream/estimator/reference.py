"""The same pipeline simulated with one heap of everything that is going to happen, as plainly as can be.

It obeys the rules written in `estimator.kernels` and nothing else of the estimator: records and skip markers travel
along every arrow, joins count them, replicas take batches from lists. It is the oracle of the exact tests, some
thousand times slower, and its log holds what happened to each event at each stage.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import Floats, draw
from inferline_stream.estimator.partitioned_queue import LAG_PUBLISHED_EVERY_S
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload

_BATCH_ENDS, _ARRIVES, _DISPATCH = range(3)


class Happening(NamedTuple):
    """What happened to an event at a stage.

    Args:
        time_s: when.
        stage: position in the shape.
        event: whose.
        what: it arrives, its batch starts or ends.
        replica: which one serves it; -1 for an arrival at a shared queue.
        batch: number of its batch; -1 for an arrival.
    """

    time_s: float
    stage: int
    event: int
    what: Literal["arrives", "starts", "ends"]
    replica: int
    batch: int


@dataclass(frozen=True, slots=True, eq=False)
class HeapSimulation:
    """Latency of every event (NaN without a sink record), and all that happened, in order of time."""

    latency_s: Floats
    log: Sequence[Happening]


_Place = tuple[float, int, tuple[Any, ...]]
"""When something was sent, by which stage (-1 is the source), and its place among what that stage sent."""


@dataclass(frozen=True, slots=True)
class _Batch:
    start_s: float
    order: int
    number: int
    events: list[int]


@dataclass(slots=True)
class _Replica:
    kind: int
    busy: bool = False
    free_since: tuple[float, int] = (-math.inf, -1)  # when, and which batch it was


@dataclass(slots=True)
class _Stage:
    station: Station
    producers: int
    service_key: int
    replicas: list[_Replica]
    waiting: list[list[tuple[float, int]]]  # by partition, (arrival, event) in order of arrival; shared: one
    tokens: dict[int, list[bool]] = field(default_factory=dict)  # at a join by event: was it a record?
    sent_to: list[tuple[float, int, int]] = field(default_factory=list)  # arrival, producer, partition
    completed: list[tuple[float, int]] = field(default_factory=list)  # when, partition
    last_sent: tuple[float, int] = (math.nan, 0)  # when, by which producer
    partition_of: dict[int, int] = field(default_factory=dict)


def simulate_with_heap(workload: Workload, stations: Mapping[int, Station] | Sequence[Station]) -> HeapSimulation:
    """Simulate event by event. A few microseconds to milliseconds each: for some thousand events.

    Args:
        workload: events and their paths.
        stations: by position of the stage.
    """
    return _Simulation(workload, [stations[s] for s in range(len(workload.shape.stages))]).run()


class _Simulation:
    def __init__(self, workload: Workload, stations: Sequence[Station]) -> None:
        self.workload = workload
        self.heap: list[tuple[float, int, tuple[Any, ...], int, tuple[Any, ...]]] = []
        self.log: list[Happening] = []
        self.latency_s = np.full(len(workload), math.nan)
        self.batches = 0
        self.numbers = itertools.count()
        shape = workload.shape
        self.stages = [
            _Stage(
                station,
                sum(stations[shape.arrows[a].parent].replicas for a in shape.parents(s)) or 1,
                workload.key("service", s),
                [_Replica(int(kind)) for kind in station.kinds],
                [[] for _ in range(1 if station.owners is None else station.owners.size)],
            )
            for s, station in enumerate(stations)
        ]

    def run(self) -> HeapSimulation:
        for event, entry_s in enumerate(self.workload.entry_s.tolist()):
            for s in self.workload.shape.entries():
                self._send((entry_s, -1, (0, -math.inf, 0, event)), s, event, record=True)
        while self.heap:
            now, what, _, _, payload = heapq.heappop(self.heap)
            if what == _BATCH_ENDS:
                self._end(now, *payload)
            elif what == _ARRIVES:
                self._arrive(now, *payload)
            else:
                self._dispatch(now, *payload)
        return HeapSimulation(self.latency_s, self.log)

    def _plan(self, when_s: float, what: int, order: tuple[Any, ...], *payload: Any) -> None:
        heapq.heappush(self.heap, (when_s, what, order, next(self.numbers), payload))

    def _send(self, place: _Place, target: int, event: int, *, record: bool) -> None:
        """A record, or a skip marker, on its way."""
        self._plan(place[0] + self.workload.hop_s, _ARRIVES, place, target, event, record, place)

    def _outcome(self, s: int, event: int, place: _Place, *, ran: bool) -> None:
        """Send what follows from an event's having run at a stage, or from a join's being skipped."""
        mask = self._mask(event)
        for a in self.workload.shape.children(s):
            self._along(a, event, place, taken=ran and bool(mask >> a & 1))

    def _along(self, a: int, event: int, place: _Place, *, taken: bool) -> None:
        shape = self.workload.shape
        child = shape.arrows[a].child
        if taken or len(shape.parents(child)) > 1:
            self._send(place, child, event, record=taken)
        else:  # the child is skipped and has no other parent: nobody but this stage can tell what comes after it
            for further in shape.children(child):
                self._along(further, event, place, taken=False)

    def _arrive(self, now: float, s: int, event: int, record: bool, place: _Place) -> None:
        stage = self.stages[s]
        parents = len(self.workload.shape.parents(s))
        if parents > 1:
            tokens = stage.tokens.setdefault(event, [])
            tokens.append(record)
            if len(tokens) < parents:
                return
            if not any(tokens):
                self._outcome(s, event, (now, s, (1, *place)), ran=False)
                return
        owners = stage.station.owners
        partition = 0 if owners is None else self._partition(now, s, event, place[0])
        replica = -1 if owners is None else int(owners[partition])
        self.log.append(Happening(now, s, event, "arrives", replica, -1))
        stage.partition_of[event] = partition
        stage.waiting[partition].append((now, event))
        self._plan(now, _DISPATCH, (), s)

    def _partition(self, now: float, s: int, event: int, sent_s: float) -> int:
        stage, station, workload = self.stages[s], self.stages[s].station, self.workload
        partitions = len(stage.waiting)
        parents = len(workload.shape.parents(s))
        if station.keyed or parents != 1:
            u = draw(event, workload.key("event id" if parents > 1 else "record key")) / 2**32
            if station.shares is None:
                return int(u * partitions)
            cumulative = np.round(np.cumsum(station.shares) * 2.0**32) / 2**32
            return min(int(np.searchsorted(cumulative, u, side="right")), partitions - 1)
        key = workload.key("route", s)
        if stage.last_sent[0] != sent_s:
            stage.last_sent = (sent_s, int(draw(event, key ^ 0x2545F491) / 2**32 * stage.producers))
        producer = stage.last_sent[1]
        published_s = math.floor(now / LAG_PUBLISHED_EVERY_S) * LAG_PUBLISHED_EVERY_S

        def load(p: int) -> int:
            arrived = sum(1 for t, _, to in stage.sent_to if to == p and t < published_s)
            completed = sum(1 for t, of in stage.completed if of == p and t < published_s)
            own = sum(1 for t, by, to in stage.sent_to if to == p and by == producer and t >= published_s)
            return arrived - completed + own

        first = int(draw(event, key) / 2**32 * partitions)
        chosen = first
        if partitions > 1:
            second = int(draw(event, key ^ 0x5851F42D) / 2**32 * (partitions - 1))
            second += second >= first
            chosen = second if load(second) < load(first) else first
        stage.sent_to.append((now, producer, chosen))
        return chosen

    def _dispatch(self, now: float, s: int) -> None:
        stage = self.stages[s]
        owners = stage.station.owners
        if owners is not None:
            for r in range(len(stage.replicas)):
                held = [p for p in range(len(stage.waiting)) if owners[p] == r]
                if not stage.replicas[r].busy:
                    self._start(now, s, r, held)
            return
        while True:
            free = [r for r, replica in enumerate(stage.replicas) if not replica.busy]
            if not free:
                return
            chosen = min(free, key=lambda r: (stage.replicas[r].free_since, r))
            if not self._start(now, s, chosen, [0]):
                return

    def _start(self, now: float, s: int, r: int, held: list[int]) -> bool:
        """Start a batch on a free replica if there is one to start."""
        stage, station, replica = self.stages[s], self.stages[s].station, self.stages[s].replicas[r]
        limit = int(station.limits[replica.kind])
        queued = [entry for p in held for entry in stage.waiting[p]]
        if not queued:
            return False
        due = min(t for t, _ in queued) + station.max_wait_s
        if station.max_wait_s > 0 and len(queued) < limit and due > now:
            self._plan(due, _DISPATCH, (), s)
            return False
        batch: list[int] = []
        while len(batch) < limit and any(stage.waiting[p] for p in held):
            heads = [p for p in held if stage.waiting[p]]
            p = min(heads, key=lambda p: stage.waiting[p][0][1])
            if station.by_entry and station.owners is None:
                stage.waiting[p].sort(key=lambda entry: entry[1])
            batch.append(stage.waiting[p].pop(0)[1])
        self.batches += 1
        replica.busy = True
        end = now + self._service_s(station, replica.kind, len(batch), batch[0], stage.service_key)
        order = self.batches if station.owners is None else r
        self.log += [Happening(now, s, event, "starts", r, self.batches) for event in batch]
        self._plan(end, _BATCH_ENDS, (s, now, order), s, r, _Batch(now, order, self.batches, batch))
        return True

    def _service_s(self, station: Station, kind: int, size: int, first: int, key: int) -> float:
        row = station.table[kind * station.width + size].tolist()
        if len(row) == 1:
            return float(row[0])
        u = (draw(first, key) + 0.5) / 2**32
        above = next(i for i, level in enumerate(station.levels) if i and level >= u)
        low, high = station.levels[above - 1], station.levels[above]
        return float(row[above - 1] + (row[above] - row[above - 1]) * ((u - low) / (high - low)))

    def _end(self, now: float, s: int, r: int, batch: _Batch) -> None:
        stage = self.stages[s]
        stage.replicas[r].busy = False
        stage.replicas[r].free_since = (now, batch.number)
        for position, event in enumerate(batch.events):
            self.log.append(Happening(now, s, event, "ends", r, batch.number))
            stage.completed.append((now, stage.partition_of[event]))
            if not self.workload.shape.children(s):
                latency = now + self.workload.hop_s - float(self.workload.entry_s[event])
                self.latency_s[event] = np.fmax(self.latency_s[event], latency)
            self._outcome(s, event, (now, s, (0, batch.start_s, batch.order, position)), ran=True)
        self._plan(now, _DISPATCH, (), s)

    def _mask(self, event: int) -> int:
        return self.workload.path_masks[int(self.workload.masks[event])]
