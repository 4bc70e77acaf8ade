"""`trust`: what was predicted of finished runs beside what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from inferline_stream.cli.options import Output, Topology, pipeline_of, topology_file
from inferline_stream.cli.output import Bar, console, print_json
from inferline_stream.pipeline.units import format_duration

if TYPE_CHECKING:
    from inferline_stream.runs.trust import Trust


def trust(
    topology: Topology,
    *,
    newest: Annotated[int, typer.Option(min=1, help="how many finished runs, the newest ones")] = 10,
    output: Output = "table",
) -> None:
    """Replay finished runs on the traffic that came: predicted P99, cost and late events beside the measured ones."""
    from inferline_stream.runs.trust import trust_of

    name = pipeline_of(topology, valid=False, groups=True).name
    with Bar("replaying") as bar:
        found = trust_of(topology_file(topology).parent, name, newest, bar.show)
    p99_error, cost_error = found.median_of(lambda run: run.p99_error), found.median_of(lambda run: run.cost_error)
    if output == "json":
        document = msgspec.to_builtins(found)
        for run, shown in zip(found.runs, document["runs"], strict=True):
            shown |= {"p99_error": run.p99_error, "cost_error": run.cost_error}
        print_json(document | {"p99_error_median": p99_error, "cost_error_median": cost_error})
        return
    people = console()
    people.print(_table(found))
    for name, reason in found.left_out.items():
        people.print(f"{name} is left out: {reason}", markup=False, highlight=False)
    if p99_error is not None and cost_error is not None:
        worst = max(each.p99_error for each in found.runs)
        people.print(
            f"The median error of the P99 is {p99_error:.0%}, the largest {worst:.0%}; that of the cost is "
            f"{cost_error:.0%}.",
            highlight=False,
        )


def _table(found: Trust) -> Table:
    table = Table("run", title=f"Runs of {found.pipeline}: predicted on the traffic that came → measured")
    for name in ("events", "P99", "error", "$/h", "error", "late"):
        table.add_column(name, justify="right")
    for run in found.runs:
        table.add_row(
            run.run,
            str(run.events),
            f"{format_duration(run.predicted_p99_s)} → {format_duration(run.p99_s)}",
            f"{run.predicted_p99_s / run.p99_s - 1:+.0%}",
            f"{run.predicted_cost_per_hour:.3f} → {run.cost_per_hour:.3f}",
            f"{run.predicted_cost_per_hour / run.cost_per_hour - 1:+.0%}",
            f"{run.predicted_miss_rate:.2%} → {run.miss_rate:.2%}",
        )
    return table
