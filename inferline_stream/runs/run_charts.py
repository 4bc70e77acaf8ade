"""What a report's charts show of a run, as the live page's `chart` takes it: series, lines, dots and axes by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from inferline_stream.calculus.envelope import trace_envelope
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.observability.page.page_files import page_file
from inferline_stream.pipeline.plan import Plan, replicas_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.compare import CLAIRVOYANT, INSTANT, Comparison, Row
from inferline_stream.replay.outcome import Outcome
from inferline_stream.tuner.policy import POLICIES

Chart = dict[str, Any]
"""JSON: see `chart` in the page's charts.js, with axes that name their unit in ``shows``."""

Points = list[tuple[float, float | None]]

_MARKS = ("live", "ready", "p95", "p50", "coarse", "plan")
"""Looks of several lines, as the live page has them."""


def run_charts(outcome: Outcome, plan: Plan, *, objective: float, bin_s: float) -> dict[str, Chart]:
    """Return arrivals, replicas, latency and misses over time, and the traffic envelope against the plan's.

    Args:
        outcome: of the run.
        plan: that it began with.
        objective: share of events that must meet the SLO.
        bin_s: of the miss rate, in seconds.
    """
    return {
        "arrivals": _arrivals(outcome, plan),
        "replicas": _replicas(outcome, plan),
        "latency": _latencies(outcome),
        "misses": _misses(outcome, bin_s, 1 - objective),
        "envelope": _envelope(plan, Trace(outcome.entry_s)),
    }


def comparison_chart(comparison: Comparison, *, objective: float) -> Chart:
    """Return cost against miss rate of every policy.

    Args:
        comparison: of the policies on one trace.
        objective: share of events that must meet the SLO.
    """
    rows = comparison.shown
    costs = [comparison.work_bound, *(row.outcome.cost for row in rows)]
    misses = [row.outcome.miss_rate for row in rows]
    return {
        "label": "Cost and misses of every policy",
        "x": {"range": (0.0, 1.1 * max(costs)), "shows": "dollars", "title": "cost"},
        "y": {"range": (0.0, 1.1 * max(1 - objective, *misses)), "shows": "percent", "title": "events above the SLO"},
        "series": [],
        "lines": [_line(1 - objective, "slo", "allowed")],
        "dots": [
            {
                "x": row.outcome.cost,
                "y": row.outcome.miss_rate,
                "mark": _mark(row),
                "title": f"{row.label}: ${row.outcome.cost:.4f}, {row.outcome.miss_rate:.2%} above the SLO",
            }
            for row in rows
        ],
    }


def figures_of(charts: Mapping[str, Chart]) -> str:
    """Return the elements that charts are drawn into, by the name that `script_of` finds them by."""
    made = (f'<figure id="{name}" role="img" aria-label="{escape(c["label"])}"></figure>' for name, c in charts.items())
    return "".join(made)


