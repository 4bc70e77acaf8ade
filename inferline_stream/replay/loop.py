"""The closed loop in simulated time: a policy, the replicas it asks for, and the queues that they serve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from inferline_stream.errors import UsageError
from inferline_stream.estimator.kernels import Floats
from inferline_stream.estimator.station import rests_s, station
from inferline_stream.estimator.workload import Workload, prepare
from inferline_stream.pipeline.deadline_order import OFFSETS_SPAN, QUEUE_EVENTS
from inferline_stream.pipeline.group_profile import Sharing
from inferline_stream.pipeline.hardware import Catalogue, Hardware
from inferline_stream.pipeline.plan import Allocations
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.pipeline.shape import Shape, visit_ratios
from inferline_stream.pipeline.standing_by import StandsBy
from inferline_stream.pipeline.topology import DEFAULT_PARTITIONS
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.live_observations import LiveObservations
from inferline_stream.replay.news import News
from inferline_stream.replay.outcome import Outcome, Step
from inferline_stream.replay.plant import Plant
from inferline_stream.replay.policy_view import Due, Sight, View
from inferline_stream.replay.scalers import Scaler, Scheduled, Tuner, Wish
from inferline_stream.replay.stage_replicas import StageReplicas


@dataclass(frozen=True, slots=True)
class Conditions:
    """Delays of actuator and statistics, the same for every policy that is compared.

    Args:
        start_up_s: from asking for a replica to its READY; None takes each profile's.
        statistics_delay_s: age of what is seen of the stages; arrivals are seen at once.
        step_s: how often the Tuner decides.

    Raises:
        ValueError: a delay that is negative or not finite, or a step that is not above 0.
    """

    start_up_s: float | None = None
    statistics_delay_s: float = 0.5
    step_s: float = 0.1

    def __post_init__(self) -> None:
        delays = (self.start_up_s or 0.0, self.statistics_delay_s)
        if not all(math.isfinite(delay) and delay >= 0 for delay in delays) or not self.step_s > 0:
            raise ValueError(f"{self}: delays must be 0 or more, the step above 0")


@dataclass(frozen=True, slots=True)
class Slowdown:
    """From ``time_s`` on the service times of a stage are ``factor`` times the profile's."""

    time_s: float
    stage: str
    factor: float


@dataclass(frozen=True, slots=True)
class Loss:
    """From ``time_s`` on replicas of a spot kind have ``notice_s`` left, then it is away for ``away_s``."""

    time_s: float
    hardware: str
    notice_s: float
    away_s: float


@dataclass(frozen=True, slots=True)
class _Taken:
    """The notice is over."""

    time_s: float
    hardware: str
    away_s: float


def replay(
    shape: Shape,
    allocations: Allocations,
    measured: PipelineProfile,
    trace: Trace,
    scaler: Scaler,
    *,
    catalogue: Catalogue,
    slo_s: float,
    slots: Mapping[str, int],
    partitions: Mapping[str, int] | None = None,
    order: str = "deadline",
    planned_rate: float = 0.0,
    conditions: Conditions | None = None,
    seed: int = 0,
    slowdowns: Sequence[Slowdown] = (),
    losses: Sequence[Loss] = (),
    workload: Workload | None = None,
    sharing: Mapping[str, Sharing] | None = None,
    observations: LiveObservations | None = None,
    progress: Callable[[float, float], None] | None = None,
) -> Outcome:
    """Run a policy on a trace.

    Time 0 is the trace's; the plan's replicas are ready by then. Once the last event
    has entered nothing more is decided, and what is queued is served by the replicas that are there.

    Args:
        shape: the DAG.
        allocations: replicas to begin with, and the kinds and batch limits that every later one has.
        measured: profiles, paths, keys, times of a hop.
        trace: when events enter, from 0 on.
        scaler: the policy.
        catalogue: prices.
        slo_s: beyond it an event is a miss.
        slots: of the stages that have several, as in `Plan`; members of consumer groups have none.
        partitions: of the input topics of stages, where they are not as many as a topic has by default.
        order: of the queues, as in `Pipeline`; consumer groups have that of entry.
        planned_rate: events per second that the plan was made for, with which the budgets of fallbacks begin.
        conditions: delays.
        seed: of every draw.
        slowdowns: changes of service times, for experiments.
        losses: when spot capacity goes.
        workload: of the same trace and seed, if it is at hand; with other paths, for experiments.
        sharing: by stage, of its topic's partitions, which replicas own as the members of an ordinary consumer group;
            None for dispatchers, with one queue per slot.
        observations: when a live policy was asked and what it had measured, on the trace's clock: the same is done
            here. By default the first decision is made one period after time 0, and arrivals are known at once. Costs
            count from time 0 until the last event enters.
        progress: called every period with how much of the trace has passed: seconds of seconds.
    """
    conditions = conditions or Conditions()
    workload = workload or prepare(shape, measured, trace, seed=seed)
    order = order if sharing is None else "entry"
    loop = _Loop(
        shape, allocations, measured, workload, conditions,
        slots=slots, partitions=partitions or {}, slo_s=slo_s, order=order, sharing=sharing,
        planned_rate=planned_rate, seed=seed,
        stands_by=scaler.state.basis.stands_by if isinstance(scaler, Tuner) else {},
        watched=observations is not None or not isinstance(scaler, Scheduled),
    )  # fmt: skip
    taken = [_Taken(loss.time_s + loss.notice_s, loss.hardware, loss.away_s) for loss in losses]
    steps = loop.run(scaler, [*slowdowns, *losses, *taken], observations, progress)
    return loop.outcome(scaler.name, catalogue, steps)


