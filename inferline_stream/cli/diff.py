"""`diff`: what changes from one plan to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from inferline_stream.cli.options import Output, pipeline_of
from inferline_stream.cli.output import console, print_json
from inferline_stream.errors import InvalidFile, UsageError
from inferline_stream.pipeline.hardware import catalogue
from inferline_stream.pipeline.plan import Plan, in_words
from inferline_stream.pipeline.units import format_duration
from inferline_stream.planner.plan_document import plan_from_bytes


def diff(
    before: Annotated[Path, typer.Argument(help="plan as `plan --save` wrote it")],
    after: Annotated[Path, typer.Argument(help="the plan to compare with it")],
    *,
    topology: Annotated[
        Path | None, typer.Option(help="whose hardware kinds and prices count beside the default ones")
    ] = None,
    output: Output = "table",
) -> None:
    """Compare two plans: hardware, batch limits and replicas of every stage, cost, SLO and P99."""
    from inferline_stream.planner.plan_diff import difference

    extra = () if topology is None else pipeline_of(topology, valid=False).hardware
    first, second = _read(before), _read(after)
    try:
        found = difference(first, second, catalogue(extra))
    except KeyError as error:
        raise UsageError(f"hardware {error.args[0]!r} has no price; give --topology, whose hardware it is") from None
    if output == "json":
        print_json({**msgspec.to_builtins(found), "unchanged": found.unchanged})
        return
    table = Table(title=f"{before.name} → {after.name}")
    for name in ("stage", before.name, after.name):
        table.add_column(name)
    table.add_column("$/h", justify="right")
    for stage in found.stages:
        style = "dim" if stage.unchanged else "bold"
        now = "the same" if stage.unchanged else in_words(stage.after) or "–"
        table.add_row(
            stage.stage, in_words(stage.before) or "–", now, f"{stage.cost_change_per_hour:+.4f}", style=style
        )
    table.add_section()
    cost = f"{found.cost_change_per_hour:+.4f}"
    table.add_row("all", f"${first.cost_per_hour:.4f}/h", f"${second.cost_per_hour:.4f}/h", cost)
    slos, p99s = ((first.slo_s, second.slo_s), (first.predicted_p99_s, second.predicted_p99_s))
    table.add_row("SLO", *map(format_duration, slos), "")
    table.add_row("predicted P99", *map(format_duration, p99s), "")
    table.add_row("events/s", f"{first.arrival_rate:.1f}", f"{second.arrival_rate:.1f}", "")
    if (first.reserve, second.reserve) != (None, None):
        reserves = ("by odds" if plan.reserve is None else f"{plan.reserve:g} times" for plan in (first, second))
        table.add_row("reserve", *reserves, "")
    console().print(table)


def _read(file: Path) -> Plan:
    try:
        return plan_from_bytes(file.read_bytes(), str(file))
    except OSError as error:
        raise InvalidFile(f"{file}: cannot be read ({error.strerror}); give a plan written by `plan`") from None
