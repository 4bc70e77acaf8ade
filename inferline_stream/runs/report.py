"""What a run comes to: every event accounted for, latencies, cost, decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferline_stream.controlplane.observe.event_ledger import NO_OUTPUT, EventLedger
from inferline_stream.dataplane.headers import MOVED_TO_CLASS
from inferline_stream.observability.pipeline_state import (
    BackgroundState,
    ClassState,
    DecisionLine,
    DecisionRecord,
    PipelineState,
)


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of one of several live classes; the rest of a report is of all of them together."""

    slo_s: float
    events_in: int
    events_out: int
    p50_s: float | None
    p99_s: float | None
    slo_miss_rate: float | None
    """Share of its verified events above the SLO of the class, lost and failed ones included; None without any."""


class BackgroundReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one topic's background events. Nothing else in a report counts them, losses excepted."""

    events_in: int
    """That the first stages have finished during the run."""
    events_out: int
    """With a result; of a run too long to look every event up, as dispatchers have counted."""
    completed: dict[str, int]
    """Verified events that ended without a sink record, by reason."""
    lost: int
    """Verified events that neither reached the sink nor ended."""
    duplicated: int
    """Sink records beyond the first of a verified event."""
    left: int
    """Records that the first stages have not finished."""
    replica_s: float
    """Time that replicas spent in batches of them."""
    done_in_s: float | None
    """When they would have been done at the rate of the last minutes; None where nobody can tell."""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run. Times are seconds, money is dollars."""

    pipeline: str
    lost: int
    """Verified events, background ones included, that neither reached the sink nor ended for a recorded reason."""
    duplicated: int
    """Sink records beyond the first of a verified event."""
    events_in: int
    events_out: int
    slo_miss_rate: float | None
    """Share of events above the SLO, lost and failed ones included; None without events."""
    cost: float
    """Replica-seconds × catalogue price."""
    decisions: list[DecisionLine]
    slo_s: float
    p50_s: float | None
    """Latencies are less what the SLO of an event's class is longer than the pipeline's."""
    p95_s: float | None
    p99_s: float | None
    completed: dict[str, int]
    """Events that ended without a sink record, by reason."""
    duration_s: float
    predicted_p99_s: float
    replicas_most: dict[str, int]
    """Most replicas ready at once, by stage."""
    lag: dict[str, int]
    """Records left unfinished in each stage's topic, by consumer group."""
    exits: list[str]
    """Replicas that ended unexpectedly."""
    lost_ids: list[str]
    """The first of them."""
    emulated: bool
    """Whether any replica slept instead of computing."""
    advisory: bool
    preparation_cost: float = 0.0
    """Of `cost`: what replicas cost before the run's duration began, while they started."""
    slo_counts: str = "events"
    """What latencies and misses are of: events, or ``results`` where an event has many that no stage gathers."""
    lateness_p99_s: float | None = None
    """How late the trace replay sent, against the trace."""
    unknown: int = 0
    """Records in the sink that belong to none of the run's events."""
    backlog: int = 0
    """Events that were there before the run: accounted for, but neither in its latencies nor in its miss rate."""
    backlog_done_s: float | None = None
    """When the last of them was done, from the run's beginning; None without any."""
    verified: int = 0
    """Events that were looked up by their ids: all, or of a long run the newest. The others are counted."""
    unaccounted: int = 0
    """Of those counted: how many more entered than reached the sink, ended or were dropped as repeated, at least."""
    classes: dict[str, ClassReport] = {}
    """Where there are several live ones, by topic."""
    backgrounds: dict[str, BackgroundReport] = {}
    """By topic."""
    degraded: dict[str, int] = {}
    """Events that a stage's fallback made, by stage; without stages that made none."""
    results_each: dict[str, float] = {}
    """Mean results of an event, by stage that gives many."""
    not_read: str = ""
    """Why Kafka could not be read at the end, in words. Then no event was looked up, so that it is not known what was
    lost or is left; the figures are what was counted until then, and those of single classes are missing."""


def decision_lines(decisions: Sequence[DecisionRecord], start_s: float) -> list[DecisionLine]:
    """Decisions with times counted from ``start_s``, seconds since the epoch."""
    return [decision.line(round(decision.time_s - start_s, 3)) for decision in decisions]


