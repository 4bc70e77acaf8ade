"""A pipeline simulated stage by stage, in slices of time that stay in the processor's cache.

With one queue per stage a stage needs only its arrivals in order: no event heap. In each slice every stage, in
topological order, goes as far as its arrivals are known. Any stage whose departures are at hand is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferline_stream.estimator import kernels
from inferline_stream.estimator.feeds import Source
from inferline_stream.estimator.kernels import Lateness, Tokens
from inferline_stream.estimator.numba_kernels import compiled
from inferline_stream.estimator.stage_arrivals import NONE, Flow
from inferline_stream.estimator.stage_pools import StagePools
from inferline_stream.estimator.station import Station
from inferline_stream.estimator.workload import Workload

SLICE_EVENTS = 1 << 15


@dataclass(frozen=True, slots=True, eq=False)
class Departures:
    """What leaves a stage: one entry per event that visits it.

    Args:
        times_s: float64, ascending: when they count as sent, see `kernels`.
        events: int32, whose they are.
        skipped: of a join that a later join waits for: when it was known that an event skips it.
    """

    times_s: kernels.Floats
    events: kernels.Events
    skipped: Tokens = NONE


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """How a stage fared.

    Args:
        arrivals: events that visited it.
        batches: by batch size (index), over all its replicas.
        wait_s: mean time in its queue.
        service_time_s: mean time in service, over events.
        busy_s: time in service, summed over batches.
        utilization: share of the time from the first entry to its last departure in which a replica was busy; where it
            can run several batches at once, mean share of them that it had in hand.
        largest_batch: see `SharedPool.largest`.
        degraded: events that its fallback made.
    """

    arrivals: int
    batches: kernels.Ints
    wait_s: float
    service_time_s: float
    busy_s: float
    utilization: float
    largest_batch: int
    degraded: int = 0

    @property
    def mean_batch_size(self) -> float:
        """Events per batch; NaN without any."""
        count = int(self.batches.sum())
        return self.arrivals / count if count else math.nan


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a simulation found.

    Args:
        latency_s: float64 by event, NaN without a sink record; None if not asked for or aborted.
        late: events with a sink record and a latency above the SLO, as far as known; 0 without an SLO.
        aborted: ended early because more events than allowed are late.
        simulated_events: visits to stages that were simulated: the work done.
        departures: of the stages that were to be kept; put together when they are asked for.
        statistics: by position of the stages simulated, as far as they went.
    """

    latency_s: kernels.Floats | None
    late: int
    aborted: bool
    simulated_events: int
    departures: Mapping[int, Departures]
    statistics: Mapping[int, StageStatistics]


def evaluate(
    workload: Workload,
    stations: Mapping[int, Station] | Sequence[Station],
    *,
    kept: Mapping[int, Departures] | None = None,
    keep: Collection[int] = (),
    slo_s: float = math.inf,
    allowed: int | None = None,
    latencies: bool = True,
    slice_events: int = SLICE_EVENTS,
    code: Any = None,
) -> Evaluation:
    """Simulate every stage that is not kept.

    Args:
        workload: events and their paths.
        stations: by position of the stage; those of kept stages count only towards the fastest possible rest.
        kept: departures that an earlier evaluation of the same workload gave, under the same stations up to there.
        keep: stages whose departures to give back.
        slo_s: what events must not exceed.
        allowed: stop once more events than this are known to be late; None never stops early.
        latencies: give every event's latency.
        slice_events: events that enter in one slice; changes nothing but speed and memory.
        code: the kernels; the compiled ones by default.
    """
    kept = kept or {}
    by_stage = stations if isinstance(stations, Mapping) else dict(enumerate(stations))
    simulated = [s for s in range(len(workload.shape.stages)) if s not in kept]
    code = code or compiled()
    late = _late_anywhere(workload, by_stage, slo_s, allowed, code) if slo_s < math.inf else None
    run = _Run(workload, by_stage, simulated, kept=kept, keep=keep, code=code)
    latency_s = np.full(len(workload), math.nan) if latencies else None
    finals = workload.shape.finals()
    count = 0
    for first in range(0, workload.entering, slice_events):
        run.advance(first, min(first + slice_events, workload.entering))
        for stage in simulated:
            if late is not None:
                count += late.count(stage, run.gone[stage], run.known[stage])
        if allowed is not None and count > allowed:
            break
        if latency_s is not None:
            for stage in finals:
                gone = run.gone[stage] if stage in run.gone else run.window(stage)
                gone = Tokens(gone.times, workload.as_last(stage, gone.events))
                code.record_latencies(gone, workload.entry_s, workload.hop_s, latency_s)
    aborted = allowed is not None and count > allowed
    return Evaluation(
        latency_s=None if aborted else latency_s,
        late=count,
        aborted=aborted,
        simulated_events=sum(server.arrivals for server in run.servers.values()),
        departures={} if aborted else run.departures(),
        statistics=run.statistics(),
    )


