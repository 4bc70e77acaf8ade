"""A backfill beside live traffic in virtual time: the dispatchers' own slots, a chain of them, on replicas that sleep.

The plans are the planner's, from one that is idle for most of the time to one that hardly ever is. What a machine does
beside is not in these figures. Kafka acknowledges within a millisecond, a hop takes three.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inferline_stream import Pipeline, Stage, Topic
from inferline_stream.dataplane.dispatcher import slot_events as on
from inferline_stream.dataplane.dispatcher.emitter import Emitter
from inferline_stream.dataplane.dispatcher.lease import Lease
from inferline_stream.dataplane.dispatcher.pool import Pool
from inferline_stream.dataplane.dispatcher.report_counts import new_report
from inferline_stream.dataplane.dispatcher.slot import Slot
from inferline_stream.dataplane.dispatcher.slot_context import SlotContext
from inferline_stream.dataplane.frames import Batch, Call, Done, Ready, Results
from inferline_stream.dataplane.reports import PoolReport
from inferline_stream.dataplane.routes import routes_of
from inferline_stream.dataplane.slot_grants import Grant, HardwarePlan, StagePlan
from inferline_stream.dataplane.supervisor_messages import Attach
from inferline_stream.kafka.records import Record
from inferline_stream.kafka.topic_state import UNKNOWN_TOPIC
from inferline_stream.pipeline.event_classes import CLASS_STRIDE, class_of
from inferline_stream.pipeline.trace import gamma_trace
from inferline_stream.settings import Settings
from tests.support.emulated_runs import declared_profile, provisioned

_WALL_S, _BEGAN_S = 1.7e9, 1000.0
_ACKNOWLEDGED_S, _HOP_S, _REFILL_S, _AFTER_S = 0.001, 0.003, 0.05, 30.0
_VARIES = 0.02
"""Width of a batch's service time over its mean."""

_KIND, _ARCHIVE, _CHUNK = "cpu-1", "old", 50


_TIMES = ({1: "20ms", 8: "41ms"}, {1: "30ms", 8: "60ms"}, {1: "10ms", 8: "30ms"})
_RATES, _SLO_S, _EVENTS, _PLANNED_S = (25.0, 80.0, 300.0), 0.5, 3000, 300.0


def measure_virtual(*, quick: bool) -> dict[str, float]:
    """Return the live P99 beside a backfill over that without one, and what it uses of the busiest stage's idle time.

    Of the ratio, the mean over plans and draws, and the largest mean of a plan; of the use, the smallest of a plan.
    """
    ratios, used, figures = [], [], {}
    for rate in _RATES:
        stages, of_plan = planned(rate), []
        for seed in (1,) if quick else (1, 2, 3):
            arrivals_s = list(np.cumsum(np.random.default_rng(seed).exponential(1 / rate, _EVENTS)))
            alone, beside = (Chain(stages, _SLO_S, seed).play(arrivals_s, archive=archive) for archive in (False, True))
            of_plan.append(beside.p99_s / alone.p99_s)
            used.append(max((b - a) / (1 - a) for a, b in zip(alone.busy, beside.busy, strict=True)))
        ratios.append(float(np.mean(of_plan)))
        figures[f"backfill_p99_ratio_at_{rate:g}"] = round(ratios[-1], 3)
    return {
        "backfill_p99_ratio": round(float(np.mean(ratios)), 3),
        "backfill_p99_ratio_max": round(max(ratios), 3),
        "backfill_idle_used": round(float(min(used)), 3),
        **figures,
    }


def planned(rate: float) -> list[Sized]:
    """Return the chain as the planner has it for so many events per second."""
    declared: list[Stage] = []
    for number, times in enumerate(_TIMES):
        declared.append(
            Stage(f"s{number}", same, hardware=["emulated-cpu"], emulated=times, max_batch_size=8, after=declared[-1:])
        )
    source, sink = Topic("in", codec="raw"), Topic("out", codec="raw")
    pipeline = Pipeline("p", slo=f"{round(_SLO_S * 1e3)}ms", source=source, sink=sink, stages=declared)
    measured, sample = declared_profile(pipeline, {}), gamma_trace(rate, 1.0, _PLANNED_S, np.random.default_rng(0))
    plan = provisioned(pipeline, measured, sample)
    found = []
    for stage in declared:
        (held,), profile = plan.allocations[stage.name], measured.profiles[stage.name, "emulated-cpu"]
        times_s = {size: profile.service_time_s(size) for size in range(1, held.max_batch_size + 1)}
        found.append(Sized(held.replicas, times_s))
    return found


