"""What a plan rests on, the profiles of its stages, and what an SLO costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferline_stream.observability.plots.canvas import INK, LINE, drawing, line_styles
from inferline_stream.pipeline.plan import Plan
from inferline_stream.pipeline.profile import PipelineProfile
from inferline_stream.planner.plan_explanation import CurvePoint


def draw_profiles(file: Path, measured: PipelineProfile, stages: Sequence[str], *, title: str = "") -> None:
    """Throughput and service time by batch size, a row per stage, a line per hardware kind.

    Args:
        file: .png or .svg.
        measured: profiles of every stage.
        stages: in the order of the rows.
        title: above the picture.

    Raises:
        UsageError: see `canvas.check_file`.
    """
    with drawing(file, [1.9] * len(stages), columns=2, title=title) as rows:
        for stage, (throughput, service) in zip(stages, rows, strict=True):
            for kind, look in zip(measured.hardware_of(stage), line_styles(), strict=False):
                times = measured.profiles[stage, kind].service_times
                sizes = [entry.batch_size for entry in times]
                line: dict[str, Any] = {
                    "color": look.colour,
                    "linestyle": look.dashes,
                    "marker": look.mark,
                    "label": kind,
                }
                throughput.plot(sizes, [entry.throughput for entry in times], **line)
                service.plot(sizes, [entry.mean_s * 1e3 for entry in times], **line)
                service.fill_between(
                    sizes,
                    [entry.p50_s * 1e3 for entry in times],
                    [entry.p99_s * 1e3 for entry in times],
                    color=look.colour,
                    alpha=0.15,
                    linewidth=0,
                )
            for axes in (throughput, service):
                every = sorted({e.batch_size for k in measured.hardware_of(stage) for e in
                                measured.profiles[stage, k].service_times})  # fmt: skip
                axes.set_xscale("log", base=2)
                axes.set_xticks(every, [str(size) for size in every])
                axes.minorticks_off()
                axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
            throughput.set_title(stage)
            throughput.set_ylabel("events per second")
            service.set_ylabel("service time [ms]")
            throughput.legend()
        throughput, service = rows[-1]
        throughput.set_xlabel("batch size")
        service.set_xlabel("batch size (band: P50 to P99)")


def draw_cost_curve(
    file: Path, points: Sequence[CurvePoint], name: str, *, title: str = "", chosen: Plan | None = None
) -> None:
    """Dollars per hour of the plan for each SLO.

    Args:
        file: .png or .svg.
        points: by ascending SLO.
        name: of the pipeline.
        title: above the picture.
        chosen: a plan to mark.

    Raises:
        UsageError: see `canvas.check_file`.
    """
    with drawing(file, [3.4], title=title) as [[axes]]:
        look = next(line_styles())
        feasible = [(point.slo_s * 1e3, point.plan.cost_per_hour) for point in points if point.plan is not None]
        slos_ms, costs = [slo_ms for slo_ms, _ in feasible], [cost for _, cost in feasible]
        axes.plot(slos_ms, costs, label=name, color=look.colour, linestyle=look.dashes, marker=look.mark,
                  drawstyle="steps-post")  # fmt: skip
        axes.set_xlim(0, max((p.slo_s * 1e3 for p in points), default=1.0) * 1.03)
        axes.set_ylim(0, max(costs, default=0.0) * 1.15 or 1.0)
        if not slos_ms:
            axes.text(0.5, 0.5, "no plan meets any of these SLOs", ha="center", transform=axes.transAxes)
        elif below := [p.slo_s * 1e3 for p in points if p.plan is None and p.slo_s * 1e3 < slos_ms[0]]:
            axes.axvspan(0, max(below), color=LINE, linewidth=0)
            axes.text(max(below) / 2, 0.04, "no plan\nmeets it", ha="center", transform=axes.get_xaxis_transform())
        if chosen is not None:
            axes.plot(chosen.slo_s * 1e3, chosen.cost_per_hour, marker="*", markersize=13, color=INK, linestyle="none",
                      label=f"the plan: ${chosen.cost_per_hour:.4g}/h", zorder=5)  # fmt: skip
            axes.legend(loc="upper right")
        axes.set_xlabel("SLO on the P99 [ms]")
        axes.set_ylabel("cost [$/h]")
