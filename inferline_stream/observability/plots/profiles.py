"""What was measured of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferline_stream.observability.plots.canvas import drawing, line_styles
from inferline_stream.pipeline.profile import PipelineProfile


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
