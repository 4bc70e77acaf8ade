"""The same pipeline simulated with one heap of everything that is going to happen, as plainly as can be.

It obeys the rules written in `estimator.kernels` and `pipeline.deadline_order`, and nothing else of the estimator:
records and skip markers travel along every arrow, joins count them, replicas take batches from lists. It is the oracle
of the exact tests, some thousand times slower, and its log holds what happened to each event at each stage.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from inferline_stream.estimator.kernels import TIE, Floats, draw
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload
from inferline_stream.pipeline.deadline_order import FEW_LANES, HOPELESS_EVERY
from inferline_stream.pipeline.shape import Paths, visited

_BATCH_ENDS, _ARRIVES, _DISPATCH = range(3)


class Happening(NamedTuple):
    """What happened to an event at a stage.

    Args:
        time_s: when.
        stage: position in the shape.
        event: whose.
        what: it arrives, its batch starts or ends.
        replica: which one serves it; -1 for an arrival.
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
    """Latency of every event (NaN without a sink record), all that happened, in order of time, and, by stage, how many
    events its fallback made."""

    latency_s: Floats
    log: Sequence[Happening]
    degraded: Sequence[int]


_Group = tuple[str, int]
"""An event without a key, or all the waiting events of one."""

_Place = tuple[float, int, tuple[Any, ...]]
"""When something was sent, by which stage (-1 is the source), and its place among what that stage sent."""


@dataclass(frozen=True, slots=True)
class _Batch:
    start_s: float
    order: int
    number: int
    events: list[int]
    hopeful: list[tuple[float, int]]  # (arrival, event)


@dataclass(slots=True)
class _Replica:
    kind: int
    places: int
    ends_s: list[float] = field(default_factory=list)  # of the batches in hand

    @property
    def full(self) -> bool:
        return len(self.ends_s) == self.places


@dataclass(slots=True)
class _Stage:
    station: Station
    service_key: int
    replicas: list[_Replica]
    waiting: list[tuple[float, int]] = field(default_factory=list)  # (arrival, event), in order of arrival
    tokens: dict[int, list[bool]] = field(default_factory=dict)  # at a join by event: was it a record?
    sent_s: dict[int, float] = field(default_factory=dict)  # by event: when its (last) record was sent
    keys: dict[int, int] = field(default_factory=dict)  # by event, where keys keep their order
    in_hand: list[int] = field(default_factory=list)  # keys of the events in hand
    numbers: dict[int, int] = field(default_factory=dict)  # by event: how many arrived before it
    hopeless: dict[_Group, tuple[float, int]] = field(default_factory=dict)  # and their places in order
    served: list[tuple[float, int, bool]] = field(default_factory=list)  # (start, events, whether by the fallback)
    shared: int = 0  # batches made while hopeless ones waited beside hopeful ones, since the last that was theirs


@dataclass(frozen=True, slots=True)
class Reports:
    """What stages hear of each other.

    Args:
        paths: sets of arrows, with their shares.
        alone_s: by stage, what a stay that is not known is taken for.
        hop_s: mean time between two stages.
        slo_s: the SLO.
    """

    paths: Paths
    alone_s: Sequence[float]
    hop_s: float
    slo_s: float


def simulate_with_heap(
    workload: Workload, stations: Mapping[int, Station] | Sequence[Station], reports: Reports | None = None
) -> HeapSimulation:
    """Simulate event by event. A few microseconds to milliseconds each: for some thousand events.

    Args:
        workload: events and their paths.
        stations: by position of the stage.
        reports: what stages hear of each other; by default nothing.
    """
    return _Simulation(workload, [stations[s] for s in range(len(workload.shape.stages))], reports).run()