def same(values: list[bytes]) -> list[bytes]:
    """Every stage's code: results are the events."""
    return values


@dataclass(frozen=True, slots=True)
class Sized:
    """A stage as it is planned: its replicas, and the service time by batch size up to the limit."""

    replicas: int
    times_s: dict[int, float]

    def takes_s(self, batch_size: int) -> float:
        """Return S(b), linear between the sizes given."""
        return float(np.interp(batch_size, list(self.times_s), list(self.times_s.values())))


@dataclass(frozen=True, slots=True)
class Played:
    """What came of it: the live P99, each stage's busy share, and background events done per second."""

    p99_s: float
    busy: tuple[float, ...]
    background_rate: float


@dataclass(slots=True)
class _Played:
    slot: Slot
    lease: Lease
    report: PoolReport
    next_offset: dict[int, int] = field(default_factory=lambda: {0: 0, CLASS_STRIDE: 0})
    committed: dict[int, tuple[int, str]] = field(default_factory=dict)
    busy_s: float = 0.0
    timer: int = 0


class Chain:
    """A chain of stages in virtual time.

    Args:
        stages: as planned, the first one first.
        slo_s: of the pipeline.
        seed: of service times.
    """

    def __init__(self, stages: Sequence[Sized], slo_s: float, seed: int) -> None:
        self._sized, self._rng, self._now_s = stages, random.Random(seed), _BEGAN_S
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._latencies_s: list[float] = []
        self._background = 0
        declared: list[Stage] = []
        for number, _ in enumerate(stages):
            declared.append(Stage(f"s{number}", same, hardware=_KIND, after=declared[-1:]))
        source = [Topic("in", codec="raw"), Topic(_ARCHIVE, codec="raw", background=True)]
        sink = Topic("out", codec="raw")
        pipeline = Pipeline("p", slo=f"{round(slo_s * 1e3)}ms", source=source, sink=sink, stages=declared)
        self._played = [self._slot(pipeline, stage.name) for stage in declared]
        for at, sized in enumerate(stages):
            self._begin(at, sized)

    def _slot(self, pipeline: Pipeline, stage: str) -> _Played:
        routes = routes_of(pipeline, stage)
        report = new_report("d", 1, stage, 0, 40, routes=routes)
        topics = dict.fromkeys([topic for of in routes.classes for topic in of.topics_written], 1)
        lease = Lease(2.0, lambda: self._now_s)
        emitter = Emitter(routes, topics, random.Random(1), report)
        return _Played(Slot(SlotContext(routes, Settings(), report, emitter, lease, "me"), Pool()), lease, report)

    def _begin(self, at: int, sized: Sized) -> None:
        rest_s = _HOP_S + sum(each.takes_s(1) + _HOP_S for each in self._sized[at + 1 :])
        plan = StagePlan({_KIND: HardwarePlan(max(sized.times_s), dict(sized.times_s))}, rest_s=rest_s)
        self._feed(at, Grant(f"s{at}", 0, 1, "d", 1, 1, plan=plan))
        for epoch, number in ((7, 0), (0, CLASS_STRIDE)):
            self._feed(at, on.Owned([number], {number: (0, "")}, {}, UNKNOWN_TOPIC, epoch, class_of(number)))
        for number in range(sized.replicas):
            self._feed(at, Attach(f"r{number}", _KIND, number))
            self._feed(at, on.Heard(f"r{number}", Ready(f"r{number}", 0.1, None)))

    def play(self, arrivals_s: Sequence[float], *, archive: bool) -> Played:
        """Let live events come at these times, and nothing else, or as many of an archive as are taken in."""
        end_s, busy_s, background = _BEGAN_S + arrivals_s[-1], list[float](), 0
        for time_s in arrivals_s:
            self._at(_BEGAN_S + time_s, lambda: self._read(0, 0, [(b"live %.6f" % self._now_s, ())]))
        if archive:
            self._refill(end_s)
        while self._due and self._due[0][0] < end_s + _AFTER_S:
            time_s, _, happens = heapq.heappop(self._due)
            if time_s > end_s and not busy_s:
                busy_s = [each.busy_s for each in self._played]
                background = self._background
            self._now_s = max(self._now_s, time_s)
            happens()
        shares = (s / (of.replicas * arrivals_s[-1]) for s, of in zip(busy_s, self._sized, strict=True))
        p99_s = float(np.quantile(self._latencies_s, 0.99, method="inverted_cdf"))
        return Played(p99_s, tuple(shares), background / arrivals_s[-1])

    def _at(self, time_s: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time_s, next(self._order), happens))

    def _refill(self, end_s: float) -> None:
        enough = False
        for each in self._played[1:]:
            each.slot.fill(each.report, self._now_s)
            enough = enough or each.report.background_enough
        if not enough and CLASS_STRIDE not in self._played[0].slot.full():
            self._read(0, CLASS_STRIDE, [(b"old", ())] * _CHUNK)
        if self._now_s < end_s:
            self._at(self._now_s + _REFILL_S, lambda: self._refill(end_s))

    def _read(self, at: int, number: int, values: Sequence[tuple[bytes, Any]]) -> None:
        stamp_ms, first = round((self._now_s + _WALL_S) * 1e3), self._played[at].next_offset[number]
        self._played[at].next_offset[number] = end = first + len(values)
        records = [Record(None, v, h, stamp_ms, "t", 0, first + n) for n, (v, h) in enumerate(values)]
        self._feed(at, on.RecordsRead({number: records}, {number: end}, {}, self._now_s + _WALL_S))

    def _feed(self, at: int, event: on.SlotEvent) -> None:
        played = self._played[at]
        played.lease.renew(self._now_s)
        soon_s = self._now_s + _ACKNOWLEDGED_S
        for action in played.slot.on(event, self._now_s):
            match action:
                case on.SendFrame(replica, Batch() as batch):
                    self._run(at, replica, batch)
                case on.WakeAt(at_s):
                    played.timer += 1
                    self._at(max(self._now_s, at_s), functools.partial(self._wake, at, played.timer))
                case on.Produce(outgoing):
                    self._at(soon_s, functools.partial(self._produced, at, outgoing))
                case on.Commit(entries):
                    played.committed |= entries
                    self._at(soon_s, functools.partial(self._feed, at, on.OffsetsCommitted()))
                case on.LookUp():
                    self._at(soon_s, functools.partial(self._feed, at, on.FoundCommitted(dict(played.committed))))

    def _run(self, at: int, replica: str, batch: Batch) -> None:
        size = len(batch.inputs)
        takes_s = self._sized[at].takes_s(size) * (1 + _VARIES * (self._rng.random() - 0.5))
        self._played[at].busy_s += takes_s
        edges = int(at + 1 < len(self._sized))
        outcomes = [Done(each, edges) for each in batch.inputs if isinstance(each, bytes)]
        results = Results(batch.epoch, batch.batch, list(outcomes), [Call(size, takes_s)], takes_s)
        self._at(self._now_s + takes_s, functools.partial(self._feed, at, on.Heard(replica, results)))

    def _wake(self, at: int, timer: int) -> None:
        if self._played[at].timer == timer:
            self._feed(at, on.Time())

    def _produced(self, at: int, outgoing: Any) -> None:
        for (topic, _), records in outgoing.items():
            if at + 1 < len(self._sized):
                number = CLASS_STRIDE if topic.endswith(f".{_ARCHIVE}") else 0
                values = [(record.value, record.headers) for record in records]
                self._at(self._now_s + _HOP_S, functools.partial(self._read, at + 1, number, values))
            else:
                live = [float(record.value[5:]) for record in records if record.value.startswith(b"live")]
                self._latencies_s += [self._now_s - entered_s for entered_s in live]
                self._background += len(records) - len(live)
        self._feed(at, on.Produced())
