"""Plans and decisions in words, and as one document: who, when, why, on which numbers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

from inferline_stream.controlplane.records.control_records import Override, Overrides, SloRecord
from inferline_stream.observability.pipeline_state import DecisionRecord, StoredPlan
from inferline_stream.pipeline.plan import Plan, in_words
from inferline_stream.pipeline.units import count_of, format_duration
from inferline_stream.tuner.decision import Reason
from inferline_stream.tuner.error_budget import left_in_words
from inferline_stream.tuner.hour_ahead import HourAhead

WORDS: Mapping[Reason, str] = MappingProxyType(
    {
        Reason.ENVELOPE_EXCEEDED: "more arrivals came in some window than the plan was made for",
        Reason.RATE_RISING: "traffic was about to outgrow the replicas before others could be ready",
        Reason.BACKLOG: "queued records would have missed the SLO",
        Reason.VISIT_RATIO_SHIFTED: "more events took the branch to a stage than planned",
        Reason.DEGRADED: "a stage's fallback made more of the events than it is there for",
        Reason.THROUGHPUT_FELL: "replicas of a stage were slower than profiled",
        Reason.INSURANCE: "replicas that are held in reserve were missing",
        Reason.BACKGROUND: "background events need more than live ones leave idle",
        Reason.LOAD_FELL: "the load fitted fewer replicas",
        Reason.IDLE: "nothing had come for as long as leaves no replica",
        Reason.WOKEN: "an event came to stages without replicas",
        Reason.SPOT_LOST: "spot capacity was taken away",
        Reason.SPOT_BACK: "spot capacity was asked for again",
        Reason.LIMIT_CHANGED: "people or the cluster set other limits",
        Reason.DISPATCHERS_NEED_REPLICAS: "each dispatcher of a stage needs a replica",
        Reason.STOCK_EXHAUSTED: "more replicas were needed than there is hardware",
        Reason.SERVER_LIMIT: "the model server of a stage gave no more",
        Reason.OVERSUBSCRIBED: "others took the cores that replicas were planned with",
        Reason.PARTITION_STUCK: "a partition stood still although its stage had capacity",
        Reason.INPUT_STALE: "arrivals or reports were missing or too old to decide on",
        Reason.CLOCK_JUMPED: "the clock jumped",
        Reason.INPUT_RESTORED: "arrivals and reports were fresh again",
        Reason.PLAN_SAVES: "another plan costs less by more than a change is worth",
        Reason.PLAN_MISSES_SLO: "the plan in force would miss the SLO on what was recorded and measured",
        Reason.PLAN_INFEASIBLE: "no plan meets the SLO on what was recorded and measured",
        Reason.NEW_CODE: "newer code of the stages was given",
    }
)
"""What a reason means, said afterwards."""

_AMOUNTS: Mapping[str, Callable[[float], str]] = {
    "slo": format_duration,
    "notice": format_duration,
    "price": "${:g}/h".format,
    "reserve": "{:g} times".format,
    "traffic": "{:g} times".format,
}
"""How the value of an override is written; a number of replicas where its kind is left out."""

_BEGINNINGS = {"initial": "the run began", "taken_over": "went on from a controller that fell silent"}


@dataclass(frozen=True, slots=True)
class PlanHistory:
    """What is known of a pipeline's plans and decisions.

    Args:
        pipeline: its name.
        plans: that came into force, newest last.
        decisions: newest last.
        overrides: what people have set.
        slo: how the SLO's window stood last.
        hours: that come, as last foreseen.
        zone: by whose clock they are shown: the schedule's.
    """

    pipeline: str
    plans: Sequence[StoredPlan]
    decisions: Sequence[DecisionRecord]
    overrides: Overrides
    slo: SloRecord | None = None
    hours: Sequence[HourAhead] = ()
    zone: str = "UTC"


def sentences(story: PlanHistory, last: int) -> Iterator[str]:
    """The plan in force, how it came about, what people have set, and the newest decisions; a line each.

    Args:
        story: what to tell.
        last: so many of the newest plans and decisions.
    """
    if not story.plans and not story.decisions:
        yield f"{story.pipeline}: no plan and no decision is written down"
        return
    before: Plan | None = None
    chapters: list[list[str]] = []
    for stored in story.plans:
        chapters.append(list(_of_plan(stored, before)))
        before = stored.plan
    for lines in chapters[-last:]:
        yield from lines
    if story.slo is not None:
        yield _of_window(story.slo)
    for key, override in sorted(story.overrides.by_key.items()):
        until = "" if override.until_s is None else f" until {_time(override.until_s)}"
        yield f"Set by {override.who or 'somebody'}{until}: {key} {_amount(override)}".rstrip()
    for decision in story.decisions[-last:]:
        yield from _of_decision(decision)
    if story.hours:
        dollars, span = sum(hour.cost_per_hour for hour in story.hours), len(story.hours)
        cost = f"${dollars:.2f} in the plan's mixture before what the policy adds"
        yield f"The next {count_of(span, 'hour')} by the clock of {story.zone}, {cost}:"
        yield from (_of_hour(hour, story.zone) for hour in story.hours)


def _amount(override: Override) -> str:
    """What somebody has set, in words; empty where nothing but that it is set is to say."""
    if override.kind == "limits":
        limits = (("at least", override.minimum), ("at most", override.maximum))
        return ", ".join(f"{bound} {count}" for bound, count in limits if count is not None)
    if override.value is None or override.kind == "code":
        return ""
    return _AMOUNTS.get(override.kind, "{:g}".format)(override.value)


def _of_hour(hour: HourAhead, zone: str) -> str:
    begins = f"{datetime.fromtimestamp(hour.time_s, ZoneInfo(zone)):%a %H:%M}"
    expected = "no week known" if hour.rate is None else f"{hour.rate:.1f}/s in the busiest minute"
    replicas = ", ".join(f"{stage} {count}" for stage, count in hour.replicas.items())
    said = f"; schedule: {hour.words}" if hour.words else ""
    return f"    {begins} {expected}; {replicas}; ${hour.cost_per_hour:.4f}/h{said}"


def _of_window(slo: SloRecord) -> str:
    budget = slo.budget
    return (
        f"{_time(slo.time_s)} {budget.late} of {budget.events} events were late in the "
        f"{format_duration(budget.passed_s)} of the SLO's window of {format_duration(budget.window_s)}; "
        f"{1 - budget.objective:.4g} of them may be: {left_in_words(budget.left)}"
    )


def _of_plan(stored: StoredPlan, before: Plan | None) -> Iterator[str]:
    plan = stored.plan
    by, why = f"by {stored.controller}, term {stored.term}", stored.detail or _BEGINNINGS.get(stored.reason, "")
    yield f"{_time(stored.time_s)} plan {stored.number} ({stored.reason}) {by}: {why}"
    yield (
        f"    SLO {format_duration(plan.slo_s)}, predicted P99 {format_duration(plan.predicted_p99_s)}, "
        f"${plan.cost_per_hour:.4f}/h, made for {plan.arrival_rate:.1f} events/s"
    )
    if plan.reserve is not None:
        yield f"    replicas for {plan.reserve:g} times that traffic are always held (--reserve)"
    for stage, held in plan.allocations.items():
        now = _held(plan, stage)
        was = None if before is None else _held(before, stage)
        changed = "" if was is None or was == now else f" (before: {was})"
        bound = f", {plan.utilization[stage]:.0%} utilized" if stage in plan.utilization else ""
        if held:
            yield f"    {stage}: {now}{bound}{changed}"
    for stage, bound_by in plan.key_bound.items():
        yield f"    {stage}: {bound_by}"


def _held(plan: Plan, stage: str) -> str:
    words, count = in_words(plan.allocations.get(stage, ())), plan.slots.get(stage, 1)
    return f"{words}, {count} dispatchers" if words and count > 1 else words or "nothing"


def _of_decision(decision: DecisionRecord) -> Iterator[str]:
    meaning = WORDS.get(Reason(decision.reason), "") if decision.reason in list(Reason) else ""
    advised = "" if decision.applied or decision.action == "hold" else ", advised only"
    yield (
        f"{_time(decision.time_s)} {decision.action} ({decision.reason}{advised}) by {decision.controller}, "
        f"term {decision.term}: {meaning}"
    )
    yield f"    {decision.detail}"
    wanted = ", ".join(
        f"{stage} {' + '.join(f'{count} × {kind}' for kind, count in kinds.items() if count) or '0'}"
        for stage, kinds in decision.replicas.items()
    )
    lag = ", ".join(f"{stage} {count}" for stage, count in decision.lags.items() if count)
    ready = ", ".join(f"{stage} {count}" for stage, count in decision.ready.items())
    yield f"    wanted {wanted}; seen {decision.arrival_rate:.1f} events/s, ready {ready}, lag {lag or 'none'}"


def document(story: PlanHistory, last: int) -> dict[str, Any]:
    """The same for programs."""
    return {
        "pipeline": story.pipeline,
        "plans": story.plans[-last:],
        "decisions": story.decisions[-last:],
        "overrides": story.overrides.by_key,
        "slo": story.slo,
        "hours": story.hours,
    }


def _time(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s):%Y-%m-%d %H:%M:%S}"
