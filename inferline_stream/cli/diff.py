"""`diff`: what changes from one plan to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from inferline_stream.cli.options import Output, pipeline_of
from inferline_stream.cli.output import console, print_json
from inferline_stream.cli.plan_changes import Budget, Markdown, PlanChanges, check_budget, plan_in
from inferline_stream.errors import UsageError
from inferline_stream.pipeline.hardware import catalogue


def diff(
    before: Annotated[Path, typer.Argument(help="plan as `plan --save` wrote it")],
    after: Annotated[Path, typer.Argument(help="the plan to compare with it")],
    *,
    topology: Annotated[
        Path | None, typer.Option(help="whose hardware kinds and prices count beside the default ones")
    ] = None,
    markdown: Markdown = False,
    budget: Budget = None,
    output: Output = "table",
) -> None:
    """Compare two plans: hardware, batch limits and replicas of every stage, cost, SLO and P99."""
    if markdown and output == "json":
        raise UsageError("--markdown and --output json are two ways to print: leave one of them out")
    extra = () if topology is None else pipeline_of(topology, valid=False, groups=True).hardware
    changes = PlanChanges.between(plan_in(before), plan_in(after), (before.name, after.name), catalogue(extra))
    if output == "json":
        print_json({**msgspec.to_builtins(changes.found), "unchanged": changes.found.unchanged})
    elif markdown:
        typer.echo(changes.markdown(budget), nl=False)
    else:
        console().print(changes.table())
    check_budget(changes.after, budget)
