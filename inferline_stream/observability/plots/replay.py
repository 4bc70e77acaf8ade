"""A policy on a trace, over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from inferline_stream.calculus.envelope import trace_envelope
from inferline_stream.estimator.quantile import quantile_s
from inferline_stream.observability.plots.canvas import BAD, BLUE, QUIET, Target, drawing, line_styles, plain_log
from inferline_stream.pipeline.plan import Plan, replicas_of
from inferline_stream.pipeline.trace import Trace
from inferline_stream.replay.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_S = 600.0
"""Longer traces have their time axis in minutes."""


def draw_replay(
    file: Target,
    outcome: Outcome,
    plan: Plan,
    *,
    objective: float = 0.99,
    title: str | None = None,
    bin_s: float = 15.0,
) -> None:
    """Arrivals, replicas, latency and misses over time, and the traffic envelope against the plan's.

    Args:
        file: where the picture goes.
        outcome: of the replay.
        plan: that it began with.
        objective: share of events that must meet the SLO.
        title: above the picture; the policy, its cost and its misses by default.
        bin_s: of the miss rate, in seconds.

    Raises:
        UsageError: see `canvas.check_file`.
    """
    if title is None:
        cost = f"${outcome.cost_per_hour:.4g}/h"
        title = f"{outcome.policy}: {cost}, {outcome.miss_rate:.2%} above {plan.slo_s * 1e3:g} ms"
    rows = [1.7, 1.9, 1.9, 1.7, 2.4]
    with drawing(file, rows, title=title) as [[rate], [replicas], [latency], [misses], [envelope]]:
        scale, unit = (60.0, "min") if outcome.duration_s > _LONGEST_S else (1.0, "s")
        _arrivals(rate, outcome, plan, scale)
        _replicas(replicas, outcome, plan, scale)
        _latencies(latency, outcome, scale)
        _misses(misses, outcome, bin_s, scale, 1 - objective)
        for axes in (rate, replicas, latency, misses):
            axes.set_xlim(0, outcome.duration_s / scale)
        misses.set_xlabel(f"time [{unit}]")
        _envelope(envelope, plan, Trace(outcome.entry_s))


def _arrivals(axes: Axes, outcome: Outcome, plan: Plan, scale: float) -> None:
    bin_s = max(1.0, outcome.duration_s / 400)
    counts = np.bincount((outcome.entry_s / bin_s).astype(int), minlength=math.ceil(outcome.duration_s / bin_s))
    axes.stairs(counts / bin_s, np.arange(counts.size + 1) * bin_s / scale, color=BLUE, baseline=None)
    axes.axhline(plan.arrival_rate, color=QUIET, linestyle="--", label=f"planned for: {plan.arrival_rate:.3g}/s")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    axes.set_title("arrivals")
    axes.set_ylabel("events per second")
    axes.legend(loc="upper right")


def _replicas(axes: Axes, outcome: Outcome, plan: Plan, scale: float) -> None:
    times = [0.0, *(max(0.0, step.time_s) for step in outcome.steps)]
    times.append(max(outcome.duration_s, times[-1]))
    for stage, look in zip(plan.allocations, line_styles(), strict=False):
        held = [replicas_of(plan.allocations[stage])]
        for step in outcome.steps:
            wanted: Mapping[str, int] | None = step.replicas.get(stage)
            held.append(held[-1] if wanted is None else sum(wanted.values()))
        held.append(held[-1])
        axes.step([time / scale for time in times], held, where="post", label=stage, color=look.colour,
                  linestyle=look.dashes)  # fmt: skip
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.locator_params(axis="y", integer=True)
    axes.set_title("replicas wanted")
    axes.set_ylabel("replicas")
    axes.legend(loc="upper right", ncols=min(4, len(plan.allocations)))


def _latencies(axes: Axes, outcome: Outcome, scale: float) -> None:
    """P50 and P99 of the events that entered in each of a hundred bins; events that never ended count as late."""
    bin_s = max(1.0, outcome.duration_s / 100)
    known = ~np.isnan(outcome.latency_s)
    bins, latency_s = (outcome.entry_s[known] / bin_s).astype(int), outcome.latency_s[known]
    edges = np.searchsorted(bins, np.arange(bins.max(initial=0) + 2))
    filled = [at for at in range(edges.size - 1) if edges[at + 1] > edges[at]]
    middles = [(at + 0.5) * bin_s / scale for at in filled]
    for share, look in zip((0.5, 0.99), line_styles(), strict=False):
        values = [quantile_s(latency_s[edges[at] : edges[at + 1]], share) * 1e3 for at in filled]
        axes.plot(middles, values, label=f"P{share * 100:g}", color=look.colour, linestyle=look.dashes)
    axes.axhline(outcome.slo_s * 1e3, color=BAD, linestyle=":", label=f"SLO: {outcome.slo_s * 1e3:g} ms")
    plain_log(axes, "y")
    axes.set_title("latency")
    axes.set_ylabel("latency [ms]")
    axes.legend(loc="upper right", ncols=3)


def _misses(axes: Axes, outcome: Outcome, bin_s: float, scale: float, allowed: float) -> None:
    rates = outcome.miss_rates(bin_s) * 100
    edges = np.arange(rates.size + 1) * bin_s / scale
    axes.stairs(np.nan_to_num(rates), edges, fill=True, color=BAD, linewidth=0)
    axes.axhline(allowed * 100, color=QUIET, linestyle="--", label=f"allowed: {allowed * 100:.3g} %")
    axes.set_ylim(0, max(2 * allowed * 100, float(np.nanmax(rates, initial=0.0)) * 1.1))
    axes.set_title(f"events above the SLO, in bins of {bin_s:g} s")
    axes.set_ylabel("misses [%]")
    axes.legend(loc="upper right")


def _envelope(axes: Axes, plan: Plan, trace: Trace) -> None:
    """Most arrivals in any window, as rates on log axes: the plan's and the trace's, shaded where that is above."""
    windows_s = tuple(window_s for window_s, _ in plan.envelope)
    planned = [count / window_s for window_s, count in plan.envelope]
    rates = [count / window_s for window_s, count in trace_envelope(trace, windows_s)]
    look = next(line_styles())
    axes.plot(windows_s, planned, color=QUIET, linestyle="--", marker="s", label="the plan's sample")
    axes.plot(windows_s, rates, color=look.colour, marker=look.mark, label="this trace")
    above = [rate > plan_rate for rate, plan_rate in zip(rates, planned, strict=True)]
    axes.fill_between(windows_s, planned, rates, where=above, color=BAD, alpha=0.15, linewidth=0)
    plain_log(axes, "x")
    plain_log(axes, "y")
    axes.set_title("traffic envelope")
    axes.set_xlabel("window [s]")
    axes.set_ylabel("most arrivals per second")
    axes.legend(loc="upper right")