def miss_rate(ledgers: Sequence[EventLedger], slo_s: float) -> float | None:
    """Share of live events above the SLO of their class; lost, dead-lettered and expired ones are misses, skipped not.

    Args:
        ledgers: of live classes.
        slo_s: of the pipeline.
    """
    missed = events = 0
    for ledger in ledgers:
        lost, _ = ledger.lost()
        failed = sum(count for reason, count in ledger.live_reasons.items() if reason not in NO_OUTPUT)
        above = np.frombuffer(ledger.latencies_s, dtype=np.float32) > slo_s + (ledger.longer_s or 0.0)
        missed += int(np.count_nonzero(above)) + lost + failed
        events += above.size + lost + failed
    return missed / events if events else None


def counted_miss_rate(state: PipelineState, lost: int) -> float | None:
    """The same of a run too long to look every event up, by what dispatchers counted."""
    events = state.slo_events + lost
    return (state.slo_missed + lost) / events if events else None


def endings(ledger: EventLedger, state: PipelineState) -> dict[str, int]:
    """Events that ended without a sink record, by reason; of those not looked up by what dispatchers counted."""
    reasons: Counter[str] = sum((each.reasons for each in ledger.of_live), Counter())
    found = Counter(reasons)
    if ledger.began:
        left = sum(each.earlier_ended for each in ledger.of_live)
        for reason in ("dead_lettered", "expired", MOVED_TO_CLASS, "filtered"):
            if reason == "filtered" and ledger.earlier_most:  # of several sinks, each has endings: others got a record
                left = min(left, max(0, sum(each.earlier_in for each in ledger.of_live) - ledger.earlier_most))
            total = sum(getattr(stage.total, reason) for stage in state.stages)
            more = min(max(0, total - reasons[reason]), left)
            found[reason] += more
            left -= more
        found["skipped"] += left
    return {reason: count for reason, count in found.items() if count}


def quantiles_s(latencies: NDArray[np.float32], probabilities: Sequence[float]) -> tuple[float | None, ...]:
    """Order statistics of end-to-end latencies, without events that died; None without any other."""
    done = latencies[np.isfinite(latencies)]
    if not done.size:
        return (None,) * len(probabilities)
    return tuple(round(float(q), 6) for q in np.quantile(done, probabilities, method="inverted_cdf"))


def counted_ledger(state: PipelineState) -> EventLedger:
    """Return the ledger of a run whose topics cannot be read: no event is looked up, and the last state counts them."""
    entered = (state.events_in,)
    ledger = EventLedger("", entered, entered, live=(0,), began=(0,))
    ledger.earlier_out, ledger.earlier_ended = state.events_out, state.completed_without_output
    return ledger