def arrivals_at(workload: Workload, stage: int, upstream: Mapping[int, Departures], *, code: Any = None) -> Departures:
    """What is sent to a stage, whatever serves it, given the departures of (at least) ``workload.needs(stage)``."""
    flow = Flow(workload, (stage,), code or compiled())

    def tokens_of(source: Source) -> Tokens:
        gone = upstream[source[0]]
        return gone.skipped if source[1] else Tokens(gone.times_s, gone.events)

    arrived = flow.arrivals(stage, (0, workload.entering), tokens_of, math.inf)
    return Departures(*arrived, flow.skipped.get(stage, NONE))


def simulate_stage(
    workload: Workload,
    stage: int,
    arrivals: Departures,
    station: Station,
    *,
    late_s: float = math.inf,
    rest_s: kernels.Floats | None = None,
    allowed: int | None = None,
    slice_events: int = SLICE_EVENTS,
    report: Callable[[int, int], None] = lambda arrived, largest: None,
    code: Any = None,
) -> Departures | None:
    """Departures of one stage.

    Args:
        workload: events and their paths.
        stage: position in the shape.
        arrivals: see `arrivals_at`.
        station: what serves the stage.
        late_s: age at its departure, and what is left of its way, beyond which an event is late.
        rest_s: by mask, time still to go after this stage, as `fastest_rest_s` gives it; none by default.
        allowed: give up (None) once more events than this, of those that visit the stage and reach the sink, are late.
        slice_events: arrivals after which it is looked whether to give up; changes nothing but speed.
        report: called when the simulation ends, or is given up, with how many events have come to the stage, and how
            many the largest batch until then had.
        code: the kernels; the compiled ones by default.
    """
    code = code or compiled()
    server, flow = StagePools(workload, stage, station, code), Flow(workload, (stage,), code)
    late = _Late(workload, late_s, code=code)
    late.watch(stage, np.where(workload.awaited(stage), 0.0 if rest_s is None else rest_s, -math.inf), settles=True)
    times_s, events = arrivals.times_s, arrivals.events
    parts: list[Tokens] = []
    count = 0
    for first in range(0, max(times_s.size, 1), slice_events):
        end = first + slice_events
        known_s = float(times_s[end]) + workload.hop_s if end < times_s.size else math.inf
        server.receive(Tokens(times_s[first:end], events[first:end]))
        gone = flow.sent(stage, server.advance(known_s), known_s)
        if allowed is not None:
            count += late.count(stage, gone, known_s)
            if count > allowed:
                break
        parts.append(_copy(gone) if known_s < math.inf else gone)
    report(server.arrivals, server.largest)
    if allowed is not None and count > allowed:
        return None
    return Departures(*(parts[0] if len(parts) == 1 else _concatenated(parts)), arrivals.skipped)


def latencies_s(workload: Workload, departures: Mapping[int, Departures], *, code: Any = None) -> kernels.Floats:
    """Latency of every event from the departures of all stages; NaN for an event without a sink record."""
    latency_s = np.full(len(workload), math.nan)
    for stage in workload.shape.finals():
        gone = Tokens(departures[stage].times_s, workload.as_last(stage, departures[stage].events))
        (code or compiled()).record_latencies(gone, workload.entry_s, workload.hop_s, latency_s)
    return latency_s


def count_late(workload: Workload, departures: Departures, slo_s: float, *, code: Any = None) -> int:
    """Events whose latency, from the final stage's departures, exceeds the SLO: that of their class."""
    rest_s = np.full(len(workload.ways), workload.hop_s)
    fate = np.zeros(len(workload), dtype=np.uint8)
    lateness = Lateness(workload.due_s, workload.masks, rest_s, slo_s, False, fate)
    return int((code or compiled()).count_late(Tokens(departures.times_s, departures.events), lateness))