class _Simulation:
    def __init__(self, workload: Workload, stations: Sequence[Station], reports: Reports | None) -> None:
        self.workload, self.reports = workload, reports
        own = list(map(float, workload.longer_s)) or [0.0] * len(workload)
        # An event has until its entry and its own SLO: as one that entered so much later has with the pipeline's.
        self.due_s = [float(at) + more for at, more in zip(workload.entry_s, own, strict=True)]
        self.stays: list[list[tuple[float, float]]] = [[] for _ in stations]  # (end of service, since arrival), hopeful
        self.first_period = math.floor(min(self.due_s, default=0.0) / 0.5) + 1
        self.last_due_s = max(self.due_s, default=0.0)
        self.rests: dict[int, list[float]] = {}
        self.usual_s: dict[tuple[int, int], float | None] = {}  # by period and stage; None while nothing was reported
        self.served_behind: dict[int, bool] = {}  # whether any stage behind another had served, by period
        self.heap: list[tuple[float, int, tuple[Any, ...], int, tuple[Any, ...]]] = []
        self.log: list[Happening] = []
        self.latency_s = np.full(len(workload), math.nan)
        self.degraded: list[set[int]] = [set() for _ in stations]
        self.batches = 0
        self.numbers = itertools.count()
        self.stages = [
            [
                _Stage(
                    pool,
                    workload.key("service", s),
                    [_Replica(int(k), int(places)) for k, places in zip(pool.kinds, pool.at_once, strict=True)],
                    keys={event: key for event, key in enumerate(workload.lanes(s).tolist()) if key}
                    if not station.partitions
                    else {},
                )
                for pool in map(station.of_slot, range(station.slots))
            ]
            for s, station in enumerate(stations)
        ]

    def run(self) -> HeapSimulation:
        for event, entry_s in enumerate(self.workload.entry_s[: self.workload.entering].tolist()):
            for s in self.workload.shape.entries(self.workload.shape.source_of(self._mask(event))):
                sent_s = entry_s + self._extra_s(event, "hop in", s)
                self._send((sent_s, -1, (0, entry_s, 0, -math.inf, 0, event)), s, event, record=True)
        while self.heap:
            now, what, _, _, payload = heapq.heappop(self.heap)
            if what == _BATCH_ENDS:
                self._end(now, *payload)
            elif what == _ARRIVES:
                self._arrive(now, *payload)
            else:
                self._dispatch(now, *payload)
        return HeapSimulation(self.latency_s, self.log, [len(events) for events in self.degraded])

    def _plan(self, when_s: float, what: int, order: tuple[Any, ...], *payload: Any) -> None:
        heapq.heappush(self.heap, (when_s, what, order, next(self.numbers), payload))

    def _send(self, place: _Place, target: int, event: int, *, record: bool) -> None:
        """A record, or a skip marker, on its way."""
        self._plan(place[0] + self.workload.hop_s, _ARRIVES, place, target, event, record, place)

    def _extra_s(self, event: int, purpose: str, s: int) -> float:
        extra_s = self.workload.hop_extra_s
        return float(extra_s[int(draw(event, self.workload.key(purpose, s)) / 2**24)]) if extra_s.size else 0.0

    def _outcome(self, s: int, event: int, place: _Place, *, ran: bool) -> None:
        """Send what follows from an event's having run at a stage, or from a join's being skipped."""
        shape = self.workload.shape
        if ran and s in shape.many:
            self._results(s, event, place)
            return
        mask = self._mask(event)
        for a in shape.children(s):
            self._along(a, event, place, taken=ran and bool(mask >> a & 1))

    def _results(self, s: int, event: int, place: _Place) -> None:
        """Send each result on; what gathers them hears where there is none."""
        shape, (sent_s, _, order) = self.workload.shape, place
        own = self._of(s, event)
        for at, result in enumerate(own):
            for a in shape.children(s):
                self._along(a, result, (sent_s, s, (*order, at)), taken=bool(self._mask(result) >> a & 1))
        for child in range(len(shape.stages)):
            if (
                not own
                and shape.gathers(child)
                and shape.scope_after(shape.arrows[shape.parents(child)[0]].parent)
                == (
                    *shape.scopes()[s],
                    s,
                )
            ):
                self._send(place, child, event, record=False)

    def _of(self, s: int, event: int) -> list[int]:
        """The results that a stage gives an event."""
        results = self.workload.results[s]
        at = event - results.of[0]
        return list(range(int(results.begins[at]), int(results.begins[at + 1])))

    def _counted_event(self, event: int) -> int:
        """The event whose latency a record in a sink is of: the innermost that all sinks get something of."""
        shape = self.workload.shape
        scopes = [shape.scopes()[s] for s in range(len(shape.stages)) if s in shape.beside or not shape.children(s)]
        depth = next(n for n in reversed(range(len(scopes[0]) + 1)) if len({scope[:n] for scope in scopes}) == 1)
        for s in reversed(self._scope(event)[depth:]):
            first, end = self.workload.results[s].of
            event = next(each for each in range(first, end) if event in self._of(s, each))
        return event

    def _scope(self, event: int) -> tuple[int, ...]:
        return self.workload.ways[int(self.workload.masks[event])][0]

    def _along(self, a: int, event: int, place: _Place, *, taken: bool) -> None:
        shape = self.workload.shape
        child, scope = shape.arrows[a].child, self._scope(event)
        if shape.arrows[a].gathers:
            waits = shape.scope_after(shape.arrows[a].parent) == scope
        else:
            waits = len(shape.parents(child)) > 1 and shape.scopes()[child] == scope
        if taken or waits:
            self._send(place, child, event, record=taken)
        else:  # the child is skipped and has no other parent: only this stage knows what comes after it
            for further in shape.children(child):
                self._along(further, event, place, taken=False)

    def _arrive(self, now: float, s: int, event: int, record: bool, place: _Place) -> None:
        pools = self.stages[s]
        shape, parents = self.workload.shape, len(self.workload.shape.parents(s))
        if shape.gathers(s):
            many, wanted = shape.scope_after(shape.arrows[shape.parents(s)[0]].parent)[-1], 1
            if self._scope(event) != shape.scopes()[s]:
                first, end = self.workload.results[many].of
                event = next(each for each in range(first, end) if event in self._of(many, each))
                wanted = len(self._of(many, event))
            tokens = pools[0].tokens.setdefault(event, [])
            tokens.append(record)
            if len(tokens) < wanted:
                return
        elif parents > 1:
            tokens = pools[0].tokens.setdefault(event, [])
            tokens.append(record)
            if len(tokens) < self._heard(s, event):
                return
            if not any(tokens):
                self._outcome(s, event, (now, s, (1, *place)), ran=False)
                return
        partitions = pools[0].station.partitions or len(pools)
        slot = self._partition(s, event, partitions) % len(pools)
        self.log.append(Happening(now, s, event, "arrives", -1, -1))
        pools[slot].numbers[event] = len(pools[slot].numbers)
        pools[slot].waiting.append((now, event))
        pools[slot].sent_s[event] = place[0]
        self._plan(now, _DISPATCH, (), s, slot)

    def _heard(self, s: int, event: int) -> int:
        """How many parents say something of an event: those that its source leads to."""
        shape = self.workload.shape
        if self._scope(event):
            return len(shape.parents(s))
        found, entered = 0, set(shape.entries(shape.source_of(self._mask(event))))
        for parent in (shape.arrows[a].parent for a in shape.parents(s)):
            above, waiting = set[int](), [parent]
            while waiting:
                above.add(waiting.pop())
                waiting += [a.parent for a in shape.arrows if a.child in above and a.parent not in above]
            found += not above.isdisjoint(entered)
        return found

    def _partition(self, s: int, event: int, partitions: int) -> int:
        by_id = s in self.workload.shape.joins() and s not in self.workload.ordered
        for many in () if by_id else reversed(self._scope(event)):
            first, end = self.workload.results[many].of
            event = next(each for each in range(first, end) if event in self._of(many, each))
        key = 0 if by_id or not self.workload.keys.size else int(self.workload.keys[event])
        whose = len(self.workload) + key if key else event
        u = draw(whose, self.workload.key("event id" if by_id else "record key")) / 2**32
        return int(u * partitions)

    def _dispatch(self, now: float, s: int, slot: int) -> None:
        stage = self.stages[s][slot]
        while True:
            free = [r for r, replica in enumerate(stage.replicas) if not replica.full]
            if not (free and self._eligible(stage)):
                return
            chosen = self._chosen(stage, free)
            if self._awaits_others(now, stage, chosen) or not self._start(now, s, slot, chosen):
                return

    def _group(self, stage: _Stage, event: int) -> _Group:
        return ("key", stage.keys[event]) if event in stage.keys else ("event", event)

    def _hopeful(self, stage: _Stage) -> list[tuple[float, int]]:
        return [entry for entry in self._eligible(stage) if self._group(stage, entry[1]) not in stage.hopeless]

    def _counted(self, stage: _Stage) -> int:
        """Events that wait: the hopeful ones, while there are any."""
        return len(self._hopeful(stage)) or len(self._eligible(stage))

    def _chosen(self, stage: _Stage, free: list[int]) -> int:
        """The first of those that end first, by kind; one that would end a hair earlier counts as equal."""
        best = -1
        for r in sorted(free, key=lambda r: (stage.replicas[r].kind, r)):
            if best < 0 or self._expected_s(stage, r) * TIE < self._expected_s(stage, best):
                best = r
        return best

    def _awaits_others(self, now: float, stage: _Stage, chosen: int) -> bool:
        """Whether busy replicas could end all that waits before the chosen one would end its batch."""
        if stage.station.limits.size == 1:
            return False
        within_s, served = self._expected_s(stage, chosen), 0
        for r, replica in enumerate(stage.replicas):
            for end_s in replica.ends_s:
                # A batch that follows one of these finds the others that the replica has in hand now.
                left_s, expected_s = end_s - now, self._expected_s(stage, r, len(replica.ends_s))
                if (left_s + expected_s) * TIE < within_s:
                    served += int((within_s / TIE - left_s) / expected_s) * int(stage.station.limits[replica.kind])
        return served >= self._counted(stage)

    def _eligible(self, stage: _Stage) -> list[tuple[float, int]]:
        """What waits in the one queue, less the events of keys of which some are in hand."""
        return [entry for entry in stage.waiting if stage.keys.get(entry[1]) not in stage.in_hand]

    def _expected_s(self, stage: _Stage, r: int, in_hand: int | None = None) -> float:
        """How long a replica would take for what waits: the mean. With one more in hand, or with so many."""
        station, replica = stage.station, stage.replicas[r]
        size = min(int(station.limits[replica.kind]), self._counted(stage))
        row = self._row(station, replica.kind, len(replica.ends_s) + 1 if in_hand is None else in_hand, size)
        return float(station.table[row])

    @staticmethod
    def _row(station: Station, kind: int, in_hand: int, size: int) -> int:
        return (kind * station.levels + in_hand - 1) * station.width + size

    def _start(self, now: float, s: int, slot: int, r: int) -> bool:
        """Start a batch on a free replica if there is one to start."""
        stage = self.stages[s][slot]
        station, replica = stage.station, stage.replicas[r]
        limit = int(station.limits[replica.kind])
        if not self._eligible(stage):
            return False
        in_hand = len(replica.ends_s) + 1
        serving_s = [
            0.0,
            *(float(station.table[self._row(station, replica.kind, in_hand, b)]) for b in range(1, limit + 1)),
        ]
        rest_s = self._rest_s(now, s, station)
        shortest_s = station.order_slo_s + self.workload.shorter_s
        cap = max(b for b in range(1, limit + 1) if b == 1 or serving_s[b] + rest_s <= 0.9 * shortest_s)
        cap = cap if station.triages else limit
        queued = self._hopeful(stage)
        due = min((stage.sent_s[event] for _, event in queued), default=-math.inf) + station.hold_s
        if station.hold_s > 0 and len(queued) < cap and due > now:
            self._plan(due, _DISPATCH, (), s, slot)
            return False
        first_row, fast_s = self._row(station, replica.kind, in_hand, 0), [0.0] * (limit + 1)
        if station.fallback.size:
            fast_s[1:] = station.fallback[first_row + 1 : first_row + limit + 1].tolist()
        batch, fast = (
            self._batch(now, stage, (serving_s, rest_s, self._longer_s(now, s), cap, limit), fast_s)
            if station.triages
            else (self._first(stage)[:limit], False)
        )
        stage.served.append((now, len(batch), fast))
        hopeful = [entry for entry in self._hopeful(stage) if entry[1] in batch]
        for event in batch:
            stage.hopeless.pop(self._group(stage, event), None)
        stage.waiting = [entry for entry in stage.waiting if entry[1] not in batch]
        stage.in_hand += [stage.keys[event] for event in batch if event in stage.keys]
        self.batches += 1
        row = self._row(station, replica.kind, in_hand, len(batch))
        takes_s = self._service_s(station, replica.kind, row, batch, stage.service_key)
        if fast:
            takes_s = (
                takes_s * (fast_s[len(batch)] / float(station.table[row])) if station.varies else fast_s[len(batch)]
            )
            self.degraded[s].update(batch)
        end = now + takes_s
        replica.ends_s.append(end)
        order = self.batches
        self.log += [Happening(now, s, event, "starts", self._number(s, slot, r), self.batches) for event in batch]
        self._plan(
            end, _BATCH_ENDS, (s, slot, now, order), s, slot, r, _Batch(now, order, self.batches, batch, hopeful)
        )
        return True

    def _number(self, s: int, slot: int, r: int) -> int:
        """Of a slot's replica, among those of the stage."""
        return slot + r * len(self.stages[s])

    def _may_degrade(self, now: float, stage: _Stage, events: int) -> bool:
        """Whether the fallback stays within its share of what was served in this five minutes and the eleven before."""
        newest = math.floor(now / 300)
        recent = [(n, fast) for start_s, n, fast in stage.served if newest - math.floor(start_s / 300) < 12]
        before = stage.station.served_before if newest < 12 else 0
        degraded = sum(n for n, fast in recent if fast)
        return degraded + events <= stage.station.fallback_share * (before + sum(n for n, _ in recent) + events)

    def _batch(
        self, now: float, stage: _Stage, how: tuple[Sequence[float], float, float, int, int], fast_s: Sequence[float]
    ) -> tuple[list[int], bool]:
        """Hopeless last: moves aside what cannot be on time, and takes a batch; whether the fallback serves it."""
        serving_s, rest_s, longer_s, cap, limit = how
        slo_s, entry_s = stage.station.order_slo_s, self.due_s
        shortest_s = slo_s + self.workload.shorter_s
        while groups := self._in_order(stage, self._hopeful(stage)):
            b = min(cap, sum(len(group) for group in groups))
            judged = groups[0][: b if len(groups) < FEW_LANES else 1]
            least_s = min(now - entry_s[event] for _, event in judged)
            fast = least_s + serving_s[b] + rest_s + longer_s > slo_s
            if not fast:
                break
            most = [f for f in range(1, limit + 1) if f == 1 or fast_s[f] + rest_s <= 0.9 * shortest_s]
            of_fast = min(most[-1], sum(len(group) for group in groups))
            may = stage.station.fallback.size and self._may_degrade(now, stage, of_fast)
            if may and least_s + fast_s[of_fast] + rest_s <= slo_s:
                break
            fast = least_s + serving_s[b] + rest_s > slo_s
            if not fast:
                break
            rank_s = min(self._rank_s(stage.station, *entry) for entry in groups[0])
            first = groups[0][0][1]
            stage.hopeless[self._group(stage, first)] = rank_s, stage.numbers[first]
        places = [stage.hopeless.get(self._group(stage, event)) for _, event in self._eligible(stage)]
        theirs = not groups
        if groups and any(places):
            stage.shared += 1
            far = len(stage.numbers) - min(place for place in places if place)[1] > stage.station.span
            far = far or len(places) > stage.station.room
            if theirs := stage.shared == HOPELESS_EVERY or far:
                stage.shared = 0
        batch = [] if theirs else [event for group in groups for _, event in group][: of_fast if fast else cap]
        if not theirs and fast:
            return batch, True
        last = [entry for entry in self._eligible(stage) if self._group(stage, entry[1]) in stage.hopeless]
        for group in sorted(self._in_order(stage, last), key=lambda g: stage.hopeless[self._group(stage, g[0][1])]):
            for _, event in group:
                if len(batch) < limit and (
                    theirs or now - entry_s[batch[0]] + serving_s[len(batch) + 1] + rest_s <= slo_s
                ):
                    batch.append(event)
        return batch, False

    def _rest_s(self, now: float, s: int, station: Station) -> float:
        if self.reports is None or (period := self._period(now, self.reports)) <= self.first_period:
            return station.rest_s
        if period not in self.rests:
            self.rests[period] = self._reported_rests_s(period, self.reports)
        return self.rests[period][s]

    def _period(self, now: float, reports: Reports) -> int:
        """The half second whose reports count now; none follow once the last event is due."""
        return min(math.floor(now / 0.5), math.floor((self.last_due_s + reports.slo_s) / 0.5))

    def _longer_s(self, now: float, s: int) -> float:
        """How much less than usual R is: than the mean of all that were, weighted by their age."""
        if self.reports is None:
            return 0.0
        period, station = self._period(now, self.reports), self.stages[s][0].station
        if (period, s) not in self.usual_s:
            self.usual_s[period, s] = self._usual_s(period, s, station)
        usual_s = self.usual_s[period, s]
        return 0.0 if usual_s is None else max(0.0, usual_s - self._rest_s(now, s, station))

    def _usual_s(self, period: int, s: int, station: Station) -> float | None:
        known = []
        for each in range(self.first_period + 1, period + 1):
            rest_s = self._rest_s(each / 2, s, station)
            known += [(each / 2, rest_s)] if self.served_behind[each] else []
        if not known:
            return None
        weights = [math.exp((at_s - known[-1][0]) / 300) for at_s, _ in known]
        return math.fsum(w * rest_s for w, (_, rest_s) in zip(weights, known, strict=True)) / math.fsum(weights)

    def _reported_rests_s(self, period: int, reports: Reports) -> list[float]:
        """By what had ended a period before this one began."""
        shape, known = self.workload.shape, dict[int, float]()
        for s, stays in enumerate(self.stays):
            ended = [(end_s, stay_s) for end_s, stay_s in stays if end_s < 0.5 * (period - 1)]
            if ended and period * 0.5 - ended[-1][0] <= 2.0:
                weights = [math.exp((end_s - ended[-1][0]) / 0.5) for end_s, _ in ended]
                known[s] = math.fsum(w * t for w, (_, t) in zip(weights, ended, strict=True)) / math.fsum(weights)

        self.served_behind[period] = any(shape.parents(s) for s in known)

        def after(s: int) -> set[int]:
            children = {shape.arrows[a].child for a in shape.children(s)}
            return children.union(*map(after, children))

        def longest_s(s: int, mask: int) -> float:
            children = [shape.arrows[a].child for a in shape.children(s) if mask >> a & 1]
            stays = [min(reports.slo_s, known.get(c, reports.alone_s[c])) + longest_s(c, mask) for c in children]
            return reports.hop_s + max(stays, default=0.0)

        found, paths = [], reports.paths
        for s in range(len(shape.stages)):
            seen = [
                (w, longest_s(s, m)) for m, w in zip(paths.masks, paths.weights, strict=True) if visited(shape, m)[s]
            ]
            shares = [(t, sum(w for w, other in seen if other <= t) / sum(w for w, _ in seen)) for _, t in seen]
            enough_s = min((t for t, share in shares if share >= 0.9 - 1e-9), default=0.0)
            found.append(enough_s if after(s) & known.keys() else min((t for _, t in seen), default=0.0))
        return found

    def _first(self, stage: _Stage) -> list[int]:
        return [event for group in self._in_order(stage, self._eligible(stage)) for _, event in group]

    def _in_order(self, stage: _Stage, entries: list[tuple[float, int]]) -> list[list[tuple[float, int]]]:
        """The events of one queue, those of a key together; of equal ones the first to arrive."""
        together: dict[_Group, list[tuple[float, int]]] = {}
        for entry in entries:
            together.setdefault(self._group(stage, entry[1]), []).append(entry)
        return sorted(together.values(), key=lambda g: min(self._rank_s(stage.station, *entry) for entry in g))

    def _rank_s(self, station: Station, arrival_s: float, event: int) -> float:
        return max(self.due_s[event], arrival_s - station.order_slo_s) if station.order_slo_s else arrival_s

    def _service_s(self, station: Station, kind: int, row: int, batch: Sequence[int], key: int) -> float:
        if not station.varies:
            return float(station.table[row])
        fixed_s, per_unit_s, factors, units, largest = station.varying
        asked = [float(units[kind, int(draw(event, key) / 2**24)]) for event in batch]
        # Added one by one: `sum` of Python 3.12 and later rounds once, the kernels each time.
        x = max(asked) if largest[kind] else functools.reduce(operator.add, asked) / len(asked)
        factor = factors[row, int(draw(batch[0], key) / 2**16) % 256]
        return float((fixed_s[row] + per_unit_s[row] * x) * factor)

    def _end(self, now: float, s: int, slot: int, r: int, batch: _Batch) -> None:
        stage = self.stages[s][slot]
        stage.replicas[r].ends_s.remove(now)
        self.stays[s] += [(now, now - arrival_s) for arrival_s, _ in batch.hopeful]
        for event in batch.events:
            if event in stage.keys:
                stage.in_hand.remove(stage.keys[event])
        for position, event in enumerate(batch.events):
            self.log.append(Happening(now, s, event, "ends", self._number(s, slot, r), batch.number))
            sent_s = now + self._extra_s(event, "hop", s)
            if s in self.workload.shape.finals():
                latency = sent_s + self.workload.hop_s - float(self.workload.entry_s[event])
                counted = self._counted_event(event)
                self.latency_s[counted] = np.fmax(self.latency_s[counted], latency)
            self._outcome(s, event, (sent_s, s, (0, now, slot, batch.start_s, batch.order, position)), ran=True)
        self._plan(now, _DISPATCH, (), s, slot)

    def _mask(self, event: int) -> int:
        return self.workload.ways[int(self.workload.masks[event])][1]
