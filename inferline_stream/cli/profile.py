"""`profile`: measure the stages that have no profile yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from inferline_stream.cli.options import Output, Platform, Servers, Topology, check_stages, duration_of
from inferline_stream.cli.output import console, print_json
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.units import format_duration

if TYPE_CHECKING:
    from inferline_stream.pipeline.profile import PipelineProfile

_LEAST_S = 0.1


def profile(
    topology: Topology,
    *,
    stage: Annotated[list[str] | None, typer.Option(help="with --again: only this stage; may be repeated")] = None,
    again: Annotated[bool, typer.Option("--again", help="measure also what has a profile that still holds")] = False,
    time: Annotated[str, typer.Option(help='for one stage on one hardware kind, about, e.g. "10s"')] = "2s",
    bootstrap_servers: Servers = None,
    platform: Platform,
    output: Output = "table",
) -> None:
    """Measure service times, start-up times and paths, and keep them beside the topology.

    Stages are measured on this machine. With --on a cluster, they are measured there, each kind of hardware where it
    is, with what the cluster's network adds to a batch. The sample runs through them on this machine first, and in the
    cluster through those that cannot be built here.
    """
    import uvloop

    from inferline_stream.cli.plan_steps import declared, profiled, profiling_options
    from inferline_stream.cli.platform import check, profiling_cluster
    from inferline_stream.pipeline.shape import shape_of

    check(platform, bootstrap_servers)
    stage_s = duration_of("--time", time)
    if stage_s < _LEAST_S:
        raise UsageError(f"--time {time}: less than 100ms measures nothing")
    what = declared(topology, bootstrap_servers)
    check_stages(stage, what.pipeline)
    names = list(shape_of(what.pipeline).stages)
    stages = frozenset(stage) if stage else None
    options = profiling_options(platform, bootstrap_servers, again=again, stages=stages, stage_s=stage_s)
    cluster = profiling_cluster(platform, bootstrap_servers)
    measured = uvloop.run(profiled(what, options, bootstrap_servers, cluster))
    if output == "json":
        print_json(_document(measured, names))
    else:
        console().print(_table(measured, names))


def _table(measured: PipelineProfile, names: list[str]) -> object:
    caption = f"time between two stages: {format_duration(measured.hop_overhead_s)}"
    if measured.network_s:
        caption += f", {format_duration(measured.network_s)} of it between hosts"
    for of in _results(measured, names):
        counts = f"{of['least']} to {of['most']}, {of['mean']:.2f} in the mean"
        caption += f"\nresults of an event of {of['stage']}: {counts}"
    table = Table("stage", "hardware", title="Profiles", caption=caption)
    for name in ("batch", "mean", "P50", "P99", "events/s", "start-up"):
        table.add_column(name, justify="right")
    for stage in names:
        for kind in measured.hardware_of(stage):
            found = measured.profiles[stage, kind]
            for row, entry in enumerate(found.service_times):
                table.add_row(
                    stage if row == 0 else "",
                    kind if row == 0 else "",
                    str(entry.batch_size),
                    format_duration(entry.mean_s),
                    format_duration(entry.p50_s),
                    format_duration(entry.p99_s),
                    f"{entry.throughput:.1f}",
                    format_duration(found.start_up_s) if row == 0 else "",
                )
            for at_once in found.concurrencies[1:]:
                # Of the batches that serve the most so many at once.
                throughput, size = max((found.throughput(size, at_once), size) for size in found.batch_sizes)
                mean_s = format_duration(found.service_time_s(size, at_once))
                table.add_row("", "", f"{at_once} × {size}", mean_s, "", "", f"{throughput:.1f}", "")
            table.add_section()
    return table


def _document(measured: PipelineProfile, names: list[str]) -> dict[str, Any]:
    profiles = [
        {
            "stage": stage,
            "hardware": kind,
            "start_up_s": measured.profiles[stage, kind].start_up_s,
            "service_times": [
                {name: getattr(entry, name) for name in ("batch_size", "mean_s", "p50_s", "p99_s", "throughput")}
                for entry in measured.profiles[stage, kind].service_times
            ],
            "contention": measured.profiles[stage, kind].contention,
        }
        for stage in names
        for kind in measured.hardware_of(stage)
    ]
    between = {"hop_overhead_s": measured.hop_overhead_s, "network_s": measured.network_s}
    return {"profiles": profiles, "results": _results(measured, names), **between}


def _results(measured: PipelineProfile, names: list[str]) -> list[dict[str, Any]]:
    """How many results an event was given, of each stage that gives many."""
    return [
        {"stage": names[of.stage], "mean": of.mean, "least": of.counts[0], "most": of.counts[-1]}
        for of in measured.paths.fan_outs
    ]