def script_of(charts: Mapping[str, Chart]) -> str:
    """Return the charts' data, and the live page's script that draws them; empty where there are none."""
    if not charts:
        return ""
    data = json.dumps(charts, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    code = b"\n".join((page_file("charts.js"), page_file("report.js"))).decode()
    return f'<script type="application/json" id="charts">{data}</script>\n<script type="module">\n{code}</script>\n'


def _arrivals(outcome: Outcome, plan: Plan) -> Chart:
    bin_s = max(1.0, outcome.duration_s / 400)
    counts = np.bincount((outcome.entry_s / bin_s).astype(int), minlength=math.ceil(outcome.duration_s / bin_s))
    points = [(at * bin_s, float(count) / bin_s) for at, count in enumerate(counts)]
    return _over_time(
        outcome,
        "Arrivals",
        {"shows": "number", "title": "events per second"},
        [_series(points, "live", "arrivals", step=True)],
        [_line(plan.arrival_rate, "plan", "plan")],
    )


def _replicas(outcome: Outcome, plan: Plan) -> Chart:
    times = [0.0, *(max(0.0, step.time_s) for step in outcome.steps)]
    times.append(max(outcome.duration_s, times[-1]))
    series = []
    for at, stage in enumerate(plan.allocations):
        held = [replicas_of(plan.allocations[stage])]
        for step in outcome.steps:
            wanted: Mapping[str, int] | None = step.replicas.get(stage)
            held.append(held[-1] if wanted is None else sum(wanted.values()))
        held.append(held[-1])
        series.append(_series(zip(times, held, strict=True), _MARKS[at % len(_MARKS)], stage, step=True))
    return _over_time(outcome, "Replicas wanted", {"shows": "number", "title": "replicas wanted"}, series)


def _latencies(outcome: Outcome) -> Chart:
    """P50 and P99 of the events that entered in each of a hundred bins; events that never ended are left out."""
    bin_s = max(1.0, outcome.duration_s / 100)
    known = ~np.isnan(outcome.latency_s)
    bins, latency_s = (outcome.entry_s[known] / bin_s).astype(int), outcome.latency_s[known]
    edges = np.searchsorted(bins, np.arange(bins.max(initial=0) + 2))
    filled = [at for at in range(edges.size - 1) if edges[at + 1] > edges[at]]
    series = [
        _series(
            [((at + 0.5) * bin_s, quantile_s(latency_s[edges[at] : edges[at + 1]], share)) for at in filled],
            mark,
            f"P{share * 100:g}",
        )
        for share, mark in ((0.5, "p50"), (0.99, "live"))
    ]
    lines = [_line(outcome.slo_s, "slo", "SLO")]
    return _over_time(outcome, "Latency", {"shows": "seconds", "title": "latency"}, series, lines)


def _misses(outcome: Outcome, bin_s: float, allowed: float) -> Chart:
    rates = np.nan_to_num(outcome.miss_rates(bin_s))
    points = [(at * bin_s, float(rate)) for at, rate in enumerate(rates)]
    title = f"events above the SLO, in bins of {bin_s:g} s"
    return _over_time(
        outcome,
        "Events above the SLO",
        {"shows": "percent", "title": title},
        [_series(points, "live", "misses", step=True)],
        [_line(allowed, "slo", "allowed")],
    )


def _envelope(plan: Plan, trace: Trace) -> Chart:
    """Most arrivals in any window, as rates on log axes: the plan's and the run's."""
    windows_s = tuple(window_s for window_s, _ in plan.envelope)
    planned = [(window_s, count / window_s) for window_s, count in plan.envelope]
    seen = [(window_s, count / window_s) for window_s, count in trace_envelope(trace, windows_s)]
    rates = [rate for _, rate in (*planned, *seen) if rate > 0]
    return {
        "label": "Traffic envelope",
        "x": {"range": (min(windows_s), max(windows_s)), "log": True, "shows": "seconds", "title": "window"},
        "y": {"range": (min(rates), max(rates)), "log": True, "shows": "number", "title": "most arrivals per second"},
        "series": [_series(planned, "plan", "plan"), _series(seen, "live", "run")],
    }


def _over_time(outcome: Outcome, label: str, y: Chart, series: Sequence[Chart], lines: Sequence[Chart] = ()) -> Chart:
    values = [value for one in series for _, value in one["points"]] + [line["y"] for line in lines]
    x = {"range": (0.0, outcome.duration_s), "shows": "seconds", "title": "since the first arrival"}
    y = {**y, "range": (0.0, 1.1 * max([value for value in values if value is not None], default=1.0))}
    return {"label": label, "x": x, "y": y, "series": list(series), "lines": list(lines)}


def _series(points: Iterable[tuple[float, float]], mark: str, label: str, *, step: bool = False) -> Chart:
    finite: Points = [(x, y if math.isfinite(y) else None) for x, y in points]
    return {"points": finite, "mark": mark, "label": label, "step": step}


def _line(y: float, mark: str, label: str) -> Chart:
    return {"y": y, "mark": mark, "label": label}


def _mark(row: Row) -> str:
    if row.policy in POLICIES:
        return "dot"
    return "hindsight" if row.policy in (CLAIRVOYANT, INSTANT) else "other"