class _Run:
    """The stages of one simulation and how far each has come."""

    def __init__(
        self,
        workload: Workload,
        stations: Mapping[int, Station],
        simulated: Sequence[int],
        *,
        kept: Mapping[int, Departures],
        keep: Collection[int],
        code: Any,
    ) -> None:
        self.workload = workload
        self.gone: dict[int, Tokens] = {}
        self.known: dict[int, float] = {}
        self.servers = {s: StagePools(workload, s, stations[s], code) for s in simulated}
        self._simulated = simulated
        self._stations = stations
        self._kept = kept
        self._keep: dict[int, list[tuple[Tokens, Tokens]]] = {s: [] for s in keep if s in set(simulated)}
        self._flow = Flow(workload, simulated, code)
        self._waits: dict[int, float] = dict.fromkeys(simulated, 0.0)
        self._ends: dict[int, float] = {}
        self._window = (-math.inf, -math.inf)

    def advance(self, first: int, end: int) -> None:
        """Let the events of one slice enter, and every stage go as far as its arrivals are known."""
        entry_s = self.workload.entering_s
        now_s = float(entry_s[end]) if end < entry_s.size else math.inf
        self._window = (self._window[1], now_s)
        hop_s = self.workload.hop_s
        known = self.known = dict.fromkeys(self._kept, now_s)
        for s in self._simulated:
            server = self.servers[s]
            sources = self.workload.feeds[s].sources
            horizon_s = min((known[source] for source, _ in sources), default=now_s)
            arrived = self._flow.arrivals(s, (first, end), self._tokens, horizon_s)
            known[s] = horizon_s + hop_s
            server.receive(arrived)
            gone = server.advance(known[s])
            self._waits[s] += float(gone.times.sum()) - float(arrived.times.sum())
            if gone.times.size:
                self._ends[s] = float(gone.times[-1])
            gone = self.gone[s] = self._flow.sent(s, gone, known[s])
            if s in self._keep:
                self._keep[s].append((_copy(gone), _copy(self._flow.skipped.get(s, NONE))))

    def window(self, stage: int) -> Tokens:
        """A kept stage's departures in the present slice."""
        return self._cut(Tokens(self._kept[stage].times_s, self._kept[stage].events))

    def _tokens(self, source: Source) -> Tokens:
        stage, skips = source
        if stage not in self._kept:
            return self._flow.skipped[stage] if skips else self.gone[stage]
        kept = self._kept[stage]
        return self._cut(kept.skipped if skips else Tokens(kept.times_s, kept.events))

    def _cut(self, tokens: Tokens) -> Tokens:
        first, end = np.searchsorted(tokens.times, self._window)
        return Tokens(tokens.times[first:end], tokens.events[first:end])

    def departures(self) -> Mapping[int, Departures]:
        """Of the stages to keep."""
        return _Kept(self._keep)

    def statistics(self) -> dict[int, StageStatistics]:
        """Of the stages simulated."""
        return {s: self._statistics(s) for s in self._simulated}

    def _statistics(self, s: int) -> StageStatistics:
        server, station = self.servers[s], self._stations[s]
        n = server.arrivals
        busy_s, served_s = (float(x) for x in server.account.totals)
        span_s = self._ends.get(s, 0.0) - float(self.workload.entry_s[0]) if n else 0.0
        return StageStatistics(
            arrivals=n,
            batches=_batches(server, station),
            wait_s=max(0.0, (self._waits[s] - served_s) / n - self.workload.hop_s) if n else math.nan,
            service_time_s=served_s / n if n else math.nan,
            busy_s=busy_s,
            utilization=busy_s / (span_s * int(station.at_once.sum())) if n else 0.0,
            largest_batch=server.largest,
            degraded=server.degraded,
        )


def _batches(server: StagePools, station: Station) -> kernels.Ints:
    """Batches by size, over all kinds of replicas."""
    batches: kernels.Ints = server.account.batches.reshape(-1, station.width).sum(axis=0)
    return batches


class _Kept(Mapping[int, Departures]):
    """Departures from their slices. Most plans are never built upon: theirs are not put together."""

    def __init__(self, parts: dict[int, list[tuple[Tokens, Tokens]]]) -> None:
        self._parts = parts
        self._joined: dict[int, Departures] = {}

    def __getitem__(self, stage: int) -> Departures:
        if stage not in self._joined:
            self._joined[stage] = _joined(self._parts[stage])
            self._parts[stage] = []
        return self._joined[stage]

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _copy(tokens: Tokens) -> Tokens:
    return Tokens(tokens.times.copy(), tokens.events.copy())


def _joined(parts: Sequence[tuple[Tokens, Tokens]]) -> Departures:
    return Departures(*_concatenated([gone for gone, _ in parts]), skipped=_concatenated([skips for _, skips in parts]))


def _concatenated(parts: Sequence[Tokens]) -> Tokens:
    if not parts:
        return NONE
    return Tokens(np.concatenate([p.times for p in parts]), np.concatenate([p.events for p in parts]))


