"""A finished run as one page of HTML that needs nothing else: what happened, why, what it cost, what others would have.

The recorded arrivals are replayed under every baseline, on the plan and the profiles that the run began with.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from html import escape

import numpy as np

from inferline_stream.calculus.envelope import compiled_kernel
from inferline_stream.controlplane.records.explanation import WORDS
from inferline_stream.pipeline.group_model import GroupModel
from inferline_stream.pipeline.plan import Plan, in_words
from inferline_stream.pipeline.trace import Trace
from inferline_stream.pipeline.units import format_duration
from inferline_stream.replay.compare import NAMES, Comparison, compare
from inferline_stream.replay.group_contest import contest
from inferline_stream.replay.outcome import Outcome, Step
from inferline_stream.runs.advice_page import ways_section
from inferline_stream.runs.archive import EventTimes, RunRecord
from inferline_stream.runs.html_page import page_of, section, table_of
from inferline_stream.runs.run_charts import Chart, comparison_chart, figures_of, run_charts, script_of

_FEWEST_EVENTS = 20
"""Fewer are not worth a picture."""


def html_report(record: RunRecord, events: EventTimes, progress: Callable[[str], None] = lambda _: None) -> str:
    """The page.

    Args:
        record: of the run.
        events: of the same run.
        progress: called with the policy that is being replayed.
    """
    plan, charts = record.plans[0].plan, dict[str, Chart]()
    parts = [_head(record), _verdict(record), _tiles(record), _plan(record, plan)]
    parts.append(_decisions(record, events))
    if record.group_model is not None:
        parts.append(_other_ways(record, record.group_model, events, progress))
    elif 0 < record.report.verified < record.report.events_in:
        text = (
            f"The run is longer than what it leaves behind: times of the last {record.report.verified} of its "
            f"{record.report.events_in} events. The figures above are of the whole run, by counts; nothing is replayed."
        )
        parts.append(section("A long run", f"<p>{text}</p>"))
    elif events.latency_s.size >= _FEWEST_EVENTS and events.arrivals_s.size >= _FEWEST_EVENTS:
        outcome, comparison = live_outcome(record, events), compared(record, events, plan, progress)
        lived = run_charts(outcome, plan, objective=record.objective, bin_s=max(1.0, outcome.duration_s / 60))
        others = {"others": comparison_chart(comparison, objective=record.objective)}
        parts.insert(3, section("What happened", figures_of(lived)))
        parts.append(_others(record, comparison, figures_of(others)))
        charts = lived | others
    parts.append(script_of(charts))
    return page_of(f"Run of {record.report.pipeline}", parts)


def live_outcome(record: RunRecord, events: EventTimes) -> Outcome:
    """What was lived through, in the terms of a replay. Events that failed or were lost are not in its latencies."""
    report = record.report
    steps = tuple(
        Step(d.time_s - events.began_s, d.replicas, d.action, d.reason, d.detail)
        for d in record.decisions
        if d.applied and d.action != "hold"
    )
    duration_s = float(max([report.duration_s, *events.arrivals_s[-1:], *events.entries_s[-1:]]))
    most = sum(report.replicas_most.values())
    return Outcome(
        "this run",
        report.slo_s,
        events.entries_s,
        events.latency_s,
        steps,
        duration_s,
        {},
        report.cost,
        most,
        len(steps),
    )


def compared(record: RunRecord, events: EventTimes, plan: Plan, progress: Callable[[str], None]) -> Comparison:
    """Every policy on the recorded arrivals, with its default setting."""
    sample, trace = events.traces(record.shape)
    return compare(
        record.shape,
        plan,
        record.measured,
        sample,
        trace,
        catalogue=record.kinds,
        policies=NAMES,
        tune=False,
        objective=record.objective,
        slo_window_s=record.slo_window_s,
        kernel=compiled_kernel(),
        progress=progress,
    )


def _head(record: RunRecord) -> str:
    report = record.report
    when = datetime.fromtimestamp(record.started_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    notes = [f"{when}, {format_duration(report.duration_s)}"]
    if report.emulated:
        notes.append("on emulated hardware: replicas slept for their service times")
    if report.advisory:
        notes.append("advisory: decisions were reported, not carried out")
    if record.groups is not None:
        notes.append("consumer groups that run already: from the first plan on, latencies estimated from commits")
    return f"<h1>Run of {escape(report.pipeline)}</h1><p class=quiet>{escape('; '.join(notes))}</p>"


def _verdict(record: RunRecord) -> str:
    report = record.report
    if report.slo_miss_rate is None:
        return "<p class=verdict>No event came.</p>"
    kept = report.slo_miss_rate <= 1 - record.objective
    word = "was kept" if kept else "was not kept"
    share, asked = f"{1 - report.slo_miss_rate:.2%} of the {report.slo_counts}", f"{100 * record.objective:.4g} %"
    return (
        f'<p class="verdict {"good" if kept else "bad"}">The SLO {word}: {share} '
        f"were done within {format_duration(report.slo_s)}, {asked} were asked for.</p>"
    )


def _tiles(record: RunRecord) -> str:
    report = record.report
    hours = report.duration_s / 3600
    endings = ", ".join(f"{count} {reason}" for reason, count in report.completed.items())
    tiles = [
        ("events", f"{report.events_in}", f"{report.events_out} results" + (f", {endings}" if endings else "")),
        *(
            []
            if record.groups is not None
            else [("lost or twice", "–", "not known: Kafka did not answer at the end")]
            if report.not_read
            else [("lost or twice", f"{report.lost} / {report.duplicated}", "every event is accounted for")]
        ),
        *(
            (f"P99 {topic}", _time(of.p99_s), f"SLO {_time(of.slo_s)}, {of.slo_miss_rate or 0.0:.2%} of them missed it")
            for topic, of in report.classes.items()
        ),
        *(
            (f"background {topic}", f"{of.events_out}", f"of {of.events_in} done, {of.left} left")
            for topic, of in report.backgrounds.items()
        ),
        ("P50", _time(report.p50_s), ""),
        ("P99", _time(report.p99_s), f"predicted {_time(report.predicted_p99_s)}, SLO {_time(report.slo_s)}"),
        ("cost", f"${report.cost:.4f}", f"${report.cost / hours:.3f}/h" if hours > 0 else ""),
        *((f"by the fallback of {s}", f"{n}", "events") for s, n in report.degraded.items()),
        *((f"results of {s}", f"{mean:.2f}", "of an event, in the mean") for s, mean in report.results_each.items()),
        ("decisions", f"{sum(d.applied and d.action != 'hold' for d in record.decisions)}", "that changed replicas"),
    ]
    cells = (f"<div><dt>{a}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in tiles)
    return f"<dl>{''.join(cells)}</dl>"


def _plan(record: RunRecord, plan: Plan) -> str:
    rows = [
        (
            stage,
            in_words(held),
            f"{plan.utilization.get(stage, 0.0):.0%}",
            f"{record.report.replicas_most.get(stage, 0)}",
        )
        for stage, held in plan.allocations.items()
    ]
    about = (
        f"${plan.cost_per_hour:.4f}/h for {plan.arrival_rate:.1f} events per second, predicted P99 "
        f"{_time(plan.predicted_p99_s)}."
    )
    later = len(record.plans) - 1
    more = f" {later} more plan{'s' * (later > 1)} came into force later." if later else ""
    table = table_of(("stage", "held", "utilization", "most replicas"), rows, numbers=(2, 3))
    return section("The plan it began with", f"<p>{about}{more}</p>{table}")


def _decisions(record: RunRecord, events: EventTimes) -> str:
    since_s = events.began_s if record.groups is None else record.started_s
    known = {reason.value: words for reason, words in WORDS.items()}
    rows = [
        (
            f"{decision.time_s - since_s:.1f} s",
            decision.action.replace("_", " ") + ("" if decision.applied or decision.action == "hold" else " (advised)"),
            f"{known.get(decision.reason, decision.reason)}: {decision.detail}",
            ", ".join(f"{stage} {sum(kinds.values())}" for stage, kinds in decision.replicas.items()),
        )
        for decision in record.decisions
    ]
    table = table_of(("after", "what", "why", "replicas then"), rows, numbers=(0,))
    return section("Why each decision", table if rows else "<p>None was made: the plan was enough.</p>")


def _others(record: RunRecord, comparison: Comparison, figures: str) -> str:
    report = record.report
    rows = [("this run", f"${report.cost:.4f}", "", f"{report.slo_miss_rate or 0.0:.2%}", "measured")]
    for row in sorted(comparison.rows, key=lambda r: r.outcome.cost):
        ratio = f"{row.outcome.cost / report.cost:.2f}" if report.cost > 0 else ""
        kept = "kept" if row.keeps_objective else "not kept"
        rows.append((row.label, f"${row.outcome.cost:.4f}", ratio, f"{row.outcome.miss_rate:.2%}", kept))
    stage = comparison.without_groups
    pools = (
        "Rules of others scale ordinary consumer groups, and where it says so our pools, whose queues have our order."
        if stage is None
        else f"Rules of others scale our pools: stage {escape(stage)} runs several batches at once, and members of "
        "ordinary consumer groups do not."
    )
    note = (
        "The recorded arrivals, replayed in simulated time with the profiles and the plan that the run began with; "
        f"every policy with its default setting. {pools} "
        "<b>default</b> and <b>inferline</b> are this program's own; the "
        "clairvoyants know the arrivals beforehand. The run itself also paid for starting up, draining and whatever "
        "else the machine did."
    )
    heads = ("policy", "cost", "× this run", "above the SLO", "objective")
    table = table_of(heads, rows, numbers=(1, 2, 3), ours=("this run",))
    key = "Blue: this program's own policies; orange: others; green: in hindsight. Each dot has its name."
    return section("What others would have cost", f"<p class=quiet>{note}</p>{table}<p class=quiet>{key}</p>{figures}")


def _other_ways(record: RunRecord, model: GroupModel, events: EventTimes, progress: Callable[[str], None]) -> str:
    """What other numbers of members would have cost, on the traffic before the first plan and since."""
    assert record.groups is not None
    report, hours = record.report, record.report.duration_s / 3600
    if events.arrivals_s.size < _FEWEST_EVENTS:
        return ""
    before_s = float(events.sample_s[-1]) if events.sample_s.size else 0.0
    trace = Trace(np.concatenate([events.sample_s, before_s + events.arrivals_s]))
    members = {name: sum(kinds.values()) for name, kinds in record.groups.members.items()}
    found = contest(model, trace, members, kernel=compiled_kernel(), progress=progress)
    changes = sum(d.applied and d.action != "hold" for d in record.decisions)
    miss_rate, held = report.slo_miss_rate or 0.0, "as decided"
    kept = "yes" if miss_rate <= 1 - record.objective else "no"
    ours = (
        "this run", f"${report.cost / hours:.3f}", f"{miss_rate:.2%}", kept, _time(report.p99_s),
        f"{changes / hours:.0f}", held,
    )  # fmt: skip
    note = "What runs now stands for the members that the arrivals found."
    if report.verified < report.events_in:
        note += " The first row is of the whole run, the others are of the arrivals that were kept."
    return ways_section(found, note, (ours,))


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else format_duration(seconds)