class _Loop:
    def __init__(
        self,
        shape: Shape,
        allocations: Allocations,
        measured: PipelineProfile,
        workload: Workload,
        conditions: Conditions,
        *,
        slots: Mapping[str, int],
        partitions: Mapping[str, int],
        slo_s: float,
        order: str,
        sharing: Mapping[str, Sharing] | None,
        planned_rate: float,
        seed: int,
        stands_by: Mapping[str, StandsBy],
        watched: bool,
    ) -> None:
        self._shape, self._workload, self._conditions, self._slo_s = shape, workload, conditions, slo_s
        self._end_s = float(workload.entering_s[-1]) if len(workload) else 0.0
        self._classes, self._stands_by = measured.classes, stands_by
        several = [name for name in shape.stages for a in allocations[name] if a.concurrency > 1]
        if several and sharing is not None:
            raise UsageError(
                f"stage {several[0]!r} runs several batches at once, and a member of a consumer group runs one; "
                "leave out its concurrency or the partitions"
            )
        order_slo_s = slo_s if sharing is None else 0.0
        one_each = {name: [replace(a, replicas=1) for a in allocations[name]] for name in shape.stages}
        rests = rests_s(shape, measured, order, slo_s, allocations)
        slots_of = [slots.get(name, 1) if sharing is None else 1 for name in shape.stages]
        visits = visit_ratios(shape, measured.paths)
        stations = [
            station(
                measured,
                name,
                one_each[name],
                order_slo_s=order_slo_s,
                rest_s=rests[name],
                partitions=None if sharing is None else sharing[name].partitions,
                span=OFFSETS_SPAN * max(1, partitions.get(name, DEFAULT_PARTITIONS) // count),
                room=QUEUE_EVENTS,
                planned_rate=planned_rate * visits[name] / count,
            )
            for name, count in zip(shape.stages, slots_of, strict=True)
        ]
        # Not without an SLO, nor in order of entry; and where no stage has another after it, none waits for news.
        hears = any(each.triages for each in stations) and bool(shape.arrows)
        news = News(shape, allocations, measured, slo_s, workload.due_s[: workload.entering]) if hears else None
        self._hardware = {name: tuple(a.hardware for a in held) for name, held in one_each.items()}
        groups = {} if sharing is None else {s: sharing[name] for s, name in enumerate(shape.stages)}
        self._plant = Plant(workload, stations, slots_of, sharing=groups, seed=seed, news=news, watched=watched)
        self._crews: list[StageReplicas] = []
        for s, name in enumerate(shape.stages):
            profiles = [measured.profiles[name, hardware] for hardware in self._hardware[name]]
            start_up_s = [p.start_up_s if conditions.start_up_s is None else conditions.start_up_s for p in profiles]
            at_once = tuple(a.concurrency for a in allocations[name])
            left = self._stands_by.get(name)
            standby = None if left is None else (self._hardware[name].index(left.hardware), left.replicas, left.ready_s)
            crew = StageReplicas(self._plant, s, slots_of[s], tuple(start_up_s), at_once, standby)
            crew.begin({k: a.replicas for k, a in enumerate(allocations[name])})
            self._crews.append(crew)
        self.peak = sum(crew.held for crew in self._crews)

    def run(
        self,
        scaler: Scaler,
        changes: Sequence[Slowdown | Loss | _Taken],
        observations: LiveObservations | None,
        progress: Callable[[float, float], None] | None,
    ) -> tuple[Step, ...]:
        """Decide, step by step, until the last event has entered or the live policy was asked no more; then let the
        queues run empty.
        """
        pending, steps = sorted(changes, key=lambda change: change.time_s), list[Step]()
        if observations is None and isinstance(scaler, Scheduled):  # it looks at nothing
            for now_s in scaler.times_s[scaler.times_s <= self._end_s].tolist():
                self._change_before(now_s, pending)
                self._advance(now_s)
                self._apply(now_s, scaler.due(now_s), steps)
            self._change_before(self._end_s, pending)
            return self._ended(steps)
        entry_s, delay_s, period_s = self._workload.entering_s, self._conditions.statistics_delay_s, scaler.period_s
        looks_back = round(delay_s / period_s) if delay_s >= period_s else 0
        sight = Sight(self._plant, self._crews, looks_back, self._due())
        sight_s = 0.0 if looks_back else delay_s
        if observations is None:
            asked_s = period_s * np.arange(1, math.ceil(self._end_s / period_s) + 1)
        else:
            asked_s = observations.asked_s  # also after the last event: it became known later than it entered
        seen_s, known_s = (
            observations.arrivals() if observations is not None and observations.ticks_s.size else (entry_s, entry_s)
        )
        figures: dict[str, float | None] = {}
        before_s = -math.inf
        given = 0
        for now_s in asked_s.tolist():
            if progress is not None:
                progress(now_s - asked_s[0], asked_s[-1] - asked_s[0])
            self._change_before(now_s, pending)
            self._advance(now_s - sight_s)
            sight.look()
            if sight_s:
                self._advance(now_s)
            if observations is not None:
                figures |= observations.figures_between(before_s, now_s)
            known = int(known_s.searchsorted(now_s, side="left"))
            view = View(
                now_s,
                seen_s[given:known],
                sight.reported,
                sight.earlier,
                now_s - asked_s[0] + (0.0 if observations is None else observations.watched_s),
                figures,
                sight.events,
                sight.late,
            )
            given, before_s = known, now_s
            self._apply(now_s, scaler.decide(view), steps)
        return self._ended(steps)

    def _ended(self, steps: list[Step]) -> tuple[Step, ...]:
        """The steps, once the queues have run empty."""
        while (next_s := min((crew.next_s for crew in self._crews), default=math.inf)) < math.inf:
            self._advance(next_s)
        self._plant.advance(math.inf)
        return tuple(steps)

    def _change_before(self, now_s: float, pending: list[Slowdown | Loss | _Taken]) -> None:
        while pending and pending[0].time_s < now_s:
            change = pending.pop(0)
            self._advance(max(change.time_s, self._plant.now_s))
            self._change(change)

    def _change(self, change: Slowdown | Loss | _Taken) -> None:
        if isinstance(change, Slowdown):
            self._plant.slow(self._shape.stages.index(change.stage), change.factor)
            return
        for crew, kinds in zip(self._crews, self._hardware.values(), strict=True):
            if change.hardware in kinds and isinstance(change, Loss):
                crew.notice(kinds.index(change.hardware))
            elif change.hardware in kinds:
                crew.take(kinds.index(change.hardware), change.away_s)

    def _advance(self, until_s: float) -> None:
        """Serve the queues up to then, with everything that happens to the replicas in between."""
        while True:
            next_s = min([crew.next_s for crew in self._crews])
            if next_s > until_s:
                break
            self._plant.advance(max(next_s, self._plant.now_s))
            for crew in self._crews:
                if crew.next_s <= next_s:
                    crew.happen()
        self._plant.advance(until_s)

    def _apply(self, now_s: float, wish: Wish | None, steps: list[Step]) -> None:
        if wish is None:
            return
        steps.append(Step(now_s, wish.replicas, wish.action, wish.reason, wish.detail))
        for crew, (name, hardware) in zip(self._crews, self._hardware.items(), strict=True):
            wanted = wish.replicas.get(name)
            if wanted is not None:
                crew.want({k: wanted[kind] for k, kind in enumerate(hardware) if kind in wanted})
        self.peak = max(self.peak, sum(crew.held for crew in self._crews))

    def _due(self) -> Due:
        """When each event that gets to the sink should be there, by the SLO of its class."""
        workload = self._workload
        events = np.arange(len(workload))[workload.last][workload.reaches_sink()]
        within_s = self._slo_s + (workload.longer_s[events] if self._classes else np.zeros(events.size))
        due_s = workload.entry_s[events] + within_s
        order = np.argsort(due_s, kind="stable")
        return Due(due_s[order], events[order], within_s[order])

    def outcome(self, policy: str, catalogue: Catalogue, steps: tuple[Step, ...]) -> Outcome:
        """Everything that the replay gave."""
        hours: dict[tuple[str, str], float] = {}
        held: dict[str, list[tuple[float, float]]] = {}
        for crew, (name, hardware) in zip(self._crews, self._hardware.items(), strict=True):
            for replica in (*crew.gone, *crew.present.values()):
                left_s = self._end_s if replica.left_s is None else min(replica.left_s, self._end_s)
                key = (name, hardware[replica.kind])
                asked_s = max(replica.asked_s, 0.0)
                hours[key] = hours.get(key, 0.0) + max(left_s - asked_s, 0.0) / 3600
                held.setdefault(hardware[replica.kind], []).append((asked_s, max(left_s, asked_s)))
        stood_by = 0.0
        for crew, name in zip(self._crews, self._hardware, strict=True):
            crew.end_standby(self._end_s)
            for since_s, until_s in crew.stood_by:
                left = self._stands_by[name]
                hours[name, left.hardware] = hours.get((name, left.hardware), 0.0) + (until_s - since_s) / 3600
                stood_by += (until_s - since_s) / 3600 * left.price_per_hour
        last = self._workload.last
        latency_s = self._plant.latency_s[last]
        latency_s[np.isnan(latency_s) & self._workload.reaches_sink()] = math.inf
        return Outcome(
            policy=policy,
            slo_s=self._slo_s,
            entry_s=self._workload.entry_s[last],
            latency_s=latency_s,
            steps=steps,
            duration_s=self._end_s,
            replica_hours=hours,
            cost=stood_by + sum(_paid(catalogue[hardware], spans) for hardware, spans in held.items()),
            peak_replicas=self.peak,
            changes=sum(crew.changes for crew in self._crews),
            longer_s=self._workload.longer_s[last] if self._classes else 0.0,
            miss_rates_by_class=self._misses_by_class(self._workload.judged_s(latency_s)),
            degraded=self._plant.degraded(),
        )

    def _misses_by_class(self, judged_s: Floats) -> dict[str, float]:
        """The miss rate of each live class, by its topic; empty where all have the pipeline's SLO."""
        topics = ("", *(each.topic for each in self._classes)) if self._classes else ()
        class_of = self._workload.class_of[self._workload.last]
        own = [judged_s[class_of == number] for number in range(len(topics))]
        known = [int(np.count_nonzero(~np.isnan(each_s))) for each_s in own]
        late = [int(np.count_nonzero(each_s > self._slo_s)) for each_s in own]
        return {topic: n / of if of else 0.0 for topic, n, of in zip(topics, late, known, strict=True)}


def _paid(kind: Hardware, spans: Sequence[tuple[float, float]]) -> float:
    """Return the dollars for replicas of a kind, by when each was asked for and left: of shares, for whole devices."""
    if kind.parts == 1:
        return sum(left_s - asked_s for asked_s, left_s in spans) / 3600 * kind.price_per_hour
    changes = sorted([(asked_s, 1) for asked_s, _ in spans] + [(left_s, -1) for _, left_s in spans])
    devices_s, count = 0.0, 0
    for (now_s, change), (next_s, _) in itertools.pairwise(changes):
        count += change
        devices_s += math.ceil(count / kind.parts) * (next_s - now_s)
    return devices_s / 3600 * kind.parts * kind.price_per_hour