class _Late:
    """Counts events that cannot meet the SLO any more: at their departures, and while they are overdue."""

    def __init__(self, workload: Workload, slo_s: float, *, code: Any) -> None:
        self._workload = workload
        self._due_s = workload.due_s
        self._masks = workload.masks
        self._last = workload.last
        self._latest_due_s = np.maximum.accumulate(self._due_s[self._last])
        self._slo_s = slo_s
        self._code = code
        self._fate = np.zeros(len(workload), dtype=np.uint8)
        self._watched: dict[int, Lateness] = {}
        self._rest_s: dict[int, kernels.Floats] = {}
        """By mask, of stages that get results of the events that count."""
        self._overdue = self._last.start  # events before this one were looked at

    def watch(self, stage: int, rest_s: kernels.Floats, *, settles: bool) -> None:
        """Count at this stage too; if it settles what becomes of events, those that never leave it as well.

        A stage that gets results of the events that count settles nothing: other results of theirs may come later.
        """
        if self._workload.owners(stage) is not None:
            self._rest_s[stage], rest_s, settles = rest_s, np.zeros_like(rest_s), False
        self._watched[stage] = Lateness(self._due_s, self._masks, rest_s, self._slo_s, settles, self._fate)

    def count(self, stage: int, gone: Tokens, horizon_s: float) -> int:
        """Events found late, given a stage's departures up to a horizon."""
        if stage not in self._watched:
            return 0
        lateness = self._watched[stage]
        if (rest_s := self._rest_s.get(stage)) is not None:
            due_s = gone.times + rest_s[self._masks[gone.events]]
            due = due_s > -math.inf
            gone = Tokens(due_s[due], self._workload.as_last(stage, gone.events[due]))
        count = int(self._code.count_late(gone, lateness))
        if lateness.settles and horizon_s < math.inf:
            # What has not left by the horizon leaves then at the earliest. A hair less, for the sake of rounding.
            awaited = lateness.rest_s[lateness.rest_s > -math.inf]
            if not awaited.size:
                return count
            latest_s = horizon_s + float(awaited.min()) - self._slo_s
            latest_s -= 8 * math.ulp(max(abs(horizon_s), abs(latest_s)))
            end = self._last.start + int(np.searchsorted(self._latest_due_s, latest_s))
            count += int(self._code.count_missing(self._overdue, end, lateness))
            self._overdue = max(self._overdue, end)
        return count


def _late_anywhere(
    workload: Workload, stations: Mapping[int, Station], slo_s: float, allowed: int | None, code: Any
) -> _Late:
    """Watches the final stages, and all others if a verdict is wanted as soon as may be."""
    late = _Late(workload, slo_s, code=code)
    finals = workload.shape.finals()
    rest_s = fastest_rest_s(workload, {s: x.fastest_s for s, x in stations.items()})
    for s, rest in enumerate(rest_s):
        if s in finals or allowed is not None:
            late.watch(s, rest, settles=allowed is not None and finals == (s,))
    return late


def fastest_rest_s(workload: Workload, fastest_s: Mapping[int, float]) -> kernels.Floats:
    """Shortest time from the departure from a stage to the sink, (stages, masks).

    The longest path over the stages that an event with the mask has yet to visit. -inf where it does not reach the
    sink. A hair below the true value except at the final stage, so that rounding never condemns an event.

    Args:
        workload: shape, paths and the overhead of a hop.
        fastest_s: by stage, the shortest time that any batch can take; 0 where it is not known.
    """
    shape, hop_s = workload.shape, workload.hop_s
    rest_s = np.full((len(shape.stages), len(workload.ways)), -math.inf)
    for s in reversed(range(len(shape.stages))):
        arrows = shape.children(s)
        if s in shape.finals():
            rest_s[s] = hop_s
        if s in shape.many:  # what an event's results are gathered to comes after it at the earliest, if it has none
            for child in range(s + 1, len(shape.stages)):
                if workload.feeds[child].gathers == s:
                    rest_s[s] = np.maximum(rest_s[s], (hop_s + fastest_s.get(child, 0.0) + rest_s[child]) * (1 - 1e-12))
        for a in arrows:
            child = shape.arrows[a].child
            rest = (hop_s + fastest_s.get(child, 0.0) + rest_s[child]) * (1 - 1e-12)
            np.maximum(rest_s[s], rest, out=rest_s[s], where=workload.takes(a))
        rest_s[s, workload.feeds[s].visits == 0] = -math.inf
    return rest_s