def run_report(
    ledger: EventLedger,
    state: PipelineState,
    *,
    not_read: str = "",
    started_s: float,
    duration_s: float,
    replicas_most: Mapping[str, int],
    lag: Mapping[str, int],
    exits: Sequence[str],
    emulated: bool,
    advisory: bool,
    preparation_cost: float = 0.0,
    lateness_p99_s: float | None,
    counts_events: bool = True,
) -> RunReport:
    """Put the end of a run together.

    Args:
        ledger: of every event.
        state: the last one.
        not_read: why there is only a `counted_ledger`; empty where events were looked up.
        started_s: seconds since the epoch at which decisions' times begin.
        duration_s: of the run, without preparations.
        replicas_most: most replicas ready at once, by stage.
        lag: left in each group.
        exits: replicas that ended unexpectedly.
        emulated: whether any replica slept instead of computing.
        advisory: whether decisions were only reported.
        preparation_cost: dollars that replicas had cost when the duration began.
        lateness_p99_s: of the trace replay, if there was one.
        counts_events: whether the growth of the source topic counts events alone; see `Topic`.
    """
    backgrounds = {} if not_read else {of.topic: _background(ledger.others[of.topic], of) for of in state.backgrounds}
    classes = () if not_read else zip(state.classes, ledger.of_live, strict=False)
    lost = [each.lost() for each in ledger.every]
    p50_s, p95_s, p99_s = _quantiles_s(ledger, state)
    live, done_s = ledger.of_live, [each.backlog_done_s for each in ledger.of_live if each.backlog_done_s is not None]
    earlier_out, unaccounted = _counted(ledger, state, backgrounds)
    return RunReport(
        pipeline=state.pipeline,
        lost=sum(count for count, _ in lost),
        duplicated=sum(each.duplicated for each in live),
        events_in=sum(each.events_in + each.earlier_in for each in live),
        events_out=sum(each.events_out for each in live) + earlier_out,
        verified=sum(each.events_in for each in live),
        unaccounted=unaccounted if counts_events and not not_read else 0,
        slo_miss_rate=counted_miss_rate(state, sum(each.lost()[0] for each in live))
        if ledger.began
        else miss_rate(live, state.slo_s),
        cost=round(state.cost, 6),
        decisions=decision_lines(state.decisions, started_s),
        slo_s=state.slo_s,
        p50_s=p50_s,
        p95_s=p95_s,
        p99_s=p99_s,
        completed=endings(ledger, state),
        duration_s=round(duration_s, 3),
        predicted_p99_s=state.predicted_p99_s,
        replicas_most=dict(replicas_most),
        lag=dict(lag),
        exits=list(exits),
        lost_ids=[name for _, names in lost for name in names],
        emulated=emulated,
        advisory=advisory,
        preparation_cost=round(preparation_cost, 6),
        slo_counts="results" if any(each.apart for each in live) else "events",
        lateness_p99_s=lateness_p99_s,
        unknown=sum(each.unknown for each in ledger.every),
        backlog=sum(each.backlog + each.earlier_backlog for each in live),
        backlog_done_s=round(max(0.0, max(done_s) - started_s), 3) if done_s else None,
        classes={of.topic: _class_report(each, of, state.slo_s) for of, each in classes},
        backgrounds=backgrounds,
        degraded={stage.name: stage.total.degraded for stage in state.stages if stage.total.degraded},
        results_each={stage.name: each for stage in state.stages if (each := stage.results_each) is not None},
        not_read=not_read,
    )


def _quantiles_s(ledger: EventLedger, state: PipelineState) -> tuple[float | None, ...]:
    """P50, P95 and P99: of every live event's latency, of a run too long for that by what dispatchers counted."""
    probabilities = (0.5, 0.95, 0.99)
    if ledger.began:
        return tuple(state.latency.quantile_s(p) for p in probabilities)
    return quantiles_s(ledger.judged_s(), probabilities)


def _counted(ledger: EventLedger, state: PipelineState, backgrounds: Mapping[str, BackgroundReport]) -> tuple[int, int]:
    """Of events that are not looked up: results of live ones, and how many of all are not accounted for, at least."""
    every = ledger.every
    entered, out, ended = (
        sum(each.earlier_in for each in every),
        sum(each.earlier_out for each in every),
        sum(each.earlier_ended for each in every),
    )
    # The growth of a log counts what is there twice, too, and what there is of every class.
    left = entered - min(out, entered) - ended - state.duplicates
    of_others = sum(of.events_out - ledger.others[topic].events_out for topic, of in backgrounds.items())
    live_in = sum(each.earlier_in for each in ledger.of_live)
    return min(max(0, out - of_others), live_in), max(0, left) if ledger.began else 0


def _class_report(ledger: EventLedger, state: ClassState, slo_s: float) -> ClassReport:
    latencies = np.frombuffer(ledger.latencies_s, dtype=np.float32)
    p50_s, p99_s = quantiles_s(latencies, (0.5, 0.99))
    return ClassReport(
        slo_s=state.slo_s,
        events_in=ledger.events_in + ledger.earlier_in,
        events_out=max(ledger.events_out, state.events) if ledger.began else ledger.events_out,
        p50_s=p50_s,
        p99_s=p99_s,
        slo_miss_rate=miss_rate([ledger], slo_s),
    )


def _background(ledger: EventLedger, state: BackgroundState) -> BackgroundReport:
    lost, _ = ledger.lost()
    return BackgroundReport(
        events_in=ledger.events_in + ledger.earlier_in,
        events_out=max(ledger.events_out, state.results) if ledger.began else ledger.events_out,
        completed=dict(ledger.reasons),
        lost=lost,
        duplicated=ledger.duplicated,
        left=state.left,
        replica_s=round(state.busy_s, 3),
        done_in_s=state.done_in_s,
    )
